"""Read and write ``<volume>`` documents."""

from __future__ import annotations

import re

from lxml import etree

from astore.errors import DefinitionError, LibvirtCode, printable
from astore.model import BackingStore, Encryption, Permissions, VolumeDef, VolumeInfo, VolumeType
from astore.model.definitions import Extent, SourceDevice, Timestamps
from astore.model.formats import FILE_FORMATS, PARTITION_FORMATS
from astore.names import check_volume_name
from astore.xml.reading import (
    LARGEST_SIZE,
    Element,
    all_of,
    choice,
    integer,
    parse,
    parse_size,
    permissions_of,
    secret_of,
    string_of,
    word_at,
    wrong,
)
from astore.xml.writing import add, add_given, add_permissions, render

VOLUME_FORMATS = tuple(word for word in FILE_FORMATS if word != "none")
"""The formats that a new volume in a pool of files may have; a LUKS volume is ``raw`` with an ``<encryption>``."""

_FORMATS = (*VOLUME_FORMATS, *PARTITION_FORMATS)

LARGEST_CAPACITY = (1 << 63) - 1
"""The largest file (off_t), in bytes."""

_UNSUPPORTED = LibvirtCode.CONFIG_UNSUPPORTED
_TYPES = tuple(kind.value for kind in VolumeType)
_DIRECTORIES = (VolumeType.DIR, VolumeType.NETDIR)
_FEATURES = ("lazy_refcounts", "extended_l2")  # as libvirt writes them
_ENCRYPTIONS = ("default", "qcow", "luks", "luks2")
_ENGINES = ("qemu", "librbd")
_MOST_32 = (1 << 32) - 1
_COMPAT = re.compile(r"([0-9]+)\.([0-9]+)")
_TIME = re.compile(r"([0-9]{1,20})(?:\.([0-9]{0,9}))?")
_TIMES = ("atime", "mtime", "ctime", "btime")
_DEVICE_PATH = re.compile(r"(/|[a-zA-Z]:\\)[^\n\r]+")


def volume_from_xml(text: str | bytes, *, copied: bool = False) -> VolumeDef:
    """Read a ``<volume>`` document; see :meth:`astore.VolumeDef.from_xml`.

    Order and XPaths are those of libvirt's virStorageVolDefParseXML: of a repeated element the first counts.
    """
    root = parse(text, "volume")
    name = string_of(root, "./name")
    if name is None:
        raise wrong(root, "the volume has no name")
    check_volume_name(name)
    type_ = choice(root, string_of(root, "./@type"), "type", _TYPES, _UNSUPPORTED)
    backing = _backing(root)
    capacity = _size(root, "capacity", LARGEST_CAPACITY)
    if capacity is None and backing is None and not copied:
        raise wrong(root, "a volume that is neither a copy nor backed by another needs a capacity")
    allocation = _size(root, "allocation", LARGEST_CAPACITY)
    format_ = _format(root, "target")
    permissions = _permissions(root, "target")
    encryption = _encryption(root)
    compat = _compat(root)
    cluster_size = _size(root, "target/clusterSize") or None
    features = _features(root)
    type_ = (
        None if type_ in _DIRECTORIES and format_ != "dir" else type_
    )  # the format decides whether it is a directory
    return VolumeDef(
        name=name,
        capacity=capacity,
        allocation=capacity if allocation is None and not copied else allocation,
        format=format_ or "raw",
        type=None if type_ is None else VolumeType(type_),
        # a copy without <permissions> gets the defaults, as in libvirt, not its source's
        permissions=Permissions() if permissions is None and copied else permissions,
        compat="1.1" if compat is None and features is not None else compat,
        features=features,
        cluster_size=cluster_size,
        nocow=True if all_of(root, "./target/nocow") else None,
        encryption=encryption,
        backing=backing,
        timestamps=_timestamps(root, "target"),
        source=_source(root),
    )


def _size(root: Element, path: str, most: int = LARGEST_SIZE) -> int | None:
    text = string_of(root, f"./{path}")
    if text is None:
        return None
    return parse_size(text, string_of(root, f"./{path}/@unit"), element=all_of(root, f"./{path}")[0], most=most)


def _format(root: Element, parent: str) -> str | None:
    return word_at(root, f"./{parent}/format", "type", "format", _FORMATS)


def _permissions(root: Element, parent: str) -> Permissions | None:
    elements = all_of(root, f"./{parent}/permissions")
    return permissions_of(elements[0]) if elements else None


