"""The suite for stores: a store is finished when its short subclass of :class:`StoreConformance` passes.

::

    from astore.testing.stores import StoreConformance


    class TestMine(StoreConformance):
        async def make_store(self, place):
            return MyStore("mine://localhost", prefix=place.name)

It runs under pytest with pytest-asyncio, in any mode (``pip install astore[testing]``). It checks what
:mod:`astore.store.contract` promises, with two clients of one store, and what the abilities promise that a store has.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in ("base", "definitions", "runs", "cancelling")))

from astore.testing.stores.base import StoreSuiteBase  # noqa: E402
from astore.testing.stores.cancelling import CancellationChecks  # noqa: E402
from astore.testing.stores.definitions import DefinitionChecks  # noqa: E402
from astore.testing.stores.runs import RunChecks  # noqa: E402


class StoreConformance(DefinitionChecks, RunChecks, CancellationChecks, StoreSuiteBase):
    """All tests. A subclass gives :meth:`make_store`."""


__all__ = ["StoreConformance"]
