"""Name the pool, the monitors and the images for librados, for libvirt, for QEMU, and in the headers of images."""

from __future__ import annotations

import re
import secrets

import msgspec

from astore.backend import DiskHost, DiskSource, QemuNode
from astore.model import Host, PoolDef, VolumeInfo

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

_OWN_SNAPSHOT = re.compile(r"astore-[0-9a-f]{16}")


def place_of(definition: PoolDef) -> tuple[str, str]:
    """Return the names of the pool and of the namespace in it (``""``: none): the source's name is POOL[/NAMESPACE]."""
    pool, _, namespace = (definition.source.name or "").partition("/")
    return pool, namespace


def key_of(definition_name: str, image: str) -> str:
    """Return an image's key and path: libvirt's POOL[/NAMESPACE]/IMAGE."""
    return f"{definition_name}/{image}"


def new_snapshot_name() -> str:
    """Return a name for a snapshot that this plugin makes for one clone, and that goes with it."""
    return f"astore-{secrets.token_hex(8)}"


def is_own_snapshot(name: str) -> bool:
    """Return whether a snapshot is one that this plugin made for a clone. Others belong to somebody who wants to keep them."""
    return _OWN_SNAPSHOT.fullmatch(name) is not None


def monitors(definition: PoolDef) -> str:
    """Return the monitors as librados's option ``mon_host`` wants them."""
    return ",".join(_address(host) for host in definition.source.hosts)


def _address(host: Host) -> str:
    name = f"[{host.name}]" if ":" in host.name else host.name
    return name if host.port is None else f"{name}:{host.port}"


def disk_source(definition: PoolDef, volume: VolumeInfo) -> DiskSource:
    """Return the source of a domain's disk, with all monitors and the user with the name of its secret."""
    hosts = tuple(DiskHost(host.name, host.port) for host in definition.source.hosts)
    auth = definition.source.auth
    if auth is not None:
        auth = msgspec.structs.replace(auth, secret_type="ceph")  # noqa: S106 - a kind of secret
    return DiskSource("rbd", key_of(definition.source.name or "", volume.name), hosts, auth)


def blockdev(definition: PoolDef, volume: VolumeInfo) -> QemuNode:
    """Return BlockdevOptionsRbd of QEMU's QMP reference. The key is not in it: QEMU takes it from a secret object."""
    pool, namespace = place_of(definition)
    auth = definition.source.auth
    node: QemuNode = {
        "driver": "rbd",
        "pool": pool,
        "image": volume.name,
        "server": [{"host": host.name, "port": str(host.port or 6789)} for host in definition.source.hosts],
        "auth-client-required": ["none" if auth is None else "cephx"],
    }
    if namespace:
        node["namespace"] = namespace
    if auth is not None:
        node["user"] = auth.username
    return node


def location_of(pool: str, namespace: str, image: str, snapshot: str | None = None) -> str:
    """Return QEMU's name of an image or of its snapshot: ``rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]``."""
    where = "/".join(_quoted(part) for part in (pool, namespace, image) if part)
    return f"rbd:{where}" + (f"@{_quoted(snapshot)}" if snapshot else "")


def _quoted(name: str) -> str:
    return re.sub(r"([\\:@/])", r"\\\1", name)


def volume_named(definition: PoolDef, location: str) -> str | None:
    """Return the image that a key, or QEMU's name for an image, means in this pool; else None.

    QEMU's names are ``rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:OPTION=VALUE…]``.
    A name without monitors means the cluster of the machine's own ceph.conf, which may be this pool's. So does not count as
    another cluster.
    """
    if not location.startswith("rbd:"):
        head, name = key_of(definition.source.name or "", ""), location.rpartition("/")[2]
        return name if name and location == head + name else None
    where, *options = _split(location[4:], ":")
    parts = [_plain(part) for part in _split(_split(where, "@")[0], "/")]
    if parts[:-1] != [part for part in place_of(definition) if part] or not parts[-1]:
        return None
    for option in options:
        name, _, value = option.partition("=")
        if name in ("mon_host", "mon-host", "mon host") and _hosts_in(_plain(value)).isdisjoint(
            host.name for host in definition.source.hosts
        ):
            return None
    return parts[-1]


def _split(text: str, separator: str) -> list[str]:
    """Split a text at a character that no backslash precedes."""
    parts, start = [], 0
    for match in re.finditer(rf"\\.|{re.escape(separator)}", text, re.DOTALL):
        if match[0] == separator:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def _plain(text: str) -> str:
    return _ESCAPED.sub(r"\1", text)


def _hosts_in(value: str) -> set[str]:
    """Return the names and addresses in an option ``mon_host``, without ports."""
    found = set()
    for one in re.split(r"[;, ]+", value):
        match = re.fullmatch(r"\[?(.*?)\]?(?::\d+)?", one)
        if match is not None and match[1]:
            found.add(match[1])
    return found