def _compat(root: Element) -> str | None:
    compat = string_of(root, "./target/compat")
    if compat is None:
        return None
    found = _COMPAT.fullmatch(compat)
    parts = [] if found is None else [part.lstrip("0") for part in found.groups()]
    if found is None or any(len(part) > 10 or int(part or "0") > _MOST_32 for part in parts):
        raise wrong(all_of(root, "./target/compat")[0], f"compat {printable(compat[:64])!r} is no version")
    return compat


def _features(root: Element) -> tuple[str, ...] | None:
    """Return the features in ``<features>``; None if there is no such element."""
    if not all_of(root, "./target/features"):
        return None
    found = set()
    for element in all_of(root, "./target/features/*"):
        name = etree.QName(element).localname
        choice(element, name, "feature", _FEATURES, _UNSUPPORTED)
        found.add(name)
    return tuple(sorted(found))


def _backing(root: Element) -> BackingStore | None:
    path = string_of(root, "./backingStore/path")
    if path is None:
        return None
    return BackingStore(
        path, _format(root, "backingStore"), _permissions(root, "backingStore"), _timestamps(root, "backingStore")
    )


def _timestamps(root: Element, parent: str) -> Timestamps | None:
    """Read the valid times; libvirt reads none, so an invalid one is no error."""
    times: list[int | None] = []
    for name in _TIMES:
        found = _TIME.fullmatch(string_of(root, f"./{parent}/timestamps/{name}") or "")
        seconds = LARGEST_SIZE + 1 if found is None else int(found[1])
        if found is None or seconds > LARGEST_SIZE:
            times.append(None)
            continue
        if seconds >= 1 << 63:  # before 1970, as libvirt writes it
            seconds -= 1 << 64
        times.append(seconds * 10**9 + int((found[2] or "").ljust(9, "0")))
    timestamps = Timestamps(*times)
    return None if timestamps == Timestamps() else timestamps


def _source(root: Element) -> tuple[SourceDevice, ...]:
    """Read the devices that the volume lies on, as far as they are valid; libvirt reads none."""
    devices = []
    for element in all_of(root, "./source/device"):
        path = element.get("path") or ""
        if not _DEVICE_PATH.fullmatch(path):
            continue
        extents = []
        for extent in all_of(element, "./extent"):
            start, end = (extent.get(name) or "" for name in ("start", "end"))
            if all(re.fullmatch("[0-9]{1,20}", text) and int(text) <= LARGEST_SIZE for text in (start, end)):
                extents.append(Extent(int(start), int(end)))
        devices.append(SourceDevice(path, tuple(extents)))
    return tuple(devices)


def _encryption(root: Element) -> Encryption | None:
    """Read ``<encryption>`` like virStorageEncryptionParseNode: cipher and ivgen only for ``luks``, not ``luks2``."""
    encryptions = all_of(root, "./target/encryption")
    if not encryptions:
        return None
    element = encryptions[0]
    format_ = element.get("format")
    if not format_:
        raise wrong(element, "it has no attribute 'format'")
    choice(element, format_, "format", _ENCRYPTIONS, _UNSUPPORTED)
    engine = choice(element, element.get("engine"), "engine", _ENGINES)
    uuid, usage = _secret(element)
    ciphers = all_of(element, "./cipher") if format_ == "luks" else []
    ivgens = all_of(element, "./ivgen") if format_ == "luks" else []
    cipher, ivgen = (dict(found[0].attrib) if found else {} for found in (ciphers, ivgens))
    for part in (*ciphers[:1], *ivgens[:1]):
        if part.get("name") is None:
            raise wrong(part, "it has no attribute 'name'")
    if ivgens and not ciphers:
        raise wrong(ivgens[0], "an iv generator needs a cipher")
    return Encryption(
        format=format_,
        secret_uuid=uuid,
        secret_usage=usage,
        cipher_name=cipher.get("name"),
        cipher_size=integer(ciphers[0], cipher.get("size"), "size", most=_MOST_32) if ciphers else None,
        cipher_mode=cipher.get("mode"),
        cipher_hash=cipher.get("hash"),
        ivgen_name=ivgen.get("name"),
        ivgen_hash=ivgen.get("hash"),
        engine=engine,
    )


def _secret(encryption: Element) -> tuple[str | None, str | None]:
    """Read the uuid or the usage of the secret. libvirt reads several, but creates no volume from such a document."""
    secrets = all_of(encryption, "./secret")
    if len(secrets) > 1:
        raise wrong(secrets[1], "one secret is enough")
    for element in secrets:
        if not element.get("type"):
            raise wrong(element, "it has no attribute 'type'")
        choice(element, element.get("type"), "type", ("passphrase",), _UNSUPPORTED)
        return secret_of(element)
    return None, None


# ------------------------------------------------------------------------------------------------------ writing


