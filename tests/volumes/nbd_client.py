"""A client of the NBD server, which speaks the protocol well or badly, and files to be served.

Numbers and layouts are written down here anew, from https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from astore.backend import Context
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io import nbd
from astore.volume_io.export import Export
from astore.volume_io.open_file import OpenFile

KIB, MIB = 1 << 10, 1 << 20
SIZE = 3 * MIB + 7
DATA = bytes(range(1, 252)) * 5000

READ, WRITE, DISC, FLUSH, TRIM, ZEROES, STATUS = 0, 1, 2, 3, 4, 6, 7
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, SERVER, ABOUT, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN = 2**31 + 1, 2**31 + 3, 2**31 + 6


class Client:
    """Speaks the protocol, well or badly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.structured = False
        self.cookie = 0
        self.size = self.flags = -1

    async def greet(self, flags: int = 3) -> None:
        """The first words of both."""
        assert await self.reader.readexactly(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.writer.write(struct.pack(">I", flags))

    async def opt(self, option: int, data: bytes = b"", length: int | None = None) -> list[tuple[int, bytes]]:
        """Ask for an option; all replies to it."""
        self.writer.write(b"IHAVEOPT" + struct.pack(">II", option, len(data) if length is None else length) + data)
        replies = []
        while not replies or replies[-1][0] in (SERVER, ABOUT, META):
            magic, of, kind, size = struct.unpack(">QIII", await self.reader.readexactly(20))
            assert (magic, of) == (0x3E889045565A9, option)
            replies.append((kind, await self.reader.readexactly(size)))
        return replies

    async def go(self, *, structured: bool = True) -> None:
        """Begin, as QEMU does."""
        if structured:
            assert await self.opt(STRUCTURED) == [(ACK, b"")]
            self.structured = True
        for kind, data in await self.opt(GO, name("volume") + struct.pack(">HH", 1, 3)):
            if kind == ABOUT and data[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", data[2:])
        assert self.size >= 0

    def send(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        """Send a request; its cookie."""
        self.cookie += 1
        self.writer.write(struct.pack(">IHHQQI", 0x25609513, flags, kind, self.cookie, offset, length) + data)
        return self.cookie

    async def reply(self) -> tuple[int, int, bytes]:
        """The next reply: cookie, error, content."""
        (magic,) = struct.unpack(">I", await self.reader.readexactly(4))
        if magic == 0x67446698:
            error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
            return cookie, error, b""
        assert magic == 0x668E33EF
        flags, kind, cookie, size = struct.unpack(">HHQI", await self.reader.readexactly(16))
        assert flags == 1
        content = await self.reader.readexactly(size)
        if kind & 0x8000:
            assert content[4:] == b"\0\0"
            return cookie, int.from_bytes(content[:4], "big"), b""
        return cookie, 0, content

    async def ask(self, kind: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
        """Send a request and await what it gives. :raises OSError: what the server says."""
        cookie = self.send(kind, offset, length, data, flags)
        got, error, content = await self.reply()
        assert got == cookie
        if error:
            raise OSError(error, os.strerror(error))
        if kind == READ and not self.structured:
            content = await self.reader.readexactly(length)
        elif kind == READ:
            assert content[:8] == struct.pack(">Q", offset)
            content = content[8:]
        return content

    async def ended(self) -> bool:
        """Whether the server hangs up, having said no more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True


def name(text: str) -> bytes:
    """A string as options have it."""
    return struct.pack(">I", len(text)) + text.encode()


class Served:
    """A file that is served, and clients of it."""

    def __init__(self, path: Path, export: Export, node: dict[str, Any]) -> None:
        self.path = path
        self.export = export
        self.node = node
        self.uri = f"nbd+unix:///{node['export']}?socket={node['server']['path']}"

    @contextlib.asynccontextmanager
    async def raw(self) -> AsyncIterator[Client]:
        """Connected, and nothing said yet."""
        reader, writer = await asyncio.open_unix_connection(self.node["server"]["path"])
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def client(self, *, structured: bool = True) -> AsyncIterator[Client]:
        """Connected, and past the handshake."""
        async with self.raw() as client:
            await client.greet()
            await client.go(structured=structured)
            yield client


@contextlib.asynccontextmanager
async def serve(
    context: Context,
    folder: Path,
    file: OpenFile | None = None,
    size: int = SIZE,
    *,
    close: bool = True,
    **options: Any,
) -> AsyncIterator[Served]:
    """Serve a new file that has DATA at 0 and 1 MiB of DATA at 2 MiB, and holes."""
    path = folder / "file"
    sockets = folder.parent / "sockets"
    await asyncio.to_thread(_fill, path, sockets)
    if file is None:
        tree = await context.lane.run(WritableLocalTree, str(folder))
        file = OpenFile(context.lane, await context.lane.run(lambda: tree.open("file", write=True)))
    export = Export(file, size, SIZE, **options)
    async with nbd.serving(export, context, str(sockets)) as node:
        yield Served(path, export, node)
    if close:
        await file.aclose()


def _fill(path: Path, sockets: Path) -> None:
    sockets.mkdir(exist_ok=True)
    for old in sockets.iterdir():
        old.unlink()
    with path.open("wb") as file:
        file.write(DATA[: 64 * KIB])
        file.seek(2 * MIB)
        file.write(DATA[:MIB])
        file.truncate(SIZE)


CONTENT = (DATA[: 64 * KIB]).ljust(2 * MIB, b"\0").ljust(2 * MIB, b"\0") + DATA[:MIB].ljust(MIB, b"\0") + bytes(7)
