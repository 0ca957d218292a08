"""Name the volumes of an iSCSI pool as libvirt does, and for QEMU."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

import msgspec

from astore.backend import DiskHost, DiskSource, QemuNode
from astore.model import PoolDef, VolumeInfo
from astore_iscsi.portals import Portal, parse_portal, portals_of

PREFIX: Final = "unit:0:0:"
"""What comes before the number of a unit in its volume's name."""

_NAME = re.compile(re.escape(PREFIX) + r"(0|[1-9][0-9]{0,4})")
_KEY = re.compile(r"ip-(?P<portal>\S+)-iscsi-(?P<target>\S+)-lun-(?P<lun>[0-9]{1,5})")
_URL = re.compile(
    r"iscsi://(?:[^/@]*@)?(?P<portal>\[[^\]/]+\](?::[0-9]+)?|[^/@\[]+)/(?P<target>[^/?#]+)/(?P<lun>[0-9]{1,5})"
)

LONGEST = 4096
"""The longest text that is looked at, in characters."""


def lun_named(name: str) -> int | None:
    """Return the number of the unit with this name; None if none can have it."""
    found = _NAME.fullmatch(name)
    lun = None if found is None else int(found[1])
    return lun if lun is not None and lun < 1 << 16 else None


def key_of(portal: Portal, target: str, name: str) -> str:
    """Return libvirt's key and path of a volume."""
    return f"ip-{portal}-iscsi-{target}-lun-{name.removeprefix(PREFIX)}"


def disk_source(definition: PoolDef, volume: VolumeInfo) -> DiskSource:
    """Return the source of a domain's disk. libvirt takes one host."""
    source = definition.source
    portal = portals_of(source.hosts)[0]
    auth = source.auth
    return DiskSource(
        "iscsi",
        f"{_target(definition)}/{_lun(volume)}",
        (DiskHost(portal.host, portal.port),),
        None if auth is None else msgspec.structs.replace(auth, type="iscsi", secret_type=None),
        source.initiator,
    )


def blockdev(definition: PoolDef, volume: VolumeInfo) -> QemuNode:
    """Return BlockdevOptionsIscsi of QEMU's QMP reference. For CHAP add ``user`` and ``password-secret``."""
    node: QemuNode = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": str(portals_of(definition.source.hosts)[0]),
        "target": _target(definition),
        "lun": _lun(volume),
    }
    if definition.source.initiator:
        node["initiator-name"] = definition.source.initiator
    return node


def volume_named(definition: PoolDef, location: str) -> str | None:
    """Return the name of the volume that a URL, or libvirt's key, means at any of the pool's portals; else None."""
    if len(location) > LONGEST:
        return None
    found = _URL.fullmatch(location) or _KEY.fullmatch(location)
    if found is None:
        return None
    portal = parse_portal(unquote(found["portal"]))
    known = {Portal(one.host.lower(), one.port) for one in portals_of(definition.source.hosts)}
    if portal not in known or unquote(found["target"]).lower() != _target(definition) or int(found["lun"]) >= 1 << 16:
        return None
    return f"{PREFIX}{int(found['lun'])}"


def _target(definition: PoolDef) -> str:
    return definition.source.devices[0].path


def _lun(volume: VolumeInfo) -> int:
    return int(volume.name.removeprefix(PREFIX))
