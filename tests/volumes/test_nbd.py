"""The NBD server: what it answers to clients that know the protocol, and to those that do not."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from core_fakes import eventually
from volumes.nbd_client import (
    ABORT,
    ABOUT,
    ACK,
    CONTENT,
    DISC,
    EXPORT_NAME,
    FLUSH,
    GO,
    INFO,
    INVALID,
    KIB,
    LIST,
    LIST_META,
    META,
    MIB,
    READ,
    SERVER,
    SET_META,
    SIZE,
    STARTTLS,
    STATUS,
    STRUCTURED,
    TRIM,
    UNKNOWN,
    UNSUP,
    WRITE,
    ZEROES,
    name,
    serve,
)

from astore.backend import Context
from astore.testing.faults import Gate
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io import nbd
from astore.volume_io.export import LARGEST
from astore.volume_io.open_file import OpenFile

# --------------------------------------------------------------------------------------------------- the handshake


async def test_options(context: Context, folder: Path) -> None:
    """Each option is answered as the protocol says, whether it makes sense or not."""
    async with serve(context, folder) as served, served.raw() as client:
        await client.greet()
        assert await client.opt(LIST) == [(SERVER, name("volume")), (ACK, b"")]
        assert await client.opt(STARTTLS) == [(UNSUP, b"")]
        assert await client.opt(4242, b"whatever") == [(UNSUP, b"")]
        wrong = [(INVALID, b"")]
        assert await client.opt(LIST, b"x") == wrong
        assert await client.opt(STRUCTURED, b"x") == wrong
        assert await client.opt(INFO) == wrong
        assert await client.opt(INFO, name("volume")) == wrong
        assert await client.opt(INFO, name("volume") + b"\0") == wrong
        assert await client.opt(INFO, name("volume") + b"\0\2\0\3") == wrong
        assert await client.opt(INFO, struct.pack(">I", 2**32 - 1) + b"volume") == wrong
        assert await client.opt(GO, name("other") + b"\0\0") == [(UNKNOWN, b"")]
        asked = name("volume") + struct.pack(">I", 1) + name("base:allocation")
        assert await client.opt(SET_META, asked) == wrong  # there are no structured replies yet
        about = await client.opt(INFO, name("volume") + b"\0\0")
        flags = 1 | 2 | 4 | 256
        sizes = struct.pack(">HIII", 3, 1, 64 * KIB, LARGEST)
        assert about == [(ABOUT, struct.pack(">HQH", 0, SIZE, flags)), (ABOUT, sizes), (ACK, b"")]
        assert await client.opt(ABORT) == [(ACK, b"")]
        assert await client.ended()


async def test_meta_contexts(context: Context, folder: Path) -> None:
    """Where holes are is told to who asks in the right way, of what is not being written."""
    base, volume = name("base:allocation"), name("volume")
    told = (META, struct.pack(">I", 1) + b"base:allocation")
    for write in (False, True):
        async with serve(context, folder, write=write) as served, served.raw() as client:
            await client.greet()
            await client.opt(STRUCTURED)
            some = [] if write else [told]
            for query, found in (
                (struct.pack(">I", 0), some),
                (struct.pack(">I", 1) + name("base:"), some),
                (struct.pack(">I", 2) + name("x:y") + base, some),
                (struct.pack(">I", 1) + name("x:y"), []),
            ):
                assert await client.opt(LIST_META, volume + query) == [*found, (ACK, b"")]
            for query in (
                b"",
                struct.pack(">I", 1),
                struct.pack(">I", 2**32 - 1) + base,
                struct.pack(">I", 1) + base + b"x",
            ):
                assert await client.opt(SET_META, volume + query) == [(INVALID, b"")]
            assert await client.opt(SET_META, name("other") + struct.pack(">I", 1) + base) == [(UNKNOWN, b"")]
            assert await client.opt(SET_META, volume + struct.pack(">I", 0)) == [(ACK, b"")]
            assert await client.opt(SET_META, volume + struct.pack(">I", 1) + base) == [*some, (ACK, b"")]


async def test_old_handshake(context: Context, folder: Path) -> None:
    """EXPORT_NAME begins at once, with or without the zeros that nobody needs."""
    for flags, zeros in ((3, 0), (1, 124)):
        async with serve(context, folder) as served, served.raw() as client:
            await client.greet(flags)
            client.writer.write(b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 6) + b"volume")
            size, sent = struct.unpack(">QH", await client.reader.readexactly(10))
            assert (size, sent, await client.reader.readexactly(zeros)) == (SIZE, 1 | 2 | 4 | 256, bytes(zeros))
            assert await client.ask(READ, 5, 10) == CONTENT[5:15]


async def test_nonsense(context: Context, folder: Path) -> None:
    """Who says what no client says is hung up on, at any point, and the others are served all the same."""
    request = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, LARGEST + 1)
    async with serve(context, folder, write=True) as served, served.client() as witness:
        for begin, flags, nonsense in (
            (False, 0, b""),
            (False, 7, b""),
            (False, 3, b"GET / HTTP/1.1\r\n\r\n"),
            (False, 3, b"IHAVEOPT" + struct.pack(">II", LIST, 2**32 - 1)),
            (False, 3, b"IHAVEOPT" + struct.pack(">II", EXPORT_NAME, 5) + b"other"),
            (False, 3, (b"IHAVEOPT" + struct.pack(">II", LIST, 1) + b"x") * 100),
            (True, 3, bytes(28)),
            (True, 3, request),
        ):
            async with served.raw() as client:
                await client.greet(flags)
                if begin:
                    await client.go()
                client.writer.write(nonsense)
                if begin or len(nonsense) < 500:
                    assert await client.ended()
                else:
                    with contextlib.suppress(ConnectionResetError):
                        assert len(await client.reader.read()) == 64 * 20
        async with served.raw() as client:
            await client.greet()
            client.writer.write(b"IHAV")  # and goes
        assert await witness.ask(READ, 0, SIZE) == CONTENT


async def test_many_clients(context: Context, folder: Path) -> None:
    """Sixteen are served at once; who comes then is sent away, and may come again."""
    async with serve(context, folder) as served:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(served.client()) for _ in range(nbd.MOST_CONNECTIONS)]
            async with served.raw() as late:
                assert await late.ended()
            for client in clients:
                assert await client.ask(READ, 0, 16) == CONTENT[:16]
            clients[0].send(DISC)
            assert await clients[0].ended()
            async with served.client() as later:
                assert await later.ask(READ, 0, 16) == CONTENT[:16]


# ---------------------------------------------------------------------------------------------------- transmission


@pytest.mark.parametrize("structured", [False, True])
async def test_reading(context: Context, folder: Path, structured: bool) -> None:
    """Every byte is the file's; beyond the end, and of what is wrong, there is an error, and it goes on."""
    async with serve(context, folder) as served, served.client(structured=structured) as client:
        assert (client.size, client.flags) == (SIZE, 1 | 2 | 4 | 256)
        for offset, length in ((0, SIZE), (0, 1), (SIZE - 1, 1), (64 * KIB - 3, 7), (2 * MIB - 1, MIB)):
            assert await client.ask(READ, offset, length) == CONTENT[offset : offset + length]
        for kind, offset, length, flags, data in (
            (READ, SIZE, 1, 0, b""),
            (READ, SIZE - 1, 2, 0, b""),
            (READ, 2**64 - 1, 1, 0, b""),
            (READ, 0, LARGEST + 1, 0, b""),
            (READ, 0, 0, 0, b""),
            (READ, 0, 1, 4, b""),  # DF, which is not offered
            (STATUS, 0, 1, 0, b""),  # nobody asked for base:allocation
            (4711, 0, 1, 0, b""),
            (FLUSH, 0, 0, 1, b""),
        ):
            with pytest.raises(OSError) as caught:
                await client.ask(kind, offset, length, data, flags)
            assert caught.value.errno == errno.EINVAL
        for kind, data in ((WRITE, b"x"), (TRIM, b""), (ZEROES, b"")):
            with pytest.raises(OSError) as caught:
                await client.ask(kind, 0, 1, data)
            assert caught.value.errno == errno.EPERM
        await client.ask(FLUSH)
        assert await client.ask(READ, 0, 4) == CONTENT[:4]
    assert await asyncio.to_thread(served.path.read_bytes) == CONTENT
    assert served.export.error is None


