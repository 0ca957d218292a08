"""What may befall hosts and servers of a scene (:mod:`fleet_hosts`), and what must hold then."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
from core_fakes import eventually
from fleet_hosts import LOCAL, POOLS, Scene

import astore
from astore_fleet import JobUnknownError
from beds.hosts import NetworkHost

SHARED = ("images", "work")

TAKEOVER_LEASES = 15
"""How many leases' time it may take until a lost host's pools are looked after elsewhere: 30 s by default."""


@contextlib.asynccontextmanager
async def killed(made: Scene) -> AsyncIterator[None]:
    """The host ``one`` is killed, and started again."""
    await made.hosts["one"].end()
    await asyncio.to_thread(made.revive)
    yield
    await made.hosts["one"].start(made.bed.url, "faults")


@contextlib.asynccontextmanager
async def stopped(made: Scene) -> AsyncIterator[None]:
    """The host ``one`` is stopped, and goes on."""
    made.hosts["one"].send(signal.SIGSTOP)
    yield
    made.hosts["one"].send(signal.SIGCONT)


def _link(trouble: Callable[[NetworkHost], None]) -> Callable[[Scene], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def fault(made: Scene) -> AsyncIterator[None]:
        place = made.hosts["one"].place
        await asyncio.to_thread(trouble, place)
        try:
            yield
        finally:
            await asyncio.to_thread(place.mend)

    return fault


HOST_FAULTS: Mapping[str, Callable[[Scene], contextlib.AbstractAsyncContextManager[None]]] = {
    "killed": killed,
    "stopped": stopped,
    "cut": _link(NetworkHost.cut),
    "mute": _link(NetworkHost.mute),
    "deaf": _link(NetworkHost.deafen),
}
"""What takes the host ``one`` away, and brings it back."""


@contextlib.asynccontextmanager
async def server_killed(made: Scene) -> AsyncIterator[None]:
    """The leading server is killed, and started again."""
    server = await made.leader()
    await asyncio.to_thread(lambda: server.end(kill=True))
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


@contextlib.asynccontextmanager
async def server_stopped(made: Scene) -> AsyncIterator[None]:
    """The leading server is stopped, and goes on."""
    server = await made.leader()
    server.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def server_cut(made: Scene) -> AsyncIterator[None]:
    """The leading server's link is cut, and mended."""
    server = await made.leader()
    assert server.place is not None
    await asyncio.to_thread(server.place.cut)
    try:
        yield
    finally:
        await asyncio.to_thread(server.place.mend)


@contextlib.asynccontextmanager
async def all_killed(made: Scene) -> AsyncIterator[None]:
    """All servers are killed, and started again."""
    for server in made.bed.servers:
        await asyncio.to_thread(lambda one=server: one.end(kill=True))
    try:
        yield
    finally:
        for server in made.bed.servers:
            await asyncio.to_thread(server.start)


SERVER_FAULTS: Mapping[str, Callable[[Scene], contextlib.AbstractAsyncContextManager[None]]] = {
    "server-killed": server_killed,
    "server-stopped": server_stopped,
    "server-cut": server_cut,
    "all-killed": all_killed,
}
"""What takes servers away, and brings them back."""


# ------------------------------------------------------------------------------------------------------ what must hold


async def lose_a_host(made: Scene, fault: str, word: str) -> None:
    """Have ``one`` lost and back: its shared pools go on elsewhere, its own is unreachable, and nothing is lost.

    The work that it was doing has an unknown end; it is never done again.
    """
    fleet = made.fleet
    for name in SHARED:
        await fleet.pool(name).place(hosts=("one",))
        await made.owned(name, "one")
    made.write("images", f"{word}-gone")
    made.write("own-one", f"{word}-before")
    await made.told("images", f"{word}-gone")
    await made.told("own-one", f"{word}-before")
    await made.kept("own-one")
    known = fleet.pool("own-one").info.volumes
    for name in SHARED:
        await fleet.pool(name).place(hosts=("one", "two"))
    working = await made.begin_work(f"{word}-lost")
    assert {name: fleet.pool(name).info.owner for name in SHARED} == dict.fromkeys(SHARED, "one")
    lives = fault not in ("killed", "stopped")
    async with HOST_FAULTS[fault](made):
        began = time.monotonic()
        made.write("images", f"{word}-away")
        made.write("own-one", f"{word}-away")
        (made.folders["images"] / f"{word}-gone").unlink()
        with pytest.raises(JobUnknownError, match="'one'"):
            await working
        for name in SHARED:
            await made.owned(name, "two")
        await fleet.pool("images").refresh()
        assert time.monotonic() - began < TAKEOVER_LEASES * made.hosts["one"].seconds
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
        made.let_work_go(f"{word}-lost")
        made.let_work_go(f"{word}-else")
        assert (await (await made.begin_work(f"{word}-else"))).name == f"{word}-else"
    await made.all_there()
    await made.owned("own-one", "one")
    await made.told("own-one", f"{word}-away", *([f"{word}-late"] if lives else []))
    await made.kept("own-one")
    runs = fleet.store.table.runs
    for name in SHARED:
        await eventually(lambda n=name: list(runs.get(n, ())) == [fleet.pool(n).info.owner], f"{name} runs on one host")
    await eventually(lambda: ("images", f"{word}-gone") in made.removed(), "what was removed is told")


async def lose_servers(made: Scene, fault: str, word: str) -> None:
    """Have servers lost and back: all Managers go on meanwhile, and what changed is told in the end.

    Work that was being done meanwhile is done once. Its end is known, and good, unless its host's lease was over for a
    moment, as it may be while a new leader is elected, or all servers were away for long.
    """
    working = await made.begin_work(f"{word}-made")
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
        made.let_work_go(f"{word}-made")
    await made.all_there()
    with contextlib.suppress(JobUnknownError, astore.StorageError, *([astore.StoreError] if gone else [])):
        assert (await working).name == f"{word}-made"
    assert made.begun().count(f"{word}-made") == 1, working
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
    for pool in ("images", *LOCAL):
        made.write(pool, "end")
        await made.told(pool, "end")
    await made.fleet.pool("work").refresh()
    there = {(pool, name) for pool in POOLS for name in os.listdir(made.folders[pool])}
    await eventually(lambda: set(made.added()) - set(made.removed()) == there, "all that is there is told")
    made.check()
