"""Somebody who may write to the pool's folder swaps files at each step of all work: nothing of others is read or written.

The steps are all calls of the tree and of its files, and each start of qemu-img. For each step the work is done anew, and what
is swapped is swapped just there. With ASTORE_RACES=all that is done in more ways, which takes some five minutes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from odd_folders import OddFolders, OddTree

from astore.errors import AstoreError
from astore.manager import Manager
from astore.model import BackingStore, Permissions, PoolDef, Target, VolumeDef, VolumeInfo
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.registry import BackendRegistry
from astore.testing.faults import Call, Faults
from astore.volume_io import qemu_img
from astore.volume_io.volume_names import TEMPORARY

pytestmark = pytest.mark.qemu

KIB = 1 << 10
SIZE = 256 * KIB
SECRET, OTHER = b"<the host's own>", b"<another tenant>"
HEADER = 65536
"""Bytes of an image's first cluster."""

STEPS = frozenset(
    {
        *(f"tree.{name}" for name in ("open", "create", "stat", "link", "rename", "unlink", "mkdir", "rmdir")),
        *(f"tree.{name}" for name in ("sync_folder", "lookup", "reading", "folder_place", "statvfs")),
        *(f"file.{name}" for name in ("lock", "open_again", "clone", "chown", "chmod", "note_format")),
        *(f"file.{name}" for name in ("begin_as_qemu", "truncate", "sync", "close")),
        "qemu-img",
    }
)
"""Before which calls somebody swaps something. (After a call is before the next: between them no name is looked up.)"""


class Scene:
    """A pool's folder with images, and files outside and inside that are nobody's business.

    ``source`` is what is worked on (raw, or qcow2), ``base`` backs ``over``, and ``other`` and ``other.raw`` are another's.

    :ivar links: whether files can be given a second name.
    """

    def __init__(self, pool: Pool, folder: Path, outside: Path, faults: Faults) -> None:
        self.pool = pool
        self.folder = folder
        self.outside = outside
        self.faults = faults
        self.links = True
        self.kept = outside.parent / "kept"
        self.kept.mkdir()
        self._make()

    def _make(self) -> None:
        (self.outside / "secret").write_bytes(_filled(SECRET))
        (self.outside / "folder").mkdir()
        for name, content in _images().items():
            (self.kept / name).write_bytes(content)
        copy, kept = self.outside / "data", self.kept
        shutil.copy(self.outside / "secret", copy)
        options = f"data_file={copy},data_file_raw=on"
        _qemu_img("create", "-q", "-f", "qcow2", "-o", options, kept / "evil", str(SIZE))
        self.evil = (kept / "evil").read_bytes()[:HEADER]
        (kept / "evil").unlink()
        shutil.copy(self.outside / "secret", copy)
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        """All that is outside."""
        found: dict[str, Any] = {}
        for path in (self.outside, *sorted(self.outside.iterdir())):
            st = path.stat()
            content = path.read_bytes() if path.is_file() else sorted(os.listdir(path))
            found[path.name] = (content, st.st_mode, st.st_uid, st.st_gid, st.st_ino, st.st_mtime_ns)
        return found

    async def set_up(self) -> None:
        """Everything as at the beginning."""
        await asyncio.to_thread(self._set_up)
        await self.pool.refresh(full=True)

    def _set_up(self) -> None:
        for one in self.folder.iterdir():
            if one.is_dir() and not one.is_symlink():
                one.rmdir()
            else:
                one.unlink()
        for one in self.kept.iterdir():
            shutil.copy(one, self.folder / one.name)

    def volume(self, name: str) -> Volume:
        """One of its volumes."""
        return self.pool.volume(name)

    def others(self) -> tuple[tuple[bytes, int, int], ...]:
        """What nobody may change in the folder."""
        found = []
        for name in ("other", "other.raw"):
            st = (self.folder / name).stat()
            found.append(((self.folder / name).read_bytes(), st.st_mode, st.st_uid))
        return tuple(found)

    # ----------------------------------------------------------------------------------------------------- swaps

    def replace(self, name: str, how: str) -> None:
        """Put something else in the place of a name."""
        path = self.folder / name
        mine = self.folder / "attack"
        if how == "link out":
            mine.symlink_to(self.outside / "secret")
        elif how == "link within":
            mine.symlink_to("other" if name.endswith(".qcow2") else "other.raw")
        elif how == "hard link":
            os.link(self.folder / ("other" if name.endswith(".qcow2") else "other.raw"), mine)
        elif how == "hard link out":
            os.link(self.outside / "secret", mine)
        elif how == "other file":
            shutil.copy(self.kept / ("other" if name.endswith(".qcow2") else "other.raw"), mine)
        mine.replace(path)

    def hidden(self) -> list[str]:
        """The names of files in the making."""
        return [name for name in os.listdir(self.folder) if name.startswith(TEMPORARY)]

    def flip(self, name: str) -> None:
        """Write a header with a data file outside into a file, as whoever may write to it can."""
        with open(self.folder / name, "r+b") as file:
            file.write(self.evil)


