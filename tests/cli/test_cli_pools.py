"""The commands that change pools, in this process: what they do, say and return."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest

Make = Callable[..., Path]


def test_a_pool_goes_through_its_whole_life(astore: Any, tmp_path: Path) -> None:
    """define, build, start, refresh, stop, delete, undefine: each says what it did in one line."""
    target = tmp_path / "new" / "folder"
    xml = astore.definition("life", target)
    assert astore.good("pool", "define", xml).out == f"pool 'life' defined from {xml}\n"
    assert astore.good("pool", "build", "life").out == "pool 'life' built\n"
    assert target.is_dir()
    assert astore.good("pool", "start", "life").out == "pool 'life' started\n"
    assert "life" in astore.good("pool", "refresh", "life").out
    assert astore.good("pool", "stop", "life").out == "pool 'life' stopped\n"
    assert astore.good("pool", "delete", "life").out == "pool 'life': its storage is deleted\n"
    assert not target.exists()
    assert astore.good("pool", "undefine", "life").out == "pool 'life' undefined\n"
    assert astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools == ()


def test_starting_builds_what_is_asked_for(astore: Any, tmp_path: Path) -> None:
    """start --build makes the folder first; without it the hint says how."""
    astore.good("pool", "define", astore.definition("images", tmp_path / "later"))
    ran = astore("pool", "start", "images")
    assert ran.code == 1
    assert ran.complaint.endswith("create it, or build the pool: `astore pool build images`")
    assert astore.good("pool", "start", "--build", "images").out == "pool 'images' started\n"


def test_results_as_json(astore: Any, make_pool: Make) -> None:
    """Each pool's outcome is in the document, failures too, with what stderr says."""
    make_pool("a")
    make_pool("b", start=False)
    ran = astore("pool", "start", "b", "a", "none", "--json")
    assert ran.code == 4
    results = ran.shape(shapes.Results)
    assert results.action == "start"
    assert [(done.pool, done.ok, done.state) for done in results.results] == [
        ("b", True, "running"),
        ("a", False, "running"),
        ("none", False, None),
    ]
    errors = [done.error for done in results.results if done.error is not None]
    assert [error.type for error in errors] == ["InvalidStateError", "PoolNotFoundError"]
    assert ran.err.splitlines() == [f"astore: {error.message}" for error in errors]


@pytest.mark.parametrize(
    "verb", ["start", "stop", "build", "delete", "undefine", "autostart", "refresh", "info", "dumpxml"]
)
def test_unknown_pools_are_not_found(astore: Any, verb: str) -> None:
    """Every verb returns 3 for a pool that is not there, and says where to look."""
    ran = astore("pool", verb, "nobody")
    assert ran.code == 3
    assert ran.complaint == "there is no pool 'nobody': `astore pool list --all` shows those there are"


@pytest.mark.parametrize("verb", ["build", "delete", "undefine"])
def test_an_active_pool_is_protected(astore: Any, make_pool: Make, verb: str) -> None:
    """What only an inactive pool can have done to it names the command that stops it."""
    make_pool()
    ran = astore("pool", verb, "images")
    assert ran.code == 1
    assert "stop it first with `astore pool stop images`" in ran.complaint


def test_an_inactive_pool_says_how_to_start_it(astore: Any, make_pool: Make) -> None:
    """refresh and vol list of an inactive pool name the command that starts it; stop says that there is nothing to do."""
    make_pool(start=False)
    for arguments in (("pool", "refresh", "images"), ("vol", "list", "images")):
        ran = astore(*arguments)
        assert (ran.code, ran.complaint) == (
            1,
            "pool 'images' is inactive: start it first with `astore pool start images`",
        )
    assert "is inactive already" in astore("pool", "stop", "images").complaint


