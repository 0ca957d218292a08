"""qemu-img on storage that it knows nothing of: what is served to it, and that nothing else is opened."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from astore.backend import Context
from astore.backends.directory import DirectoryBackend
from astore.errors import DefinitionError, StorageError
from astore.manager import Manager
from astore.model import BackingStore, PoolDef, Target, VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.registry import BackendRegistry
from astore.testing.conformance.source import qcow2
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree
from astore.volume_io.local_file import LocalFile

pytestmark = pytest.mark.qemu

MIB = 1 << 20
SIZE = 5 * MIB + 512
DATA = random.Random(1).randbytes(MIB)


class DistantFile(LocalFile):
    """A file that programs cannot inherit."""

    __slots__ = ()
    in_kernel = False


class DistantTree(WritableLocalTree):
    """A tree whose files programs cannot inherit."""

    def open(self, name: str, *, write: bool = False) -> LocalFile:
        file = super().open(name, write=write)
        file.__class__ = DistantFile
        return file

    def create(self, name: str, mode: int = 0o600) -> LocalFile:
        file = super().create(name, mode)
        file.__class__ = DistantFile
        return file


class MixedBackend(DirectoryBackend):
    """Pools of type ``dir``; programs cannot inherit the files of those that are called ``far…``."""

    async def open(self, definition: PoolDef, context: Context) -> WritableTreeSession:
        kind = DistantTree if definition.name.startswith("far") else WritableLocalTree
        return WritableTreeSession(await context.lane.run(kind, definition.target.path), context)


@pytest.fixture
async def mixed(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with such pools."""
    registry = BackendRegistry(group=None)
    registry.register(MixedBackend())
    async with Manager(tmp_path / "state", registry=registry) as manager:
        yield manager


async def started(manager: Manager, folder: Path, name: str) -> Pool:
    """A pool on a new folder beside the others."""
    path = folder / f"pool {name}"
    path.mkdir()
    pool = await manager.create(PoolDef(type="dir", name=name, target=Target(path=str(path))))
    assert pool.state.value == "running"
    return pool


@pytest.fixture
async def far(mixed: Manager, tmp_path: Path) -> Pool:
    """A pool whose volumes are served."""
    return await started(mixed, tmp_path, "far")


@pytest.fixture
async def near(mixed: Manager, tmp_path: Path) -> Pool:
    """A pool whose volumes have paths."""
    return await started(mixed, tmp_path, "near")


def where(volume: Volume) -> Path:
    """The volume's file."""
    return Path(volume.pool.definition.target.path or "", volume.name)


