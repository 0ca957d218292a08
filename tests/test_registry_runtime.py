"""The registry at run time: registering, using, unregistering and draining."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from core_fakes import FakeBackend, counted, fake_registry

import astore
from astore.backend import Backend, Context
from astore.registry import BackendRegistry


def found(registry: BackendRegistry, type: str) -> astore.BackendInfo:
    return next(info for info in registry.backends() if info.type == type)


async def test_registering() -> None:
    """An instance or a class is registered; the place of another is taken only if that is asked for."""
    registry = BackendRegistry(group=None)
    backend = registry.register(FakeBackend)
    assert isinstance(backend, FakeBackend)
    with pytest.raises(astore.BackendConflictError, match="'fake' is driven by"):
        registry.register(FakeBackend())
    other = registry.register(FakeBackend(), replace=True)
    assert await registry.get("fake") is other
    registry.acquire(other)
    with pytest.raises(astore.BackendInUseError, match=r"used by 1 active pool$"):
        registry.register(FakeBackend(), replace=True)
    with pytest.raises(astore.BackendLoadError, match="is not an astore Backend"):
        registry.register(object())  # type: ignore[arg-type]
    assert found(registry, "fake").abilities == ("build", "delete", "discover")


async def test_forced_stops_are_an_ability() -> None:
    """A backend that can end a hung pool without a session says so."""

    async def cut_loose(self: FakeBackend, definition: astore.PoolDef, context: Context) -> None: ...

    registry = BackendRegistry(group=None)
    registry.register(type("Cutting", (FakeBackend,), {"cut_loose": cut_loose}))
    assert found(registry, "fake").abilities == ("build", "delete", "discover", "stop-force")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"api_version": 2}, "upgrade astore"),
        ({"type": None}, "does not say which pool type"),
        ({"require": lambda self: (_ for _ in ()).throw(ImportError("no libfoo"))}, "cannot work here: no libfoo"),
    ],
)
def test_registering_what_is_no_good(fields: dict[str, object], words: str) -> None:
    """A backend that does not fit is refused, and the registry stays as it was."""
    backend = type("Odd", (FakeBackend,), fields)
    registry = BackendRegistry(group=None)
    with pytest.raises(astore.BackendLoadError, match=words):
        registry.register(backend)
    assert registry.types() == ()


async def test_unknown_types() -> None:
    """The error for a type that nobody drives says which there are."""
    registry = fake_registry()
    for call in (registry.get("nosuch"), registry.unregister("nosuch")):
        with pytest.raises(astore.UnknownBackendError, match=r"'nosuch' is installed \(there are: fake\)"):
            await call
    assert registry.loaded("nosuch") is None
    assert "nosuch" not in registry


async def test_unregistering_is_refused_while_in_use() -> None:
    """A backend that pools use stays, unless it is drained: then it goes when the last of them is done."""
    told: list[astore.Event] = []
    registry = BackendRegistry(group=None)
    registry.listen(lambda kind, **fields: told.append(kind(**fields)))
    backend = registry.register(FakeBackend())
    registry.acquire(backend)
    registry.acquire(backend)
    with pytest.raises(astore.BackendInUseError, match="used by 2 active pools"):
        await registry.unregister("fake")
    draining = asyncio.ensure_future(registry.unregister("fake", drain=True))
    await asyncio.sleep(0)
    with pytest.raises(astore.UnknownBackendError, match="is being unregistered"):
        await registry.get("fake")
    with pytest.raises(astore.UnknownBackendError, match="is gone"):
        registry.acquire(backend)
    with pytest.raises(astore.UnknownBackendError):
        await registry.unregister("fake", drain=True)
    registry.release(backend)
    await asyncio.sleep(0.01)
    assert not draining.done()
    await asyncio.to_thread(registry.release, backend)
    await asyncio.wait_for(draining, 10)
    assert registry.types() == ()
    registry.release(backend)  # of no effect: it is not there any more
    assert counted(told) == {"BackendRegistered": 1, "BackendUnregistered": 1}


async def test_a_drain_that_is_cancelled() -> None:
    """Who stops waiting for a drain leaves the backend usable."""
    registry = fake_registry()
    backend = await registry.get("fake")
    registry.acquire(backend)
    draining = asyncio.ensure_future(registry.unregister("fake", drain=True))
    await asyncio.sleep(0)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    assert await registry.get("fake") is backend
    registry.acquire(backend)
    assert found(registry, "fake").pools == 2


async def test_replaced_while_it_is_drained() -> None:
    """A backend that took the place of a drained one before the drain noticed stays, and is not told to be gone."""
    told: list[astore.Event] = []
    registry = BackendRegistry(group=None)
    registry.listen(lambda kind, **fields: told.append(kind(**fields)))
    backend = registry.register(FakeBackend())
    registry.acquire(backend)
    draining = asyncio.ensure_future(registry.unregister("fake", drain=True))
    await asyncio.sleep(0)
    registry.release(backend)
    other = registry.register(FakeBackend(), replace=True)
    await draining
    assert await registry.get("fake") is other
    assert counted(told) == {"BackendRegistered": 2}


async def test_released_when_the_loop_that_drains_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain whose loop was closed meanwhile is no error of the pool that lets go of the backend."""
    registry = fake_registry()
    backend = await registry.get("fake")
    registry.acquire(backend)
    draining = asyncio.ensure_future(registry.unregister("fake", drain=True))
    await asyncio.sleep(0)
    closed = asyncio.new_event_loop()
    closed.close()
    with monkeypatch.context() as patched:
        patched.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", closed.call_soon_threadsafe)
        registry.release(backend)
    assert found(registry, "fake").pools == 0
    assert not draining.done()
    draining.cancel()
    await asyncio.wait([draining])


def test_from_many_threads() -> None:
    """Registering, using and unregistering from many threads at once ends with what was asked for last."""
    registry = BackendRegistry(group=None)
    kinds = [type(f"Fake{n}", (FakeBackend,), {"type": f"fake{n}"}) for n in range(6)]
    failures: list[BaseException] = []

    async def work(kind: type[Backend]) -> None:
        for _ in range(20):
            backend = registry.register(kind())
            for _ in range(5):
                registry.acquire(backend)
                registry.backends()
                registry.release(backend)
            await registry.unregister(backend.type)

    def run(kind: type[Backend]) -> None:
        try:
            asyncio.run(work(kind))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not failures
    assert registry.types() == ()


async def test_two_managers_of_one_registry(tmp_path: Path) -> None:
    """Both hear of what is registered while they are open."""
    registry = BackendRegistry(group=None)
    async with astore.Manager(tmp_path / "one", registry=registry) as one:
        async with (
            astore.Manager(tmp_path / "two", registry=registry) as two,
            one.events() as first,
            two.events() as second,
        ):
            registry.register(FakeBackend)
            assert isinstance(first.receive_nowait(), astore.BackendRegistered)
            assert isinstance(second.receive_nowait(), astore.BackendRegistered)
        async with one.events() as first:
            await registry.unregister("fake")
            assert isinstance(first.receive_nowait(), astore.BackendUnregistered)
    assert registry._publishers == ()
