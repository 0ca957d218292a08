"""libvirt's XML to records and back, for every libvirt pool type, whether its backend is installed or not.

What is accepted, refused and defaulted is libvirt 9.0's (formatstorage.rst, storage_conf.c); what is unknown is kept where a
namespace says that it is somebody's, and ignored elsewhere, as libvirt does. Documents are hostile: see
:mod:`astore.xml.reading`.
"""

from typing import TYPE_CHECKING

from astore.deferred import lazily

if TYPE_CHECKING:
    from astore.xml.documents import DiscoveredSources, capabilities_to_xml, host_from_xml, sources_to_xml
    from astore.xml.pool import pool_from_xml
    from astore.xml.pool_source import POOL_TYPES
    from astore.xml.pool_writing import pool_to_xml
    from astore.xml.reading import LARGEST_DOCUMENT, parse_size
    from astore.xml.volume import volume_def_to_xml, volume_from_xml, volume_info_to_xml

__all__ = [
    "LARGEST_DOCUMENT",
    "POOL_TYPES",
    "DiscoveredSources",
    "capabilities_to_xml",
    "host_from_xml",
    "parse_size",
    "pool_from_xml",
    "pool_to_xml",
    "sources_to_xml",
    "volume_def_to_xml",
    "volume_from_xml",
    "volume_info_to_xml",
]

__getattr__, __dir__ = lazily(
    __name__, __all__, ("pool_source", "reading", "pool", "pool_writing", "volume", "documents")
)
