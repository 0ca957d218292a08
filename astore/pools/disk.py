"""How a libvirt domain and QEMU are told to use a volume."""

from __future__ import annotations

from typing import Any

from lxml import etree

from astore.errors import DefinitionError
from astore.images import formats
from astore.images.gluster import parse_gluster_uri
from astore.model import VolumeInfo, VolumeType
from astore.model.definitions import Host
from astore.pools import graph
from astore.pools.graph import Layer
from astore.pools.parts import Member
from astore.xml.reading import Element, add, render

GLUSTER_PORT = 24007


def disk_xml(volume: Member, target: str, bus: str, *, readonly: bool) -> str:
    """See :meth:`astore.Volume.disk_xml`. :raises DefinitionError: a directory is no disk. StorageError: as :func:`_images`."""
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


def qemu_blockdev(volume: Member, node_name: str | None) -> dict[str, Any]:
    """See :meth:`astore.Volume.qemu_blockdev`.

    :raises DefinitionError: a directory is no disk. StorageError: as :func:`_images`.
    """
    node: dict[str, Any] | None = None
    for image, format in reversed(_images(volume)):
        made: dict[str, Any] = {"driver": formats.driver_of(format), "file": _storage(image)}
        if formats.can_be_backed(format):
            made["backing"] = node
        node = made
    assert node is not None
    if node_name is not None:
        node["node-name"] = node_name
    return node


def _images(volume: Member) -> list[Layer]:
    """The images that a disk is read of, from the top down, as the graph knows them. :raises: as :func:`graph.layers`."""
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
        name, hosts = _gluster(volume, info)
        source = add(parent, "source", protocol="gluster", name=name)
        for host in hosts:
            if host.name.startswith("/"):
                add(source, "host", transport="unix", socket=host.name)
            else:
                add(source, "host", name=host.name, port=str(host.port or GLUSTER_PORT))
    elif info.type is VolumeType.BLOCK:
        add(parent, "source", dev=info.path)
    else:
        add(parent, "source", file=info.path)


def _storage(volume: Member) -> dict[str, Any]:
    """The node of a volume's bytes."""
    info = volume.info
    if info.type is not VolumeType.NETWORK:
        return {"driver": "host_device" if info.type is VolumeType.BLOCK else "file", "filename": info.path}
    name, hosts = _gluster(volume, info)
    gluster_volume, _, path = name.partition("/")
    return {
        "driver": "gluster",
        "volume": gluster_volume,
        "path": path,
        "server": [
            {"type": "unix", "path": host.name}
            if host.name.startswith("/")
            else {"type": "inet", "host": host.name, "port": str(host.port or GLUSTER_PORT)}
            for host in hosts
        ],
    }


def _gluster(volume: Member, info: VolumeInfo) -> tuple[str, tuple[Host, ...]]:
    """``volume/path`` and the pool's hosts, the one that the key names first."""
    found = parse_gluster_uri(info.key)
    return f"{found.volume}/{found.path}", volume.pool.definition.source.hosts
