"""How a libvirt domain and QEMU are told to use a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lxml import etree

from astore.definitions import Host
from astore.errors import DefinitionError
from astore.images.backing import parse_gluster_uri
from astore.model import VolumeInfo, VolumeType
from astore.xml.reading import Element, add, render

if TYPE_CHECKING:
    from astore.volume import Volume

GLUSTER_PORT = 24007

DRIVERS = {"vpc": "vpc", "vhd": "vpc"}
"""QEMU's names of formats, where they are not libvirt's."""


def disk_xml(volume: Volume, target: str, bus: str, *, readonly: bool) -> str:
    """See :meth:`astore.Volume.disk_xml`. :raises DefinitionError: a directory is no disk."""
    info = _image(volume)
    disk = etree.Element("disk")
    device = "cdrom" if info.format == "iso" else "disk"
    if info.type is VolumeType.NETWORK:
        disk.set("type", "network")
    elif info.type is VolumeType.BLOCK:
        disk.set("type", "block")
    else:
        disk.set("type", "file")
    disk.set("device", device)
    add(disk, "driver", name="qemu", type="raw" if info.format == "iso" else info.format)
    _add_source(disk, volume, info)
    add(disk, "target", dev=target, bus=bus)
    if readonly or device == "cdrom":
        add(disk, "readonly")
    return render(disk)


def _add_source(disk: Element, volume: Volume, info: VolumeInfo) -> None:
    if info.type is VolumeType.NETWORK:
        name, hosts = _gluster(volume, info)
        source = add(disk, "source", protocol="gluster", name=name)
        for host in hosts:
            if host.name.startswith("/"):
                add(source, "host", transport="unix", socket=host.name)
            else:
                add(source, "host", name=host.name, port=str(host.port or GLUSTER_PORT))
    elif info.type is VolumeType.BLOCK:
        add(disk, "source", dev=info.path)
    else:
        add(disk, "source", file=info.path)


def qemu_blockdev(volume: Volume, node_name: str | None) -> dict[str, Any]:
    """See :meth:`astore.Volume.qemu_blockdev`. :raises DefinitionError: a directory is no disk."""
    info = _image(volume)
    storage: dict[str, Any]
    if info.type is VolumeType.NETWORK:
        name, hosts = _gluster(volume, info)
        gluster_volume, _, path = name.partition("/")
        storage = {
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
    else:
        storage = {"driver": "host_device" if info.type is VolumeType.BLOCK else "file", "filename": info.path}
    kind = "raw" if info.format in (None, "iso") else DRIVERS.get(info.format or "", info.format)
    node: dict[str, Any] = {"driver": kind, "file": storage}
    if node_name is not None:
        node["node-name"] = node_name
    return node


def _image(volume: Volume) -> VolumeInfo:
    info = volume.info
    if info.type in (VolumeType.DIR, VolumeType.NETDIR):
        raise DefinitionError(f"volume {info.name!r} is a directory, which is no disk")
    return info


def _gluster(volume: Volume, info: VolumeInfo) -> tuple[str, tuple[Host, ...]]:
    """``volume/path`` and the pool's hosts, the one that the key names first."""
    found = parse_gluster_uri(info.key)
    return f"{found.volume}/{found.path}", volume.pool.definition.source.hosts
