"""``astore events``, in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import msgspec
import pytest

from astore import events as kinds
from astore.cli import documents
from astore.cli.events import as_document, in_words, what_happened
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
    assert in_words(event).endswith(words)
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
    """--pool leaves out other pools, --since what came before, and for people a refresh without news is none."""
    make_pool("a")
    folder = make_pool("b")
    (folder / "new.raw").write_bytes(b"")
    found = lines(astore.good("events", "--json", "--pool", "b", "--for", "20", "--count", "2").out)
    assert [(event["event"], event["pool"]) for event in found] == [("VolumeAdded", "b"), ("PoolRefreshed", "b")]
    (folder / "more.raw").write_bytes(b"")
    later = lines(astore.good("events", "--json", "--pool", "b", "--since", "1", "--for", "20", "--count", "1").out)
    assert later[0]["seq"] > 1
    out = astore.good("events", "--pool", "a", "--for", "0.5").out
    assert out == ""


def test_what_other_processes_do_is_seen(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """A pool that another invocation defines and stops while this one watches is told of, without any refresh."""
    make_pool("images")
    xml = astore.definition("late", tmp_path / "late")
    others: list[Any] = []

    def act() -> None:
        time.sleep(0.5)
        others.append(astore.process("pool", "define", xml))
        others.append(astore.process("pool", "stop", "images"))

    thread = threading.Thread(target=act)
    thread.start()
    found = lines(astore.good("events", "--json", "--refresh", "0", "--for", "30", "--count", "3").out)
    thread.join()
    assert [other.code for other in others] == [0, 0]
    assert {(event["event"], event["pool"]) for event in found} == {
        ("PoolDefined", "late"),
        ("PoolStateChanged", "images"),
        ("PoolStopped", "images"),
    }


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
