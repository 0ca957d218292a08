"""Run by Debian's own Python, which has libvirt's bindings: asks a libvirtd what each line of its input says, as JSON.

A line in is ``[operation, argument …]``, a line out ``{"result": …}`` or ``{"code": …, "message": …}``, libvirt's error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import libvirt

POOL_EVENTS = ("defined", "undefined", "started", "stopped", "created", "deleted")

LAST = "<pool type='dir'><name>the last</name><target><path>/nowhere/the last</path></target></pool>"
"""A pool that nobody else has."""


class Oracle:
    """A connection, and what may be asked of it."""

    def __init__(self, uri: str) -> None:
        libvirt.virEventRegisterDefaultImpl()
        self.connection = libvirt.open(uri)
        self.happened: list[list[str]] = []
        self.mock: Any = None
        lifecycle, refresh = libvirt.VIR_STORAGE_POOL_EVENT_ID_LIFECYCLE, libvirt.VIR_STORAGE_POOL_EVENT_ID_REFRESH
        self.connection.storagePoolEventRegisterAny(None, lifecycle, self._lifecycle, None)
        self.connection.storagePoolEventRegisterAny(None, refresh, self._refreshed, None)

    def _lifecycle(self, connection: Any, pool: Any, event: int, detail: int, opaque: Any) -> None:
        self.happened.append([pool.name(), POOL_EVENTS[event]])

    def _refreshed(self, connection: Any, pool: Any, opaque: Any) -> None:
        self.happened.append([pool.name(), "refreshed"])

    def pool(self, name: str) -> Any:
        """The pool of this name."""
        return self.connection.storagePoolLookupByName(name)

    def define(self, xml: str, flags: int = 0) -> str:
        """Define a pool; its name."""
        return str(self.connection.storagePoolDefineXML(xml, flags).name())

    def create_pool(self, xml: str, flags: int = 0) -> str:
        """Make a transient pool; its name."""
        return str(self.connection.storagePoolCreateXML(xml, flags).name())

    def round_trip(self, xml: str, inactive: bool = True) -> str:
        """Define a pool, and tell what is written of it; it is undefined again."""
        pool = self.connection.storagePoolDefineXML(xml)
        try:
            return str(pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE if inactive else 0))
        finally:
            pool.undefine()

    def parsed(self, xml: str) -> str:
        """What libvirt's reader and writer alone make of a pool: by its test driver, which needs no type's backend."""
        pool = self.mocked().storagePoolDefineXML(xml)
        try:
            return str(pool.XMLDesc())
        finally:
            pool.undefine()

    def volume_parsed(self, xml: str) -> str:
        """What libvirt's reader and writer alone make of a volume in a pool of files: by its test driver."""
        volume = self.mocked().storagePoolLookupByName("default-pool").createXML(xml)
        try:
            return str(volume.XMLDesc())
        finally:
            volume.delete()

    def mocked(self) -> Any:
        """The connection to libvirt's test driver."""
        if self.mock is None:
            self.mock = libvirt.open("test:///default")
        return self.mock

    def pool_call(self, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a pool that returns plain values."""
        return getattr(self.pool(name), method)(*arguments)

    def volume_call(self, pool: str, name: str, method: str, *arguments: Any) -> Any:
        """Call a method of a volume that returns plain values."""
        return getattr(self.pool(pool).storageVolLookupByName(name), method)(*arguments)

    def create_volume(self, pool: str, xml: str, flags: int = 0) -> str:
        """Make a volume; what is written of it."""
        return str(self.pool(pool).createXML(xml, flags).XMLDesc())

    def volume_round_trip(self, pool: str, xml: str, flags: int = 0) -> str:
        """Make a volume, and tell what is written of it; it is deleted again."""
        volume = self.pool(pool).createXML(xml, flags)
        try:
            return str(volume.XMLDesc())
        finally:
            volume.delete()

    def clone_volume(self, pool: str, xml: str, source_pool: str, source: str, flags: int = 0) -> str:
        """Make a volume out of another; what is written of it."""
        old = self.pool(source_pool).storageVolLookupByName(source)
        return str(self.pool(pool).createXMLFrom(xml, old, flags).XMLDesc())

    def pools(self, flags: int = 0) -> list[str]:
        """The names of the pools that these flags list."""
        return sorted(pool.name() for pool in self.connection.listAllStoragePools(flags))

    def volumes(self, pool: str) -> dict[str, str]:
        """What is written of each volume, by its name."""
        return {volume.name(): volume.XMLDesc() for volume in self.pool(pool).listAllVolumes()}

    def lookup(self, method: str, *arguments: Any) -> list[str]:
        """A ``storagePoolLookupBy…`` or ``storageVolLookupBy…`` of the connection: ``[pool]`` or ``[volume, its key]``."""
        found = getattr(self.connection, method)(*arguments)
        return [found.name(), found.key()] if hasattr(found, "key") else [found.name()]

    def pool_of_volume_path(self, path: str) -> str:
        """The name of the pool that has the volume at ``path``."""
        return str(self.connection.storageVolLookupByPath(path).storagePoolLookupByVolume().name())

    def upload(self, pool: str, name: str, path: str, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Fill a volume from a file, and wait until the pool was refreshed for that, which libvirt does on its own."""
        volume = self.pool(pool).storageVolLookupByName(name)
        before = len(self.happened)
        stream = self.connection.newStream()
        volume.upload(stream, offset, length, flags)
        with open(path, "rb") as file:
            stream.sendAll(lambda _, count, __: file.read(count), None)
        stream.finish()
        while [pool, "refreshed"] not in self.happened[before:]:
            libvirt.virEventRunDefaultImpl()

    def download(self, pool: str, name: str, path: str, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        """Write what a volume holds to a file."""
        stream = self.connection.newStream()
        self.pool(pool).storageVolLookupByName(name).download(stream, offset, length, flags)
        with open(path, "wb") as file:
            stream.recvAll(lambda _, data, __: file.write(data), None)
        stream.finish()

    def world(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """All that is told of these pools and their volumes, of those that there are."""
        found: dict[str, dict[str, Any]] = {}
        for pool in self.connection.listAllStoragePools():
            if pool.name() in names:
                active = bool(pool.isActive())
                found[pool.name()] = {
                    "active": active,
                    "persistent": bool(pool.isPersistent()),
                    "autostart": bool(pool.autostart()),
                    "xml": pool.XMLDesc(),
                    "inactive xml": pool.XMLDesc(libvirt.VIR_STORAGE_XML_INACTIVE),
                    "volumes": {v.name(): self._described(v) for v in pool.listAllVolumes()} if active else {},
                }
        return found

    @staticmethod
    def _described(volume: Any) -> str:
        try:
            return str(volume.XMLDesc())
        except libvirt.libvirtError as error:  # it has some that it cannot describe
            return f"<refused code='{error.get_error_code()}'/>"
        except UnicodeDecodeError:  # or describes with whatever bytes are in an image's header
            return "<refused/>"

    def connection_call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the connection that returns plain values, such as ``findStoragePoolSources``."""
        return getattr(self.connection, method)(*arguments)

    def events(self) -> list[list[str]]:
        """``[pool, what]`` of all that happened since this was asked last, in order."""
        # an event of our own, which comes after all that had come before it
        self.connection.storagePoolDefineXML(LAST).undefine()
        while ["the last", "undefined"] not in self.happened:
            libvirt.virEventRunDefaultImpl()
        happened, self.happened = self.happened, []
        return [event for event in happened if event[0] != "the last"]


def main(uri: str) -> None:
    """Answer until the input ends."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    oracle = Oracle(uri)
    for line in sys.stdin:
        operation, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(oracle, operation)(*arguments)}
        except libvirt.libvirtError as error:
            answer = {"code": error.get_error_code(), "message": error.get_error_message()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
