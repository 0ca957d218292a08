"""Read the ``<source>`` of a ``<pool>``, by the rules of libvirt 9.0.

(storage_conf.c, storage_adapter_conf.c and storage_source_conf.c.) Everything is read and must be valid; then the parts
that the pool's type does not use are dropped.
"""

from __future__ import annotations

import re

import msgspec

from astore.errors import LibvirtCode
from astore.model import Adapter, Auth, Device, FreeExtent, Host, PciAddress, Source
from astore.names import normal_path
from astore.xml.known_types import AUTH_TYPES, POOL_TYPES
from astore.xml.reading import (
    Element,
    all_of,
    attribute,
    choice,
    integer,
    safe,
    secret_of,
    string_of,
    wrong,
    yes_no,
)

# the parts that the source of each type has, and must have (storage_conf.c, poolTypeInfo)
NAMED = frozenset({"logical", "rbd", "sheepdog", "gluster", "zfs", "vstorage"})
_HOSTED = frozenset({"netfs", "iscsi", "iscsi-direct", "rbd", "sheepdog", "gluster"})
_WITH_DEVICES = frozenset({"logical", "fs", "iscsi", "iscsi-direct", "disk", "zfs"})
NO_TARGET = frozenset({"rbd", "sheepdog", "gluster", "iscsi-direct"})
_ONLY_DEVICES = frozenset({"fs", "disk"})
_WITH_DIRECTORY = frozenset({"netfs", "gluster"})
_WITH_INITIATOR = frozenset({"iscsi", "iscsi-direct"})

FORMATS: dict[str, tuple[str, ...]] = {
    "fs": (
        "auto",
        "ext2",
        "ext3",
        "ext4",
        "ufs",
        "iso9660",
        "udf",
        "gfs",
        "gfs2",
        "vfat",
        "hfs+",
        "xfs",
        "ocfs2",
        "vmfs",
    ),
    "netfs": ("auto", "nfs", "glusterfs", "cifs"),
    "disk": ("unknown", "dos", "dvh", "gpt", "mac", "bsd", "pc98", "sun", "lvm2"),
    "logical": ("unknown", "lvm2"),
}
"""The formats of a source, for the types that have any; in libvirt's order."""

DEFAULT_FORMATS = {"fs": "auto", "netfs": "auto", "disk": "unknown", "logical": "lvm2"}
_UNSUPPORTED = LibvirtCode.CONFIG_UNSUPPORTED
_WWN = "(0x)?[0-9a-fA-F]{16}"


def source_of(root: Element, type_: str) -> Source:
    """Read the source of a pool. A type that libvirt does not know keeps all parts.

    :raises DefinitionError: a part is invalid or missing.
    """
    element = root.find("source")
    if element is None or not len(element):  # as of a dir pool
        source = Source(format=DEFAULT_FORMATS.get(type_))
    else:
        format_ = read_format(element, type_)
        directory = string_of(element, "./dir/@path")
        source = Source(
            hosts=tuple(read_host(host) for host in all_of(element, "./host")),
            devices=tuple(_device(device) for device in all_of(element, "./device")),
            directory=None if directory is None else normal_path(directory),
            adapter=_adapter(element.find("adapter")),
            name=string_of(element, "./name"),
            initiator=string_of(element, "./initiator/iqn/@name"),
            format=format_,
            auth=_auth(element.find("auth")),
            protocol_version=_protocol(element, type_, format_),
            vendor=string_of(element, "./vendor/@name"),
            product=string_of(element, "./product/@name"),
        )
    return _of_type(source, type_, root if element is None else element) if type_ in POOL_TYPES else source


def _of_type(source: Source, type_: str, element: Element) -> Source:
    """Return the parts of a source that its type uses."""
    if type_ in _HOSTED and not source.hosts:
        raise wrong(element, f"a {type_} pool needs a source host")
    if type_ in _ONLY_DEVICES and not source.devices:
        raise wrong(element, f"a {type_} pool needs a source device")
    if type_ == "netfs" and source.directory is None:
        raise wrong(element, "a netfs pool needs a source dir")
    if type_ == "rbd" and source.name is None:
        raise wrong(element, "an rbd pool needs a source name")
    if type_ == "iscsi-direct" and source.initiator is None:
        raise wrong(element, "an iscsi-direct pool needs an initiator", _UNSUPPORTED)
    directory = source.directory
    if type_ == "gluster":
        if source.name is not None and "/" in source.name:
            raise wrong(element, f"a Gluster volume's name has no '/': {source.name!r}")
        directory = directory or "/"
        if not directory.startswith("/"):
            raise wrong(element, f"the source dir {directory!r} must begin with '/'")
    if type_ == "scsi":
        _check_adapter(source.adapter, element)
    return msgspec.structs.replace(
        source,
        hosts=source.hosts if type_ in _HOSTED else (),
        devices=source.devices if type_ in _WITH_DEVICES else (),
        directory=directory if type_ in _WITH_DIRECTORY else None,
        adapter=source.adapter if type_ == "scsi" else None,
        name=source.name if type_ in NAMED else None,
        initiator=source.initiator if type_ in _WITH_INITIATOR else None,
        format=source.format if type_ in FORMATS else None,
    )


def read_format(element: Element, type_: str) -> str | None:
    """Read the source's format, or its type's default. :raises DefinitionError: the type has no such format."""
    format_ = string_of(element, "./format/@type")
    if type_ not in FORMATS:
        return format_
    place = element.find("format")
    place = element if place is None else place
    return choice(place, format_, "format", FORMATS[type_], _UNSUPPORTED) or DEFAULT_FORMATS[type_]


