"""``astore pool import``: a libvirt's folder of definitions is taken over, whatever is in it, and nothing there is changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest

from astore import ImportAction, Manager, PoolAutostartChanged, PoolDefined, StorageError, import_pools

COMMENT = """<!--
WARNING: THIS IS AN AUTO-GENERATED FILE. CHANGES TO IT ARE LIKELY TO BE
OVERWRITTEN AND LOST. Changes to this xml configuration should be made using:
  virsh pool-edit {name}
or other application using the libvirt API.
-->

"""
Write = Callable[..., Path]


def uuid(number: int) -> str:
    """A UUID for a test's pool."""
    return f"00000000-0000-4000-8000-{number:012x}"


@pytest.fixture
def libvirt(tmp_path: Path) -> Path:
    """A folder as libvirt keeps its pools in."""
    folder = tmp_path / "etc" / "storage"
    (folder / "autostart").mkdir(parents=True)
    return folder


@pytest.fixture
def write(libvirt: Path, tmp_path: Path) -> Write:
    """Writes a definition of a dir pool as libvirt writes it: ``write(number, name)``; ``inner`` in place of its target."""

    def write(number: int, name: str, *, type: str = "dir", inner: str | None = None, autostart: bool = False) -> Path:
        file = libvirt / f"{name}.xml"
        inner = f"<target><path>{tmp_path}/{name}</path></target>" if inner is None else inner
        xml = f"<pool type='{type}'>\n  <name>{name}</name>\n  <uuid>{uuid(number)}</uuid>\n  {inner}\n</pool>\n"
        file.write_text(COMMENT.format(name=name) + xml)
        if autostart:
            (libvirt / "autostart" / file.name).symlink_to(file)
        return file

    return write


def imported(astore: Any, folder: Path, code: int = 0) -> dict[str, Any]:
    """Import the folder; what became of each entry."""
    ran = astore("pool", "import", str(folder), "--json")
    assert ran.code == code, ran
    document = ran.shape(shapes.Import)
    assert document.folder == str(folder)
    assert [line.partition(": ")[2] for line in ran.err.splitlines()] == [
        f"{entry.file}: {entry.error.message}" for entry in document.entries if entry.error is not None
    ]
    return {entry.file: entry for entry in document.entries}


def contents(folder: Path) -> dict[str, tuple[int, int, bytes | str]]:
    """All there is below a folder: nothing may be changed there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        st = path.lstat()
        text = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path)] = (st.st_mode, st.st_mtime_ns, text)
    return found


def test_pools_are_imported(astore: Any, libvirt: Path, write: Write) -> None:
    """Definition, uuid and autostart mark are taken over; a second time nothing changes; libvirt's folder is only read."""
    write(1, "plain")
    write(2, "marked", autostart=True)
    write(3, "sheep", type="sheepdog", inner="<source><host name='h'/><name>images</name></source>", autostart=True)
    before = contents(libvirt)
    done = imported(astore, libvirt)
    assert [(entry.file, entry.action, entry.pool, entry.uuid, entry.type) for entry in done.values()] == [
        ("marked.xml", ImportAction.IMPORTED, "marked", uuid(2), "dir"),
        ("plain.xml", ImportAction.IMPORTED, "plain", uuid(1), "dir"),
        ("sheep.xml", ImportAction.IMPORTED, "sheep", uuid(3), "sheepdog"),
    ]
    assert [(entry.autostart, entry.has_backend) for entry in done.values()] == [
        (True, True),
        (False, True),
        (True, False),
    ]
    pools = astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools
    assert [(pool.name, pool.uuid, pool.autostart, pool.state) for pool in pools] == [
        ("marked", uuid(2), True, "inactive"),
        ("plain", uuid(1), False, "inactive"),
        ("sheep", uuid(3), True, "inactive"),
    ]
    assert {entry.action for entry in imported(astore, libvirt).values()} == {ImportAction.UNCHANGED}
    assert contents(libvirt) == before


def test_people_get_a_table(astore: Any, libvirt: Path, write: Write) -> None:
    """A row for each entry; which types have no backend is said."""
    assert astore.good("pool", "import", str(libvirt)).out == f"there are no definitions in {libvirt}\n"
    write(1, "plain", autostart=True)
    write(2, "zfs", type="zfs", inner="<source><name>tank</name></source>")
    (libvirt / "bad.xml").write_text("<pool")
    ran = astore("pool", "import", str(libvirt))
    assert ran.code == 4
    assert [line.split() for line in ran.out.splitlines()][1:] == [
        ["unreadable", "bad.xml", "-", "no"],
        ["imported", "plain", "dir", "yes"],
        ["imported", "zfs", "zfs", "(no", "backend)", "no"],
    ]
    assert ran.complaint.startswith("bad.xml: line 1: not well-formed XML")


