"""libvirt's other storage documents: ``<storagepoolCapabilities>``, ``<sources>``, and the ``<source>`` that asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lxml import etree

from astore.errors import DefinitionError, LibvirtCode
from astore.model import DiscoveredSource, Host
from astore.model.definitions import FILE_FORMATS
from astore.xml.pool_source import DEFAULT_FORMATS, FORMATS, read_format, read_host
from astore.xml.pool_writing import add_source
from astore.xml.reading import Element, all_of, parse
from astore.xml.writing import add, render


class _Formats(NamedTuple):
    default: str
    all: Sequence[str]


_FILES = _Formats("raw", ("none", "raw", *FILE_FORMATS[2:]))
_PARTITIONS = ("none", "linux", "fat16", "fat32", "linux-swap", "linux-lvm", "linux-raid", "extended")
# libvirt's own types have these formats in its order, whether it has a backend for them or not (storage_conf.c)
_SOURCES = {type_: _Formats(DEFAULT_FORMATS[type_], all_) for type_, all_ in FORMATS.items()}
_VOLUMES = {
    **dict.fromkeys(("dir", "fs", "netfs", "gluster", "vstorage"), _FILES),
    "disk": _Formats("none", _PARTITIONS),
    "rbd": _Formats("raw", ()),
}


def capabilities_to_xml(types: Iterable[tuple[str, bool, Sequence[str], Sequence[str]]]) -> str:
    """``<storagepoolCapabilities>``, as ``virsh pool-capabilities`` prints it.

    :param types: for each pool type: its name, whether there is a backend for it, the formats that its source may have
        and those that its volumes may have, the default first. A type of libvirt's that has none has libvirt's.
    """
    root = etree.Element("storagepoolCapabilities")
    for name, supported, pool_formats, volume_formats in types:
        pool = add(root, "pool", type=name, supported="yes" if supported else "no")
        nobody = not (supported or pool_formats or volume_formats)
        for option, enum, formats, libvirts in (
            ("poolOptions", "sourceFormatType", pool_formats, _SOURCES.get(name)),
            ("volOptions", "targetFormatType", volume_formats, _VOLUMES.get(name)),
        ):
            if formats:
                _add_formats(add(pool, option), enum, _ordered(formats, libvirts.all if libvirts else ()))
            elif nobody and libvirts:
                _add_formats(add(pool, option), enum, libvirts)
    return render(root)


def _ordered(formats: Sequence[str], order: Sequence[str]) -> _Formats:
    """libvirt's in libvirt's order, and others behind them."""
    return _Formats(
        formats[0], [*(one for one in order if one in formats), *(one for one in formats if one not in order)]
    )


def _add_formats(parent: Element, name: str, formats: _Formats) -> None:
    add(parent, "defaultFormat", type=formats.default)
    enum = add(parent, "enum", name=name)
    for value in formats.all:
        add(enum, "value", value)


class DiscoveredSources(tuple[DiscoveredSource, ...]):
    """What was found, as records; and as libvirt's document."""

    __slots__ = ()

    def to_xml(self) -> str:
        """``<sources>``, as ``virsh find-storage-pool-sources`` prints it."""
        return sources_to_xml(self)


def sources_to_xml(sources: Iterable[DiscoveredSource]) -> str:
    """``<sources>``, as ``virsh find-storage-pool-sources`` prints it."""
    root = etree.Element("sources")
    for found in sources:
        add_source(root, found.source)
    return render(root)


def host_from_xml(text: str | bytes, type: str) -> Host:
    """The one host that a ``<source>`` names, with which ``virsh find-storage-pool-sources`` is told whom to ask.

    :param type: the pool type that sources are wanted for.
    :raises DefinitionError: it is no such document, or names no host or several.
    """
    root = parse(text, "source")
    hosts = [read_host(host) for host in all_of(root, "./host")]
    read_format(root, type)
    if len(hosts) != 1:
        raise DefinitionError(
            f"whom to ask is one host; {len(hosts) or 'none'} are named",
            element="host",
            libvirt_code=LibvirtCode.CONFIG_UNSUPPORTED,
        )
    return hosts[0]