async def qemu_img(*arguments: str | Path) -> str:
    """What qemu-img says; it must end well."""
    done = await asyncio.to_thread(subprocess.run, ["qemu-img", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


async def disk_of(volume: Volume, tmp_path: Path) -> bytes:
    """The disk that an image is of, as qemu-img finds it by its file's path; the image is sound."""
    if volume.info.format in ("qcow2", "qed", "vmdk", "vdi"):
        await qemu_img("check", "-q", "-f", volume.info.format, where(volume))
    raw = tmp_path / "disk"
    await qemu_img("convert", "-f", volume.info.format or "raw", "-O", "raw", where(volume), raw)
    return await asyncio.to_thread(raw.read_bytes)


WANTED = DATA.ljust(3 * MIB, b"\0") + DATA.ljust(2 * MIB + 512, b"\0")


async def filled(pool: Pool, name: str = "raw") -> Volume:
    """A raw volume whose content is WANTED, with its holes."""
    disk = await pool.create_volume(VolumeDef(name, capacity=SIZE))
    await disk.upload(DATA)
    await disk.upload(DATA, offset=3 * MIB)
    return disk


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@contextlib.contextmanager
def nothing_left(temporary: Path, pool: Pool) -> Iterator[None]:
    """No files are made but those that are removed again."""
    folders = (temporary, Path(pool.definition.target.path or ""))
    before = [sorted(os.listdir(folder)) for folder in folders]
    yield
    assert [sorted(os.listdir(folder)) for folder in folders] == before


@pytest.mark.parametrize("kind", ["qcow2", "qcow", "qed", "vmdk", "vdi", "vpc"])
async def test_every_format(far: Pool, tmp_path: Path, kind: str) -> None:
    """From raw into a format and back the disk stays the same, and progress is told on the way."""
    raw = await filled(far)
    steps: list[tuple[int, int | None]] = []
    image = await far.copy_volume(raw, VolumeDef("image", format=kind), on_progress=lambda *step: steps.append(step))
    assert image.info.format == kind
    assert image.info.allocation < 3 * MIB
    assert image.info.physical % 512 == 0
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert steps[-1] == (SIZE, SIZE)
    assert (await disk_of(image, tmp_path)).ljust(SIZE, b"\0")[:SIZE] == WANTED
    back = await far.copy_volume(image, VolumeDef("back", format="raw"))
    assert (await asyncio.to_thread(where(back).read_bytes))[:SIZE] == WANTED
    again = await far.copy_volume(image, VolumeDef("again", format="qcow2", features=("lazy_refcounts",)))
    assert (await disk_of(again, tmp_path))[:SIZE] == WANTED


async def chain(pools: tuple[Pool, Pool, Pool], tmp_path: Path) -> tuple[Volume, Volume, Volume, bytes]:
    """Three images, one on the other, each in a pool; the disk of the uppermost."""
    below, middle, top = pools
    base = await filled(below, "base")
    first = await middle.create_volume(
        VolumeDef("first", format="qcow2", backing=BackingStore(base.path, "raw"), capacity=SIZE)
    )
    second = await top.create_volume(
        VolumeDef("second", format="qcow2", backing=BackingStore(first.path, "qcow2"), capacity=SIZE)
    )
    for volume, at, byte in ((first, 4096, "0x11"), (second, 2 * MIB, "0x22")):
        command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {byte} {at} 4k", str(where(volume))]
        await asyncio.to_thread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        await volume.refresh()
    wanted = bytearray(WANTED)
    wanted[4096:8192] = b"\x11" * 4096
    wanted[2 * MIB : 2 * MIB + 4096] = b"\x22" * 4096
    return base, first, second, bytes(wanted)


@pytest.mark.parametrize("names", ["far far far", "near near near", "near far near", "far near far"])
async def test_chains(mixed: Manager, tmp_path: Path, names: str) -> None:
    """A chain across pools is one disk; what is copied onto a part of it stays thin, and onto anything else does not."""
    made = {name: await started(mixed, tmp_path, name) for name in sorted(set(names.split()))}
    pools = tuple(made[name] for name in names.split())
    base, first, second, wanted = await chain(pools, tmp_path)
    for taker in made.values():
        whole = await taker.copy_volume(second, VolumeDef("whole", format="qcow2", compat="0.10"))
        assert whole.info.backing is None
        assert await disk_of(whole, tmp_path) == wanted
        for below, thin in ((second, True), (first, True), (base, False)):
            backing = BackingStore(below.path, below.info.format)
            copy = await taker.copy_volume(second, VolumeDef(f"on {below.name}", format="qcow2", backing=backing))
            assert copy.info.backing_path == below.path
            assert [link.path for link in copy.backing_chain()][1] == below.path
            assert await disk_of(copy, tmp_path) == wanted
            assert (copy.info.allocation < MIB) == thin
    # what is zeros must hide what is in the backing file
    zeros = await pools[0].create_volume(VolumeDef("zeros", capacity=SIZE))
    for compat in ("0.10", "1.1"):
        over = VolumeDef(f"over {compat}", format="qcow2", compat=compat, backing=BackingStore(base.path, "raw"))
        hidden = await pools[0].copy_volume(zeros, over)
        assert await disk_of(hidden, tmp_path) == bytes(SIZE)


async def test_other_backed_formats(far: Pool, tmp_path: Path) -> None:
    """Backed images of the older formats are read as they are; a qed one can be made too."""
    size = 256 << 10  # QEMU reads those of qcow by single sectors
    wanted = DATA[: size // 2] + bytes(size // 2)
    base = await far.create_volume(VolumeDef("base", capacity=size))
    await base.upload(wanted[: size // 2])
    backing = BackingStore("base", "raw")
    for kind in ("qcow", "qed", "vmdk"):
        if kind == "vmdk":  # which is backed by its like alone
            below = await far.copy_volume(base, VolumeDef("base.vmdk", format="vmdk"))
            path = where(below).with_name(f"over {kind}")
            await qemu_img("create", "-q", "-f", kind, "-b", where(below), "-F", kind, path)
        else:
            path = where(base).with_name(f"over {kind}")
            await qemu_img("create", "-q", "-f", kind, "-b", where(base), "-F", "raw", path)
        await far.refresh()
        over = far.volume(path.name)
        assert over.info.backing is not None
        copy = await far.copy_volume(over, VolumeDef(f"whole {kind}", format="raw"))
        assert (await asyncio.to_thread(where(copy).read_bytes))[:size] == wanted
    made = await far.copy_volume(base, VolumeDef("made.qed", format="qed", backing=backing))
    assert made.info.backing == "base"
    assert await disk_of(made, tmp_path) == wanted
    for kind in ("qcow", "vmdk"):
        with pytest.raises(DefinitionError, match="can be converted into"):
            await far.copy_volume(base, VolumeDef("no", format=kind, backing=backing))


async def test_resize(far: Pool, tmp_path: Path) -> None:
    """Larger, with space, and smaller: the file ends where the image does, and space that nobody needs is given back."""
    image = await far.copy_volume(await filled(far), VolumeDef("image", format="qcow2"))
    for capacity, options in (
        (64 * MIB, {}),
        (80 * MIB, {"allocate": True}),
        (8 << 30, {}),
        (16 * MIB, {"shrink": True}),
        (17 * MIB, {}),
        (3 * MIB, {"shrink": True}),
    ):
        before = image.info
        after = await image.resize(capacity, **options)
        assert after.capacity == capacity
        assert after.physical % 512 == 0
        if "allocate" in options:
            assert after.allocation >= before.allocation + 16 * MIB
        else:
            assert after.physical < before.physical + 2 * MIB
        told = json.loads(await qemu_img("check", "--output=json", "-f", "qcow2", where(image)))
        assert told["image-end-offset"] <= after.physical < told["image-end-offset"] + 65536
        if capacity < 1 << 30:
            assert (await disk_of(image, tmp_path))[:SIZE] == WANTED.ljust(capacity, b"\0")[: min(SIZE, capacity)]
    assert image.info.physical < 3 * MIB


async def test_resize_that_is_not_checked(far: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space that the header promises stays if only the check after the resize fails."""
    image = await far.copy_volume(await filled(far), VolumeDef("image", format="qcow2"))
    before = image.info

    def failing(result: object) -> int:
        raise StorageError("no", errno=errno.EIO)

    with monkeypatch.context() as patch:
        patch.setattr("astore.volume_io.qemu_img.image_end", failing)
        with pytest.raises(StorageError, match="no"):
            await image.resize(80 * MIB, allocate=True)
    await far.refresh()
    assert image.info.capacity == 80 * MIB
    assert image.info.physical >= before.physical + 80 * MIB - before.capacity
    assert (await disk_of(image, tmp_path))[:SIZE] == WANTED


async def test_resize_backed(far: Pool, near: Pool, tmp_path: Path) -> None:
    """A backed image grows without what backs it being opened; not where that would show through."""
    for pool in (near, far):
        base = await filled(pool, "base")
        over = await pool.create_volume(VolumeDef("over", format="qcow2", backing=BackingStore("base")))
        await over.resize(12 * MIB)
        assert await disk_of(over, tmp_path) == WANTED.ljust(12 * MIB, b"\0")
        copy = await pool.copy_volume(over, VolumeDef("copy", capacity=16 * MIB))
        assert copy.info.backing == "base"
        assert await disk_of(copy, tmp_path) == WANTED.ljust(16 * MIB, b"\0")
        for name, capacity in (("small", MIB), ("odd", MIB + 512)):
            backing = BackingStore("base")
            small = await pool.create_volume(VolumeDef(name, format="qcow2", capacity=capacity, backing=backing))
            await small.resize(2 * MIB)
            assert await disk_of(small, tmp_path) == WANTED[:capacity] + bytes(2 * MIB - capacity)
            assert small.info.backing == "base"
            await small.resize(MIB // 2, shrink=True)
        await asyncio.to_thread(where(base).with_name("lost").write_bytes, qcow2(MIB, "nowhere", "raw"))
        await pool.refresh()
        with pytest.raises(StorageError, match="'nowhere', which cannot be read here") as caught:
            await pool.volume("lost").resize(2 * MIB)
        assert caught.value.errno == errno.EOPNOTSUPP


async def test_resize_over_a_chain(far: Pool, near: Pool, tmp_path: Path) -> None:
    """What an image gains over a longer one below it is zeros, and what it shares with it stays."""
    for pools in ((far, near, far), (near, near, near)):
        _, first, _, wanted = await chain(pools, tmp_path)
        over = await pools[0].create_volume(
            VolumeDef("over", format="qcow2", capacity=MIB + 512, backing=BackingStore(first.path, "qcow2"))
        )
        await over.resize(SIZE)
        assert await disk_of(over, tmp_path) == (base_of(wanted)[: MIB + 512]).ljust(SIZE, b"\0")
        for pool in set(pools):
            for volume in [pool.volume(info.name) for info in pool.volumes]:
                await volume.delete(force=True)


def base_of(wanted: bytes) -> bytes:
    """The disk of the image in the middle of a :func:`chain`."""
    return wanted[: 2 * MIB] + WANTED[2 * MIB : 2 * MIB + 4096] + wanted[2 * MIB + 4096 :]


async def test_nothing_else_is_opened(far: Pool, near: Pool, tmp_path: Path, temporary: Path) -> None:
    """What changed after it was looked at is refused or not seen: no file is opened because a header names it."""
    secret = tmp_path / "secret"
    await asyncio.to_thread(secret.write_bytes, b"secret" * 200_000)
    for pool in (far, near):
        folder = Path(pool.definition.target.path or "")
        innocent = await pool.create_volume(VolumeDef("innocent", format="qcow2", capacity=MIB))
        flat = await pool.copy_volume(innocent, VolumeDef("flat.vmdk", format="vmdk"))
        split = tmp_path / f"split {pool.name}"
        option = f"data_file={split}.data,data_file_raw=on"
        await qemu_img("create", "-q", "-f", "qcow2", "-o", option, split, "1M")
        descriptor = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        for volume, now in (
            (innocent, qcow2(MIB, str(secret), "raw")),
            (innocent, await asyncio.to_thread(split.read_bytes)),
            (flat, f'{descriptor}RW 8 FLAT "{secret}" 0\n'.encode()),
        ):
            with nothing_left(temporary, far):
                await asyncio.to_thread((folder / volume.name).write_bytes, now)
                with pytest.raises(StorageError) as caught:
                    await far.copy_volume(volume, VolumeDef("copy", format="raw"))
                assert caught.value.errno in (errno.EAGAIN, errno.EPERM)
                assert caught.value.pool == pool.name
        session: Any = pool.parts.record.life.session
        record = (await pool.refresh("innocent"), pool.volume("innocent").info)[1]
        assert record.data_file is not None
        with pytest.raises(StorageError, match="its data in another file"):
            async with session.qemu_node(record, "reading"):
                raise AssertionError("it was given away")


async def test_many_at_once(far: Pool, near: Pool, tmp_path: Path) -> None:
    """However many conversions there are, in both directions: programs never keep the threads that they wait for."""
    raws = {pool.name: await filled(pool) for pool in (far, near)}
    ways = ((far, "far"), (far, "near"), (near, "far"))
    wanted = [(taker, raws[giver], f"{giver} {n}") for taker, giver in ways for n in range(5)]
    async with asyncio.timeout(120):
        made = await asyncio.gather(
            *(taker.copy_volume(source, VolumeDef(name, format="qcow2")) for taker, source, name in wanted)
        )
    for volume in made[::3]:
        assert await disk_of(volume, tmp_path) == WANTED


async def test_cancelled(far: Pool, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a conversion is cancelled, neither a volume nor a socket nor a program is left, and the next one works."""
    monkeypatch.setattr("astore.cancellation.CLEANUP_SECONDS", 60.0)  # nothing hangs here, and all is waited for
    monkeypatch.setattr("astore.cancellation.HELD_SECONDS", 60.0)
    raw = await filled(far)
    for kind in ("qcow2", "vmdk"):
        with nothing_left(temporary, far):
            for number in range(10):
                task = asyncio.ensure_future(far.copy_volume(raw, VolumeDef("copy", format=kind)))
                await asyncio.sleep(0.01 * number)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                    await far.volume("copy").delete()
        copy = await far.copy_volume(raw, VolumeDef(f"copy {kind}", format=kind))
        assert (await disk_of(copy, tmp_path))[:SIZE] == WANTED


@pytest.mark.root
async def test_no_space(mixed: Manager, near: Pool, small: Path, temporary: Path) -> None:
    """Where the storage is full, its own error is told, and nothing is left."""
    full = await mixed.create(PoolDef(type="dir", name="far full", target=Target(path=str(small))))
    raw = await filled(near)
    packed = await near.copy_volume(raw, VolumeDef("packed", format="qcow2"))
    image = await full.create_volume(VolumeDef("image", format="qcow2", capacity=MIB))
    await full.create_volume(VolumeDef("filler", capacity=5 * MIB // 2, allocation=5 * MIB // 2))
    with nothing_left(temporary, full):
        for source, kind in ((raw, "qcow2"), (packed, "raw"), (raw, "qed")):
            with pytest.raises(StorageError) as caught:
                await full.copy_volume(source, VolumeDef("copy", format=kind))
            assert caught.value.errno == errno.ENOSPC
        with pytest.raises(StorageError) as caught:
            await image.resize(64 * MIB, allocate=True)
        assert (caught.value.errno, caught.value.pool) == (errno.ENOSPC, "far full")
    assert image.info.capacity == MIB
    await full.stop()


async def test_long_temporary_folder(far: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for temporary files whose name is too long for a socket's is no hindrance."""
    long = tmp_path / ("x" * 100)
    await asyncio.to_thread(long.mkdir)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    image = await far.copy_volume(await filled(far), VolumeDef("image", format="qcow2"))
    assert await disk_of(image, tmp_path) == WANTED
    assert await asyncio.to_thread(os.listdir, long) == []
