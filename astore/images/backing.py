"""What a backing file's name means: relative names, protocols, QEMU's ``json:`` and ``gluster://``."""

from __future__ import annotations

import json
import posixpath
import re
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import msgspec

from astore.images.errors import ImageError

LONGEST_NAME = 65_536
DEEPEST_JSON = 32
_PROTOCOL = re.compile(r"[^/]*:")
_URL_DRIVERS = {"http", "https", "ftp", "ftps", "tftp"}


class GlusterLocation(msgspec.Struct, frozen=True):
    """``gluster[+transport]://host[:port]/volume/path[?socket=…]``."""

    volume: str
    path: str
    transport: str = "tcp"
    host: str | None = None
    port: int | None = None
    socket: str | None = None


def resolve_backing(name: str, volume_path: str) -> str | None:
    """Where a backing file is: an absolute path, or a URL; None if it cannot be told.

    :param name: as the image's header has it. :param volume_path: the image's own path, or its ``gluster://`` URL.
    :raises ImageError: the name is malformed.
    """
    if len(name) > LONGEST_NAME:
        raise ImageError(f"a backing name of {len(name)} characters is too long")
    if name.startswith("json:"):
        return _from_json(name[5:], volume_path)
    if name.startswith("file:"):
        name = name[5:]
        if name.startswith("//"):
            # file:///path, and file://localhost/path
            name = "/" + name[2:].partition("/")[2]
    elif _PROTOCOL.match(name):
        return name
    return beside(name, volume_path)


def beside(name: str, volume_path: str) -> str | None:
    """A plain name, seen from an image's folder. ``.`` and ``..`` are taken out by the letter, as for a URL."""
    if not name or "\0" in name:
        return None
    if name.startswith("/"):
        return name
    if "://" in volume_path:
        scheme, _, rest = volume_path.partition("://")
        host, _, path = rest.partition("/")
        joined = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), quote(name)))
        return f"{scheme}://{host}{joined}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(volume_path), name))


def parse_gluster_uri(uri: str) -> GlusterLocation:
    """Take a Gluster URI apart. :raises ImageError: it is none."""
    try:
        parts = urlsplit(uri)
        port, host = parts.port, parts.hostname
        query = parse_qs(parts.query)
    except ValueError as error:
        raise ImageError(f"{uri[:200]!r} is no URI: {error}") from None
    protocol, _, transport = parts.scheme.partition("+")
    if protocol != "gluster" or transport not in ("", "tcp", "unix", "rdma"):
        raise ImageError(f"{uri[:200]!r} is no Gluster URI")
    volume, _, path = unquote(parts.path).lstrip("/").partition("/")
    if not volume or not path:
        raise ImageError(f"{uri[:200]!r} names no volume and file")
    socket = query.get("socket", [None])[0]
    if (transport == "unix") != (socket is not None):
        raise ImageError(f"{uri[:200]!r}: a socket belongs to the transport unix, and to no other")
    return GlusterLocation(volume, path, transport or "tcp", host, port, socket)


# --------------------------------------------------------------------------------------------------- QEMU's json:


def _from_json(text: str, volume_path: str) -> str | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ImageError("a backing name says json: and is none") from None
    if not isinstance(value, dict):
        raise ImageError("a backing name's json: is no object")
    return _from_node(_nested(value), volume_path, 0)


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """``{"file.driver": …}`` as ``{"file": {"driver": …}}``."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        node = tree
        *parents, last = key.split(".")
        if len(parents) > DEEPEST_JSON:
            raise ImageError("a backing name's json: is nested too deep")
        for parent in parents:
            below = node.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ImageError(f"a backing name's json: has {parent!r} twice")
            node = below
        if isinstance(value, dict) and isinstance(node.get(last), dict):
            node[last].update(value)
        else:
            node[last] = value
    return tree


def _from_node(node: dict[str, Any], volume_path: str, depth: int) -> str | None:
    """One node of QEMU's block graph (qapi/block-core.json, BlockdevOptions)."""
    if depth > DEEPEST_JSON:
        raise ImageError("a backing name's json: is nested too deep")
    below = node.get("file")
    if isinstance(below, dict):
        return _from_node(below, volume_path, depth + 1)
    driver = _text(node, "driver")
    filename = _text(node, "filename")
    if driver is None and filename is not None:
        return resolve_backing(filename, volume_path) if not filename.startswith("json:") else None
    if driver in ("file", "host_device", "host_cdrom"):
        return None if filename is None else beside(filename, volume_path)
    if driver in _URL_DRIVERS:
        return _text(node, "url") or filename
    describe = _DRIVERS.get(driver or "")
    if describe is None:
        return filename
    return describe(node)


