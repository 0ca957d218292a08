"""Descriptions of a volume for its users: the ``<disk>`` of a libvirt domain, and QEMU's node."""

from __future__ import annotations

import json

from lxml import etree

from astore.backend import DiskSource, QemuNode
from astore.errors import DefinitionError
from astore.images import formats, protocols
from astore.model import VolumeInfo, VolumeType
from astore.pools import graph, naming
from astore.pools.graph import Layer
from astore.pools.parts import Member
from astore.xml.reading import Element
from astore.xml.writing import add, render


def disk_xml(volume: Member, target: str, bus: str, *, readonly: bool) -> str:
    """See :meth:`astore.Volume.disk_xml`.

    :raises DefinitionError: a directory is no disk. StorageError: as :func:`_images`. BackendError, UnsupportedOperationError:
        as :func:`astore.pools.naming.disk_source`.
    """
    images = _images(volume)
    info = volume.info
    disk = etree.Element("disk")
    device = "cdrom" if info.format == "iso" else "disk"
    disk.set("type", _disk_type(info))
    disk.set("device", device)
    add(disk, "driver", name="qemu", type=_libvirt_format(info.format))
    _add_source(disk, volume)
    above = disk
    for below, format in images[1:]:
        above = add(above, "backingStore", type=_disk_type(below.info))
        add(above, "format", type=_libvirt_format(format))
        _add_source(above, below)
    if formats.can_be_backed(info.format):
        add(above, "backingStore")  # there is nothing below: libvirt does not look
    add(disk, "target", dev=target, bus=bus)
    if readonly or device == "cdrom":
        add(disk, "readonly")
    return render(disk)


def qemu_blockdev(volume: Member, node_name: str | None) -> QemuNode:
    """See :meth:`astore.Volume.qemu_blockdev`.

    :raises: as :func:`disk_xml`.
    """
    node: QemuNode | None = None
    for image, format in reversed(_images(volume)):
        made: QemuNode = {"driver": formats.driver_of(format), "file": _storage(image)}
        if formats.can_be_backed(format):
            made["backing"] = node
        node = made
    assert node is not None
    if node_name is not None:
        node["node-name"] = node_name
    return node


def qemu_uri(volume: Member) -> str:
    """See :meth:`astore.Volume.qemu_uri`. Where QEMU has no URL, it is ``json:`` and the node.

    :raises BackendLoadError: it is on the network, and its pool's backend is not loaded: refresh the pool first.
        UnsupportedOperationError: the backend does not name volumes. BackendError: it failed.
    """
    if volume.info.type is not VolumeType.NETWORK:
        return volume.info.path
    node = naming.blockdev(volume.pool, volume.info)
    url = protocols.url_of(node)
    return f"json:{json.dumps(node)}" if url is None else url


def _images(volume: Member) -> list[Layer]:
    """Return the images of which a disk is read, from the top down. :raises: as :func:`graph.layers`."""
    if volume.info.type in (VolumeType.DIR, VolumeType.NETDIR):
        raise DefinitionError(f"volume {volume.name!r} is a directory, which is no disk")
    return graph.layers(volume, volume.pool.others())


def _libvirt_format(format: str | None) -> str:
    return "raw" if formats.is_raw(format) else format or "raw"


def _disk_type(info: VolumeInfo) -> str:
    if info.type is VolumeType.NETWORK:
        return "network"
    return "block" if info.type is VolumeType.BLOCK else "file"


def _add_source(parent: Element, volume: Member) -> None:
    info = volume.info
    if info.type is VolumeType.NETWORK:
        add_network_source(parent, naming.disk_source(volume.pool, info))
    elif info.type is VolumeType.BLOCK:
        add(parent, "source", dev=info.path)
    else:
        add(parent, "source", file=info.path)


def add_network_source(parent: Element, found: DiskSource) -> None:
    """Add the ``<source>`` of a disk whose bytes come over the network."""
    source = add(parent, "source", protocol=found.protocol, name=found.name)
    for host in found.hosts:
        add(source, "host", name=host.name, port=host.port, transport=host.transport, socket=host.socket)
    if found.auth is not None:
        auth = add(source, "auth", username=found.auth.username)
        secret = found.auth.secret_type or found.auth.type
        add(auth, "secret", type=secret, uuid=found.auth.secret_uuid, usage=found.auth.secret_usage)
    if found.initiator is not None:
        add(add(source, "initiator"), "iqn", name=found.initiator)


def _storage(volume: Member) -> QemuNode:
    """Return QEMU's node of a volume's bytes."""
    info = volume.info
    if info.type is VolumeType.NETWORK:
        return naming.blockdev(volume.pool, info)
    return {"driver": "host_device" if info.type is VolumeType.BLOCK else "file", "filename": info.path}
