"""Summaries of pools: of a Manager's, and of those in a state folder that is read without a Manager."""

from __future__ import annotations

import msgspec

from astore.model import Freshness, PoolDef, PoolInfo, PoolState, Snapshot
from astore.store.contract import LastSeen


def state_when_last_seen(seen: LastSeen | None) -> PoolState:
    """Return the state of a pool that another process started, from the state in which that process left it."""
    if seen is None:
        return PoolState.RUNNING
    if seen.error is not None:
        return PoolState.INACCESSIBLE
    return PoolState.DEGRADED if any(not error.skipped for error in seen.snapshot.errors) else PoolState.RUNNING


def definition_as_found(definition: PoolDef, snapshot: Snapshot) -> PoolDef:
    """Return the definition with the actual permissions of the pool's folder."""
    found = snapshot.permissions
    if found is None:
        return definition
    said = definition.target.permissions
    found = msgspec.structs.replace(found, label=None if said is None else said.label)
    return msgspec.structs.replace(definition, target=msgspec.structs.replace(definition.target, permissions=found))


def pool_info(
    definition: PoolDef,
    *,
    uuid: str,
    state: PoolState,
    persistent: bool,
    autostart: bool,
    backend: bool,
    snapshot: Snapshot,
    since: float,
    error: str | None,
    freshness: Freshness | None = None,
) -> PoolInfo:
    """Return a pool's summary.

    :param definition: the one that it runs by, if it is active. :param backend: whether its type has a backend.
    :param since: when it entered its state, in seconds since the epoch. :param error: why it is inaccessible.
    :param freshness: how it learns of changes, if it is watched.
    """
    why = error
    if why is None and state is PoolState.DEGRADED:
        wrong = [entry for entry in snapshot.errors if not entry.skipped]
        if wrong:
            first = f"{wrong[0].name}: {wrong[0].message}"
            few = len(wrong) == 1
            why = f"cannot be read: {first}" if few else f"{len(wrong)} entries cannot be read; the first: {first}"
    return PoolInfo(
        name=definition.name,
        uuid=uuid,
        type=definition.type,
        state=state,
        persistent=persistent,
        autostart=autostart,
        backend=backend,
        capacity=snapshot.capacity,
        allocation=snapshot.allocation,
        available=snapshot.available,
        volumes=len(snapshot),
        errors=len(snapshot.errors),
        generation=snapshot.generation,
        taken_at=snapshot.taken_at,
        since=since,
        error=why,
        freshness=freshness,
    )
