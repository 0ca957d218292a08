"""Events that the engine does not take: too large ones are told without references, and others do not stop what follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from core_fakes import eventually, volume
from fleet_support import SECONDS, HeldBackend, SharedBackend, folder, registry, shared, until
from msgspec.structs import replace

import astore
import astore_fleet.engine
import astore_fleet.hosts.event_stream as event_stream
from astore.errors import PoolInaccessibleError
from astore.images import vmdk
from astore.model import RefreshOutcome
from astore.registry import BackendRegistry
from astore_fleet import Fleet
from astore_fleet.hosts import supervision
from astore_fleet.hosts.event_stream import Forwarder, encoded
from astore_fleet.jobs.job_records import JobRecord, error_of, failure_of, fitting
from beds.nats import NatsBed


async def test_an_image_of_very_many_files(fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path) -> None:
    """It is told without its files, the snapshot has them, and what comes after it is told; also by the next owner."""
    images = folder(tmp_path, "images")
    extents = "".join(f'RW 1 FLAT "disk-{extent:05}.vmdk" 0\n' for extent in range(vmdk.MOST_EXTENTS))
    text = f"# Disk DescriptorFile\nversion=1\n{extents}"
    assert len(text) < vmdk.LONGEST_DESCRIPTOR
    (images / "wide.vmdk").write_text(text)
    for number, host in enumerate(("one", "two"), 2):
        async with (
            fleet.events(since=0) as events,
            await Fleet.connect(one_server.url, fleet_name, host=host) as client,
            client.agent(seconds=SECONDS, registry=registry()),
        ):
            if host == "one":
                await fleet.define(shared("images", images))
            await eventually(lambda: fleet.pool("images").info.state == "running", "it runs")
            (images / f"z-{host}.img").write_bytes(b"")
            seen = await until(events, astore.VolumeAdded, f"z-{host}.img")
            assert [
                (one.partial, len(one.event.volume.references))
                for one in seen
                if isinstance(one.event, astore.VolumeAdded) and one.event.name == "wide.vmdk"
            ] == [(True, 0)]
            assert not seen[-1].partial
            await eventually(lambda count=number: fleet.pool("images").info.volumes == count, "its snapshot is kept")
            volume = (await fleet.find(name="wide.vmdk")).info
            assert len(volume.references) == vmdk.MOST_EXTENTS
            record, less = (JobRecord(state="done", volume=one) for one in (volume, replace(volume, references=())))
            assert fitting(record, 1 << 30) == less
            assert len(encoded(astore.VolumeAdded(pool="p", uuid="u", name="n", volume=volume), 1 << 30)[0]) > 1 << 20


async def test_a_stream_that_is_full(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it takes no event for long, events are passed over; snapshots are kept, and later events are told."""
    monkeypatch.setattr(event_stream, "REFUSED_SECONDS", 1.0)
    images, engine = folder(tmp_path, "images", "a.img"), fleet.store.engine
    stream = engine.names.events
    async with (
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()),
    ):
        await fleet.define(shared("images", images))
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "it runs")
        info = await engine.info(stream)
        settings = info["config"]
        full = {"max_msgs": info["state"]["messages"], "discard": "new"}
        assert "error" not in await engine.api(f"STREAM.UPDATE.{stream}", **(settings | full))
        (images / "b.img").write_bytes(b"")
        await eventually(lambda: fleet.pool("images").info.volumes == 2, "its snapshot is kept")
        assert "error" not in await engine.api(f"STREAM.UPDATE.{stream}", **settings)
        async with fleet.events() as events:
            (images / "c.img").write_bytes(b"")
            await until(events, astore.VolumeAdded, "c.img")
        await eventually(lambda: fleet.pool("images").info.volumes == 3, "its snapshot is kept")


async def test_what_is_too_large_is_refused_at_once(fleet: Fleet) -> None:
    """A message that is too large with its headers is refused here: the server would end the connection."""
    engine = fleet.store.engine
    client = await engine.client()
    most = client.max_payload
    for data, headers in ((b"x" * (most + 1), {}), (b"x" * (most - 100), {"A": "b" * 200})):
        with pytest.raises(astore_fleet.engine.Refused, match="too many for a message"):
            await engine.publish(engine.names.events, engine.names.event("h", "-", "X"), data, headers)
    assert engine.connected
    await engine.publish(
        engine.names.events, engine.names.event("h", "-", "X"), b"x" * engine.largest, {"A": "b" * 200}
    )


