"""Leases: a key with a time to live, whose sequence is the fencing token."""

from __future__ import annotations

import asyncio
import time

from astore.store.contract import Lease, OutdatedError, Revision
from astore_fleet.engine import Engine

MARK_SECONDS = 1.0
"""Seconds within which the mark of a lease that is over arrives."""


async def acquire(engine: Engine, name: str, holder: str, seconds: float, data: bytes = b"") -> Lease:
    """Take a lease; a holder may take its own again.

    :param seconds: whole ones; 1 at least. :param data: whatever others may read of the holder.
    :raises OutdatedError: another holder has it. StoreError: that failed.
    """
    subject = engine.names.lease(name)
    found = await engine.last(engine.names.leases, subject)
    if found is not None and not found.deleted and found.headers.get("Astore-Holder") != holder:
        raise OutdatedError(f"{engine.name}: {found.headers.get('Astore-Holder')} has the lease {name!r}")
    after = 0 if found is None else found.seq
    return await _write(engine, name, holder, seconds, after, data, over=found is None or found.deleted)


async def renew(engine: Engine, lease: Lease, seconds: float, data: bytes = b"") -> Lease:
    """Extend a lease to ``seconds`` from now. :raises OutdatedError: it was lost. StoreError: that failed."""
    assert isinstance(lease.token, int)
    return await _write(engine, lease.name, lease.holder, seconds, lease.token, data, over=False)


async def release(engine: Engine, lease: Lease) -> None:
    """Give a lease back. Do nothing if it was lost."""
    assert isinstance(lease.token, int)
    subject = engine.names.lease(lease.name)
    try:
        await engine.publish(engine.names.leases, subject, headers={"KV-Operation": "DEL"}, after=lease.token, ttl=60.0)
    except OutdatedError:
        return


async def _write(
    engine: Engine, name: str, holder: str, seconds: float, after: int, data: bytes, *, over: bool
) -> Lease:
    """Write a lease.

    A cluster may remove, by the mark that the former one is over, a lease that was extended in this very moment. So
    one that is extended at the last moment is looked at again. :param over: the former one has such a mark already.
    """
    subject, began = engine.names.lease(name), time.monotonic()
    headers = {"Astore-Holder": holder}
    seq = await engine.publish(engine.names.leases, subject, data, headers, after=after, ttl=seconds)
    if not over and time.monotonic() >= engine.ends.get(name, 0.0):
        await asyncio.sleep(MARK_SECONDS)
        found = await engine.last(engine.names.leases, subject)
        if found is None or found.seq != seq:
            raise OutdatedError(f"{engine.name}: the lease {name!r} was over before it was extended")
    engine.ends[name] = began + seconds
    return Lease(name, holder, Revision(seq))
