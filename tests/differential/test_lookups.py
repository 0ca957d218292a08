"""Finding pools and volumes: by all that names them, and by libvirt's filters, on the same set of pools on both sides."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from differential.counts import counting
from differential.operations import AstoreSide, LibvirtSide, astore_side
from differential.oracle import Oracle

import astore
from astore import Manager, Volume

pytestmark = [pytest.mark.root, pytest.mark.libvirt]

STATES = list(itertools.product((True, False), (True, False), (True, False)))
"""Active, persistent, autostart."""
TYPES = {"dir": 64, "netfs": 256, "gluster": 65_536, "zfs": 131_072}
"""VIR_CONNECT_LIST_STORAGE_POOLS_DIR …"""
GROUPS = {"active": (2, 1), "persistent": (4, 8), "autostart": (16, 32)}
"""VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE and _INACTIVE …"""


@pytest.fixture
async def sides(oracle: Oracle, tmp_path: Path) -> AsyncIterator[tuple[LibvirtSide, AstoreSide, Manager]]:
    """On both the same ``dir`` pools in all states that there are, ``netfs`` and ``gluster`` ones, and volumes."""
    before = set(oracle.ask("pools"))
    made: list[str] = []
    async with astore_side(tmp_path / "astore", tmp_path / "state", lambda name: None) as ours:
        theirs = LibvirtSide(tmp_path / "libvirt", oracle)
        for side in (theirs, ours):
            for active, persistent, autostart in STATES:
                if not persistent and (autostart or not active):
                    continue  # there are none
                name = f"a{active:d}p{persistent:d}s{autostart:d}"
                folder = side.root / name
                folder.mkdir(parents=True)
                for file in ("one", "two words", "ä%20"):
                    (folder / file).write_bytes(bytes(1000))
                (folder / "folder").mkdir()
                xml = f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
                steps: list[tuple[Any, ...]] = [("define", xml) if persistent else ("create", xml, False)]
                steps += [("start", name, False)] if active and persistent else []
                steps += [("autostart", name, True)] if autostart else []
                for step in steps:
                    outcome = await side.do(*step)
                    assert outcome.code is None, outcome
            host = "<host name='127.9.9.9'/>"
            for type_, source in (("netfs", f"{host}<dir path='/d'/>"), ("gluster", f"{host}<name>v</name>")):
                target = f"<target><path>{side.root}/{type_}</path></target>"
                xml = f"<pool type='{type_}'><name>{type_}</name><source>{source}</source>{target}</pool>"
                assert (await side.do("define", xml)).code is None
        made = sorted(set(oracle.ask("pools")) - before)
        yield theirs, ours, ours._manager
    for name in made:
        persistent = oracle.ask("pool_call", name, "isPersistent")
        if oracle.ask("pool_call", name, "isActive"):
            oracle.ask("pool_call", name, "destroy")
        if persistent:
            oracle.ask("pool_call", name, "undefine")


def filters_of(flags: int) -> dict[str, Any]:
    """astore's filters for a mask of libvirt's flags, as docs/porting-from-libvirt.md has them.

    Of a group none and both mean the same: no filter. Types that are named are those that count; none is all.
    """
    found: dict[str, Any] = {}
    for name, (yes, no) in GROUPS.items():
        if bool(flags & yes) != bool(flags & no):
            found[name] = bool(flags & yes)
    types = [name for name, flag in TYPES.items() if flags & flag]
    return {**found, "types": types} if types else found


async def test_filters(sides: tuple[LibvirtSide, AstoreSide, Manager], oracle: Oracle) -> None:
    """All masks of libvirt's flags list the same pools on both sides."""
    _, _, manager = sides
    count = counting("list filters")
    names = {pool.name for pool in manager.pools()}
    assert len(names) == 7
    results = set()
    kinds = [0, *TYPES.values(), TYPES["dir"] | TYPES["gluster"], TYPES["netfs"] | TYPES["zfs"]]
    for states, kind in itertools.product(range(1 << 6), kinds):
        flags = states | kind
        theirs = [name for name in oracle.ask("pools", flags) if name in names]
        ours = [pool.name for pool in manager.pools(**filters_of(flags))]
        assert ours == theirs, f"flags {flags:#x}: {filters_of(flags)}"
        count.came_out("the same")
        results.add(tuple(ours))
    assert len(results) > 20  # else they were all alike, and nothing was compared


