"""What astore reads of images, and what it says they are made of, held against QEMU, by the hundred.

ASTORE_QEMU_IMAGES says how many images; ASTORE_QEMU_SEED makes the same ones again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_of.random_images import POOLS, World, qemu_img

from astore.errors import AstoreError, CommandError
from astore.images import formats
from astore.manager import Manager
from astore.model import PoolDef, Target, VolumeDef
from astore.pools.volume import Volume

pytestmark = [pytest.mark.qemu, pytest.mark.fuzz]

COUNT = int(os.environ.get("ASTORE_QEMU_IMAGES", "300"))
SEED = int(os.environ.get("ASTORE_QEMU_SEED") or random.SystemRandom().randrange(1 << 32))
IN_A_WORLD = 30
AT_ONCE = 4
WORLDS = max(1, COUNT // IN_A_WORLD)
LEAST_CONVERTED = 0.3


def contents(root: Path) -> dict[str, tuple[int, int, int]]:
    """All files below a folder: inode, size and time of the last change."""
    found: dict[str, tuple[int, int, int]] = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            st = os.lstat(path)
            found[path] = (st.st_ino, st.st_size, st.st_mtime_ns)
    return found


class Comparison:
    """A world of images, looked at by astore and by QEMU.

    :ivar wrong: where they differ, in words. :ivar counts: how often astore did what.
    """

    def __init__(self, manager: Manager, world: World, scratch: Path) -> None:
        self.manager = manager
        self.world = world
        self.scratch = scratch
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.volumes: dict[tuple[int, int], list[Volume]] = {}
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Compare all volumes of all pools."""
        pools = []
        for name in POOLS:
            path = str(self.world.root / name)
            definition = PoolDef(type="dir", name=f"{name}-{self.world.root.name}", target=Target(path=path))
            pools.append(await self.manager.create(definition))
        for pool in pools:
            await pool.refresh()
        found = [pool.volume(info.name) for pool in pools for info in pool.volumes if info.format != "dir"]
        for volume in found:
            identity = volume.info.identity
            assert identity is not None
            self.volumes.setdefault(identity, []).append(volume)
        before = await asyncio.to_thread(contents, self.world.root)
        async with asyncio.TaskGroup() as group:
            for number, volume in enumerate(found):
                group.create_task(self._compare(volume, number))
        after = await asyncio.to_thread(contents, self.world.root)
        for path in after.keys() - before.keys():
            self.wrong.append(f"left: {path}")
        self.wrong += [f"changed: {path}" for path in before if after.get(path) != before[path]]
        for pool in pools:
            await pool.stop()

    async def _compare(self, volume: Volume, number: int) -> None:
        async with self._turn:
            driver = formats.driver_of(volume.info.format)
            by_qemu = self.scratch / f"{number}.raw"
            told = ("convert", "-f", driver, "-O", "raw", volume.path, by_qemu)
            done = await asyncio.to_thread(qemu_img, *told, cwd=self.world.root / "empty")
            refused = done.stderr.strip() if done.returncode else None
            try:
                await self._compare_disks(volume, number, by_qemu, refused)
                if refused is None:
                    await self._compare_files(volume, driver)
            except Exception as error:
                self.wrong.append(f"{volume.path}: {error!r}")
            finally:
                by_qemu.unlink(missing_ok=True)

    async def _compare_disks(self, volume: Volume, number: int, by_qemu: Path, refused: str | None) -> None:
        copy = VolumeDef(f"copy{number}", format="raw")
        mine = Path(volume.pool.definition.target.path or "", copy.name)
        kind = "raw" if formats.is_raw(volume.info.format) else "image"
        try:
            made = await volume.pool.copy_volume(volume, copy)
        except AstoreError as error:
            self.counts[f"{kind} refused"] += 1
            if os.path.lexists(mine):
                self.wrong.append(f"{volume.path}: refused, and left {mine}")
            if isinstance(error, CommandError) and refused is None:
                self.wrong.append(f"{volume.path}: {error}; QEMU reads it")
            return
        self.counts[f"{kind} converted"] += 1
        data = await asyncio.to_thread(mine.read_bytes)
        await made.delete()
        if refused is not None:
            self.wrong.append(f"{volume.path}: converted; QEMU refuses it: {refused}")
            return
        theirs = await asyncio.to_thread(by_qemu.read_bytes)
        if data.ljust(len(theirs), b"\0") != theirs or len(theirs) - len(data) not in range(512):
            at = next((i for i, (a, b) in enumerate(zip(data, theirs, strict=False)) if a != b), -1)
            self.wrong.append(f"{volume.path}: {len(data)} bytes, QEMU has {len(theirs)}; they differ at {at}")

    async def _compare_files(self, volume: Volume, driver: str) -> None:
        """Whatever files QEMU uses are in the chain, and have the image above among their dependents."""
        told = ("info", "--backing-chain", "--output=json", "-f", driver, volume.path)
        said = await asyncio.to_thread(qemu_img, *told, cwd=self.world.root / "empty")
        if said.returncode:
            return
        chain = volume.backing_chain()
        whole = all(link.doubt is None and link.volume is not None for link in chain)
        mine = [os.stat(link.path) for link in chain if os.path.exists(link.path)]
        user: Path | None = None
        for image in json.loads(said.stdout):
            if user is None:
                user = Path(volume.path)
            files = set(files_of(image))
            for path in files:
                there = os.stat(path)
                if whole and not any(os.path.samestat(there, one) for one in mine):
                    self.wrong.append(f"{volume.path}: {path} is not in its chain {[link.path for link in chain]}")
            for below in set(files_below(image)):
                self._check_dependents(image, files, below)
                self.counts["references"] += 1

    def _check_dependents(self, image: dict[str, Any], files: set[str], below: str) -> None:
        """The image is one of the dependents of a file that it names."""
        st = os.stat(below)
        for lower in self.volumes.get((st.st_dev, st.st_ino), ()):
            names = {dependent.info.identity for dependent in self.manager.dependents(lower)}
            for path in files - {below}:
                above = os.stat(path)
                identity = (above.st_dev, above.st_ino)
                uppers = self.volumes.get(identity)
                if not uppers or formats.driver_of(uppers[0].info.format) != image["format"]:
                    continue
                if path == image["filename"] and identity not in names:
                    self.wrong.append(f"{path}: not among the dependents of {lower.path}")


