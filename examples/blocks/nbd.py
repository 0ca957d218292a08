"""A pool type whose volumes are the exports of an NBD server: a block backend for a network protocol, on the event loop.

The protocol is https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import struct
from collections.abc import Mapping
from urllib.parse import quote, unquote

from astore import Backend, DefinitionError, PoolDef, PoolSession, VolumeInfo
from astore.backend import Context, DiskHost, DiskSource, QemuNode
from astore.blocks import Block, BlockPool, BlockVolume, block_session

LIST, GO = 3, 7
READ, WRITE, DISCONNECT, FLUSH = range(4)


class Connection:
    """A connection to the server. One request is under way at a time."""

    async def connect(self, host: str, port: int) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(host, port)
        self.turn = asyncio.Lock()
        try:
            if not (await self.reader.readexactly(18)).startswith(b"NBDMAGICIHAVEOPT"):
                raise OSError(errno.EPROTO, f"{host}:{port} is no NBD server")
        except BaseException:
            self.writer.close()
            raise
        self.writer.write(struct.pack(">I", 3))
        return self

    async def option(self, number: int, data: bytes = b"") -> list[bytes]:
        self.writer.write(struct.pack(">8sII", b"IHAVEOPT", number, len(data)) + data)
        found, kind = [], 0
        while kind != 1:  # which acknowledges the option, after all answers
            _, _, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            if kind >> 31:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            found.append(await self.reader.readexactly(length))
        return found[:-1]

    async def call(self, kind: int, offset: int, length: int, data: bytes | memoryview = b"") -> bytes:
        async with self.turn:
            try:
                self.writer.write(struct.pack(">IHHQQI", 0x25609513, 0, kind, 0, offset, length))
                self.writer.write(data)
                await self.writer.drain()
                _, number, _ = struct.unpack(">IIQ", await self.reader.readexactly(16))
                if number:
                    raise OSError(number, os.strerror(number))
                return await self.reader.readexactly(length if kind == READ else 0)
            except asyncio.IncompleteReadError as error:
                raise OSError(errno.ENOTCONN, "the server closed the connection") from error
            except asyncio.CancelledError:
                self.writer.close()  # the rest of this answer would be taken for the next one
                raise


class NbdVolume(BlockVolume):
    """An open export."""

    in_flight = 1

    def __init__(self, connection: Connection, id: int, length: int) -> None:
        self.connection, self.id, self.length = connection, id, length

    async def size(self) -> int:
        return self.length

    async def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        length = max(min(len(buffer), self.length - offset), 0)
        buffer[:length] = await self.connection.call(READ, offset, length)
        return length

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        await self.connection.call(WRITE, offset, len(data), bytes(data))

    async def flush(self) -> None:
        await self.connection.call(FLUSH, 0, 0)

    async def close(self) -> None:
        self.connection.writer.write(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 0, 0, 0))
        self.connection.writer.close()


class NbdPool(BlockPool):
    """The exports of a server."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.total = host, port, 0
        self.device = f"nbd:{host}:{port}"

    def key(self, name: str) -> str:
        return f"nbd://{self.host}:{self.port}/{quote(name, safe='')}"

    async def list(self, known: Mapping[str, Block]) -> list[Block]:
        connection = await Connection().connect(self.host, self.port)
        try:
            names = [
                answer[4 : 4 + int.from_bytes(answer[:4], "big")].decode() for answer in await connection.option(LIST)
            ]
        finally:
            connection.writer.close()
        found = [block for name in names if (block := await self.look(name)) is not None]
        self.total = sum(block.size for block in found)
        return found

    async def look(self, name: str) -> Block | None:
        try:
            volume = await self.open(name, False)
        except FileNotFoundError:
            return None
        await volume.close()
        return Block(name=name, id=volume.id, size=volume.length)

    async def open(self, name: str, write: bool) -> NbdVolume:
        data = name.encode()
        connection = await Connection().connect(self.host, self.port)
        try:
            told = await connection.option(GO, struct.pack(">I", len(data)) + data + bytes(2))
        except BaseException:
            connection.writer.close()
            raise
        size: int = next(struct.unpack_from(">Q", info, 2)[0] for info in told if info.startswith(bytes(2)))
        return NbdVolume(connection, int.from_bytes(hashlib.blake2b(data, digest_size=7).digest(), "big"), size)

    async def sizes(self) -> tuple[int, int]:
        return self.total, 0

    async def close(self) -> None:
        pass  # each open volume has a connection of its own


class NbdBackend(Backend):
    """Drive pools that are NBD servers."""

    type = "nbd"

    def check(self, definition: PoolDef) -> PoolDef:
        if len(definition.source.hosts) != 1:
            raise DefinitionError("an nbd pool needs one host", element="host")
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        return (("source host", "{}:{}".format(*address(definition))),)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        pool = NbdPool(*address(definition))
        await asyncio.wait_for(pool.list({}), context.timeout)
        return block_session(pool, context)

    def disk_source(self, definition: PoolDef, volume: VolumeInfo) -> DiskSource:
        return DiskSource("nbd", volume.name, (DiskHost(*address(definition)),))

    def blockdev(self, definition: PoolDef, volume: VolumeInfo) -> QemuNode:
        host, port = address(definition)
        return {"driver": "nbd", "server": {"type": "inet", "host": host, "port": str(port)}, "export": volume.name}

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        server, _, name = location.rpartition("/")
        return unquote(name) if name and server == "nbd://{}:{}".format(*address(definition)) else None


def address(definition: PoolDef) -> tuple[str, int]:
    """Return the server's host and port."""
    host = definition.source.hosts[0]
    return host.name, host.port or 10809
