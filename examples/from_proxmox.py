"""Write pool definitions for the storages of Proxmox VE: from_proxmox.py STORAGE_CFG FOLDER [GUEST]..."""

import sys
from pathlib import Path

import astore


def storages(text: str) -> list[dict[str, str]]:
    """Read storage.cfg: sections of lines ``KEY VALUE``, each below a line ``TYPE: NAME``."""
    found: list[dict[str, str]] = []
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if line[:1].isspace() and key:
            found[-1][key] = value.strip()
        elif key.endswith(":"):
            found.append({"type": key[:-1], "name": value.strip()})
    return found


def pool(storage: dict[str, str], name: str, folder: str) -> astore.PoolDef | None:
    """Make the pool of one folder of a storage; return None for a type whose volumes are not files."""
    hosts = tuple(astore.Host(storage[key]) for key in ("server", "server2") if key in storage)
    match storage["type"]:
        case "dir":
            return astore.PoolDef("dir", name, target=astore.Target(f"{storage['path']}/{folder}"))
        case "glusterfs":
            source = astore.Source(hosts=hosts, name=storage["volume"], directory=f"/{folder}")
            return astore.PoolDef("gluster", name, source=source)
        case "nfs":
            source = astore.Source(hosts=hosts, directory=f"{storage['export']}/{folder}", format="nfs")
            return astore.PoolDef("netfs", name, source=source, target=astore.Target(f"/mnt/astore/{name}"))
        case "cifs":
            source = astore.Source(hosts=hosts, directory=f"{storage['share']}/{folder}", format="cifs")
            return astore.PoolDef("netfs", name, source=source, target=astore.Target(f"/mnt/astore/{name}"))
    return None


def main(config: Path, target: Path, guests: list[str]) -> None:
    target.mkdir(exist_ok=True)
    for storage in storages(config.read_text()):
        content = storage.get("content", "")
        folders = {f"{storage['name']}-{guest}": f"images/{guest}" for guest in guests if "images" in content}
        if "iso" in content:
            folders[f"{storage['name']}-iso"] = "template/iso"
        for name, folder in folders.items():
            definition = pool(storage, name, folder)
            if definition is None:
                print(f"{name}: Proxmox's type {storage['type']} is left out")
            else:
                (target / f"{name}.xml").write_text(definition.to_xml())


main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
