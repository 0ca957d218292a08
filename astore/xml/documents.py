"""libvirt's other documents: ``<storagepoolCapabilities>``, ``<sources>``, and the ``<source>`` of a discovery."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lxml import etree

from astore.errors import DefinitionError, LibvirtCode
from astore.model import DiscoveredSource, Host
from astore.model.formats import FILE_FORMATS
from astore.xml.pool_source import DEFAULT_FORMATS, FORMATS, read_format, read_host
from astore.xml.pool_writing import add_source
from astore.xml.reading import Element, all_of, parse, string_of
from astore.xml.writing import add, render


class _Formats(NamedTuple):
    default: str
    all: Sequence[str]


_FILES = _Formats("raw", ("none", "raw", *FILE_FORMATS[2:]))
_PARTITIONS = ("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended")
# the formats of libvirt's types, in its order, with or without a backend (storage_conf.c)
_SOURCES = {type_: _Formats(DEFAULT_FORMATS[type_], all_) for type_, all_ in FORMATS.items()}
_VOLUMES = {
    **dict.fromkeys(("dir", "fs", "netfs", "gluster", "vstorage"), _FILES),
    "disk": _Formats("none", _PARTITIONS),
    "rbd": _Formats("raw", ()),
}


def capabilities_to_xml(types: Iterable[tuple[str, bool, Sequence[str], Sequence[str]]]) -> str:
    """Write ``<storagepoolCapabilities>``, as ``virsh pool-capabilities`` prints it.

    :param types: for each pool type: its name, whether it has a backend, the formats of its source, and the formats of
        its volumes, the default first. A libvirt type without a backend gets libvirt's formats.
    """
    root = etree.Element("storagepoolCapabilities")
    for name, supported, pool_formats, volume_formats in types:
        pool = add(root, "pool", type=name, supported="yes" if supported else "no")
        unknown = not (supported or pool_formats or volume_formats)
        for option, enum, formats, libvirts in (
            ("poolOptions", "sourceFormatType", pool_formats, _SOURCES.get(name)),
            ("volOptions", "targetFormatType", volume_formats, _VOLUMES.get(name)),
        ):
            if formats:
                _add_formats(add(pool, option), enum, _ordered(formats, libvirts))
            elif unknown and libvirts:
                _add_formats(add(pool, option), enum, libvirts)
    return render(root)


def _ordered(formats: Sequence[str], libvirts: _Formats | None) -> _Formats:
    """Return the formats in libvirt's order, followed by the others."""
    if libvirts is None:
        return _Formats(formats[0], formats)
    if not libvirts.all:  # libvirt names the default alone
        return _Formats(formats[0], formats[1:])
    first = [one for one in libvirts.all if one in formats]
    return _Formats(formats[0], [*first, *(one for one in formats if one not in libvirts.all)])


def _add_formats(parent: Element, name: str, formats: _Formats) -> None:
    add(parent, "defaultFormat", type=formats.default)
    enum = add(parent, "enum", name=name)
    for value in formats.all:
        add(enum, "value", value)


class DiscoveredSources(tuple[DiscoveredSource, ...]):
    """The sources that a discovery found: records, and libvirt's document."""

    __slots__ = ()

    def to_xml(self) -> str:
        """Write ``<sources>``, as ``virsh find-storage-pool-sources`` prints it."""
        root = etree.Element("sources")
        for found in self:
            add_source(root, found.source)
        return render(root)


def asked_in_xml(text: str | bytes, type: str) -> tuple[Host, str | None]:
    """Read the one host and the initiator that a ``<source>`` names: the input of ``virsh find-storage-pool-sources``.

    :param type: the pool type of the sources.
    :raises DefinitionError: it is not such a document, or does not name exactly one host.
    """
    root = parse(text, "source")
    hosts = [read_host(host) for host in all_of(root, "./host")]
    read_format(root, type)
    if len(hosts) != 1:
        raise DefinitionError(
            f"one host is needed, {len(hosts) or 'none'} given",
            element="host",
            libvirt_code=LibvirtCode.CONFIG_UNSUPPORTED,
        )
    return hosts[0], string_of(root, "./initiator/iqn/@name")
