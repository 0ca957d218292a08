"""libvirt's other storage documents: ``<storagepoolCapabilities>`` and ``<sources>``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lxml import etree

from astore.model import DiscoveredSource
from astore.xml.pool import _add_source
from astore.xml.reading import Element, add, render


def capabilities_to_xml(types: Iterable[tuple[str, bool, Sequence[str], Sequence[str]]]) -> str:
    """``<storagepoolCapabilities>``, as ``virsh pool-capabilities`` prints it.

    :param types: for each pool type: its name, whether there is a backend for it, the formats that its source may have
        and those that its volumes may have, the default first.
    """
    root = etree.Element("storagepoolCapabilities")
    for name, supported, pool_formats, volume_formats in types:
        pool = add(root, "pool", type=name, supported="yes" if supported else "no")
        if pool_formats:
            _add_formats(add(pool, "poolOptions"), "sourceFormatType", pool_formats)
        if volume_formats:
            _add_formats(add(pool, "volOptions"), "targetFormatType", volume_formats)
    return render(root)


def _add_formats(parent: Element, name: str, formats: Sequence[str]) -> None:
    add(parent, "defaultFormat", type=formats[0])
    enum = add(parent, "enum", name=name)
    for value in formats:
        add(enum, "value", value)


def sources_to_xml(sources: Iterable[DiscoveredSource]) -> str:
    """``<sources>``, as ``virsh find-storage-pool-sources`` prints it."""
    root = etree.Element("sources")
    for found in sources:
        _add_source(root, found.source)
    return render(root)
