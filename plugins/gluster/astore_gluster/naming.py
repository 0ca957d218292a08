"""Name the volumes of a Gluster pool for libvirt, for QEMU, and in the headers of images."""

from __future__ import annotations

from astore.backend import DiskHost, DiskSource, QemuNode
from astore.model import Host, PoolDef, VolumeInfo
from astore_gluster.servers import DEFAULT_PORT
from astore_gluster.uri import parts_in


def disk_source(definition: PoolDef, volume: VolumeInfo) -> DiskSource:
    """Return the source of a domain's disk: ``VOLUME/path``, and all hosts."""
    hosts = tuple(
        DiskHost(socket=host.name, transport="unix")
        if host.name.startswith("/")
        else DiskHost(host.name, host.port or DEFAULT_PORT)
        for host in definition.source.hosts
    )
    return DiskSource("gluster", f"{definition.source.name}/{_path(definition, volume.name)}", hosts)


def blockdev(definition: PoolDef, volume: VolumeInfo) -> QemuNode:
    """Return BlockdevOptionsGluster of QEMU's QMP reference."""
    return {
        "driver": "gluster",
        "volume": definition.source.name,
        "path": _path(definition, volume.name),
        "server": [_server(host) for host in definition.source.hosts],
    }


def volume_named(definition: PoolDef, location: str) -> str | None:
    """Return the name of the entry of the pool's folder that a URL names, on any of the pool's hosts; else None."""
    source = definition.source
    *folder, name = parts_in(location, source.name, {host.name for host in source.hosts}) or ("",)
    return name if name and folder == _folder(definition) else None


def _server(host: Host) -> QemuNode:
    if host.name.startswith("/"):
        return {"type": "unix", "path": host.name}
    return {"type": "inet", "host": host.name, "port": str(host.port or DEFAULT_PORT)}


def _path(definition: PoolDef, name: str) -> str:
    return "/".join((*_folder(definition), name))


def _folder(definition: PoolDef) -> list[str]:
    return [part for part in (definition.source.directory or "").split("/") if part not in ("", ".")]