def _gluster(node: dict[str, Any]) -> str | None:
    volume, path = _text(node, "volume"), _text(node, "path")
    servers = node.get("server")
    server = (
        servers[0] if isinstance(servers, list) and servers else servers.get("0") if isinstance(servers, dict) else None
    )
    if volume is None or path is None or not isinstance(server, dict):
        return _text(node, "filename")
    where = quote(f"/{volume}/{path.lstrip('/')}")
    socket = _text(server, "path") or _text(server, "socket")
    if _text(server, "type") == "unix" and socket is not None:
        return f"gluster+unix://{where}?socket={quote(socket, safe='/')}"
    return f"gluster://{_address(server)}{where}"


def _nbd(node: dict[str, Any]) -> str | None:
    server = node.get("server") if isinstance(node.get("server"), dict) else node
    export = quote(_text(node, "export") or "")
    socket = _text(server, "path")
    if socket is not None:
        return f"nbd+unix:///{export}?socket={quote(socket, safe='/')}"
    return f"nbd://{_address(server)}/{export}"


def _rbd(node: dict[str, Any]) -> str | None:
    pool, image = _text(node, "pool"), _text(node, "image")
    if pool is None or image is None:
        return _text(node, "filename")
    snapshot = _text(node, "snapshot")
    return f"rbd:{pool}/{image}" + (f"@{snapshot}" if snapshot else "")


def _iscsi(node: dict[str, Any]) -> str | None:
    portal, target = _text(node, "portal"), _text(node, "target")
    if portal is None or target is None:
        return _text(node, "filename")
    return f"iscsi://{portal}/{target}/{_text(node, 'lun') or '0'}"


def _ssh(node: dict[str, Any]) -> str | None:
    server = node.get("server") if isinstance(node.get("server"), dict) else node
    user, path = _text(node, "user"), _text(node, "path")
    who = f"{quote(user)}@" if user else ""
    return None if path is None else f"ssh://{who}{_address(server)}/{quote(path.lstrip('/'))}"


def _sheepdog(node: dict[str, Any]) -> str | None:
    vdi = _text(node, "vdi")
    return None if vdi is None else f"sheepdog:{vdi}"


def _nfs(node: dict[str, Any]) -> str | None:
    path = _text(node, "path")
    return None if path is None else f"nfs://{_address(node.get('server'))}/{quote(path.lstrip('/'))}"


def _nvme(node: dict[str, Any]) -> str | None:
    device = _text(node, "device")
    return None if device is None else f"nvme://{device}/{_text(node, 'namespace') or '1'}"


_DRIVERS = {
    "gluster": _gluster,
    "nbd": _nbd,
    "rbd": _rbd,
    "iscsi": _iscsi,
    "ssh": _ssh,
    "sheepdog": _sheepdog,
    "nfs": _nfs,
    "nvme": _nvme,
}


def _text(node: Any, key: str) -> str | None:
    value = node.get(key) if isinstance(node, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    return str(value) or None


def _address(server: Any) -> str:
    host, port = _text(server, "host") or "", _text(server, "port")
    if ":" in host:
        host = f"[{host}]"
    return f"{host}:{port}" if port else host
