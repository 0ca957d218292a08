"""``<pool>`` documents."""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from astore.errors import DefinitionError
from astore.model import (
    Adapter,
    Auth,
    Device,
    FreeExtent,
    Host,
    PciAddress,
    PoolDef,
    PoolInfo,
    Source,
    Target,
)
from astore.names import check_mount_option, check_path, check_pool_name, check_uuid, normal_path
from astore.xml.reading import (
    Element,
    add,
    add_permissions,
    attribute,
    child,
    choice,
    integer,
    parse,
    permissions_of,
    render,
    safe,
    text_of,
    wrong,
    yes_no,
)

POOL_TYPES = (
    "dir",
    "fs",
    "netfs",
    "logical",
    "disk",
    "iscsi",
    "iscsi-direct",
    "scsi",
    "mpath",
    "rbd",
    "sheepdog",
    "gluster",
    "zfs",
    "vstorage",
)
"""libvirt 9.0's."""

FS_NAMESPACE = "http://libvirt.org/schemas/storagepool/fs/1.0"
RBD_NAMESPACE = "http://libvirt.org/schemas/storagepool/rbd/1.0"

# storage_conf.c, poolTypeInfo: what each type's source must have, and whether it has a target
_NAMED = frozenset({"logical", "rbd", "sheepdog", "gluster", "zfs", "vstorage"})
_HOSTED = frozenset({"netfs", "iscsi", "iscsi-direct", "rbd", "sheepdog", "gluster"})
_ONE_DEVICE = frozenset({"iscsi", "iscsi-direct"})
_SOME_DEVICE = frozenset({"fs", "disk"})
_NO_TARGET = frozenset({"rbd", "sheepdog", "gluster", "iscsi-direct"})
_FORMATS: dict[str, tuple[str, ...]] = {
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
_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def pool_from_xml(text: str | bytes) -> PoolDef:
    """Read a ``<pool>`` document; see :meth:`astore.PoolDef.from_xml`."""
    root = parse(text, "pool")
    type_ = attribute(root, "type", required=True) or ""
    if not _TYPE.fullmatch(type_):
        raise wrong(root, f"{type_!r} is no pool type")
    known = type_ in POOL_TYPES
    source_element = child(root, "source")
    source = _source(source_element, type_)
    name = text_of(root, "name")
    if name is None and type_ in _NAMED:
        name = source.name
    if name is None:
        raise wrong(root, "the pool has no name")
    _at(root.find("name"), check_pool_name, name)
    if source.name is None and type_ in _NAMED:
        source = _with(source, name=name)
    uuid = text_of(root, "uuid")
    if uuid is not None:
        uuid = _at(root.find("uuid"), check_uuid, uuid)
    if known:
        source = _checked_source(source, source_element if source_element is not None else root, type_)
    cow = child(root, "features", "cow")
    if cow is not None and known and type_ not in ("fs", "dir"):
        raise wrong(cow, f"a {type_} pool does not have the feature cow")
    if cow is not None:
        choice(cow, attribute(cow, "state", required=True), "state", ("yes", "no"))
    volume = child(root, "refresh", "volume")
    options, config, foreign = _namespaced(root, type_)
    return PoolDef(
        type=type_,
        name=name,
        uuid=uuid,
        source=source,
        target=_target(root, type_, source),
        features_cow=yes_no(cow, "state"),
        refresh_allocation=None
        if volume is None
        else choice(volume, attribute(volume, "allocation"), "allocation", ("default", "capacity")),
        mount_options=options,
        config_options=config,
        foreign=foreign,
    )


def _source(element: Element | None, type_: str) -> Source:
    if element is None:
        return Source()
    hosts = []
    for host in element.findall("host"):
        name = attribute(host, "name", required=True) or ""
        port = attribute(host, "port")
        hosts.append(Host(safe(name), None if port is None else integer(host, port, "port", least=1, most=65_535)))
    directory = attribute(child(element, "dir"), "path")
    format_element = child(element, "format")
    formats = _FORMATS.get(type_, ())
    format_ = attribute(format_element, "type")
    if formats:
        if format_element is not None:
            choice(format_element, format_, "format", formats)
        format_ = format_ or formats[0]
    protocol = child(element, "protocol")
    initiator = child(element, "initiator", "iqn")
    return Source(
        hosts=tuple(hosts),
        devices=tuple(_device(device) for device in element.findall("device")),
        directory=None if directory is None else normal_path(directory),
        adapter=_adapter(child(element, "adapter")),
        name=text_of(element, "name"),
        initiator=attribute(initiator, "name"),
        format=format_,
        auth=_auth(child(element, "auth")),
        protocol_version=_protocol(protocol, type_, format_),
        vendor=attribute(child(element, "vendor"), "name"),
        product=attribute(child(element, "product"), "name"),
    )


def _protocol(element: Element | None, type_: str, format_: str | None) -> str | None:
    version = attribute(element, "ver")
    if element is None or version is None:
        return None
    if type_ == "netfs" and format_ not in ("nfs", "auto"):
        raise wrong(element, f"a protocol version belongs to the formats nfs and auto, not to {format_}")
    if "," in version or any(ord(c) < 33 for c in version):
        raise wrong(element, f"{version!r} is no protocol version")
    return version


def _device(element: Element) -> Device:
    path = attribute(element, "path", required=True) or ""
    extents = tuple(
        FreeExtent(
            integer(extent, attribute(extent, "start", required=True), "start"),
            integer(extent, attribute(extent, "end", required=True), "end"),
        )
        for extent in element.findall("freeExtent")
    )
    return Device(normal_path(path), yes_no(element, "part_separator"), extents)


def _adapter(element: Element | None) -> Adapter | None:
    if element is None:
        return None
    type_ = attribute(element, "type")
    name = attribute(element, "name")
    if type_ is None:
        # before there were types, the name alone meant a scsi_host, and nothing else was allowed beside it
        if attribute(element, "wwnn") or attribute(element, "wwpn") or attribute(element, "parent"):
            raise wrong(element, "an adapter with wwnn, wwpn or parent must have the type fc_host")
        type_ = "scsi_host"
    choice(element, type_, "adapter type", ("scsi_host", "fc_host"))
    address = None
    parent = child(element, "parentaddr")
    pci = child(parent, "address")
    if pci is not None:
        part = {n: integer(pci, attribute(pci, n) or "0", n, base=0, most=0xFFFF) for n in PciAddress.__struct_fields__}
        address = PciAddress(**part)
    unique = attribute(parent, "unique_id")
    if type_ == "fc_host":
        for needed in ("wwnn", "wwpn"):
            if not re.fullmatch("[0-9a-fA-F]{16}", attribute(element, needed) or ""):
                raise wrong(element, f"an fc_host needs a {needed} of 16 hexadecimal digits")
    elif name is None and address is None:
        raise wrong(element, "a scsi_host needs a name or a parentaddr")
    elif name is not None and parent is not None:
        raise wrong(element, "a scsi_host has a name or a parentaddr, not both")
    return Adapter(
        type=type_,
        name=name,
        parent=attribute(element, "parent"),
        parent_wwnn=attribute(element, "parent_wwnn"),
        parent_wwpn=attribute(element, "parent_wwpn"),
        parent_fabric_wwn=attribute(element, "parent_fabric_wwn"),
        managed=yes_no(element, "managed"),
        wwnn=attribute(element, "wwnn"),
        wwpn=attribute(element, "wwpn"),
        parent_address=address,
        unique_id=None if unique is None or parent is None else integer(parent, unique, "unique_id", most=0xFFFFFFFF),
    )


def _auth(element: Element | None) -> Auth | None:
    if element is None:
        return None
    type_ = choice(element, attribute(element, "type", required=True), "type", ("chap", "ceph"))
    secret = child(element, "secret")
    if secret is None:
        raise wrong(element, "it has no <secret>")
    uuid, usage = attribute(secret, "uuid"), attribute(secret, "usage")
    if (uuid is None) == (usage is None):
        raise wrong(secret, "a secret is named by its uuid or its usage, one of them")
    return Auth(
        type=type_ or "",
        username=attribute(element, "username", required=True) or "",
        secret_uuid=None if uuid is None else _at(secret, check_uuid, uuid),
        secret_usage=usage,
        secret_type=attribute(secret, "type"),
    )


def _checked_source(source: Source, element: Element, type_: str) -> Source:
    if type_ in _HOSTED and not source.hosts:
        raise wrong(element, f"a {type_} pool needs a source host")
    if type_ in _SOME_DEVICE and not source.devices:
        raise wrong(element, f"a {type_} pool needs a source device")
    if type_ in _ONE_DEVICE and len(source.devices) != 1:
        raise wrong(element, f"an {type_} pool needs one source device")
    if type_ == "scsi" and source.adapter is None:
        raise wrong(element, "a scsi pool needs a source adapter")
    if type_ == "iscsi-direct" and source.initiator is None:
        raise wrong(element, "an iscsi-direct pool needs an initiator")
    if type_ == "netfs" and source.directory is None:
        raise wrong(element, "a netfs pool needs a source dir")
    if type_ == "gluster":
        if source.name is not None and "/" in source.name:
            raise wrong(element, f"a Gluster volume's name has no '/': {source.name!r}")
        directory = source.directory or "/"
        if not directory.startswith("/"):
            raise wrong(element, f"the source dir {directory!r} must begin with '/'")
        source = _with(source, directory=directory)
    return source


def _target(root: Element, type_: str, source: Source) -> Target:
    if type_ in _NO_TARGET:
        return Target()
    path = text_of(root, "target", "path")
    if type_ == "logical":
        path = f"/dev/{source.name}"
    elif type_ == "zfs":
        path = f"/dev/zvol/{source.name}"
    element = child(root, "target")
    if path is None:
        if type_ in POOL_TYPES:
            raise wrong(element if element is not None else root, f"a {type_} pool needs a target path")
    elif type_ in ("dir", "netfs"):
        path = _at(child(element, "path"), check_path, path)
    else:
        path = normal_path(path)
    return Target(path, permissions_of(child(element, "permissions")))


def _namespaced(root: Element, type_: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    options: list[str] = []
    config: list[tuple[str, str]] = []
    foreign: list[str] = []
    for element in root:
        if not isinstance(element.tag, str) or not element.tag.startswith("{"):
            continue
        if element.tag == f"{{{FS_NAMESPACE}}}mount_opts" and (type_ in ("fs", "netfs") or type_ not in POOL_TYPES):
            for option in element.findall(f"{{{FS_NAMESPACE}}}option"):
                value = attribute(option, "name", required=True) or ""
                options.append(_at(option, check_mount_option, value))
        elif element.tag == f"{{{RBD_NAMESPACE}}}config_opts" and (type_ == "rbd" or type_ not in POOL_TYPES):
            for option in element.findall(f"{{{RBD_NAMESPACE}}}option"):
                key = attribute(option, "name", required=True) or ""
                config.append((key, attribute(option, "value", required=True) or ""))
        else:
            element.tail = None
            for inner in element.iter():
                if inner.text is not None and not inner.text.strip() and len(inner):
                    inner.text = None
                if inner is not element and inner.tail is not None and not inner.tail.strip():
                    inner.tail = None
            foreign.append(etree.tostring(element, method="c14n", exclusive=True).decode())
    return tuple(options), tuple(config), tuple(foreign)


def _at(element: Element | None, check: Any, value: str) -> str:
    """Check a value; an error says where it stands."""
    try:
        return str(check(value))
    except DefinitionError as error:
        if element is None or error.line is not None:
            raise
        raise wrong(element, str(error).removeprefix(f"<{error.element}>: ")) from None


def _with(source: Source, **fields: Any) -> Source:
    return Source(**{**{name: getattr(source, name) for name in Source.__struct_fields__}, **fields})


# ------------------------------------------------------------------------------------------------------ writing


def pool_to_xml(definition: PoolDef, info: PoolInfo | None = None) -> str:
    """Write a ``<pool>`` document; see :meth:`astore.PoolDef.to_xml`."""
    spaces: dict[str, str] = {}
    if definition.mount_options:
        spaces["fs"] = FS_NAMESPACE
    if definition.config_options:
        spaces["rbd"] = RBD_NAMESPACE
    root = etree.Element("pool", nsmap=spaces)
    root.set("type", safe(definition.type))
    add(root, "name", definition.name)
    if definition.uuid is not None:
        add(root, "uuid", definition.uuid)
    add(root, "capacity", info.capacity if info else 0, unit="bytes")
    add(root, "allocation", info.allocation if info else 0, unit="bytes")
    add(root, "available", info.available if info else 0, unit="bytes")
    if definition.features_cow is not None:
        add(add(root, "features"), "cow", state="yes" if definition.features_cow else "no")
    _add_source(root, definition.source)
    target = definition.target
    if definition.type not in _NO_TARGET and (target.path is not None or target.permissions is not None):
        element = add(root, "target")
        if target.path is not None:
            add(element, "path", target.path)
        add_permissions(element, target.permissions)
    if definition.refresh_allocation is not None:
        add(add(root, "refresh"), "volume", allocation=definition.refresh_allocation)
    if definition.mount_options:
        options = add(root, f"{{{FS_NAMESPACE}}}mount_opts")
        for name in definition.mount_options:
            add(options, f"{{{FS_NAMESPACE}}}option", name=name)
    if definition.config_options:
        options = add(root, f"{{{RBD_NAMESPACE}}}config_opts")
        for name, value in definition.config_options:
            add(options, f"{{{RBD_NAMESPACE}}}option", name=name, value=value)
    for text in definition.foreign:
        try:
            root.append(etree.fromstring(text, etree.XMLParser(resolve_entities=False, no_network=True)))
        except etree.XMLSyntaxError as error:
            raise DefinitionError(f"a foreign element is not XML: {error.msg}") from None
    return render(root)


def _add_source(root: Element, source: Source) -> None:
    element = add(root, "source")
    for host in source.hosts:
        add(element, "host", name=host.name, port=host.port)
    for device in source.devices:
        separator = None if device.part_separator is None else "yes" if device.part_separator else "no"
        inner = add(element, "device", path=device.path, part_separator=separator)
        for extent in device.free_extents:
            add(inner, "freeExtent", start=extent.start, end=extent.end)
    if source.directory is not None:
        add(element, "dir", path=source.directory)
    if source.adapter is not None:
        _add_adapter(element, source.adapter)
    if source.name is not None:
        add(element, "name", source.name)
    if source.initiator is not None:
        add(add(element, "initiator"), "iqn", name=source.initiator)
    if source.format is not None:
        add(element, "format", type=source.format)
    if source.auth is not None:
        auth = add(element, "auth", type=source.auth.type, username=source.auth.username)
        add(
            auth,
            "secret",
            type=source.auth.secret_type,
            uuid=source.auth.secret_uuid,
            usage=source.auth.secret_usage,
        )
    if source.protocol_version is not None:
        add(element, "protocol", ver=source.protocol_version)
    if source.vendor is not None:
        add(element, "vendor", name=source.vendor)
    if source.product is not None:
        add(element, "product", name=source.product)
    if not len(element):
        root.remove(element)


def _add_adapter(parent: Element, adapter: Adapter) -> None:
    element = add(
        parent,
        "adapter",
        type=adapter.type,
        name=adapter.name,
        parent=adapter.parent,
        parent_wwnn=adapter.parent_wwnn,
        parent_wwpn=adapter.parent_wwpn,
        parent_fabric_wwn=adapter.parent_fabric_wwn,
        managed=None if adapter.managed is None else "yes" if adapter.managed else "no",
        wwnn=adapter.wwnn,
        wwpn=adapter.wwpn,
    )
    if adapter.parent_address is not None:
        inner = add(element, "parentaddr", unique_id=adapter.unique_id)
        address = adapter.parent_address
        add(
            inner,
            "address",
            domain=f"0x{address.domain:04x}",
            bus=f"0x{address.bus:02x}",
            slot=f"0x{address.slot:02x}",
            function=f"0x{address.function:x}",
        )
