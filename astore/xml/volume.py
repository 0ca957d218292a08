"""``<volume>`` documents."""

from __future__ import annotations

import re
import stat

from lxml import etree

from astore.definitions import FILE_FORMATS
from astore.model import BackingStore, Encryption, VolumeDef, VolumeInfo, VolumeType
from astore.names import check_volume_name
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
    size_of,
    text_of,
    wrong,
)

VOLUME_FORMATS = (*FILE_FORMATS, "luks")
_FEATURES = ("extended_l2", "lazy_refcounts")


def volume_from_xml(text: str | bytes) -> VolumeDef:
    """Read a ``<volume>`` document; see :meth:`astore.VolumeDef.from_xml`."""
    root = parse(text, "volume")
    name = text_of(root, "name")
    if name is None:
        raise wrong(root, "the volume has no name")
    check_volume_name(name)
    type_ = attribute(root, "type")
    choice(root, type_, "type", tuple(kind.value for kind in VolumeType))
    target = child(root, "target")
    backing = _backing(child(root, "backingStore"))
    capacity = size_of(child(root, "capacity"))
    if capacity is None and backing is None:
        raise wrong(root, "a volume that is not backed by another needs a capacity")
    allocation = size_of(child(root, "allocation"))
    compat = text_of(target, "compat")
    if compat is not None and not re.fullmatch(r"[0-9]+\.[0-9]+", compat):
        raise wrong(root, f"compat {compat!r} is no version")
    return VolumeDef(
        name=name,
        capacity=capacity,
        allocation=capacity if allocation is None else allocation,
        format=_format(target) or "raw",
        type=None if type_ is None else VolumeType(type_),
        permissions=permissions_of(child(target, "permissions")),
        compat=compat,
        features=_features(child(target, "features")),
        cluster_size=size_of(child(target, "clusterSize")),
        nocow=True if child(target, "nocow") is not None else None,
        encryption=_encryption(child(target, "encryption")),
        backing=backing,
    )


def _format(parent: Element | None) -> str | None:
    element = child(parent, "format")
    value = attribute(element, "type")
    if element is not None:
        choice(element, value, "format", VOLUME_FORMATS)
    return value


def _features(element: Element | None) -> tuple[str, ...]:
    found = set()
    for feature in () if element is None else element:
        name = str(feature.tag)
        choice(feature, name, "feature", _FEATURES)
        found.add(name)
    return tuple(sorted(found))


def _backing(element: Element | None) -> BackingStore | None:
    path = text_of(element, "path")
    if element is None or path is None:
        return None
    return BackingStore(path, _format(element), permissions_of(child(element, "permissions")))


def _encryption(element: Element | None) -> Encryption | None:
    if element is None:
        return None
    format_ = choice(
        element, attribute(element, "format", required=True), "format", ("default", "qcow", "luks", "luks2", "luks-any")
    )
    secret, cipher, ivgen = child(element, "secret"), child(element, "cipher"), child(element, "ivgen")
    size = attribute(cipher, "size")
    return Encryption(
        format=format_ or "",
        secret_uuid=attribute(secret, "uuid"),
        secret_usage=attribute(secret, "usage"),
        cipher_name=attribute(cipher, "name", required=True),
        cipher_size=None if size is None or cipher is None else integer(cipher, size, "size", most=65_536),
        cipher_mode=attribute(cipher, "mode"),
        cipher_hash=attribute(cipher, "hash"),
        ivgen_name=attribute(ivgen, "name", required=True),
        ivgen_hash=attribute(ivgen, "hash"),
    )


def volume_def_to_xml(definition: VolumeDef) -> str:
    """Write a ``<volume>`` document; see :meth:`astore.VolumeDef.to_xml`."""
    root = etree.Element("volume")
    if definition.type is not None:
        root.set("type", definition.type)
    add(root, "name", definition.name)
    if definition.capacity is not None:
        add(root, "capacity", definition.capacity, unit="bytes")
    if definition.allocation is not None:
        add(root, "allocation", definition.allocation, unit="bytes")
    target = add(root, "target")
    if definition.format is not None:
        add(target, "format", type=definition.format)
    add_permissions(target, definition.permissions)
    if definition.encryption is not None:
        _add_encryption(target, definition.encryption)
    if definition.compat is not None:
        add(target, "compat", definition.compat)
    if definition.nocow:
        add(target, "nocow")
    if definition.cluster_size is not None:
        add(target, "clusterSize", definition.cluster_size, unit="B")
    _add_features(target, definition.features)
    if definition.backing is not None:
        backing = add(root, "backingStore")
        add(backing, "path", definition.backing.path)
        if definition.backing.format is not None:
            add(backing, "format", type=definition.backing.format)
        add_permissions(backing, definition.backing.permissions)
    return render(root)


def _add_features(parent: Element, features: tuple[str, ...]) -> None:
    if features:
        element = add(parent, "features")
        for name in features:
            add(element, name)


def _add_encryption(parent: Element, encryption: Encryption) -> None:
    element = add(parent, "encryption", format=encryption.format)
    if encryption.secret_uuid is not None or encryption.secret_usage is not None:
        add(element, "secret", type="passphrase", uuid=encryption.secret_uuid, usage=encryption.secret_usage)
    if encryption.cipher_name is not None:
        add(
            element,
            "cipher",
            name=encryption.cipher_name,
            size=encryption.cipher_size,
            mode=encryption.cipher_mode,
            hash=encryption.cipher_hash,
        )
    if encryption.ivgen_name is not None:
        add(element, "ivgen", name=encryption.ivgen_name, hash=encryption.ivgen_hash)


def volume_info_to_xml(info: VolumeInfo) -> str:
    """The ``<volume>`` document that describes a volume that was found, as ``virsh vol-dumpxml`` shows it."""
    root = etree.Element("volume")
    root.set("type", info.type)
    add(root, "name", info.name)
    add(root, "key", info.key)
    add(root, "capacity", info.capacity, unit="bytes")
    add(root, "allocation", info.allocation, unit="bytes")
    add(root, "physical", info.physical, unit="bytes")
    target = add(root, "target")
    add(target, "path", info.path)
    if info.format is not None:
        add(target, "format", type=info.format)
    permissions = add(target, "permissions")
    add(permissions, "mode", f"0{stat.S_IMODE(info.mode):03o}")
    add(permissions, "owner", info.uid)
    add(permissions, "group", info.gid)
    times = add(target, "timestamps")
    for name, value in (("atime", info.atime_ns), ("mtime", info.mtime_ns), ("ctime", info.ctime_ns)):
        add(times, name, f"{value // 10**9}.{value % 10**9:09d}" if value % 10**9 else f"{value // 10**9}")
    if info.encryption is not None:
        add(target, "encryption", format="luks" if info.encryption == "luks" else "qcow")
    if info.compat is not None:
        add(target, "compat", info.compat)
    if info.cluster_size is not None:
        add(target, "clusterSize", info.cluster_size, unit="B")
    _add_features(target, info.features)
    if info.backing is not None:
        backing = add(root, "backingStore")
        add(backing, "path", info.backing_path or info.backing)
        if info.backing_format is not None:
            add(backing, "format", type=info.backing_format)
    return render(root)