def test_several_files_and_standard_input(astore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """define takes files and `-`; what is wrong with one is said with its name, and the others are defined."""
    good = astore.definition("one", tmp_path / "one")
    (tmp_path / "bad.xml").write_text("<pool type='dir'>\n<name>a/b</name></pool>")
    stdin = io.TextIOWrapper(io.BytesIO(Path(astore.definition("two", tmp_path / "two")).read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    ran = astore("pool", "define", good, str(tmp_path / "bad.xml"), "-", str(tmp_path / "absent.xml"), "--json")
    assert ran.code == 4
    results = ran.shape(shapes.Results).results
    assert [(done.file, done.pool, done.ok) for done in results] == [
        (good, "one", True),
        (str(tmp_path / "bad.xml"), None, False),
        ("standard input", "two", True),
        (str(tmp_path / "absent.xml"), None, False),
    ]
    bad, absent = ran.err.splitlines()
    assert "bad.xml: line 2, <name>" in bad
    assert absent.endswith("absent.xml: cannot be read: No such file or directory")


def test_conflicts_name_the_other_pool(astore: Any, make_pool: Make) -> None:
    """A second pool on the same folder is refused with the first one's name."""
    folder = make_pool()
    ran = astore("pool", "define", astore.definition("second", folder))
    assert ran.code == 1
    assert "pool 'images' has the same source" in ran.complaint


def test_an_enormous_file_is_refused(astore: Any, tmp_path: Path) -> None:
    """No more is read of a file than a definition may be long."""
    with open(tmp_path / "huge.xml", "wb") as file:
        file.truncate(100 << 20)
    ran = astore("pool", "define", str(tmp_path / "huge.xml"))
    assert ran.code == 1
    assert "the document is longer than" in ran.complaint


def test_transient_pools_come_and_go(astore: Any, tmp_path: Path) -> None:
    """create --build starts a pool without keeping its definition; stopping it removes it."""
    xml = astore.definition("passing", tmp_path / "target")
    assert "created from" in astore.good("pool", "create", "--build", xml).out
    listed = astore.good("pool", "list", "--transient", "--json").shape(shapes.PoolList).pools
    assert [(pool.name, pool.persistent, pool.active) for pool in listed] == [("passing", False, True)]
    assert astore("pool", "undefine", "passing").code == 1
    assert "transient" in astore("pool", "autostart", "passing").complaint
    astore.good("pool", "stop", "passing")
    assert astore.good("pool", "list", "--all", "--name").out == ""


def test_autostart(astore: Any, make_pool: Make) -> None:
    """What is marked is started by start --autostart, and nothing else; --disable takes the mark away."""
    make_pool("a", start=False)
    make_pool("b", start=False)
    assert "is marked for autostart" in astore.good("pool", "autostart", "a").out
    assert astore.good("pool", "start", "--autostart").out == "pool 'a' started\n"
    assert astore.good("pool", "start", "--autostart").out == "no pool is waiting to be started\n"
    assert "no longer marked" in astore.good("pool", "autostart", "a", "--disable").out
    astore.good("pool", "stop", "--all")
    assert astore.good("pool", "stop", "--all").out == "no pool is active\n"
    assert astore.good("pool", "start", "--autostart").out == "no pool is waiting to be started\n"
    assert sorted(astore.good("pool", "start", "--all").out.splitlines()) == ["pool 'a' started", "pool 'b' started"]


def test_autostart_again(astore: Any, make_pool: Make) -> None:
    """What was not ready fails, with an exit code for systemd; the next try starts just that."""
    folder = make_pool("late", start=False)
    make_pool("ready", start=False)
    for name in ("late", "ready"):
        astore.good("pool", "autostart", name)
    away = folder.rename(folder.with_name("away"))
    ran = astore("pool", "start", "--autostart")
    assert ran.code != 0
    assert ran.out == "pool 'ready' started\n"
    assert str(folder) in ran.complaint
    away.rename(folder)
    assert astore.good("pool", "start", "--autostart").out == "pool 'late' started\n"


def test_pools_go_by_their_uuid_too(astore: Any, make_pool: Make) -> None:
    """A UUID is accepted in place of a name, as virsh does."""
    make_pool()
    uuid = astore.good("pool-uuid", "images").out.strip()
    assert astore.good("pool", "info", uuid.upper(), "--json").shape(shapes.PoolInfo).pool.name == "images"
    assert astore.good("pool", "stop", uuid).out == "pool 'images' stopped\n"


def test_refresh_counts_what_it_found(astore: Any, make_pool: Make) -> None:
    """refresh reports added, changed, removed and unchanged; a second one has nothing to report."""
    folder = make_pool()
    (folder / "new.raw").write_bytes(bytes(4096))
    (folder / "web.qcow2").unlink()
    report = astore.good("pool", "refresh", "images", "--json").shape(shapes.Refresh)
    (outcome,) = report.pools
    assert (outcome.ok, outcome.added, outcome.removed, outcome.unchanged) == (True, ("new.raw",), ("web.qcow2",), 1)
    again = astore.good("pool", "refresh", "--all", "--full", "--json").shape(shapes.Refresh).pools[0]
    assert (again.added, again.changed, again.removed, again.unchanged) == ((), (), (), 2)


def test_refresh_of_several_pools(astore: Any, make_pool: Make) -> None:
    """A pool that fails costs only itself: code 4, its line on stderr, the others in the table."""
    make_pool("a")
    folder = make_pool("b")
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
    ran = astore("pool", "refresh", "--all", "--limit", "2")
    assert ran.code == 4
    assert ran.out.splitlines()[1].split()[0] == "a"
    assert "pool 'b': refresh:" in ran.complaint
    ran = astore("pool", "refresh", "a", "b", "none", "--json")
    assert ran.code == 4
    assert [outcome.ok for outcome in ran.shape(shapes.Refresh).pools] == [True, False]
    assert len(ran.err.splitlines()) == 2
    assert astore("pool", "refresh", "b").code == 1


def test_refresh_without_pools(astore: Any) -> None:
    """Refreshing all of none is no failure."""
    out = astore.good("pool", "refresh", "--all").out
    assert out == "no pool was refreshed: `astore pool list --all` shows those there are\n"


def test_bad_entries_are_named(astore: Any, make_pool: Make) -> None:
    """An image that is truncated is named by refresh, and the pool is degraded; --json names every entry."""
    folder = make_pool()
    (folder / "cut.qcow2").write_bytes((folder / "base.qcow2").read_bytes()[:20])
    import os

    os.mkfifo(folder / "fifo")
    ran = astore.good("pool", "refresh", "images")
    assert any(line.startswith("images: cut.qcow2 cannot be read: ") for line in ran.out.splitlines()), ran.out
    assert "fifo" not in ran.out
    info = astore.good("pool", "info", "images")
    assert "degraded" in info.out
    assert "fifo skipped: it is a FIFO" in info.out
    entries = astore.good("pool", "info", "images", "--json").shape(shapes.PoolInfo).entries
    assert [(entry.name, entry.skipped) for entry in entries] == [("cut.qcow2", False), ("fifo", True)]


def test_many_bad_entries_are_cut_short(astore: Any, make_pool: Make) -> None:
    """People are told of ten entries and how many more there are."""
    folder = make_pool()
    for number in range(13):
        (folder / f"cut{number:02}.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    assert "… and 3 more: --json names all" in astore.good("pool", "refresh", "images").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("pool", "start"),
        ("pool", "stop", "a", "--all"),
        ("pool", "refresh"),
        ("pool", "start", "--all", "--autostart"),
        ("pool", "build"),
        ("pool", "refresh", "--all", "--limit", "0"),
        ("pool", "refresh", "--all", "--timeout", "0"),
        ("pool", "define"),
        ("pool", "nonsense"),
        ("nonsense",),
        ("pool", "list", "--nonsense"),
        ("events", "--count", "x"),
        ("demo", "--images", "1"),
        ("--json", "demo"),
    ],
)
def test_wrong_usage(astore: Any, arguments: tuple[str, ...]) -> None:
    """Returns 2 and one line."""
    ran = astore(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.complaint


@pytest.mark.parametrize("arguments", [(), ("pool",), ("vol",), ("backend",)])
def test_a_group_alone_shows_its_help(astore: Any, arguments: tuple[str, ...]) -> None:
    """Nothing to do is wrong usage, and the help says what there is."""
    ran = astore(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: astore")