def test_what_changed_in_libvirt_is_taken_over(astore: Any, libvirt: Path, write: Write) -> None:
    """A pool with another definition or mark than here is updated; one that libvirt has no more stays."""
    for number, name in enumerate(("a", "b", "c")):
        write(number, name, autostart=name == "b")
    imported(astore, libvirt)
    write(0, "a", inner="<target><path>/elsewhere</path></target>")
    (libvirt / "autostart" / "b.xml").unlink()
    (libvirt / "c.xml").unlink()
    done = imported(astore, libvirt)
    assert {file: entry.action for file, entry in done.items()} == {
        "a.xml": ImportAction.UPDATED,
        "b.xml": ImportAction.UPDATED,
    }
    pools = astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools
    assert [(pool.name, pool.autostart) for pool in pools] == [("a", False), ("b", False), ("c", False)]
    assert pools[0].target_path == "/elsewhere"


def test_conflicts_name_the_other_pool(astore: Any, libvirt: Path, write: Write, tmp_path: Path) -> None:
    """A pool here that has the name with another uuid, the uuid with another name, or the source, stays; the rest comes."""
    for name in ("name", "source"):
        astore.good("pool", "define", astore.definition(name, tmp_path / name))
    taken = tmp_path / "taken.xml"
    taken.write_text(
        f"<pool type='mpath'><name>uuid</name><uuid>{uuid(2)}</uuid><target><path>/m</path></target></pool>"
    )
    assert astore("pool", "define", str(taken)).code == 0
    write(1, "name", inner="<target><path>/other</path></target>")
    write(2, "another")
    write(3, "third", inner=f"<target><path>{tmp_path}/source</path></target>", autostart=True)
    write(4, "good")
    before = astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools
    done = imported(astore, libvirt, code=4)
    assert {file: (entry.action, entry.other) for file, entry in done.items()} == {
        "another.xml": (ImportAction.CONFLICT, "uuid"),
        "good.xml": (ImportAction.IMPORTED, None),
        "name.xml": (ImportAction.CONFLICT, "name"),
        "third.xml": (ImportAction.CONFLICT, "source"),
    }
    after = {pool.name: pool for pool in astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools}
    assert [after[pool.name].uuid for pool in before] == [pool.uuid for pool in before]
    assert not any(pool.autostart for pool in after.values())


def test_hostile_folder(astore: Any, libvirt: Path, write: Write, tmp_path: Path) -> None:
    """Whatever lies there is reported entry by entry, and the good ones are imported; nothing is waited for."""
    write(1, "good", autostart=True)
    write(2, "elsewhere").rename(tmp_path / "moved.xml")
    (libvirt / "elsewhere.xml").symlink_to(tmp_path / "moved.xml")  # libvirt follows it too
    write(3, "right").rename(libvirt / "wrong.xml")
    os.mkfifo(libvirt / "fifo.xml")
    (libvirt / "device.xml").symlink_to("/dev/zero")
    (libvirt / "dangling.xml").symlink_to("nowhere")
    (libvirt / "loop.xml").symlink_to("loop.xml")
    (libvirt / "folder.xml").mkdir()
    with (libvirt / "huge.xml").open("wb") as huge:
        huge.truncate(1 << 40)
    (libvirt / "empty.xml").touch()
    (libvirt / "binary.xml").write_bytes(bytes(range(256)))
    (libvirt / "entity.xml").write_text("<!DOCTYPE pool [<!ENTITY x SYSTEM '/etc/passwd'>]><pool type='dir'>&x;</pool>")
    (libvirt / "volume.xml").write_text("<volume><name>volume</name></volume>")
    latin = os.fsencode(libvirt) + b"/caf\xe9.xml"
    Path(os.fsdecode(latin)).write_text(
        "<pool type='dir'><name>caf\u00e9</name><target><path>/c</path></target></pool>", encoding="latin-1"
    )
    (libvirt / "a\nb.xml").write_text("<pool type='dir'><name>a\nb</name><target><path>/c</path></target></pool>")
    (libvirt / "notes.txt").write_text("no definition")
    (libvirt / "autostart" / "gone.xml").symlink_to(libvirt / "gone.xml")
    (libvirt / "autostart" / "elsewhere.xml").symlink_to(libvirt / "good.xml")  # the wrong one
    done = imported(astore, libvirt, code=4)
    good = {file for file, entry in done.items() if entry.ok}
    assert good == {"good.xml", "elsewhere.xml"}
    assert (done["good.xml"].autostart, done["elsewhere.xml"].autostart) == (True, False)
    bad = {file: entry.error.message for file, entry in done.items() if entry.error is not None}
    assert {entry.action for entry in done.values() if not entry.ok} == {ImportAction.UNREADABLE}
    assert bad.pop("wrong.xml") == "it defines a pool 'right', and is not named after it"
    for file in ("fifo.xml", "device.xml", "folder.xml"):
        assert bad.pop(file) == "it is not a regular file"
    assert bad.pop("dangling.xml") == "No such file or directory"
    assert bad.pop("loop.xml") == "Too many levels of symbolic links"
    assert bad.pop("huge.xml") == "it is larger than 1048576 bytes"
    assert bad.pop("autostart/gone.xml") == "it marks pool 'gone', which is not defined"
    assert "not allowed" in bad.pop("entity.xml")
    assert "no <pool> document" in bad.pop("volume.xml")
    assert set(bad) == {"empty.xml", "binary.xml", "caf\\xe9.xml", "a\\nb.xml"}
    pools = astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools
    assert [pool.name for pool in pools] == ["elsewhere", "good"]


