"""What tests of pools, managers and lanes share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from core_fakes import FakeBackend, fake, fake_registry, started

import astore
from astore.testing.faults import Gate


@pytest.fixture
def backend() -> FakeBackend:
    """A backend whose pools have the volumes a, b and c."""
    backend = FakeBackend()
    backend.show("a", "b", "c")
    return backend


@pytest.fixture
async def manager(tmp_path: Path, backend: FakeBackend) -> AsyncIterator[astore.Manager]:
    """A Manager with the backend alone. Whatever is held in the backend goes on when it closes."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        yield manager
        backend.unhold()


@pytest.fixture
async def pool(manager: astore.Manager) -> astore.Pool:
    """A started pool with the volumes a, b and c."""
    return await started(manager, fake("pool"))


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that is opened afterwards, whatever happened."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean-ups that hang are given up soon, and yet not before a busy machine has written a small file."""
    for module in ("pools.life", "pools.lifecycle", "pools.refresher", "manager.keeper", "cancellation"):
        monkeypatch.setattr(f"astore.{module}.CLEANUP_SECONDS", 1.0)