def volume_def_to_xml(definition: VolumeDef) -> str:
    """Write a ``<volume>`` document; see :meth:`astore.VolumeDef.to_xml`."""
    root = etree.Element("volume")
    if definition.type is not None:
        root.set("type", definition.type)
    add(root, "name", definition.name)
    if definition.source:
        _add_source(root, definition.source)
    if definition.capacity is not None:
        add(root, "capacity", definition.capacity, unit="bytes")
    if definition.allocation is not None:
        add(root, "allocation", definition.allocation, unit="bytes")
    target = add(root, "target")
    add_given(target, "format", type=definition.format)
    add_permissions(target, definition.permissions)
    _add_timestamps(target, definition.timestamps)
    if definition.encryption is not None:
        _add_encryption(target, definition.encryption)
    add_given(target, "compat", definition.compat)
    if definition.nocow:
        add(target, "nocow")
    if definition.cluster_size:
        add(target, "clusterSize", definition.cluster_size, unit="B")
    if definition.features is not None:
        _add_features(target, definition.features)
    if definition.backing is not None:
        backing = add(root, "backingStore")
        add(backing, "path", definition.backing.path)
        add_given(backing, "format", type=definition.backing.format)
        add_permissions(backing, definition.backing.permissions)
        _add_timestamps(backing, definition.backing.timestamps)
    return render(root)


def _add_source(parent: Element, devices: tuple[SourceDevice, ...]) -> None:
    source = add(parent, "source")
    for device in devices:
        element = add(source, "device", path=device.path)
        for extent in device.extents:
            add(element, "extent", start=extent.start, end=extent.end)


def _add_timestamps(parent: Element, times: Timestamps | None) -> None:
    if times is None or times == Timestamps():
        return
    element = add(parent, "timestamps")
    for name in _TIMES:
        value = getattr(times, f"{name}_ns")
        if value is not None:
            seconds, fraction = divmod(value, 10**9)
            seconds %= 1 << 64  # times before 1970 as libvirt writes them; the schema allows no sign
            add(element, name, f"{seconds}.{fraction:09d}" if fraction else seconds)


def _add_features(parent: Element, features: tuple[str, ...]) -> None:
    element = add(parent, "features")
    for name in features:
        if name not in _FEATURES:
            raise DefinitionError(f"unknown feature {name!r}", element="features")
    for name in sorted(features, key=_FEATURES.index):
        add(element, name)


def _add_encryption(parent: Element, encryption: Encryption) -> None:
    element = add(parent, "encryption", format=encryption.format, engine=encryption.engine)
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


def volume_info_to_xml(info: VolumeInfo, backing: VolumeInfo | None = None) -> str:
    """Write the ``<volume>`` document of an existing volume, as ``virsh vol-dumpxml`` prints it.

    :param backing: the image that backs it, if that is known.
    """
    root = etree.Element("volume")
    root.set("type", info.type)
    add(root, "name", info.name)
    add(root, "key", info.key)
    directory = info.type is VolumeType.DIR  # libvirt gives it no size
    add(root, "capacity", 0 if directory else info.capacity, unit="bytes")
    add(root, "allocation", 0 if directory else info.allocation, unit="bytes")
    if info.physical and not directory:
        add(root, "physical", info.physical, unit="bytes")
    target = add(root, "target")
    add(target, "path", info.path)
    if info.format is not None:
        add(target, "format", type=_word(info.format))
    _add_what_was_found(target, info)
    if info.encryption is not None:
        add(target, "encryption", format="luks" if info.encryption == "luks" else "qcow")
    later = info.compat is not None and info.compat != "0.10"  # libvirt writes neither 0.10 nor features for it
    if later:
        add(target, "compat", info.compat)
    if info.cluster_size is not None and info.format == "qcow2":
        add(target, "clusterSize", info.cluster_size, unit="B")
    if later:
        _add_features(target, info.features)
    if info.backing is not None:
        element = add(root, "backingStore")
        add(element, "path", info.backing_path or info.backing)
        format_ = info.backing_format or (backing.format if backing is not None else None)
        if format_ is not None:
            add(element, "format", type=_word(format_))
        if backing is not None:
            _add_what_was_found(element, backing)
    return render(root)


def _word(format_: str) -> str:
    """Return libvirt's word for a format: LUKS is raw, with an ``<encryption>``."""
    return "raw" if format_ == "luks" else format_


def _add_what_was_found(parent: Element, info: VolumeInfo) -> None:
    """Add a file's permissions, without set-uid and the like, and its times."""
    add_permissions(parent, Permissions(info.mode & 0o777, info.uid, info.gid))
    _add_timestamps(parent, Timestamps(info.atime_ns, info.mtime_ns, info.ctime_ns))
