"""Owning: which pools this host is to look after, and taking and handing back pools on conditions."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from astore.model import PoolDef
from astore.store.contract import OutdatedError
from astore_fleet.engine import Engine
from astore_fleet.mirror import MARK_SECONDS
from astore_fleet.placement.fleet_state import FleetState
from astore_fleet.records import HostInfo, Owner, Placement
from astore_fleet.store.pool_table import Held


def candidates(held: Held, hosts: Iterable[HostInfo]) -> list[str]:
    """Return the hosts on which a pool may run."""
    definition = held.definition()
    if not isinstance(definition, PoolDef):
        return []
    only, labels = confined_to(definition, held.placement, held.defined_by), held.placement.labels
    return [
        one.host
        for one in hosts
        if (only is None or one.host in only) and (not labels or labels.items() <= one.labels.items())
    ]


def confined_to(definition: PoolDef, placement: Placement, defined_by: str) -> frozenset[str] | None:
    """Return the only hosts on which a pool may run; None: those are not known by name.

    Without a placement, a pool whose source is on the network may run anywhere, another one on the host that defined it.
    """
    if placement.hosts:
        return frozenset(placement.hosts)
    return None if placement.labels or definition.source.hosts else frozenset({defined_by})


def may_meet(held: Held, hosts: frozenset[str] | None) -> bool:
    """Return whether a pool may run on one of these hosts (None: any)."""
    definition = held.definition()
    theirs = confined_to(definition, held.placement, held.defined_by) if isinstance(definition, PoolDef) else None
    return hosts is None or theirs is None or bool(hosts & theirs)


def chosen(pool: str, hosts: Sequence[str], load: Mapping[str, int]) -> str | None:
    """Return the host that is to look after a pool: the one with the fewest; of several, each pool has its own order.

    All hosts that know the same choose the same one.
    """
    fewest = min((load.get(host, 0) for host in hosts), default=0)
    seed = zlib.crc32(pool.encode("utf-8", "surrogateescape"))  # a checksum is fast: there may be many pools and hosts
    return min(
        (host for host in hosts if load.get(host, 0) == fewest),
        key=lambda host: (zlib.crc32(host.encode("utf-8", "surrogateescape"), seed), host),
        default=None,
    )


def free_for(me: str, state: FleetState, definitions: Mapping[str, Held]) -> list[str]:
    """Return the pools that nobody looks after and that this host is to take, in name order."""
    free = sorted(name for name in definitions if not state.present(state.owner(name)))
    if not free:
        return []
    load = state.load()
    there = [one for one in state.hosts.values() if one.host not in state.drained]
    mine = []
    for name in free:
        held = definitions[name]
        host = chosen(name, candidates(held, there), load)
        if host is not None:
            load[host] = load.get(host, 0) + 1
            if host == me:
                mine.append(name)
    return mine


def lent_wrongly(me: Owner, state: FleetState, definitions: Mapping[str, Held]) -> list[str]:
    """Return the pools that this host looks after, and is to hand back: they are gone, may not run here, or it is drained."""
    own = [name for name, owned in state.owners.items() if owned.owner == me]
    here = state.hosts.get(me.host)
    wrong = []
    for name in own:
        held = definitions.get(name)
        may = [] if held is None else candidates(held, state.hosts.values())
        others = [host for host in may if host != me.host and host not in state.drained]
        if here is not None and (me.host not in may or (me.host in state.drained and others)):
            wrong.append(name)
    return wrong


async def take(engine: Engine, pool: str, owner: Owner, after: int) -> int | None:
    """Take a pool; return the token, or None: another host was faster. :param after: the token that was seen; 0: none."""
    names = engine.names
    subject = names.owner(pool)
    for _ in range(2):
        try:
            return await engine.publish(names.state, subject, msgspec.json.encode(owner), after=after)
        except OutdatedError:
            if not after or await engine.last(names.state, subject) is not None:
                return None
            after = 0  # the mark of its last owner is gone
    return None


def to_even_out(me: Owner, state: FleetState, definitions: Mapping[str, Held], most: int) -> list[str]:
    """Return pools that this host is to hand back because others have fewer by two or more. :param most: how many at once."""
    mine = sorted(name for name, owned in state.owners.items() if owned.owner == me)
    if len(mine) < 2:
        return []
    there = [one for one in state.hosts.values() if one.host not in state.drained]
    for name, held in definitions.items():
        if not state.present(state.owner(name)) and candidates(held, there):
            return []  # first each pool has an owner
    load, found = state.load(), list[str]()
    for name in mine:
        one = definitions.get(name)
        others = [] if one is None else [host for host in candidates(one, there) if host != me.host]
        fewest = min(others, key=lambda host: load.get(host, 0), default=None)
        if fewest is not None and load.get(me.host, 0) > load.get(fewest, 0) + 1:
            load[me.host] -= 1
            load[fewest] = load.get(fewest, 0) + 1
            found.append(name)
            if len(found) == most:
                break
    return found


async def hand_back(engine: Engine, pool: str, token: int) -> int | None:
    """Hand a pool back; return the sequence of that, or None: the token does not hold any more."""
    names = engine.names
    try:
        headers = {"KV-Operation": "DEL"}
        return await engine.publish(names.state, names.owner(pool), b"", headers, after=token, ttl=MARK_SECONDS)
    except OutdatedError:
        return None
