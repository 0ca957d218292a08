"""Checks of cancellation at every step: nothing is left behind, and everything still works."""

from __future__ import annotations

import asyncio

import pytest

from astore.errors import AstoreError, InvalidStateError
from astore.manager import Manager
from astore.model import PoolState, RefreshOutcome
from astore.pools.pool import Pool
from astore.testing.conformance.base import (
    FRACTIONS,
    Census,
    ConformanceBase,
    assert_no_growth,
    cancel_everywhere,
    start_with,
)
from astore.testing.conformance.source import SourceUnderTest, raw

FIVE = {f"{name}.img": raw() for name in "abcde"}


class CancellationChecks(ConformanceBase):
    """Start, refresh and stop, cancelled or at once."""

    async def test_cancelled_start(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A start that was cancelled leaves an inactive pool that can be started, and no thread or descriptor."""
        await start_with(pool, source, dict(FIVE))
        await pool.stop()
        before = await Census.taken()

        async def back_to_inactive(cancelled: bool) -> None:
            if cancelled:
                assert pool.state is PoolState.INACTIVE
            elif pool.active:
                await pool.stop()

        await cancel_everywhere(pool.start, back_to_inactive)
        assert pool.state is PoolState.INACTIVE
        await assert_no_growth(before, manager)
        await pool.start()
        assert len(pool.volumes) == 5

    async def test_cancelled_stop(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A stop that was cancelled leaves a pool that is active and works, or is inactive and can be started."""
        await start_with(pool, source, dict(FIVE))
        await pool.stop()
        before = await Census.taken()
        await pool.start()

        async def back_to_active(cancelled: bool) -> None:
            if pool.active:
                assert (await pool.refresh()).unchanged == 5
            else:
                await pool.start()
            assert pool.state is PoolState.RUNNING
            assert len(pool.volumes) == 5

        await cancel_everywhere(pool.stop, back_to_active)
        await pool.stop()
        await assert_no_growth(before, manager)

    async def test_cancelled_refresh(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh that all callers gave up ends; the snapshot stays, and the next refresh works."""
        await start_with(pool, source, dict(FIVE))
        before = await Census.taken()

        async def look(cancelled: bool) -> None:
            assert len(pool.volumes) == 5
            assert pool.state is PoolState.RUNNING

        await cancel_everywhere(lambda: pool.refresh(full=True), look)
        await cancel_everywhere(lambda: pool.refresh("a.img"), look)
        await cancel_everywhere(
            lambda: asyncio.gather(pool.refresh(), pool.refresh(), pool.refresh("b.img"), pool.refresh(full=True)), look
        )
        assert (await pool.refresh()).unchanged == 5
        await assert_no_growth(before, manager)

    async def test_one_caller_of_two_cancelled(self, pool: Pool, source: SourceUnderTest) -> None:
        """A caller that leaves a shared refresh does not end it for the others."""
        await start_with(pool, source, dict(FIVE))
        for first_leaves in (True, False):
            callers = [asyncio.ensure_future(pool.refresh(full=True)) for _ in range(2)]
            await asyncio.sleep(0)
            generation = pool.snapshot.generation
            leaver, stayer = callers if first_leaves else reversed(callers)
            leaver.cancel()
            assert (await stayer).unchanged == 5
            with pytest.raises(asyncio.CancelledError):
                await leaver
            assert pool.snapshot.generation == generation + 1

    async def test_timeout_of_one_caller(self, pool: Pool, source: SourceUnderTest) -> None:
        """One caller's deadline is that caller's own."""
        await start_with(pool, source, dict(FIVE))
        patient = asyncio.ensure_future(pool.refresh(full=True))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await pool.refresh(full=True, timeout=0.0)
        assert (await patient).unchanged == 5
        assert pool.state is PoolState.RUNNING

    async def test_stopped_during_a_refresh(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A stop beside refreshes stops; each refresh has its outcome, or is told that the pool was stopped."""
        await start_with(pool, source, dict(FIVE))
        await pool.stop()
        before = await Census.taken()
        for fraction in (0.0, *FRACTIONS):
            await pool.start()

            async def stop(wait: float = fraction / 50) -> None:
                await asyncio.sleep(wait)
                await pool.stop()

            *outcomes, stopped = await asyncio.gather(
                *(self._refresh_in_a_row(pool) for _ in range(3)), stop(), return_exceptions=True
            )
            assert stopped is None
            assert pool.state is PoolState.INACTIVE
            assert pool.volumes == ()
            assert all(isinstance(outcome, InvalidStateError) for outcome in outcomes), outcomes
        await assert_no_growth(before, manager)

    @staticmethod
    async def _refresh_in_a_row(pool: Pool) -> RefreshOutcome:
        while True:
            outcome = await pool.refresh(full=True)
            assert outcome.unchanged == 5

    async def test_closed_during_a_refresh(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A Manager that is closed beside a refresh or a start ends both, and the next one goes on."""
        await start_with(pool, source, dict(FIVE))
        refresh = asyncio.ensure_future(pool.refresh(full=True))
        await asyncio.sleep(0)
        await manager.aclose()
        try:
            assert (await refresh).unchanged == 5  # it came first
        except (AstoreError, asyncio.CancelledError):
            pass
        async with manager:
            assert pool.active
            assert (await pool.refresh()).unchanged == 5
            await pool.stop()