PATHS = ["", "/", "//", "/nosuch", "@", "@/", "@//", "/@", "@/.", "@/../@", " @", "nosuch", "@/one"]


async def test_pools_by_target(sides: tuple[LibvirtSide, AstoreSide, Manager]) -> None:
    """However the path is written: the same pool, or the same error. Inactive pools are not found."""
    theirs, ours, manager = sides
    found = 0
    for pool, path in itertools.product([pool.name for pool in manager.pools()], PATHS):
        argument = path.replace("@", f"@/{pool}") if path.startswith("@") else path
        outcome = [await side.do("by_target", argument.replace(" @", f" @/{pool}")) for side in (theirs, ours)]
        assert (outcome[0].value, outcome[0].code) == (outcome[1].value, outcome[1].code), argument
        found += outcome[0].code is None
        counting("lookups").came_out("found by both" if outcome[0].code is None else "found by none")
    assert found >= 3 * len(manager.pools(active=True))


VOLUMES = ["one", "one/", "/one", "two words", "two%20words", "ä%20", "folder", "folder/", "nosuch", "./one", ""]


@pytest.mark.parametrize("by", ["by_path", "by_key"])
async def test_volumes(by: str, sides: tuple[LibvirtSide, AstoreSide, Manager]) -> None:
    """By paths, which may be written in several ways, and by keys, which may not; over active pools only."""
    theirs, ours, manager = sides
    found = 0
    for pool, name in itertools.product([pool.name for pool in manager.pools(types=["dir"])], VOLUMES):
        for argument in (f"@/{pool}/{name}", f"/@/{pool}/{name}", f"{pool}/{name}"):
            outcome = [await side.do(by, argument) for side in (theirs, ours)]
            assert (outcome[0].value, outcome[0].code) == (outcome[1].value, outcome[1].code), argument
            found += outcome[0].code is None
            counting("lookups").came_out("found by both" if outcome[0].code is None else "found by none")
    assert found >= 4 * len(manager.pools(active=True))


async def test_the_pool_of_a_volume(sides: tuple[LibvirtSide, AstoreSide, Manager], oracle: Oracle) -> None:
    """virStoragePoolLookupByVolume is ``volume.pool``."""
    theirs, ours, manager = sides
    for pool in manager.pools(active=True):
        volume = manager.volume_by_path(f"{ours.root}/{pool.name}/one")
        assert isinstance(volume, Volume)
        assert volume.pool is pool
        assert oracle.ask("pool_of_volume_path", f"{theirs.root}/{pool.name}/one") == pool.name


async def test_pools_by_uuid_and_name(sides: tuple[LibvirtSide, AstoreSide, Manager], oracle: Oracle) -> None:
    """However a uuid is written; names only as they are."""
    _, _, manager = sides
    for pool in manager.pools():
        both = (pool.uuid, manager.pool_by_uuid), (oracle.ask("pool_call", pool.name, "UUIDString"), None)
        for change in (
            str,
            str.upper,
            lambda uuid: uuid.replace("-", ""),
            lambda uuid: f" {uuid} ",
            lambda uuid: uuid.replace("-", "--"),
            lambda uuid: f"{uuid[:2]} - {uuid[2:]}",
            lambda uuid: f"{uuid[:1]}-{uuid[1:]}",
            lambda uuid: f"{{{uuid}}}",
            lambda uuid: uuid[:-1],
            lambda uuid: uuid + "0",
            lambda uuid: "",
        ):
            answers: list[Any] = []
            for uuid, ours in both:
                try:
                    answers.append(
                        [ours(change(uuid)).name] if ours else oracle.ask("lookup", LOOKUP_BY_UUID, change(uuid))
                    )
                except Exception as error:
                    answers.append(int(getattr(error, "libvirt_code", getattr(error, "code", 0))))
            assert answers[0] == answers[1], change(pool.uuid)
            counting("lookups").came_out("found by both" if answers[0] == [pool.name] else "found by none")
        for name in (pool.name.upper(), f" {pool.name}", ""):
            with pytest.raises(astore.PoolNotFoundError):
                manager.pool(name)
            outcome = [await side.do("start", name, False) for side in sides[:2]]
            assert outcome[0].code == outcome[1].code == 49


LOOKUP_BY_UUID = "storagePoolLookupByUUIDString"
