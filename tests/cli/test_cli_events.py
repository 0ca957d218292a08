"""``astore events``, in this process."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import json_page as shapes
import msgspec
import pytest

from astore import events as kinds
from astore.cli import documents
from astore.cli.events import Lines, as_document, in_words, what_happened
from astore.cli.output import when
from astore.model import PoolState, Reference, ReferenceKind, VolumeInfo, VolumeType

Make = Callable[..., Path]

VOLUME = VolumeInfo(
    "a.qcow2",
    VolumeType.FILE,
    "/p/a.qcow2",
    "/p/a.qcow2",
    1 << 30,
    4096,
    4096,
    "qcow2",
    0o100644,
    0,
    0,
    1,
    1,
    2,
    3,
    (Reference(ReferenceKind.BACKING, "b"),),
)
ABOUT: dict[str, Any] = {"pool": "p", "uuid": "u", "seq": 7, "time": 1.0}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (kinds.PoolDefined(**ABOUT), "defined"),
        (kinds.PoolUndefined(**ABOUT), "undefined"),
        (kinds.PoolStarted(**ABOUT), "started"),
        (kinds.PoolStopped(**ABOUT), "stopped"),
        (kinds.PoolBuilt(**ABOUT), "built"),
        (kinds.PoolDeleted(**ABOUT), "deleted"),
        (kinds.PoolAutostartChanged(autostart=True, **ABOUT), "autostart on"),
        (kinds.PoolAutostartChanged(autostart=False, **ABOUT), "autostart off"),
        (kinds.PoolStateChanged(old=PoolState.RUNNING, new=PoolState.INACTIVE, **ABOUT), "running → inactive"),
        (
            kinds.PoolStateChanged(old=PoolState.RUNNING, new=PoolState.INACCESSIBLE, reason="gone", **ABOUT),
            "running → inaccessible: gone",
        ),
        (
            kinds.PoolStateChanged(
                old=PoolState.RUNNING, new=PoolState.INACCESSIBLE, reason="pool 'p': refresh: gone", **ABOUT
            ),
            "running → inaccessible: refresh: gone",
        ),
        (kinds.PoolStartFailed(reason="pool 'p': start: gone", **ABOUT), "could not be started: start: gone"),
        (kinds.PoolRetry(attempt=2, at=61.5, reason="gone", **ABOUT), f"try 2 failed: gone; next try at {when(61.5)}"),
        (kinds.PoolRetry(attempt=2, at=61.5, reason="", **ABOUT), f"try 2 failed; next try at {when(61.5)}"),
        (
            kinds.PoolRefreshed(generation=2, added=1, unchanged=3, **ABOUT),
            "refreshed: 1 added, 0 changed, 0 removed, 3 unchanged",
        ),
        (
            kinds.PoolRefreshed(generation=2, errors=2, **ABOUT),
            "refreshed: 0 added, 0 changed, 0 removed, 0 unchanged, 2 errors",
        ),
        (
            kinds.VolumeAdded(name="a.qcow2", volume=VOLUME, **ABOUT),
            "volume a.qcow2 added (qcow2, 1.00 GiB, backed by b)",
        ),
        (kinds.VolumeChanged(name="a.qcow2", volume=VOLUME, **ABOUT), "volume a.qcow2 changed (qcow2, 1.00 GiB)"),
        (kinds.VolumeRemoved(name="a.qcow2", **ABOUT), "volume a.qcow2 removed"),
        (
            kinds.VolumeProgress(name="a", operation="upload", done=1024, total=2048, **ABOUT),
            "volume a: upload: 1.00 KiB of 2.00 KiB",
        ),
        (kinds.VolumeProgress(name="a", operation="upload", done=1024, **ABOUT), "volume a: upload: 1.00 KiB"),
        (kinds.BackendRegistered(type="dir", seq=7), "backend for dir pools ready"),
        (kinds.BackendUnregistered(type="dir", seq=7), "backend for dir pools gone"),
        (kinds.Lagged(missed=5, seq=7), "5 events were lost: this reader is too slow"),
    ],
)
def test_every_event_in_words_and_as_json(event: kinds.Event, words: str) -> None:
    """Each kind has its sentence, and its document has its number, its time and its kind."""
    assert what_happened(event) == words
    assert in_words(event) == f"{when(event.time)} {'p: ' if 'pool' in event.__struct_fields__ else ''}{words}"
    shape = json.loads(documents.line(as_document(event)))
    assert (shape["event"], shape["seq"]) == (type(event).__name__, 7)
    if "volume" in shape:
        assert msgspec.convert(shape["volume"], shapes.Volume).pool == "p"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_changes_of_volumes_are_noticed(astore: Any, make_pool: Make) -> None:
    """What changed since the last refresh comes as events of the first one, in order and numbered."""
    folder = make_pool()
    (folder / "new.raw").write_bytes(bytes(4096))
    (folder / "web.qcow2").unlink()
    found = lines(astore.good("events", "--json", "--for", "20", "--count", "4").out)
    assert [event["event"] for event in found] == ["BackendRegistered", "VolumeAdded", "VolumeRemoved", "PoolRefreshed"]
    assert [event["seq"] for event in found] == [1, 2, 3, 4]
    assert found[1]["volume"]["path"] == str(folder / "new.raw")


def test_choosing_events(astore: Any, make_pool: Make) -> None:
    """--pool and --kind leave out others, and for people a refresh without news is none."""
    make_pool("a")
    folder = make_pool("b")
    (folder / "new.raw").write_bytes(b"")
    uuid = astore.good("pool", "info", "b", "--json").json()["pool"]["uuid"]
    found = lines(astore.good("events", "--json", "--pool", uuid, "--for", "20", "--count", "2").out)
    assert [(event["event"], event["pool"]) for event in found] == [("VolumeAdded", "b"), ("PoolRefreshed", "b")]
    (folder / "more.raw").write_bytes(b"")
    later = lines(astore.good("events", "--json", "--kind", "PoolRefreshed", "--for", "20", "--count", "2").out)
    assert {(event["event"], event["pool"]) for event in later} == {("PoolRefreshed", "a"), ("PoolRefreshed", "b")}
    (folder / "more.raw").unlink()
    out = astore.good("events", "--kind", "VolumeEvent", "--for", "20", "--count", "1").out
    assert out.endswith(" b: volume more.raw removed\n")
    assert datetime.fromisoformat(out[:19]).timestamp() == pytest.approx(time.time(), abs=60)
    out = astore.good("events", "--pool", "a", "--for", "0.5").out
    assert out == ""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--kind", "volumeadded", "'volumeadded' is not one of 'BackendRegistered', 'BackendUnregistered', 'Lagged', "),
        ("--since", "ten minutes", "'ten minutes' is no time: say '10 min', '2 hours' or '2026-01-31 12:00'"),
        ("--since", "10", "'10' is no time"),
        ("--since", "3 fortnights", "'3 fortnights' is no time"),
        ("--since", "0001-01-01", "'0001-01-01' is no time"),
        ("--since", "9000-01-01", "'9000-01-01' is in the future"),
    ],
)
def test_what_is_refused(astore: Any, option: str, value: str, said: str) -> None:
    """Kinds that there are not, and times that are none."""
    ran = astore("events", option, value)
    assert (ran.code, ran.out) == (2, "")
    assert ran.complaint.startswith(f"Invalid value for '{option}': {said}")


def test_kinds_are_completed(astore: Any) -> None:
    """By the shell, from the classes of events."""
    words = {"_ASTORE_COMPLETE": "bash_complete", "COMP_WORDS": "astore events --kind VolumeA", "COMP_CWORD": "3"}
    assert astore.process(**words).out == "plain,VolumeAdded\n"


@pytest.mark.parametrize("ago", ["10 min", "600s", "1 hour ago", "2d", "0.5 weeks"])
def test_volumes_that_changed_since(astore: Any, make_pool: Make, ago: str) -> None:
    """--since tells first of the volumes whose own times are later, with these times and number 0."""
    folder = make_pool()
    changed = (folder / "web.qcow2").stat().st_ctime_ns / 1e9
    found = lines(astore.good("events", "--json", "--since", ago, "--kind", "VolumeEvent", "--count", "2").out)
    assert {(event["event"], event["seq"], event["name"]) for event in found} == {
        ("VolumeChanged", 0, "base.qcow2"),
        ("VolumeChanged", 0, "web.qcow2"),
    }
    assert found[0]["time"] <= found[1]["time"]
    assert changed in [event["time"] for event in found]


def test_volumes_that_did_not_change_since(astore: Any, make_pool: Make) -> None:
    """Those with earlier times, of other pools, or when only other kinds are asked for, are left out."""
    make_pool("a")
    make_pool("b")
    now = datetime.now().astimezone().isoformat()
    assert astore.good("events", "--since", now, "--kind", "VolumeEvent", "--for", "0.2").out == ""
    assert astore.good("events", "--since", "1 day", "--kind", "PoolStopped", "--for", "0.2").out == ""
    found = lines(astore.good("events", "--json", "--since", now[:10], "--pool", "b", "--count", "2").out)
    assert {event["pool"] for event in found} == {"b"}


@contextmanager
def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> Iterator[None]:
    """Act on another thread, half a second after the command has begun to follow, and wait for the end of it."""
    begun, real = threading.Event(), Lines.write_all

    async def write_all(self: Lines, earlier: Sequence[kinds.Event], stream: AsyncIterator[kinds.Event]) -> None:
        begun.set()
        await real(self, earlier, stream)

    def later() -> None:
        begun.wait(120)
        time.sleep(0.5)
        act()

    monkeypatch.setattr(Lines, "write_all", write_all)
    thread = threading.Thread(target=later)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("refresh", ["0", "10"])
def test_what_other_processes_do_is_seen(
    astore: Any, make_pool: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refresh: str
) -> None:
    """A pool that another invocation defines and stops meanwhile is told of, with refreshes of volumes or without."""
    make_pool("images")
    xml = astore.definition("late", tmp_path / "late")
    others: list[Any] = []

    def act() -> None:
        others.append(astore.process("pool", "define", xml))
        others.append(astore.process("pool", "stop", "images"))

    chosen = ("--kind", "PoolDefined", "--kind", "PoolStateChanged", "--kind", "PoolStopped")
    with meanwhile(monkeypatch, act):
        ran = astore.good("events", "--json", "--refresh", refresh, "--for", "60", "--count", "3", *chosen)
    found = lines(ran.out)
    assert [other.code for other in others] == [0, 0]
    assert {(event["event"], event["pool"]) for event in found} == {
        ("PoolDefined", "late"),
        ("PoolStateChanged", "images"),
        ("PoolStopped", "images"),
    }


def test_what_others_do_in_pools_is_seen(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that comes while the command runs is told of, long before the next refresh."""
    folder = make_pool()

    def act() -> None:
        os.link(folder / "base.qcow2", folder / "late.qcow2")

    with meanwhile(monkeypatch, act):
        ran = astore.good("events", "--refresh", "3600", "--kind", "VolumeAdded", "--for", "60", "--count", "1")
    assert ran.out.endswith(" images: volume late.qcow2 added (qcow2, 10.00 GiB)\n")


def test_a_pool_that_fails_is_an_event(astore: Any, make_pool: Make) -> None:
    """Where the storage is gone, the watch goes on and says that the pool is inaccessible."""
    folder = make_pool()
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
    found = lines(astore.good("events", "--json", "--pool", "images", "--for", "20", "--count", "1").out)
    assert (found[0]["event"], found[0]["new"]) == ("PoolStateChanged", "inaccessible")


def test_a_pool_that_is_not_there_yet(astore: Any) -> None:
    """It may come; that there is none now is told on stderr."""
    ran = astore("events", "--pool", "typo", "--for", "0.1")
    assert (ran.code, ran.out, ran.err) == (0, "", "astore: there is no pool 'typo' yet: waiting for it\n")