async def test_holes(context: Context, folder: Path) -> None:
    """Holes are told as the file system has them; one at a time, or several."""
    async with serve(context, folder) as served, served.raw() as client:
        await client.greet()
        await client.opt(STRUCTURED)
        client.structured = True
        await client.opt(SET_META, name("volume") + struct.pack(">I", 1) + name("base:allocation"))
        await client.go(structured=False)

        async def told(offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
            content = await client.ask(STATUS, offset, length, flags=flags)
            assert content[:4] == struct.pack(">I", 1)
            return list(struct.iter_unpack(">II", content[4:]))

        everything = [(64 * KIB, 0), (2 * MIB - 64 * KIB, 3), (MIB, 0), (7, 3)]
        found = await told(0, SIZE)
        assert sum(length for length, _ in found) == SIZE
        if found[0][0] != SIZE:  # this file system tells holes
            assert [kind for _, kind in found[:3]] == [0, 3, 0]
            assert found[0] == everything[0]
        assert await told(10, 20, flags=8) == [(20, 0)]
        assert (await told(MIB, 2 * MIB, flags=8))[0] == (MIB, 3)
        assert len(await told(MIB, 2 * MIB, flags=8)) == 1
        for offset, length, flags in ((0, SIZE + 1, 0), (0, 0, 0), (0, 1, 2)):
            with pytest.raises(OSError):
                await told(offset, length, flags)


async def test_writing(context: Context, folder: Path) -> None:
    """What is written is there; where the disk is larger than the file, the file grows; zeros are holes if they may be."""
    size = 1 << 40
    async with serve(context, folder, size=size, write=True) as served, served.client(structured=False) as client:
        assert (client.size, client.flags) == (size, 1 | 4 | 32 | 64)
        assert await client.ask(READ, size - 16, 16) == bytes(16)
        assert served.export.end == SIZE
        await client.ask(WRITE, 512, 1024, b"w" * 1024)
        await client.ask(ZEROES, 2 * MIB + 4096, 8192)
        await client.ask(TRIM, 0, 512)
        await client.ask(TRIM, 1 << 39, 1 << 20)
        assert served.export.end == SIZE
        await client.ask(ZEROES, 2 * MIB + 65536, 4096, flags=2)
        await client.ask(WRITE, 4 * MIB, 512, b"e" * 512)
        assert served.export.end == 4 * MIB + 512
        await client.ask(ZEROES, 8 * MIB, 512)
        assert served.export.end == 8 * MIB + 512
        await client.ask(FLUSH)
        for kind, data in ((WRITE, b"x" * 512), (ZEROES, b""), (TRIM, b"")):
            with pytest.raises(OSError) as caught:
                await client.ask(kind, size - 511, 512, data)
            assert caught.value.errno == errno.ENOSPC
        wanted = bytearray(CONTENT.ljust(4 * MIB, b"\0") + b"e" * 512)
        wanted[:512], wanted[512:1536] = bytes(512), b"w" * 1024
        for at, length in ((4096, 8192), (65536, 4096)):
            wanted[2 * MIB + at : 2 * MIB + at + length] = bytes(length)
        got = await client.ask(READ, 0, 4 * MIB) + await client.ask(READ, 4 * MIB, 512)
        assert got == wanted
    assert await asyncio.to_thread(served.path.read_bytes) == wanted


async def test_fixed_head(context: Context, folder: Path) -> None:
    """What was looked at at first is what is read, whatever becomes of the file."""
    async with serve(context, folder, head=b"h" * 100) as served, served.client() as client:
        wanted = b"h" * 100 + CONTENT[100:]
        for offset, length in ((0, 50), (0, 200), (99, 2), (100, 10), (0, SIZE)):
            assert await client.ask(READ, offset, length) == wanted[offset : offset + length]


async def test_bytes_are_counted(context: Context, folder: Path) -> None:
    """Whoever wants to know how far it is is told."""
    told: list[int] = []
    async with serve(context, folder, write=True, on_bytes=told.append) as served, served.client() as client:
        await client.ask(READ, 0, 100)
        await client.ask(WRITE, 0, 512, bytes(512))
        assert told == [100, 512]


# -------------------------------------------------------------------------------------------- when things go wrong


class Odd(OpenFile):
    """A file that does what the test says instead of reading, writing and punching."""

    def __init__(self, context: Context, file: OpenFile, act: Callable[[], None]) -> None:
        super().__init__(context.lane, file.file)
        self._act = act

    async def pread(self, length: int, offset: int) -> bytes:
        await self.run(self._act)
        return await super().pread(length, offset)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        await self.run(self._act)
        await super().pwrite(data, offset)

    async def punch(self, offset: int, length: int) -> None:
        await self.run(self._act)
        await super().punch(offset, length)


async def odd(context: Context, folder: Path, act: Callable[[], None]) -> Odd:
    await asyncio.to_thread((folder / "file").touch)
    tree = await context.lane.run(WritableLocalTree, str(folder))
    return Odd(context, OpenFile(context.lane, await context.lane.run(lambda: tree.open("file", write=True))), act)


async def test_errors_of_the_storage(context: Context, folder: Path) -> None:
    """An error is told in the protocol's words, the first one is kept, and a request later all may be well."""
    error: OSError | None = None

    def act() -> None:
        if error is not None:
            raise error

    file = await odd(context, folder, act)
    async with serve(context, folder, file, write=True) as served, served.client() as client:
        for given, said in (
            (errno.EDQUOT, errno.ENOSPC),
            (errno.ENOSPC, errno.ENOSPC),
            (errno.ESTALE, errno.EIO),
            (errno.ENOTCONN, errno.EIO),
        ):
            error = OSError(given, os.strerror(given))
            for kind, data in ((READ, b""), (WRITE, bytes(512)), (ZEROES, b""), (TRIM, b"")):
                with pytest.raises(OSError) as caught:
                    await client.ask(kind, 0, 512, data)
                assert caught.value.errno == said
        assert served.export.error is not None
        assert served.export.error.errno == errno.EDQUOT
        error = None
        assert await client.ask(READ, 0, 100) == CONTENT[:100]


async def test_storage_without_holes(context: Context, folder: Path) -> None:
    """Where nothing can be punched, zeros are written, and trimming is forgotten."""
    fails = [True]

    class NoHoles(Odd):
        async def punch(self, offset: int, length: int) -> None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    file = await odd(context, folder, lambda: fails.clear())
    file.__class__ = NoHoles
    async with serve(context, folder, file, write=True) as served, served.client() as client:
        await client.ask(TRIM, 0, 4096)
        assert await client.ask(READ, 0, 4096) == CONTENT[:4096]
        await client.ask(ZEROES, 0, 4096)
        assert await client.ask(READ, 0, 8192) == bytes(4096) + CONTENT[4096:8192]
        assert served.export.error is None


async def test_several_in_flight(context: Context, folder: Path) -> None:
    """Requests are answered as they are done, some at a time; one that hangs holds up no other."""
    gate = Gate()
    file = await odd(context, folder, lambda: None)

    class Slow(Odd):
        async def pread(self, length: int, offset: int) -> bytes:
            if offset == 1:
                await self.run(gate)
            return await OpenFile.pread(self, length, offset)

    file.__class__ = Slow
    async with serve(context, folder, file) as served, served.client() as client:
        slow = client.send(READ, 1, 10)
        for _ in range(20):
            assert await client.ask(READ, 0, 10) == CONTENT[:10]
        gate.open()
        cookie, error, content = await client.reply()
        assert (cookie, error, content[8:]) == (slow, 0, CONTENT[1:11])


async def test_end_while_it_works(context: Context, folder: Path) -> None:
    """The end does not wait for a call that hangs, and leaves neither a task, nor a socket, nor a descriptor."""
    gate = Gate()
    before = await asyncio.to_thread(lambda: len(os.listdir("/proc/self/fd")))
    file = await odd(context, folder, gate)
    tasks = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as stack:
        async with serve(context, folder, file, close=False) as served:
            client = await stack.enter_async_context(served.client())
            client.send(READ, 0, 10)
            await gate.reached()
        assert gate.inside == 1
        assert asyncio.all_tasks() == tasks
        assert await client.ended()
        with pytest.raises(OSError):
            async with served.raw():
                raise AssertionError("somebody answers")
    gate.open()
    await file.aclose()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of all descriptors")


async def test_client_that_goes_while_it_works(context: Context, folder: Path) -> None:
    """Whoever goes without waiting for the answer harms nobody."""
    async with serve(context, folder) as served:
        for _ in range(20):
            async with served.client() as client:
                client.send(READ, 0, 3 * MIB)
                client.send(READ, 0, 3 * MIB)
        async with served.client() as client:
            assert await client.ask(READ, 0, SIZE) == CONTENT


# -------------------------------------------------------------------------------------------------- other programs


async def run(*argv: str) -> str:
    """What a program says; it must end well."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()


@pytest.mark.qemu
async def test_qemu_reads_and_writes(context: Context, folder: Path) -> None:
    """QEMU's own client finds the disk as it is, its holes, and writes what others then read."""
    async with serve(context, folder) as served:
        node = "json:" + json.dumps({"driver": "raw", "file": served.node})
        told = json.loads(await run("qemu-img", "info", "--output=json", node))
        assert told["virtual-size"] == SIZE + 505  # in whole sectors
        await run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(served.path), served.uri)
        ranges = json.loads(await run("qemu-img", "map", "--output=json", node))
        assert [one["zero"] for one in ranges[:3]] == [False, True, False]
        assert ranges[0]["length"] == 64 * KIB
    async with serve(context, folder, size=4 * MIB, write=True) as served:
        said = await run(
            *("qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -P 0x77 1M 64k", "-c", "write -z -u 2M 64k"),
            *("-c", "write -z 3840k 4k", "-c", "discard 0 64k", "-c", "flush", "-c", "read -P 0x77 1M 64k", served.uri),
        )
        assert "failed" not in said
        assert served.export.error is None
    got = await asyncio.to_thread(served.path.read_bytes)
    assert len(got) >= SIZE
    wanted = bytes(MIB) + b"\x77" * 64 * KIB + CONTENT[MIB + 64 * KIB : 2 * MIB] + bytes(64 * KIB)
    assert got[: len(wanted)] == wanted
    assert got[len(wanted) : SIZE] == CONTENT[len(wanted) :]