def read_host(element: Element) -> Host:
    """Read one of the source's hosts. :raises DefinitionError: it has no name, or no valid port."""
    name, port = element.get("name"), element.get("port")
    if name is None:
        raise wrong(element, "it has no attribute 'name'")
    number = None if port is None else integer(element, port, "port", most=65_535)
    return Host(safe(name), number or None)


def _protocol(source: Element, type_: str, format_: str | None) -> str | None:
    version = string_of(source, "./protocol/@ver")
    if version is None:
        return None
    element = source.find("protocol")
    assert element is not None
    # libvirt compares the formats' numbers: nfs and auto for netfs, the first two for other types
    if type_ in FORMATS and format_ not in FORMATS[type_][:2]:
        raise wrong(element, f"a protocol version belongs to the formats nfs and auto, not to {format_}", _UNSUPPORTED)
    if "," in version or any(ord(c) < 33 for c in version):
        raise wrong(element, f"{version!r} is not a protocol version", LibvirtCode.XML_DETAIL)
    return version


def _device(element: Element) -> Device:
    path = element.get("path")
    if path is None:
        raise wrong(element, "it has no attribute 'path'")
    extents = tuple(
        FreeExtent(
            integer(extent, attribute(extent, "start"), "start"),
            integer(extent, attribute(extent, "end"), "end"),
        )
        for extent in element.findall("freeExtent")
    )
    return Device(path, yes_no(element, "part_separator"), extents)


def _adapter(element: Element | None) -> Adapter | None:
    if element is None:
        return None
    type_, name = element.get("type"), element.get("name")
    if type_ is None:
        # an adapter without a type is a scsi_host, of which only the name may be given
        if any(element.get(other) is not None for other in ("wwnn", "wwpn", "parent")):
            raise wrong(element, "an adapter with wwnn, wwpn or parent must have the type fc_host")
        if element.find("parentaddr") is not None:
            raise wrong(element, "an adapter with a parentaddr must have the type scsi_host")
        return None if name is None else Adapter("scsi_host", name)
    choice(element, type_, "adapter type", ("scsi_host", "fc_host"))
    if type_ == "fc_host":
        return Adapter(
            type=type_,
            parent=element.get("parent"),
            parent_wwnn=element.get("parent_wwnn"),
            parent_wwpn=element.get("parent_wwpn"),
            parent_fabric_wwn=element.get("parent_fabric_wwn"),
            managed=yes_no(element, "managed"),
            wwnn=element.get("wwnn"),
            wwpn=element.get("wwpn"),
        )
    parent = element.find("parentaddr")
    if parent is None:
        return Adapter(type_, name)
    found = all_of(element, "./parentaddr/address")
    if not found:
        raise wrong(parent, "it has no <address>")
    unique_id = string_of(element, "./parentaddr/@unique_id")
    return Adapter(
        type_,
        name,
        parent_address=_pci_address(found[0]),
        unique_id=integer(parent, unique_id, "unique_id", most=(1 << 31) - 1),
    )


def _pci_address(element: Element) -> PciAddress:
    choice(element, element.get("multifunction"), "multifunction", ("on", "off"))
    most = {"domain": 0xFFFFFFFF, "bus": 0xFF, "slot": 0x1F, "function": 7}
    return PciAddress(**{n: integer(element, element.get(n, "0"), n, base=0, most=m) for n, m in most.items()})


def _check_adapter(adapter: Adapter | None, element: Element) -> None:
    if adapter is None:
        raise wrong(element, "a scsi pool needs a source adapter")
    element = next(element.iter("adapter"), element)
    if adapter.type == "scsi_host":
        if adapter.name is None and adapter.parent_address is None:
            raise wrong(element, "a scsi_host needs a name or a parentaddr")
        if adapter.name is not None and adapter.parent_address is not None:
            raise wrong(element, "a scsi_host has a name or a parentaddr, not both")
        return
    parents = {"parent_wwnn": adapter.parent_wwnn, "parent_wwpn": adapter.parent_wwpn}
    if list(parents.values()).count(None) == 1:
        raise wrong(element, "parent_wwnn and parent_wwpn belong together")
    parents["parent_fabric_wwn"] = adapter.parent_fabric_wwn
    if adapter.wwnn is None or adapter.wwpn is None:
        raise wrong(element, "an fc_host needs a wwnn and a wwpn")
    for name, value in {"wwnn": adapter.wwnn, "wwpn": adapter.wwpn, **parents}.items():
        if value is not None and not re.fullmatch(_WWN, value):
            raise wrong(element, f"an fc_host's {name} has 16 hexadecimal digits", LibvirtCode.INTERNAL_ERROR)


def _auth(element: Element | None) -> Auth | None:
    if element is None:
        return None
    username = string_of(element, "./@username")
    if username is None:
        raise wrong(element, "it has no attribute 'username'")
    type_ = choice(element, element.get("type"), "type", AUTH_TYPES, _UNSUPPORTED)
    secret = element.find("secret")
    if secret is None:
        raise wrong(element, "it has no <secret>")
    uuid, usage = secret_of(secret)
    if type_ is None:
        raise wrong(element, "it has no attribute 'type'", _UNSUPPORTED)
    return Auth(type_, username, uuid, usage, secret.get("type"))
