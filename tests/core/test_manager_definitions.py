"""Definitions: accepted or refused in words, kept on disk, and shared with others who use the same folder."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from core_fakes import FakeBackend, cancel_after, fake, fake_registry, idle, names, run_python, started

import astore
from astore.model import PoolState


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def files(folder: Path) -> list[str]:
    """What is in the state folder, but for its lock and the folders themselves."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() and path.name != "lock"
    )


async def test_records_and_documents_are_the_same(manager: astore.Manager, tmp_path: Path) -> None:
    """XML as text, XML as bytes and a record define one pool; defining it again is no second one."""
    text = "<pool type='fake'><name>a</name><target><path>/one</path></target></pool>"
    pool = await manager.define(text)
    assert await manager.define(text.encode()) is pool
    assert await manager.define(fake("a", "/one")) is pool
    assert await manager.define(pool.definition) is pool
    assert manager.pools() == [pool]
    assert files(tmp_path / "state") == ["pools/a.xml"]
    assert astore.PoolDef.from_xml(pool.to_xml(inactive=True)) == pool.definition


async def test_large_documents(manager: astore.Manager) -> None:
    """A document too large to be parsed between two turns of the loop is parsed in a thread, and is as good."""
    text = f"<pool type='fake'><name>a</name>{'<!-- -->' * 40_000}<target><path>/one</path></target></pool>"
    assert (await manager.define(text)).definition.target.path == "/one"
    with pytest.raises(astore.DefinitionError):
        await manager.define(text.replace("</pool>", ""))


async def test_defined_anew(manager: astore.Manager, backend: FakeBackend) -> None:
    """A new definition of an active pool is taken up at its next start; both can be seen meanwhile."""
    pool = await started(manager, fake("a", "/one"))
    assert await manager.define(fake("a", "/two")) is pool
    assert pool.definition.target.path == "/one"
    assert "/one" in pool.to_xml()
    assert "/two" in pool.to_xml(inactive=True)
    await manager.define(fake("a", "/three"))
    assert backend.open_sessions[0].definition.target.path == "/one"
    await pool.stop()
    assert pool.definition.target.path == "/three"
    await pool.start()
    assert backend.open_sessions[0].definition.target.path == "/three"


async def test_duplicates_name_the_other_pool_and_the_field(manager: astore.Manager) -> None:
    """A name, a uuid or a source that another pool has is refused, and nothing is stored."""
    first = await manager.define(fake("first", "/one"))
    other_uuid = "11111111-2222-3333-4444-555555555555"
    for wanted, field in (
        (astore.PoolDef(type="fake", name="first", uuid=other_uuid), "name"),
        (astore.PoolDef(type="fake", name="second", uuid=first.uuid), "uuid"),
        (fake("second", "/one"), "target path"),
    ):
        for define in (manager.define, manager.create):
            with pytest.raises(astore.SourceConflictError, match="'first'") as caught:
                await define(wanted)
            assert (caught.value.other, caught.value.field) == ("first", field)
    assert manager.pools() == [first]
    with pytest.raises(astore.SourceConflictError) as caught:
        await manager.create(fake("first", "/one"))
    assert (caught.value.other, caught.value.field) == ("first", "name")


async def test_the_source_of_an_active_pool_counts_too(manager: astore.Manager) -> None:
    """Neither the source that a pool runs by nor the one of its next start may be another pool's."""
    pool = await started(manager, fake("a", "/one"))
    await manager.define(fake("a", "/two"))
    for path in ("/one", "/two"):
        with pytest.raises(astore.SourceConflictError, match="'a' has the same source"):
            await manager.define(fake("b", path))
    await pool.stop()
    await manager.define(fake("b", "/one"))
    with pytest.raises(astore.SourceConflictError, match="'b' has the same source"):
        await manager.define(fake("a", "/one"))


async def test_at_once(manager: astore.Manager) -> None:
    """Of many who define pools on one source at once, one succeeds; of many who define one pool, all do."""
    wanted = [manager.define(fake(f"p{n}", "/one")) for n in range(10)]
    outcomes = await asyncio.gather(*wanted, return_exceptions=True)
    assert sum(isinstance(outcome, astore.Pool) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, astore.SourceConflictError) for outcome in outcomes) == 9
    same = await asyncio.gather(*(manager.define(fake("same", "/two")) for _ in range(10)))
    assert len({id(pool) for pool in same}) == 1


async def test_what_a_backend_refuses(manager: astore.Manager, backend: FakeBackend, tmp_path: Path) -> None:
    """A definition that the backend refuses is not stored; nor is one over which the backend stumbles."""
    for define in (manager.define, manager.create):
        with pytest.raises(astore.DefinitionError, match="<target>: this path is refused"):
            await define(fake("a", "/refused"))
        backend.fail("check", KeyError("oops"), "odd")
        with pytest.raises(astore.BackendError, match=r"'fake' cannot check pool 'odd': KeyError"):
            await define(fake("odd"))
    assert manager.pools() == []
    assert files(tmp_path / "state") == []
    assert (await manager.define(fake("good", "/one"))).name == "good"


