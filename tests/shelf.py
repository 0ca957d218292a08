"""A made-up pool type of which the core knows nothing: racks of volumes on a server, which several hosts serve by NBD.

Its server is a folder of this machine: ``<source><host …/><dir path=FOLDER/><name>RACK</name></source>``.
"""

from __future__ import annotations

import os
import re
from typing import ClassVar
from urllib.parse import quote, unquote

from astore.backend import Backend, Context, DiskHost, DiskSource, PoolSession, QemuNode
from astore.errors import DefinitionError
from astore.model import Auth, Host, Place, PoolDef, Source, VolumeInfo, VolumeType
from astore.names import check_path
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree

PORT = 10809
_URL = re.compile(r"nbd(?:\+unix)?://(?P<host>[^/?#]*)/(?P<export>[^?#]*)(?:\?socket=(?P<socket>[^&#]*))?")


class ShelfBackend(Backend):
    """Drives such pools. :param protocol: what libvirt calls the protocol."""

    type: ClassVar[str] = "shelf"
    volume_formats: ClassVar[tuple[str, ...]] = ("raw", "qcow2")

    def __init__(self, protocol: str = "nbd") -> None:
        self._protocol = protocol

    def check(self, definition: PoolDef) -> PoolDef:
        """A host, a rack and a folder are needed."""
        source = definition.source
        if not source.hosts or not source.name:
            raise DefinitionError("a shelf pool needs a host and the name of a rack", element="source")
        check_path(source.directory or "", element="dir")
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """The rack and its folder."""
        return (("source name", definition.source.name or ""), ("source dir", definition.source.directory or ""))

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Open the folder."""
        return WritableTreeSession(await context.lane.run(ShelfTree, definition, discard=ShelfTree.close), context)

    # ------------------------------------------------------------------------------------- how volumes are named

    def disk_source(self, definition: PoolDef, volume: VolumeInfo) -> DiskSource:
        """The export, all hosts, and who may use it."""
        hosts = tuple(
            DiskHost(socket=host.name, transport="unix")
            if host.name.startswith("/")
            else DiskHost(host.name, host.port or PORT)
            for host in definition.source.hosts
        )
        return DiskSource(self._protocol, _export(definition, volume.name), hosts, definition.source.auth)

    def blockdev(self, definition: PoolDef, volume: VolumeInfo) -> QemuNode:
        """QEMU's NBD knows one server: the first."""
        first = definition.source.hosts[0]
        server = {"type": "inet", "host": first.name, "port": str(first.port or PORT)}
        return {"driver": "nbd", "server": server, "export": _export(definition, volume.name)}

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        """What any of the hosts calls by the rack and the name."""
        found = _URL.fullmatch(location)
        if found is None:
            return None
        host = unquote(found["socket"]) if found["socket"] else found["host"].partition(":")[0]
        rack, _, name = unquote(found["export"], errors="surrogateescape").rpartition("/")
        known = host in {one.name for one in definition.source.hosts} and rack == definition.source.name
        return name if known and name else None


def _export(definition: PoolDef, name: str) -> str:
    return f"{definition.source.name}/{name}"


class ShelfTree(WritableLocalTree):
    """The folder, whose files nobody calls by their paths."""

    file_type = VolumeType.NETWORK
    directory_type = VolumeType.NETDIR

    def __init__(self, definition: PoolDef) -> None:
        super().__init__(definition.source.directory or "")
        self._url = f"nbd://{definition.source.hosts[0].name}/{definition.source.name}/"

    def key(self, name: str) -> str:
        """The URL of an entry."""
        return self._url + quote(os.fsencode(name), safe="")

    def name_of(self, location: str) -> str | None:
        """The entry that a URL of the first host means."""
        name = unquote(location.rpartition("/")[2], errors="surrogateescape")
        return name if name and self.key(name) == location else None

    def folder_place(self) -> Place | None:
        """Nowhere on this machine."""
        return None


def shelf(name: str, folder: os.PathLike[str], *hosts: str, rack: str = "rack", auth: Auth | None = None) -> PoolDef:
    """A definition. :param hosts: as ``<host name=>`` has them; the first is ``one`` if none is given."""
    named = tuple(Host(host) for host in hosts or ("one", "two", "/run/shelf.sock"))
    return PoolDef("shelf", name, source=Source(hosts=named, directory=os.fspath(folder), name=rack, auth=auth))
