"""Checks of cancelled changes: each is made wholly or not at all, and that is final."""

from __future__ import annotations

import msgspec
import pytest

from astore.store.contract import Revision, Store, Version
from astore.testing.conformance.base import cancel_everywhere
from astore.testing.stores.base import Held, StoreSuiteBase, definition, held, put, remove, revision, run

CHANGES = ["define", "redefine", "undefine", "autostart", "begin", "end"]


class _Ready(msgspec.Struct):
    """The state before a change: the store's contents and revision, and the version of the pool's definition."""

    before: Held
    revision: Revision
    version: Version | None


class CancellationChecks(StoreSuiteBase):
    """Cancelled changes."""

    @pytest.mark.parametrize("kind", CHANGES)
    async def test_cancelled(self, store: Store, other: Store, kind: str) -> None:
        """A cancelled change has its whole effect or none, and that does not change later."""
        ready = await self._prepare(other, kind)
        made: list[Held] = []

        async def between(cancelled: bool) -> None:
            nonlocal ready
            found = await held(other)
            made.append(found)  # the first change is not cancelled
            assert found == made[0] or (cancelled and found == ready.before)
            await put(other, definition("other"))
            await remove(other, "other")
            assert await held(other) == found, "it was made after its caller had been told"
            ready = await self._prepare(other, kind)

        await cancel_everywhere(lambda: self._change(store, kind, ready), between)

    @staticmethod
    async def _prepare(other: Store, kind: str) -> _Ready:
        """Restore the state in which the change can begin."""
        for started_at in (1.5, 7.0):
            await other.end_run("a", started_at)
        version = (await other.current("a")).version
        if kind != "define":
            version = await put(other, definition("a"))
            await other.set_autostart("a", False)
        elif version is not None:
            await other.remove("a", version)
        if kind == "end":
            await other.begin_run(run("a"), persistent=True)
        return _Ready(await held(other), await revision(other), version)

    @staticmethod
    async def _change(store: Store, kind: str, ready: _Ready) -> None:
        match kind:
            case "define" | "redefine":
                await store.put(definition("a", "/y"), ready.revision)
            case "undefine":
                assert ready.version is not None
                await store.remove("a", ready.version)
            case "autostart":
                await store.set_autostart("a", True)
            case "begin":
                await store.begin_run(run("a", 7.0), persistent=True)
            case _:
                await store.end_run("a", 1.5)