async def test_a_definition_its_backend_stumbles_over_hurts_no_other(
    manager: astore.Manager, backend: FakeBackend
) -> None:
    """A stored definition that the backend cannot check is in nobody else's way."""
    await manager.define(fake("odd", "/odd"))
    backend.fail("check", KeyError("oops"), "odd")
    assert (await manager.define(fake("good", "/one"))).name == "good"


async def test_unknown_types(manager: astore.Manager) -> None:
    """A pool whose type nobody drives is kept and listed as such, and works once somebody does."""
    pool = await manager.define("<pool type='other'><name>a</name><source><name>x</name></source></pool>")
    assert pool.info.backend is False
    assert pool.abilities() == ()
    for call in (pool.start, pool.build, pool.delete):
        with pytest.raises(astore.UnknownBackendError, match="no backend for pool type 'other'"):
            await call()
    assert pool.state is PoolState.INACTIVE
    assert pool.info.error is not None
    with pytest.raises(astore.UnknownBackendError):
        await manager.create("<pool type='other'><name>b</name></pool>")
    assert [known.name for known in manager.pools()] == ["a"]

    class Other(FakeBackend):
        type = "other"

    manager.registry.register(Other())
    assert pool.info.backend is True
    assert pool.abilities() == ("build", "delete", "discover")
    await pool.start()
    assert (pool.state, pool.info.error) == (PoolState.RUNNING, None)
    assert "refresh-volume" in pool.abilities()
    with pytest.raises(astore.BackendInUseError):
        await manager.registry.unregister("other")
    draining = asyncio.ensure_future(manager.registry.unregister("other", drain=True))
    await asyncio.sleep(0)
    assert (await pool.refresh()).error is None
    await pool.stop()
    await draining
    assert pool.info.backend is False


async def test_a_pool_outlives_its_backend(tmp_path: Path) -> None:
    """A pool that is active and whose backend is not installed any more can be looked at and stopped."""
    async with astore.Manager(tmp_path / "state", registry=fake_registry()) as manager:
        await (await manager.define(fake("a"))).start()
    async with astore.Manager(tmp_path / "state", registry=astore.BackendRegistry(group=None)) as manager:
        pool = manager.pool("a")
        assert pool.active
        with pytest.raises(astore.UnknownBackendError):
            await pool.refresh()
        await pool.stop()
        assert pool.state is PoolState.INACTIVE


async def test_a_damaged_file(manager: astore.Manager, tmp_path: Path) -> None:
    """A definition that cannot be read is reported, left as it is and not defined over; the others work."""
    await manager.define(fake("good"))
    path = tmp_path / "state" / "pools" / "bad.xml"
    await asyncio.to_thread(path.write_text, "<pool type='fake'><name>bad")
    await manager.reload()
    (damaged,) = manager.damaged
    assert (damaged.name, damaged.path) == ("bad", str(path))
    assert "line 1" in damaged.error
    assert [pool.name for pool in manager.pools()] == ["good"]
    with pytest.raises(astore.DefinitionError, match="repair or remove"):
        await manager.define(fake("bad"))
    assert await asyncio.to_thread(path.read_text) == "<pool type='fake'><name>bad"
    repaired = astore.PoolDef(type="fake", name="bad", uuid="11111111-2222-3333-4444-555555555555")

    def repair() -> None:
        with path.open("r+") as file:  # where it is, as editors do
            file.write(repaired.to_xml())

    await asyncio.to_thread(repair)
    await manager.reload()
    assert manager.damaged == ()
    assert manager.pool("bad").definition == repaired


async def test_damaged_while_it_is_known(manager: astore.Manager, tmp_path: Path) -> None:
    """A pool whose file is damaged behind its back goes on by what is known of it."""
    pool = await started(manager, fake("a", "/one"))
    beside = tmp_path / "beside"
    await asyncio.to_thread(beside.write_text, "<pool")
    await asyncio.to_thread(os.rename, beside, tmp_path / "state" / "pools" / "a.xml")
    await manager.reload()
    assert [file.name for file in manager.damaged] == ["a"]
    assert manager.pool("a") is pool
    assert (await pool.refresh()).error is None
    await pool.stop()
    assert manager.pools() == [pool]


# ---------------------------------------------------------------------------------------------- transient pools


