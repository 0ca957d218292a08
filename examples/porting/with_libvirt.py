"""Take a pool and its volumes through their whole life, with libvirt-python: with_libvirt.py URI FOLDER."""

import io
import sys
from xml.etree import ElementTree

import libvirt

POOL = "<pool type='dir'><name>porting</name><target><path>{}</path></target></pool>"
BASE = "<volume><name>base.raw</name><capacity unit='MiB'>1</capacity></volume>"
DISK = """<volume><name>disk.qcow2</name><capacity unit='GiB'>1</capacity><target><format type='qcow2'/></target>
    <backingStore><path>{}</path><format type='raw'/></backingStore></volume>"""
COPY = "<volume><name>copy.raw</name><capacity unit='MiB'>1</capacity></volume>"
EVENTS = ("defined", "undefined", "started", "stopped", "built", "deleted")


def main(uri: str, folder: str) -> None:
    libvirt.virEventRegisterDefaultImpl()
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(uri)
    seen = []
    lifecycle = libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE
    connection.storagePoolEventRegisterAny(None, lifecycle, lambda _c, _p, event, *_: seen.append(EVENTS[event]), None)
    pool = connection.storagePoolDefineXML(POOL.format(folder))
    pool.build()
    pool.create()
    pool.setAutostart(True)
    flags = libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE | libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_AUTOSTART
    for one in connection.listAllStoragePools(flags):
        path = ElementTree.fromstring(one.XMLDesc()).findtext("target/path")
        print(f"{one.name()}: persistent {bool(one.isPersistent())}, {path}")
    base = pool.createXML(BASE)
    data = bytes(range(256)) * 4096
    stream = connection.newStream()
    base.upload(stream, 0, len(data))
    stream.sendAll(lambda _, size, source: source.read(size), io.BytesIO(data))
    stream.finish()
    disk = pool.createXML(DISK.format(base.path()))
    disk.resize(2 << 30)
    copy = pool.createXMLFrom(COPY, base)
    stream = connection.newStream()
    copy.download(stream, 0, 0)
    received = io.BytesIO()
    stream.recvAll(lambda _, chunk, into: into.write(chunk), received)
    stream.finish()
    print("the copy is the same:", received.getvalue() == data)
    copy.wipe()
    pool.refresh()
    for volume in sorted(pool.listAllVolumes(), key=lambda volume: volume.name()):
        xml = ElementTree.fromstring(volume.XMLDesc())
        format, backing = next(xml.iterfind("target/format")).get("type"), xml.findtext("backingStore/path")
        print(f"{volume.name()}: {volume.info()[1]} bytes, {format}, backed by {backing}")
    for attempt in (
        lambda: connection.storagePoolLookupByName("nosuch"),
        lambda: pool.storageVolLookupByName("nosuch"),
        lambda: pool.createXML(BASE),
        lambda: disk.resize(4096),
        pool.undefine,
    ):
        try:
            attempt()
        except libvirt.libvirtError as error:
            print("refused:", error.get_error_code(), error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)
    for volume in (disk, copy, base):
        volume.delete()
    pool.destroy()
    pool.delete()
    pool.undefine()
    while "undefined" not in seen:
        libvirt.virEventRunDefaultImpl()
    print(*seen)
    connection.close()


main(*sys.argv[1:])
