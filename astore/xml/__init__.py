"""Convert libvirt's XML to records and back, for every libvirt pool type, with or without its backend.

Accepted, refused and default values are those of libvirt 9.0 (formatstorage.rst, storage_conf.c). Unknown elements are
kept if they have a namespace, and otherwise ignored, as in libvirt. Documents may be hostile: see
:mod:`astore.xml.reading`.
"""

from typing import TYPE_CHECKING

from astore.deferred import lazily

if TYPE_CHECKING:
    from astore.xml.documents import DiscoveredSources, capabilities_to_xml
    from astore.xml.known_types import POOL_TYPES
    from astore.xml.pool import pool_from_xml
    from astore.xml.pool_writing import pool_to_xml
    from astore.xml.reading import LARGEST_DOCUMENT, parse_size
    from astore.xml.secret import secret_from_xml, secret_to_xml
    from astore.xml.volume import volume_def_to_xml, volume_from_xml, volume_info_to_xml

__all__ = [
    "LARGEST_DOCUMENT",
    "POOL_TYPES",
    "DiscoveredSources",
    "capabilities_to_xml",
    "parse_size",
    "pool_from_xml",
    "pool_to_xml",
    "secret_from_xml",
    "secret_to_xml",
    "volume_def_to_xml",
    "volume_from_xml",
    "volume_info_to_xml",
]

__getattr__, __dir__ = lazily(
    __name__, __all__, ("known_types", "reading", "pool", "pool_writing", "volume", "documents", "secret")
)