def files_of(image: dict[str, Any]) -> Iterator[str]:
    """The files of one image, by what qemu-img says: its own, and those that have data of it."""
    yield from named(image["filename"])
    yield from extents_of(image)


def files_below(image: dict[str, Any]) -> Iterator[str]:
    """The files that one image names: extents, data file, and what it is backed by."""
    yield from (path for path in extents_of(image) if path != image["filename"])
    if "full-backing-filename" in image:
        yield from named(image["full-backing-filename"])
    elif "backing-filename" in image:
        yield from named(image["backing-filename"])


def extents_of(image: dict[str, Any]) -> Iterator[str]:
    """Extents and data file."""
    specific = image.get("format-specific", {}).get("data", {})
    for extent in specific.get("extents", ()):
        yield from named(extent["filename"])
    if "data-file" in specific:
        yield from named(specific["data-file"])


def named(name: str) -> Iterator[str]:
    """The files that one of QEMU's names means."""
    if name.startswith("json:"):
        text = name.removeprefix("json:")
        yield from _in_node(json.loads(text if '"' in text else text.replace("'", '"')))
    else:
        name = name.removeprefix("file:") if not os.path.exists(name) else name
        if os.path.isabs(name):
            yield name


def _in_node(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key.rpartition(".")[2] == "filename" and isinstance(value, str):
                yield from named(value)
            else:
                yield from _in_node(value)


@pytest.mark.timeout(300 + COUNT * 4)
async def test_as_qemu_reads_them(manager: Manager, tmp_path: Path, temporary: Path) -> None:
    """Each image is converted to the bytes that QEMU reads, or refused; its files are QEMU's, and know who needs them."""
    print(f"ASTORE_QEMU_SEED={SEED} ASTORE_QEMU_IMAGES={COUNT}")
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    gate = asyncio.Semaphore(2)

    async def one(number: int) -> None:
        async with gate:
            world = World(tmp_path / f"w{number}", SEED + number)
            await asyncio.to_thread(world.populate, min(IN_A_WORLD, COUNT))
            scratch = tmp_path / f"scratch{number}"
            scratch.mkdir()
            comparison = Comparison(manager, world, scratch)
            await comparison.run()
            counts.update(comparison.counts)
            if comparison.wrong:
                wrong.extend(f"world {number}: {line}" for line in comparison.wrong)
                (tmp_path / f"log{number}").write_text("\n".join(world.log))

    async with asyncio.TaskGroup() as group:
        for number in range(WORLDS):
            group.create_task(one(number))
    print(dict(counts))
    told = f"ASTORE_QEMU_SEED={SEED} ASTORE_QEMU_IMAGES={COUNT}; how the images were made: {tmp_path}/log*"
    assert not wrong, "\n".join((told, *wrong))
    assert os.listdir(temporary) == []
    images = counts["image converted"] + counts["image refused"]
    assert counts["image converted"] >= LEAST_CONVERTED * images
    assert counts["references"] >= images // 4