async def test_transient_pools(manager: astore.Manager, backend: FakeBackend, tmp_path: Path) -> None:
    """A transient pool is there while it is active, cannot be undefined, and becomes persistent by being defined."""
    backend.show("x")
    pool = await manager.create(fake("a", "/one"), build=True)
    assert (pool.persistent, pool.active, names(pool)) == (False, True, ["x"])
    assert backend.count("build") == 1
    for call in (pool.undefine(), pool.set_autostart(True)):
        with pytest.raises(astore.InvalidStateError):
            await call
    assert await manager.define(fake("a", "/one")) is pool
    assert pool.persistent
    await pool.stop()
    assert manager.pools() == [pool]
    await pool.undefine()
    again = await manager.create(fake("a", "/one"))
    await again.stop()
    assert manager.pools() == []
    assert files(tmp_path / "state") == []
    with pytest.raises(astore.PoolNotFoundError, match="any more"):
        await again.start()


@pytest.mark.parametrize("operation", ["build", "open", "refresh"])
async def test_a_transient_pool_that_cannot_start(
    manager: astore.Manager, backend: FakeBackend, operation: str, tmp_path: Path
) -> None:
    """There is no such pool then, and nothing of it."""
    backend.fail(operation, OSError(5, "no good"))
    with pytest.raises(astore.PoolInaccessibleError, match="no good"):
        await manager.create(fake("a", "/one"), build=True)
    assert manager.pools() == []
    assert backend.open_sessions == []
    assert files(tmp_path / "state") == []
    backend.fail(operation, None)
    assert (await manager.create(fake("a", "/one"), build=True)).active


async def test_defined_while_it_is_created(manager: astore.Manager, backend: FakeBackend) -> None:
    """A transient pool that is defined while it starts stays defined, though the start fails."""
    hold = backend.hold("open")
    creating = asyncio.ensure_future(manager.create(fake("a", "/one")))
    await hold.reached()
    pool = await manager.define(fake("a", "/one"))
    backend.fail("open", OSError(5, "no good"))
    hold.release()
    with pytest.raises(astore.PoolInaccessibleError):
        await creating
    assert manager.pool("a") is pool
    assert (pool.persistent, pool.state) == (True, PoolState.INACTIVE)


async def test_cancelled_definitions(manager: astore.Manager, tmp_path: Path) -> None:
    """A define or undefine that is cancelled, wherever, happened or did not; reading the folder again tells which."""
    for when in range(12):
        await cancel_after(when, lambda: manager.define(fake("a", "/one")))
        await idle(manager)
        await manager.reload()
        assert files(tmp_path / "state") == [f"pools/{pool.name}.xml" for pool in manager.pools()]
        pool = await manager.define(fake("a", "/one"))
        await cancel_after(when, pool.undefine)
        await idle(manager)
        await manager.reload()
        assert files(tmp_path / "state") == [f"pools/{pool.name}.xml" for pool in manager.pools()]
    assert manager.statistics().lanes.queued == 0


async def test_autostart_of_what_is_undefined(manager: astore.Manager, tmp_path: Path) -> None:
    """No autostart mark is left for the next pool of the name, whoever comes first."""
    refused = 0
    for head_start in (*(number * 0.0005 for number in range(40)), 0.1, 1.0, 10.0, 100.0):
        if head_start >= 0.1 and refused:
            break
        pool = await manager.define(fake("a", "/one"))
        undefining = asyncio.ensure_future(pool.undefine())
        await asyncio.sleep(head_start)
        try:
            await pool.set_autostart(True)
        except astore.PoolNotFoundError:
            refused += 1
        await undefining
        assert files(tmp_path / "state") == []
    assert refused
    await manager.reload()
    assert not (await manager.define(fake("a", "/one"))).autostart


@pytest.mark.parametrize(
    "fields",
    [
        {"type": None},
        {"target": None},
        {"source": None},
        {"config_options": (("a",),)},
        {"target": astore.Target("/x", astore.Permissions(mode="7"))},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_records_of_other_types(manager: astore.Manager, fields: dict[str, Any]) -> None:
    """A record whose fields are not what they are to be is no definition; nothing is kept of it."""
    with pytest.raises(astore.DefinitionError):
        await manager.define(msgspec.structs.replace(fake("a"), **fields))
    assert manager.pools() == []


FIRST_DEFINITIONS = """
import asyncio, sys
import astore
from loop_guard import loop_guard

async def main():
    async with astore.Manager(sys.argv[1]) as manager:
        assert "astore.xml.pool_writing" in sys.modules
        text = "<pool type='tape'><name>p{}</name><target><path>/p{}</path></target></pool>"
        await asyncio.gather(*(manager.define(text.format(number, number)) for number in range(50)))

guard = loop_guard("astore")
for name in ("io.BufferedWriter.write", "io.TextIOWrapper.write"):
    del guard.functions[name]  # Python 3.11.2, Debian 12's, crashes at its end if they were replaced
guard.activate()
asyncio.run(main())
"""


def test_the_first_definitions_of_a_process(tmp_path: Path) -> None:
    """What reads documents is imported on a thread, and nobody waits for that on the loop."""
    done = run_python(FIRST_DEFINITIONS, str(tmp_path / "state"))
    assert (done.returncode, done.stderr) == (0, "")
