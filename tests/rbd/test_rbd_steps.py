"""Steps drawn by lot, on two pools of one cluster: libvirt's and astore's. The same is accepted, refused and left there."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from lxml import etree

import astore
from astore.errors import AstoreError
from astore.model import VolumeDef
from beds.ceph import CephCommandError
from beds.libvirt import VirshError

if TYPE_CHECKING:
    from beds.ceph import CephBed
    from beds.libvirt import LibvirtBed

pytestmark = [pytest.mark.root, pytest.mark.ceph, pytest.mark.libvirt]

STEPS = "ASTORE_DIFFERENTIAL_STEPS"
"""How many steps to do; with a seed of its own then, which is printed, unless ASTORE_DIFFERENTIAL_SEED says which."""
SEED = "ASTORE_DIFFERENTIAL_SEED"
USUAL_STEPS = 30
LOOK_EVERY = 6
NAMES = ("a", "b", "c", "two words", "ü", ".hidden")
SIZES = (0, 1, 512, 4096, 5 << 20, 9 << 20)


class Step(NamedTuple):
    """What is done to both pools: words for a failed test, the call of each side; or a change by another client."""

    words: str
    libvirt: Callable[[], object] | None = None
    astore: Callable[[], object] | None = None
    other: tuple[str, ...] = ()


class Twins:
    """The two pools, and the volumes that the last look found in both."""

    def __init__(self, bed: CephBed, libvirt: LibvirtBed, pool: astore.Pool, random: Random) -> None:
        self._bed = bed
        self._virsh = libvirt.virsh
        self._pool = pool
        self._random = random
        self._names: set[str] = set()
        self._parents: set[str] = set()  # libvirt leaves a snapshot on what it clones, and then cannot delete it
        self.done: list[str] = []

    def draw(self) -> Step:
        """Return a step. Most are about volumes that are there."""
        random = self._random
        name = random.choice(NAMES) if not self._names or random.random() < 0.25 else random.choice(sorted(self._names))
        new = random.choice(NAMES)
        size = random.choice(SIZES)
        kinds = (self._create, self._create, self._resize, self._wipe, self._delete, self._clone, self._elsewhere)
        return random.choice(kinds)(name, new, size)

    def _create(self, _: str, name: str, size: int) -> Step:
        allocation = self._random.choice((0, 0, min(size, 1 << 20)))
        words = ("vol-create-as", "theirs", name, f"{size}B", "--allocation", f"{allocation}B")
        definition = VolumeDef(name, capacity=size, allocation=allocation)
        return Step(f"create {name} of {size}", self._said(*words), lambda: self._pool.create_volume(definition))

    def _resize(self, name: str, _: str, size: int) -> Step:
        record = next((one for one in self._pool.volumes if one.name == name), None)
        if record is not None and record.capacity <= size < record.allocation:
            size = record.allocation  # libvirt refuses less: see docs/differences-from-libvirt.md
        words = ("vol-resize", name, f"{size}B", "--pool", "theirs")
        return Step(f"resize {name} to {size}", self._said(*words), lambda: self._pool.volume(name).resize(size))

    def _wipe(self, name: str, _: str, __: int) -> Step:
        return Step(f"wipe {name}", self._said("vol-wipe", name, "theirs"), lambda: self._pool.volume(name).wipe())

    def _delete(self, name: str, _: str, __: int) -> Step:
        if name in self._parents:
            return self._wipe(name, "", 0)
        return Step(
            f"delete {name}", self._said("vol-delete", name, "theirs"), lambda: self._pool.volume(name).delete()
        )

    def _clone(self, name: str, new: str, _: int) -> Step:
        if name in self._names and new not in self._names:
            self._parents.add(name)
        words = ("vol-clone", name, new, "--pool", "theirs")
        copy: Callable[[], object] = lambda: self._pool.copy_volume(self._pool.volume(name), VolumeDef(new))  # noqa: E731
        return Step(f"clone {name} as {new}", self._said(*words), copy)

    def _elsewhere(self, name: str, new: str, size: int) -> Step:
        """Another client's change, which both see after a refresh."""
        changes = [
            ("create", "--size", f"{max(size, 1)}B", f"@/{new}"),
            ("resize", "--size", f"{size + 1}B", f"@/{name}"),
        ]
        if name not in self._parents and not self._parents:
            changes += [("rename", f"@/{name}", f"@/{new}"), ("rm", "--no-progress", f"@/{name}")]
        change = self._random.choice(changes)
        return Step(f"rbd {' '.join(change)}", other=change)

    def _said(self, *words: str) -> Callable[[], object]:
        return lambda: self._virsh(*words)

    async def take(self, step: Step) -> None:
        """Do a step on both sides: both accept it, or both refuse it."""
        self.done.append(step.words)
        if step.other:
            results = [await asyncio.to_thread(self._changed, step.other, name) for name in ("theirs", "ours")]
            assert results[0] == results[1]
            await self.look()  # astore refuses to resize a volume that changed since it was seen
            return
        assert step.libvirt is not None and step.astore is not None
        try:
            await asyncio.to_thread(step.libvirt)
            theirs = ""
        except VirshError as error:
            theirs = str(error)
        try:
            await step.astore()  # type: ignore[misc]
            ours = ""
        except AstoreError as error:
            ours = str(error)
        assert bool(theirs) == bool(ours), f"{self.done[-20:]}\nlibvirt: {theirs or 'done'}\nastore: {ours or 'done'}"

    def _changed(self, change: tuple[str, ...], pool: str) -> bool:
        try:
            self._bed.rbd(*(word.replace("@", pool, 1) if word.startswith("@/") else word for word in change))
        except CephCommandError:
            return False
        return True

    async def look(self) -> None:
        """Refresh both; they list the same volumes, of the same sizes."""

        await self._pool.refresh()
        ours = {one.name: (one.capacity, one.allocation, one.key.removeprefix("ours")) for one in self._pool.volumes}

        def ask() -> tuple[int, dict[str, tuple[int | str, ...]]]:
            self._virsh("pool-refresh", "theirs")
            listed = self._virsh("vol-list", "theirs").splitlines()  # it escapes names
            found = {}
            for name in ours:
                try:
                    dump = etree.fromstring(self._virsh("vol-dumpxml", name, "theirs").encode())
                except VirshError:
                    continue
                numbers = (int(dump.findtext(what)) for what in ("capacity", "allocation"))
                found[name] = (*numbers, dump.findtext("key").removeprefix("theirs"))
            return len([line for line in listed if line.strip()]), found

        count, theirs = await asyncio.to_thread(ask)
        assert count == len(ours), self.done[-20:]
        assert ours == theirs, self.done[-20:]
        self._names = set(ours)


