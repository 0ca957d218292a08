"""Hosts and servers in network namespaces: killed, stopped, cut off in either direction, with clocks that are off.

Each host's clock is off by a minute all the time. ASTORE_FLEET_FAULTS says how often each fault comes; without
it there are a few, once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_fakes import eventually
from fleet_history import UNCLOSED
from fleet_hosts import HOST_FAULTS, SERVER_FAULTS, Scene, scene

import astore
from beds import hosts
from beds.nats import missing

ROUNDS = int(os.environ.get("ASTORE_FLEET_FAULTS", "0"))

TAKEOVER_SECONDS = 30.0
"""Seconds within which a lost host's pools are looked after elsewhere; they take some 3 s on a quiet machine."""

pytestmark = [
    pytest.mark.root,
    UNCLOSED,
]


@pytest.fixture
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two hosts, with as many servers as the parameter says."""
    if reason := missing() or hosts.missing():
        pytest.fail(reason)
    async with scene(tmp_path, request.param) as found:
        yield found


async def lose_a_host(made: Scene, fault: str, word: str) -> None:
    """Have ``one`` lost and back: its shared pool goes on elsewhere, its own is unreachable, and nothing is lost."""
    fleet = made.fleet
    await fleet.pool("images").place(hosts=("one",))
    await made.owned("images", "one")
    made.write("images", f"{word}-gone")
    made.write("own-one", f"{word}-before")
    await made.told("images", f"{word}-gone")
    await made.told("own-one", f"{word}-before")
    await made.kept("own-one")
    known = fleet.pool("own-one").info.volumes
    await fleet.pool("images").place(hosts=("one", "two"))
    lives = fault not in ("killed", "stopped")
    async with HOST_FAULTS[fault](made):
        began = time.monotonic()
        made.write("images", f"{word}-away")
        made.write("own-one", f"{word}-away")
        (made.folder / "images" / f"{word}-gone").unlink()
        await made.owned("images", "two")
        await fleet.pool("images").refresh()
        assert time.monotonic() - began < TAKEOVER_SECONDS
        await made.told("images", f"{word}-away")
        await eventually(lambda: fleet.pool("own-one").info.state == "unreachable", "its own pool is unreachable")
        info = fleet.pool("own-one").info
        assert (info.reachable, info.owner, info.volumes) == (False, "one", known)
        assert len(await fleet.pool("own-one").volumes()) == known
        with pytest.raises(astore.PoolInaccessibleError, match="host 'one' is not there"):
            await fleet.pool("own-one").refresh()
        if lives:  # its Manager goes on without the servers, and knows that its lease is over
            said = made.hosts["one"].said
            await eventually(lambda: f"added own-one {word}-away" in said, "its Manager sees the file")
            await eventually(lambda: not made.hosts["one"].has_lease, "it has no lease")
            made.write("own-one", f"{word}-late")
            await eventually(lambda: f"added own-one {word}-late" in said, "its Manager sees the late file")
    await made.all_there()
    await made.owned("own-one", "one")
    await made.told("own-one", f"{word}-away", *([f"{word}-late"] if lives else []))
    await made.kept("own-one")
    runs = fleet.store.table.runs
    await eventually(lambda: list(runs["images"]) == [fleet.leases()["images"][0]], "the pool runs on one host")
    await eventually(lambda: ("images", f"{word}-gone") in made.removed(), "what was removed is told")


async def lose_servers(made: Scene, fault: str, word: str) -> None:
    """Have servers lost and back: all Managers go on meanwhile, and what changed is told in the end."""
    gone = len(made.bed.servers) == 1 or fault == "all-killed"
    async with SERVER_FAULTS[fault](made):
        for name, host in made.hosts.items():
            made.write(f"own-{name}", f"{word}-away")
            await eventually(lambda h=host, n=name: f"added own-{n} {word}-away" in h.said, f"{name} goes on")
            if gone:
                await eventually(lambda h=host: not h.has_lease, f"{name} has no lease")
                made.write(f"own-{name}", f"{word}-late")
                await eventually(lambda h=host, n=name: f"added own-{n} {word}-late" in h.said, f"{name} goes on")
            else:
                await made.told(f"own-{name}", f"{word}-away")
    await made.all_there()
    for name in made.hosts:
        await made.owned(f"own-{name}", name)
        await made.told(f"own-{name}", f"{word}-away", *([f"{word}-late"] if gone else []))


async def move_clocks(made: Scene, word: str) -> None:
    """Put both clocks forward by a minute, and back: no pool moves, and ages are right."""
    before = _tokens_of_local_pools(made)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        for host in made.hosts.values():
            host.send(number)
        seen = made.renewals
        await eventually(lambda seen=seen: made.renewals > seen + 8, "leases are renewed")
        made.write("own-one", f"{word}-{number}")
        await made.told("own-one", f"{word}-{number}")
        await made.fleet.pool("own-one").refresh(timeout=20.0)
        age = made.fleet.pool("own-one").info.age
        assert age is not None
        assert age < 30
    assert _tokens_of_local_pools(made) == before


def _tokens_of_local_pools(made: Scene) -> dict[str, tuple[str, int]]:
    return {pool: lease for pool, lease in made.fleet.leases().items() if pool.startswith("own-")}


async def go_on(made: Scene, faults: list[str], rounds: int) -> None:
    """Have all these faults, one after the other, and check what was told and written."""
    for number in range(rounds):
        for fault in faults:
            word = f"{number}-{fault}"
            if fault in HOST_FAULTS:
                await lose_a_host(made, fault, word)
            elif fault in SERVER_FAULTS:
                await lose_servers(made, fault, word)
            else:
                await move_clocks(made, word)
            made.check()
    for pool in ("images", "own-one", "own-two"):
        made.write(pool, "end")
        await made.told(pool, "end")
    there = {(pool, path.name) for pool in ("images", "own-one", "own-two") for path in (made.folder / pool).iterdir()}
    assert set(made.added()) - set(made.removed()) == there
    made.check()


@pytest.mark.soak
@pytest.mark.timeout(0 if ROUNDS else 180)
@pytest.mark.parametrize(
    ("made", "few"),
    [
        pytest.param(3, ["killed", "cut", "server-cut"], id="cluster"),
        pytest.param(1, ["stopped", "deaf", "clocks", "server-killed"], id="one server"),
    ],
    indirect=["made"],
)
async def test_faults(made: Scene, few: list[str]) -> None:
    """Pools go on elsewhere, no event is lost or doubled, nobody writes by an old token."""
    await go_on(made, [*HOST_FAULTS, *SERVER_FAULTS, "clocks"] if ROUNDS else few, ROUNDS or 1)
