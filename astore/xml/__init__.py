"""Convert libvirt's XML to records and back, for every libvirt pool type, with or without its backend.

Accepted, refused and default values are those of libvirt 9.0 (formatstorage.rst, storage_conf.c). Unknown elements are
kept if they have a namespace, and otherwise ignored, as in libvirt. Documents may be hostile: see
:mod:`astore.xml.reading`.
"""
