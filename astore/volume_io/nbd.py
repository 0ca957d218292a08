"""Serve a volume to local programs by the NBD protocol, over the file that the pool has open already.

This lets qemu-img work on any storage that astore supports, without knowing it and without opening anything itself.
All numbers are from the protocol's document: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. In its
terms, this is a fixed newstyle server with the options GO, INFO, LIST, ABORT, EXPORT_NAME, STRUCTURED_REPLY and the meta
context ``base:allocation``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator
from struct import Struct
from typing import Any

from astore.backend import Context
from astore.cancellation import TaskGroup, bounded, shielded, to_the_end
from astore.volume_io.export import LARGEST, Export

NAME = "volume"
"""The name of the export."""

MOST_CONNECTIONS = 16
"""The most clients at once; qemu-img makes a connection for each image that it opens."""

MOST_OPTIONS = 64
"""The most options in one handshake."""

MOST_OPTION_BYTES = 16 << 10
"""The most bytes of an option; names have at most 4,096."""

PREFERRED = 64 << 10
"""The preferred least bytes of a request."""

_GREETING = Struct(">8s8sH")
_OPTION = Struct(">8sII")
_OPTION_REPLY = Struct(">QIII")
_REQUEST = Struct(">IHHQQI")
_SIMPLE = Struct(">IIQ")
_CHUNK = Struct(">IHHQI")
_U16, _U32, _U64, _EXTENT = Struct(">H"), Struct(">I"), Struct(">Q"), Struct(">II")
_EXPORT_INFO, _BLOCK_INFO = Struct(">HQH"), Struct(">HIII")

_MAGIC, _HAVE_OPTION = b"NBDMAGIC", b"IHAVEOPT"
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC, _CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2  # flags of the handshake, the server's and the client's
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO, _OPT_STRUCTURED = 1, 2, 3, 6, 7, 8
_OPT_LIST_META, _OPT_SET_META = 9, 10
_REP_ACK, _REP_SERVER, _REP_INFO, _REP_META = 1, 2, 3, 4
_ERR_UNSUP, _ERR_INVALID, _ERR_UNKNOWN = 0x8000_0001, 0x8000_0003, 0x8000_0006
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_TRIM, _SEND_ZEROES, _MULTI_CONN = 1, 2, 4, 32, 64, 256
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES, _STATUS = 0, 1, 2, 3, 4, 6, 7
_FLAG_NO_HOLE, _FLAG_REQ_ONE = 2, 8
_FLAGS = {_ZEROES: _FLAG_NO_HOLE, _STATUS: _FLAG_REQ_ONE}
"""The flags that each command may have."""

_DONE, _CHUNK_NONE, _CHUNK_DATA, _CHUNK_STATUS, _CHUNK_ERROR = 1, 0, 1, 5, 0x8001
_CONTEXT, _CONTEXT_ID = b"base:allocation", 1
_ERRORS = frozenset({errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC})
"""The errors that the protocol has numbers for, which are those of Linux."""


@contextlib.asynccontextmanager
async def serving(export: Export, context: Context, folder: str) -> AsyncIterator[dict[str, Any]]:
    """Serve an export on a socket in ``folder``, which must be private: every client is accepted.

    :return: the export as a node of QEMU's block layer (driver ``nbd``).
    """
    path = f"{folder}/{NAME}"
    listener = await to_the_end(context.lane, _listen, path, undo=socket.socket.close)
    server = _Server(export, listener)
    try:
        yield {"driver": "nbd", "server": {"type": "unix", "path": path}, "export": NAME}
    finally:
        await shielded(bounded(server.aclose()))


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(MOST_CONNECTIONS)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class _Server:
    def __init__(self, export: Export, listener: socket.socket) -> None:
        self._export = export
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # the client has gone already
            return
        if len(self._tasks) >= MOST_CONNECTIONS:
            client.close()
            return
        client.setblocking(False)
        task = self._loop.create_task(_Connection(self._export, client).serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # closed here, because a task that is cancelled before its first step runs no code
        task.add_done_callback(lambda _: client.close())

    async def aclose(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Gone(Exception):
    """The client hung up or broke the protocol; it gets no further reply."""


class _Connection:
    def __init__(self, export: Export, client: socket.socket) -> None:
        self._export = export
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._structured = False
        self._context = False  # whether the client set base:allocation

    async def serve(self) -> None:
        with contextlib.suppress(_Gone, OSError):
            if await self._shake_hands():
                await self._answer_all()

    # ----------------------------------------------------------------------------------------------- the handshake

    async def _shake_hands(self) -> bool:
        """Negotiate the options; return whether requests follow."""
        await self._send(_GREETING.pack(_MAGIC, _HAVE_OPTION, _FIXED_NEWSTYLE | _NO_ZEROES))
        (flags,) = _U32.unpack(await self._receive(4))
        if not flags & _FIXED_NEWSTYLE or flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
            raise _Gone
        for _ in range(MOST_OPTIONS):
            magic, option, length = _OPTION.unpack(await self._receive(_OPTION.size))
            if magic != _HAVE_OPTION or length > MOST_OPTION_BYTES:
                raise _Gone
            data = bytes(await self._receive(length))
            if option == _OPT_EXPORT_NAME:
                if data.decode("utf-8", "replace") != NAME:
                    raise _Gone  # this option has no error reply
                rest = b"" if flags & _NO_ZEROES else bytes(124)
                await self._send(_U64.pack(self._export.size) + _U16.pack(self._transmission_flags) + rest)
                return True
            if option == _OPT_ABORT:
                await self._reply(option, _REP_ACK)
                return False
            try:
                go = await self._opted(option, data)
            except (ValueError, IndexError):  # the option is malformed
                await self._reply(option, _ERR_INVALID)
            else:
                if go:
                    return True
        raise _Gone

    async def _opted(self, option: int, data: bytes) -> bool:
        """Answer an option; return whether it was the last one. :raises ValueError: it is malformed."""
        if option in (_OPT_LIST, _OPT_STRUCTURED):
            if data:
                raise ValueError("unexpected data")
            if option == _OPT_LIST:
                await self._reply(option, _REP_SERVER, _U32.pack(len(NAME)) + NAME.encode())
            else:
                self._structured = True
            await self._reply(option, _REP_ACK)
        elif option in (_OPT_INFO, _OPT_GO):
            name, rest = _string(data)
            (count,) = _U16.unpack(rest[:2].ljust(2, b"\xff"))
            if len(rest) != 2 + 2 * count:
                raise ValueError("wrong length")
            if name != NAME.encode():
                await self._reply(option, _ERR_UNKNOWN)
                return False
            export = self._export
            about = _EXPORT_INFO.pack(_INFO_EXPORT, export.size, self._transmission_flags)
            await self._reply(option, _REP_INFO, about)
            sizes = _BLOCK_INFO.pack(_INFO_BLOCK_SIZE, export.sector, PREFERRED, LARGEST)
            await self._reply(option, _REP_INFO, sizes)
            await self._reply(option, _REP_ACK)
            return option == _OPT_GO
        elif option in (_OPT_LIST_META, _OPT_SET_META):
            await self._meta_contexts(option, data)
        else:
            await self._reply(option, _ERR_UNSUP)
        return False

    async def _meta_contexts(self, option: int, data: bytes) -> None:
        name, rest = _string(data)
        count, rest = _number(rest)
        queries = []
        for _ in range(count):
            query, rest = _string(rest)
            queries.append(query)
        if rest or not self._structured:
            raise ValueError("malformed, or before structured replies were set")
        if option == _OPT_SET_META:
            self._context = False
        if name != NAME.encode():
            await self._reply(option, _ERR_UNKNOWN)
            return
        # a writable export tells no holes: the storage may not know yet what is in its caches
        asked = _CONTEXT in queries or (option == _OPT_LIST_META and (not queries or b"base:" in queries))
        if asked and not self._export.write:
            if option == _OPT_SET_META:
                self._context = True
            await self._reply(option, _REP_META, _U32.pack(_CONTEXT_ID) + _CONTEXT)
        await self._reply(option, _REP_ACK)

    @property
    def _transmission_flags(self) -> int:
        if self._export.write:
            return _HAS_FLAGS | _SEND_FLUSH | _SEND_TRIM | _SEND_ZEROES
        return _HAS_FLAGS | _READ_ONLY | _SEND_FLUSH | _MULTI_CONN

    async def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        await self._send(_OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    # ------------------------------------------------------------------------------------------------ transmission

    async def _answer_all(self) -> None:
        """Answer requests, several at once, until the client leaves."""
        slots = asyncio.Semaphore(self._export.in_flight)

        async def answer(*request: Any) -> None:
            try:
                await self._answer(*request)
            finally:
                slots.release()

        try:
            async with TaskGroup() as group:
                while True:
                    await slots.acquire()
                    header = _REQUEST.unpack(await self._receive(_REQUEST.size))
                    magic, flags, kind, cookie, offset, length = header
                    if magic != _REQUEST_MAGIC or kind == _DISCONNECT:
                        return
                    data: bytes | bytearray = b""
                    if kind == _WRITE:
                        if length > LARGEST:
                            return  # too long even to skip
                        data = await self._receive(length)
                    group.create_task(answer(kind, flags, cookie, offset, length, data))
                    del data
        except* (_Gone, OSError):
            pass

    async def _answer(
        self, kind: int, flags: int, cookie: int, offset: int, length: int, data: bytes | bytearray
    ) -> None:
        try:
            number, chunk, parts = 0, *(await self._done(kind, flags, offset, length, data))
        except OSError as error:  # LaneTimeoutError is one
            number = error.errno if error.errno in _ERRORS else errno.EIO
            if error.errno == errno.EDQUOT:
                number = errno.ENOSPC
            chunk, parts = _CHUNK_ERROR, (_U32.pack(number) + bytes(2),)
        if self._structured and kind in (_READ, _STATUS):
            size = sum(len(part) for part in parts)
            head = _CHUNK.pack(_CHUNK_MAGIC, _DONE, chunk, cookie, size)
        else:
            head = _SIMPLE.pack(_SIMPLE_MAGIC, number, cookie)
            parts = parts[-1:] if kind == _READ and not number else ()
        await self._send(head, *parts)

    async def _done(
        self, kind: int, flags: int, offset: int, length: int, data: bytes | bytearray
    ) -> tuple[int, tuple[bytes, ...]]:
        """Execute a request; return the type and the payload of the reply chunk. :raises OSError: it failed."""
        export = self._export
        if flags & ~_FLAGS.get(kind, 0):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if kind == _FLUSH:
            await export.flush()
            return _CHUNK_NONE, ()
        if kind == _READ:
            return _CHUNK_DATA, (_U64.pack(offset), await export.read(length, offset))
        if kind == _WRITE:
            await export.write_at(data, offset)
        elif kind == _TRIM:
            await export.trim(offset, length)
        elif kind == _ZEROES:
            await export.zero(offset, length, hole=not flags & _FLAG_NO_HOLE)
        elif kind == _STATUS and self._context:
            told = await export.extents(offset, length, one=bool(flags & _FLAG_REQ_ONE))
            return _CHUNK_STATUS, (_U32.pack(_CONTEXT_ID), *(_EXTENT.pack(size, 3 * hole) for size, hole in told))
        else:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return _CHUNK_NONE, ()

    # ----------------------------------------------------------------------------------------------------- bytes

    async def _send(self, *parts: bytes) -> None:
        async with self._sending:
            for part in parts:
                await self._loop.sock_sendall(self._client, part)

    async def _receive(self, length: int) -> bytearray:
        data = bytearray(length)
        with memoryview(data) as view:
            done = 0
            while done < length:
                count = await self._loop.sock_recv_into(self._client, view[done:])
                if count == 0:
                    raise _Gone
                done += count
        return data


def _number(data: bytes) -> tuple[int, bytes]:
    if len(data) < 4:
        raise ValueError("cut off")
    return _U32.unpack(data[:4])[0], data[4:]


def _string(data: bytes) -> tuple[bytes, bytes]:
    length, rest = _number(data)
    if length > len(rest):
        raise ValueError("cut off")
    return rest[:length], rest[length:]