async def test_a_small_server(tmp_path: Path) -> None:
    """A server that takes small messages only has the snapshots in smaller pieces."""
    images = folder(tmp_path, "images", *(f"{json.dumps(number) * 9}.img" for number in range(2000)))
    with NatsBed(tmp_path / "nats", more="max_payload: 32768") as bed:
        async with (
            await Fleet.connect(bed.url, "small", host="one") as fleet,
            fleet.agent(seconds=SECONDS, registry=registry()),
        ):
            await fleet.define(shared("images", images))
            await eventually(lambda: fleet.pool("images").info.volumes == 2000, "its snapshot is kept")
            assert len(await fleet.pool("images").volumes()) == 2000
            assert fleet.pool("images").info.error is None


async def test_a_time_beyond_all_numbers(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The snapshot of a pool with a file of the year 2600 cannot be kept; other pools' are, and the agent goes on."""
    monkeypatch.setattr(supervision, "MOST_FAILURES", 1)
    made, odd = BackendRegistry(group=None), HeldBackend()
    odd.show()
    odd.put("late", volume("late", mtime_ns=1 << 64))
    made.register(odd)
    made.register(SharedBackend())
    async with (
        fleet.events(since=0) as events,
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=made) as agent,
    ):
        await fleet.define(shared("odd", tmp_path / "none", "held"))
        await until(events, astore.VolumeAdded, "late")
        await fleet.define(shared("images", folder(tmp_path, "images", "a.img")))
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "its snapshot is kept")
        dirty = vars(vars(agent)["_forwarder"])["_dirty"]
        assert "odd" in dirty
        assert agent.valid
        odd.put("late", volume("late"))
        await fleet.pool("odd").refresh(timeout=60)
        await eventually(lambda: fleet.pool("odd").info.volumes == 1, "its snapshot is kept, too")
        assert [one.host for one in fleet.hosts()] == ["one"]


async def test_an_event_that_cannot_be_told(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that raises an error which nobody has foreseen is passed over; others are told, and the agent goes on."""
    monkeypatch.setattr(supervision, "MOST_FAILURES", 1)
    real: Callable[..., tuple[bytes, bool]] = event_stream.encoded

    def failing(event: astore.Event, largest: int) -> tuple[bytes, bool]:
        if getattr(event, "name", "") == "odd.img":
            raise OverflowError
        return real(event, largest)

    monkeypatch.setattr(event_stream, "encoded", failing)
    images = folder(tmp_path, "images", "odd.img")
    async with (
        fleet.events(since=0) as events,
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()) as agent,
    ):
        await fleet.define(shared("images", images))
        await eventually(lambda: fleet.pool("images").info.volumes == 1, "its snapshot is kept")
        (images / "z.img").write_bytes(b"")
        seen = await until(events, astore.VolumeAdded, "z.img")
        assert [one for one in seen if getattr(one.event, "name", "") == "odd.img"] == []
        assert agent.valid


async def test_an_event_waits_for_a_connection(
    fleet: Fleet, one_server: NatsBed, fleet_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the connection passes over no event: it is told once the connection is back."""
    real, left = Forwarder._tell, [3]

    async def failing(self: Forwarder, event: astore.Event) -> None:
        if getattr(event, "name", "") == "a.img" and left[0]:
            left[0] -= 1
            raise ConnectionResetError
        await real(self, event)

    monkeypatch.setattr(Forwarder, "_tell", failing)
    async with (
        fleet.events(since=0) as events,
        await Fleet.connect(one_server.url, fleet_name, host="one") as client,
        client.agent(seconds=SECONDS, registry=registry()),
    ):
        await fleet.define(shared("images", folder(tmp_path, "images", "a.img")))
        await until(events, astore.VolumeAdded, "a.img")
        assert left == [0]


def test_records_that_fit() -> None:
    """A record that is too large for the server loses its details; what came of the job stays."""
    names = tuple(f"{number:0200}" for number in range(100))
    errors = tuple(astore.EntryError(name=name, message=name * 10) for name in names)
    for outcome, kept in (
        (RefreshOutcome("p", added=names, unchanged=3), RefreshOutcome("p", unchanged=3)),
        (RefreshOutcome("p", errors=errors, unchanged=3), RefreshOutcome("p", unchanged=3)),
        (RefreshOutcome("p", added=names[:2]), RefreshOutcome("p", added=names[:2])),
    ):
        assert fitting(JobRecord(state="done", outcome=outcome), 2048).outcome == kept
    failed = JobRecord(state="failed", failure=failure_of(PoolInaccessibleError("x" * 10_000, pool="p")))
    fits = fitting(failed, 2048)
    assert len(msgspec.msgpack.encode(fits)) <= 2048
    assert fits.failure is not None
    error = error_of(fits.failure)
    assert isinstance(error, PoolInaccessibleError)
    assert (error.pool, str(error)[:10]) == ("p", "x" * 10)