@pytest.mark.timeout(300)
async def test_steps_by_lot(ceph_without_keys: CephBed, libvirt_bed: LibvirtBed, manager: astore.Manager) -> None:
    """Whatever is done by either, or by another client, in whatever order: both pools have the same volumes."""
    count = int(os.environ.get(STEPS, USUAL_STEPS))
    seed = int(os.environ.get(SEED) or (secrets.randbits(32) if STEPS in os.environ else 1))
    print(f"the same steps again: {SEED}={seed} {STEPS}={count}")
    bed = ceph_without_keys
    documents = {}
    for name in ("theirs", "ours"):
        await asyncio.to_thread(bed.create_pool, name)
        source = f"<source><host name='{bed.host}' port='{bed.port}'/><name>{name}</name></source>"
        documents[name] = f"<pool type='rbd'><name>{name}</name>{source}</pool>"
    pool = await manager.define(documents["ours"])
    await pool.start()
    libvirt_bed.define(documents["theirs"])
    try:
        await asyncio.to_thread(libvirt_bed.virsh, "pool-start", "theirs")
        twins = Twins(bed, libvirt_bed, pool, Random(seed))
        for number in range(count):
            await twins.take(twins.draw())
            if number % LOOK_EVERY == LOOK_EVERY - 1:
                await twins.look()
    finally:
        libvirt_bed.virsh("pool-destroy", "theirs")
        libvirt_bed.virsh("pool-undefine", "theirs")