def test_what_libvirt_takes_and_astore_refuses(astore: Any, libvirt: Path, write: Write) -> None:
    """A definition that could reach a command line is an unreadable entry that says which element is wrong."""
    inner = "<source><host name='-oProxyCommand=x'/><dir path='/d'/></source><target><path>/t</path></target>"
    write(1, "evil", type="netfs", inner=inner)
    done = imported(astore, libvirt, code=1)["evil.xml"]
    assert (done.action, done.error is not None and "host" in done.error.message) == (ImportAction.UNREADABLE, True)


def test_a_folder_that_is_none(astore: Any, tmp_path: Path) -> None:
    """No folder, or a file in its place: one line, and 1."""
    ran = astore("pool", "import", str(tmp_path / "absent"))
    assert (ran.code, ran.complaint) == (1, f"{tmp_path}/absent: No such file or directory")
    (tmp_path / "file").touch()
    ran = astore("pool", "import", str(tmp_path / "file"), "--json")
    assert (ran.code, ran.complaint, ran.out) == (1, f"{tmp_path}/file: Not a directory", "")


def test_a_folder_that_was_moved(astore: Any, libvirt: Path, write: Write, tmp_path: Path) -> None:
    """Marks count in a copy of the folder too, where their absolute links lead nowhere."""
    write(1, "marked", autostart=True)
    write(2, "plain")
    copy = libvirt.rename(tmp_path / "copy")
    assert {entry.pool: entry.autostart for entry in imported(astore, copy).values()} == {
        "marked": True,
        "plain": False,
    }


def test_as_a_process(astore: Any, libvirt: Path, write: Write) -> None:
    """The command as it is installed: the same outcome, table and exit code."""
    write(1, "one", autostart=True)
    ran = astore.process("pool", "import", str(libvirt))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[1].split() == ["imported", "one", "dir", "yes"]
    os.mkfifo(libvirt / "two.xml")
    ran = astore.process("pool", "import", str(libvirt))
    assert (ran.code, ran.err) == (4, "astore: two.xml: it is not a regular file\n")


async def test_in_a_program(libvirt: Path, write: Write, tmp_path: Path) -> None:
    """The library's call: a report, progress entry by entry, events; an active pool runs on by what it was started with."""
    write(1, "a")
    write(2, "b", autostart=True)
    (libvirt / "c.xml").write_text("nothing")
    (tmp_path / "a").mkdir()
    told: list[tuple[int, int, str]] = []
    async with Manager(tmp_path / "state") as manager:
        report = await import_pools(manager, libvirt, on_progress=lambda *step: told.append((*step[:2], step[2].file)))
        assert told == [(1, 3, "a.xml"), (2, 3, "b.xml"), (3, 3, "c.xml")]
        assert [entry.file for entry in report.failed] == ["c.xml"]
        async with manager.events(since=0, kinds=(PoolDefined, PoolAutostartChanged)) as events:
            kinds = []
            while event := events.receive_nowait():
                kinds.append((type(event).__name__, getattr(event, "pool", None)))
        assert kinds == [("PoolDefined", "a"), ("PoolDefined", "b"), ("PoolAutostartChanged", "b")]
        pool = manager.pool("a")
        await pool.start()
        write(1, "a", inner="<target><path>/elsewhere</path></target>")
        report = await import_pools(manager, libvirt)
        assert [entry.action for entry in report.entries] == [
            ImportAction.UPDATED,
            ImportAction.UNCHANGED,
            ImportAction.UNREADABLE,
        ]
        assert (pool.state, pool.definition.target.path) == ("running", str(tmp_path / "a"))
        assert "/elsewhere" in pool.to_xml(inactive=True)
        assert [e.action for e in (await import_pools(manager, libvirt)).entries][:2] == [ImportAction.UNCHANGED] * 2
        with pytest.raises(StorageError):
            await import_pools(manager, tmp_path / "absent")


async def test_a_pool_that_cannot_be_kept(libvirt: Path, write: Write, tmp_path: Path) -> None:
    """What cannot be kept here has failed, and is no pool; the others are."""
    for number, name in enumerate("abc"):
        write(number, name)
    state = tmp_path / "state"
    (state / "pools" / "b.xml").mkdir(parents=True)  # in the way, as a damaged definition is
    async with Manager(state) as manager:
        report = await import_pools(manager, libvirt)
        assert [entry.action for entry in report.entries] == [
            ImportAction.IMPORTED,
            ImportAction.FAILED,
            ImportAction.IMPORTED,
        ]
        assert "damaged definition" in str(report.failed[0].error)
        assert [pool.name for pool in manager.pools()] == ["a", "c"]