def _filled(word: bytes) -> bytes:
    return (word * (SIZE // len(word) + 1))[:SIZE]


@cache
def _images() -> dict[str, bytes]:
    """What is in the folder at the beginning."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        kept = Path(folder)
        (kept / "other.raw").write_bytes(_filled(OTHER))
        for name in ("plain.raw", "base.raw"):
            (kept / name).write_bytes(b"mine".ljust(SIZE, b"."))
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", kept / "other.raw", kept / "other")
        _qemu_img("convert", "-f", "raw", "-O", "qcow2", kept / "plain.raw", kept / "image.qcow2")
        for name, size in (("over.qcow2", SIZE), ("small.qcow2", SIZE // 2)):
            _qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "base.raw", "-F", "raw", kept / name, str(size))
        return {one.name: one.read_bytes() for one in kept.iterdir()}


def _qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(os.fspath, arguments)], check=True, capture_output=True)


Work = Callable[[Scene], Awaitable[Any]]


def copied(source: str, **fields: Any) -> Work:
    """A copy, or a conversion."""

    async def work(scene: Scene) -> Any:
        return await scene.pool.copy_volume(scene.volume(source), VolumeDef("new", **fields))

    return work


def made(**fields: Any) -> Work:
    """A new volume."""

    async def work(scene: Scene) -> Any:
        return await scene.pool.create_volume(VolumeDef("new", **fields))

    return work


def done(source: str, method: str, *arguments: Any, **named: Any) -> Work:
    """Something that is done to a volume."""

    async def work(scene: Scene) -> Any:
        return await getattr(scene.volume(source), method)(*arguments, **named)

    return work


MINE = Permissions(0o640, os.geteuid(), os.getegid())
MAKING: dict[str, tuple[str | None, Work]] = {
    "create raw": (None, made(capacity=SIZE)),
    "create allocated": (None, made(capacity=SIZE, allocation=SIZE, permissions=MINE)),
    "create qcow2": (None, made(capacity=SIZE, format="qcow2", permissions=MINE)),
    "create overlay": ("base.raw", made(format="qcow2", backing=BackingStore(path="base.raw"))),
    "copy raw": ("plain.raw", copied("plain.raw", permissions=MINE)),
    "copy image": ("image.qcow2", copied("image.qcow2")),
    "copy larger": ("image.qcow2", copied("image.qcow2", capacity=2 * SIZE)),
    "raw to qcow2": ("plain.raw", copied("plain.raw", format="qcow2")),
    "raw to vmdk": ("plain.raw", copied("plain.raw", format="vmdk")),
    "qcow2 to raw": ("image.qcow2", copied("image.qcow2", format="raw")),
    "chain to raw": ("over.qcow2", copied("over.qcow2", format="raw")),
    "thin": ("base.raw", copied("base.raw", format="qcow2", backing=BackingStore(path="base.raw"))),
}
CHANGING: dict[str, tuple[str, Work]] = {
    "grow raw": ("plain.raw", done("plain.raw", "resize", 2 * SIZE)),
    "grow image": ("image.qcow2", done("image.qcow2", "resize", 2 * SIZE)),
    "shrink image": ("image.qcow2", done("image.qcow2", "resize", SIZE // 2, shrink=True)),
    "grow overlay": ("small.qcow2", done("small.qcow2", "resize", SIZE)),
    "wipe": ("plain.raw", done("plain.raw", "wipe")),
    "upload": ("plain.raw", done("plain.raw", "upload", b"uploaded")),
    "delete": ("plain.raw", done("plain.raw", "delete")),
    "rename": ("plain.raw", done("plain.raw", "rename", "new")),
}
NAMES: tuple[str, ...] = ("link out", "hard link")
if os.environ.get("ASTORE_RACES") == "all":
    NAMES += ("link within", "hard link out", "other file")


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    """A pool on a folder with everything in it."""
    faults = Faults("qemu-img")
    folder, outside = tmp_path / "pool", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    registry = BackendRegistry(group=None)
    registry.register(faults.into(OddFolders()))
    real = qemu_img.run

    async def run(*arguments: Any, **named: Any) -> Any:
        await asyncio.to_thread(faults.reach, "qemu-img")
        return await real(*arguments, **named)

    monkeypatch.setattr(qemu_img, "run", run)
    async with Manager(tmp_path / "state", registry=registry) as manager:
        pool = await manager.create(PoolDef(type="dir", name="p", target=Target(path=str(folder))))
        yield await asyncio.to_thread(Scene, pool, folder, outside, faults)


class Trial:
    """One piece of work, with a swap at one point of it.

    :ivar result: what it returned, or its error. :ivar inode: that of ``plain.raw``. :ivar inodes: of the files it created.
    :ivar steps: what it did.
    """

    def __init__(self, scene: Scene, work: Work) -> None:
        self.scene = scene
        self.work = work
        self.result: Any = None
        self.inode = -1
        self.inodes: list[int] = []
        self.steps: list[str] = []

    async def run(self, at: int = 0, swap: Callable[[], None] = lambda: None) -> None:
        """Do it, from the beginning, with the swap before the step of that number (the first is 1)."""
        scene = self.scene
        await scene.set_up()
        self.inode = scene.volume("plain.raw").info.inode
        before = await asyncio.to_thread(scene.others)
        self.inodes.clear()
        scene.faults.calls.clear()
        scene.faults.run("tree.create", self._note, after=True)
        scene.faults.run(STEPS, lambda call: swap(), at=at)
        if not scene.links:
            scene.faults.fail("tree.link", errno.EPERM)
        try:
            self.result = await self.work(scene)
        except AstoreError as error:
            self.result = error
        finally:
            scene.faults.clear()
            self.steps = [call for call in scene.faults.calls if call in STEPS]
        assert await asyncio.to_thread(scene.state) == scene.before, "something outside changed"
        assert await asyncio.to_thread(scene.others) == before, "another's volume changed"

    def _note(self, call: Call) -> None:
        self.inodes.append(os.fstat(call.result.fileno()).st_ino)

    @property
    def made(self) -> VolumeInfo | None:
        """The record of the new volume, if there is one."""
        return self.result.info if isinstance(self.result, Volume) else None


async def at_each_step(scene: Scene, work: Work, swap: Callable[[], None], check: Callable[[Trial], None]) -> None:
    """Do it as often as it has steps, with the swap at the first, the second, and so on; and check each time."""
    trial = Trial(scene, work)
    await trial.run()
    assert not isinstance(trial.result, AstoreError), trial.result
    steps = trial.steps
    assert steps
    failed: list[str] = []
    for at, step in enumerate(steps, 1):
        try:
            await trial.run(at, swap)
            await asyncio.to_thread(check, trial)
        except AssertionError as error:
            failed.append(f"{at} ({step}): {str(error).splitlines()[0]}: {trial.result!r}")
    assert not failed, f"{len(failed)} of {len(steps)}:\n" + "\n".join(failed)


def check_made(trial: Trial) -> None:
    """What was made is what has the name, or had it until it was taken; and has nothing of others."""
    scene, info = trial.scene, trial.made
    if info is None:
        return
    assert info.inode in trial.inodes, "the record is of a file that was not made"
    path = scene.folder / "new"
    if path.lstat().st_ino == info.inode:
        content = path.read_bytes()
        assert SECRET not in content, "it has the secret"
        assert OTHER not in content, "it has another's data"
        assert bytes(scene.outside) not in content, "it names files outside"


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("name", [name for name, (source, _) in MAKING.items() if source])
async def test_source_is_replaced(scene: Scene, name: str, how: str) -> None:
    """The source of a copy, or what backs a new image, is replaced: what is made has nothing of what took its place."""
    source, work = MAKING[name]
    assert source is not None
    await at_each_step(scene, work, lambda: scene.replace(source, how), check_made)


@pytest.mark.parametrize("how", NAMES)
async def test_base_is_replaced(scene: Scene, how: str) -> None:
    """What backs the source is replaced: what is made has nothing of what took its place."""
    await at_each_step(scene, MAKING["chain to raw"][1], lambda: scene.replace("base.raw", how), check_made)


@pytest.mark.parametrize("name", ["copy image", "copy larger", "qcow2 to raw", "chain to raw"])
async def test_header_of_the_source_flips(scene: Scene, name: str) -> None:
    """The source's header comes to name a data file outside: that is never read, nor named by what is made."""
    source, work = MAKING[name]
    assert source is not None
    await at_each_step(scene, work, lambda: scene.flip(source), check_made)


HIDDEN = [(name, True) for name in MAKING] + [(name, False) for name in ("create raw", "create qcow2", "copy raw")]


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize(("name", "links"), HIDDEN)
async def test_hidden_file_is_replaced(scene: Scene, name: str, links: bool, how: str) -> None:
    """The file in the making is replaced under its hidden name: what gets the new name is what was made, or it fails."""

    def swap() -> None:
        for hidden in scene.hidden():
            scene.replace(hidden, how)

    scene.links = links
    await at_each_step(scene, MAKING[name][1], swap, check_made)


@pytest.mark.parametrize("name", MAKING)
async def test_header_of_the_hidden_file_flips(scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On storage that others write to, the file in the making gets another header: what that names is not opened."""
    monkeypatch.setattr(OddTree, "shared", True)

    def swap() -> None:
        for hidden in scene.hidden():
            scene.flip(hidden)

    await at_each_step(scene, MAKING[name][1], swap, check_written)


def check_written(trial: Trial) -> None:
    """Who may write to the new file may have it be anything, but it has nothing of others."""
    if trial.made is not None:
        assert trial.made.inode in trial.inodes, "the record is of a file that was not made"
        content = (trial.scene.folder / "new").read_bytes()
        assert SECRET not in content and OTHER not in content, "it has another's data"


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("name", MAKING)
async def test_new_name_is_taken(scene: Scene, name: str, how: str) -> None:
    """The new name is taken by a link or a file meanwhile: nothing is written there, and it stays."""
    await at_each_step(scene, MAKING[name][1], lambda: scene.replace("new", how), check_made)


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("name", CHANGING)
async def test_what_changes_is_replaced(scene: Scene, name: str, how: str) -> None:
    """What is resized, wiped, uploaded to, removed or renamed is replaced: nothing happens to what took its place."""
    source, work = CHANGING[name]
    await at_each_step(scene, work, lambda: scene.replace(source, how), check_changed)


def check_changed(trial: Trial) -> None:
    """A volume that was renamed is the same file."""
    if trial.made is not None:
        assert trial.made.inode == trial.inode, "another file was renamed"


@pytest.mark.parametrize("name", ["grow image", "shrink image", "grow overlay"])
async def test_header_flips_while_it_is_resized(scene: Scene, name: str) -> None:
    """The header comes to name a data file outside while the image is resized: that is not opened."""
    source, work = CHANGING[name]
    await at_each_step(scene, work, lambda: scene.flip(source), lambda trial: None)


@pytest.mark.parametrize("how", NAMES)
async def test_base_is_replaced_while_an_overlay_grows(scene: Scene, how: str) -> None:
    """What backs an image that is resized is replaced: what the image gains has nothing of what took its place."""

    def check(trial: Trial) -> None:
        assert SECRET not in (scene.folder / "small.qcow2").read_bytes()

    await at_each_step(scene, CHANGING["grow overlay"][1], lambda: scene.replace("base.raw", how), check)


@pytest.mark.parametrize("how", ["link", "folder"])
async def test_new_directory_is_replaced(scene: Scene, how: str) -> None:
    """A directory in the making is replaced by a link: what that leads to keeps its owner and mode."""

    def swap() -> None:
        path = scene.folder / "new"
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
            if how == "link":
                path.symlink_to(scene.outside / "folder")
            else:
                path.mkdir(0o755)

    def check(trial: Trial) -> None:
        if isinstance(trial.result, Volume):
            assert stat.S_ISDIR(trial.result.info.mode)

    permissions = Permissions(0o770, 107, 108) if os.geteuid() == 0 else Permissions(0o770)
    await at_each_step(scene, made(format="dir", permissions=permissions), swap, check)
