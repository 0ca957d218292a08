"""``astore vol create|create-xml|clone|resize|wipe|delete|rename|chain|dependents``, in this process."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest

from astore.volume_io.local_file import LocalFile

Make = Callable[..., Path]

VOLUME = "<volume><name>{name}</name><capacity unit='M'>1</capacity></volume>"


@pytest.fixture
def folder(astore: Any, make_pool: Make) -> Path:
    """The folder of the pool ``images``, with ``base.qcow2``, ``web.qcow2`` that is backed by it, and a raw volume of 1 MiB."""
    found = make_pool()
    assert astore.good("vol", "create", "images", "a.raw", "1M").out == "volume 'a.raw' created (format raw)\n"
    return found


def names(astore: Any, pool: str = "images") -> list[str]:
    """The volumes of a pool, as the next invocation sees them."""
    found: list[str] = astore.good("vol", "list", pool, "--name").out.splitlines()
    return found


# ----------------------------------------------------------------------------------------------------------- create


def test_create(astore: Any, folder: Path) -> None:
    """Of the size and mode that were asked for, sparse unless asked otherwise; the document is the volume's."""
    command = ("vol", "create", "images", "b.raw", "3MB", "--mode", "0640", "--allocation", "1M", "--json")
    made = astore.good(*command).shape(shapes.Volume)
    assert (made.name, made.capacity, made.format, stat.S_IMODE(made.mode)) == ("b.raw", 3_000_000, "raw", 0o640)
    assert (folder / "b.raw").stat().st_size == 3_000_000
    assert made.allocation >= 1 << 20
    assert (folder / "a.raw").stat().st_blocks == 0
    assert stat.S_IMODE((folder / "a.raw").stat().st_mode) == 0o600
    assert astore.good("vol", "create", "images", "d", "--format", "dir").out == "volume 'd' created\n"
    assert names(astore) == ["a.raw", "b.raw", "base.qcow2", "d", "web.qcow2"]


def test_a_name_that_ends_like_another_format(astore: Any, folder: Path) -> None:
    """The volume is raw where nothing is said, and a line says so; not for scripts that know virsh's default."""
    assert astore("vol", "create", "images", "x.qcow2", "1M").complaint == (
        "volume 'x.qcow2' is raw, whatever its name says: --format qcow2 makes qcow2"
    )
    astore.good("vol", "create", "images", "x.img", "1M")
    astore.good("vol", "create", "images", "y.qcow2", "1M", "--format", "raw")
    astore.good("vol-create-as", "images", "z.qcow2", "1M")


@pytest.mark.qemu
def test_create_with_a_backing_volume(astore: Any, folder: Path) -> None:
    """It is qcow2, and has the capacity of the other, where nothing is said; else what is said."""
    made = astore.good("vol", "create", "images", "c.qcow2", "--backing-vol", "base.qcow2", "--json")
    volume = made.shape(shapes.Volume)
    assert (volume.format, volume.capacity, volume.backing, volume.backing_format) == (
        "qcow2",
        10 << 30,
        "base.qcow2",
        "qcow2",
    )
    elsewhere = ("--backing-vol", "/elsewhere/x.raw", "--backing-vol-format", "raw")
    astore.good("vol", "create", "images", "d.qcow2", "20G", *elsewhere)
    assert astore.good("vol", "info", "d.qcow2", "--json").json()["backing"] == "/elsewhere/x.raw"
    alone = ("1G", "--format", "qcow2")
    sparse = astore.good("vol", "create", "images", "e.qcow2", *alone, "--json").shape(shapes.Volume)
    full = astore.good("vol", "create", "images", "f.qcow2", *alone, "--prealloc-metadata", "--json")
    assert full.shape(shapes.Volume).physical > sparse.physical


@pytest.mark.qemu
def test_create_from_xml(astore: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of a file, or of standard input; --print-xml writes what the other reads."""
    printed = astore.good("vol-create-as", "images", "x.qcow2", "1G", "--format", "qcow2", "--print-xml")
    (folder.parent / "x.xml").write_text(printed.out)
    assert "x.qcow2" not in names(astore)
    assert astore.good("vol", "create-xml", "images", str(folder.parent / "x.xml")).out == "volume 'x.qcow2' created\n"
    assert astore.good("vol", "info", "x.qcow2", "--json").json()["capacity"] == 1 << 30
    ran = astore.process("vol", "create-xml", "images", "-", stdin=VOLUME.format(name="y.raw").encode())
    assert (ran.code, ran.out, ran.err) == (0, "volume 'y.raw' created\n", "")
    shown = astore.good("vol", "create", "images", "x", "1G", "--print-xml", "--json").shape(shapes.Xml)
    assert "<name>x</name>" in shown.xml


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (VOLUME.format(name="a/b"), "{file}: the volume name 'a/b' has a '/'"),
        ("<volume><name>x</name><capacity unit='X'>1</capacity></volume>", "{file}: line 1, <capacity>: unknown unit"),
        ("<pool/>", "{file}: line 1, <pool>: this is no <volume> document"),
        (None, "{file}: cannot be read: No such file or directory"),
    ],
)
def test_xml_that_is_none(astore: Any, folder: Path, document: str | None, said: str) -> None:
    """The line names the file, and where in it."""
    file = folder.parent / "bad.xml"
    if document is not None:
        file.write_text(document)
    ran = astore("vol", "create-xml", "images", str(file))
    assert ran.code == 1
    assert ran.complaint.startswith(said.format(file=file))


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("create images a.raw 1M", 1, "there is a volume 'a.raw' already: choose another name"),
        ("create images x", 2, "say how large to make 'x': `astore vol create POOL NAME CAPACITY`"),
        ("create images x 10X", 2, "the capacity '10X': unknown unit 'X'"),
        ("create images x 1.5G", 2, "the capacity '1.5G' is no size: a whole number, with a unit or without"),
        ("create images x 1M --allocation lots", 2, "--allocation 'lots' is no size"),
        ("create images x 1M --mode 888", 2, "--mode '888' is no octal number up to 0777"),
        ("create images x/y 1M", 1, "the volume name 'x/y' has a '/'"),
        ("create nobody x 1M", 3, "`astore pool list --all`"),
        ("create images x 1M --format bochs", 1, "volumes of format 'bochs' can be kept but not created"),
        (
            "create images x 1M --format qcow3",
            1,
            "there is no format 'qcow3' (did you mean qcow2?); formats that can be",
        ),
        (
            "create images x --backing-vol typo",
            2,
            "no active pool has it; for a file outside all pools, say --backing",
        ),
        ("create images x --backing-vol a.raw --format raw", 1, "volumes of format 'raw' cannot be backed by others"),
        ("create images x --backing-vol typo --backing-vol-format raw", 1, "say which capacity the volume is to have"),
        ("clone a.raw base.qcow2", 1, "choose another name"),
        ("clone a.raw b.raw --to nobody", 3, "there is no pool 'nobody'"),
        ("clone a.raw b.raw --capacity 1K", 1, "1.00 KiB are less than the 1.00 MiB of volume 'a.raw'"),
        ("clone nothing b.raw", 3, "no active pool has a volume 'nothing'"),
        ("resize a.raw 1K", 2, "shrinking must be asked for with --shrink"),
        (
            "resize a.raw 0",
            2,
            "0 B are less than the 1.00 MiB that volume 'a.raw' has: shrinking must be asked for with",
        ),
        ("resize a.raw 2M --delta --shrink", 1, "volume 'a.raw' has 1.00 MiB, and cannot become 2.00 MiB smaller"),
        ("resize a.raw -1K --shrink", 2, "the capacity '-1K': to shrink, say --delta --shrink"),
        ("resize a.raw 1M --delat", 2, "--delat"),
        ("resize base.qcow2 20G", 1, "('web.qcow2')"),
        ("wipe a.raw --algorithm spit", 1, "unknown wipe algorithm 'spit'; known: zero, nnsa"),
        ("wipe base.qcow2", 1, "--force"),
        ("resize a.raw +1M", 2, "the capacity '+1M': to add to what it has, say --delta"),
        ("info images/nothing", 3, "has no volume 'nothing': `astore vol list images` shows its volumes"),
        ("delete base.qcow2", 1, "--force"),
        ("rename a.raw base.qcow2", 1, "choose another name"),
        ("rename a.raw x/y", 3, "there is no pool 'x'"),
        ("rename base.qcow2 b.qcow2", 1, "--force"),
        ("chain nothing", 3, "`astore vol list POOL`"),
        ("dependents nothing", 3, "`astore vol list POOL`"),
        ("upload nothing file", 3, "`astore vol list POOL`"),
        ("upload a.raw file --offset 1X", 2, "--offset '1X': unknown unit 'X'"),
        ("upload a.raw /nowhere/file", 1, "/nowhere/file: No such file or directory"),
        ("upload a.raw /dev/null --offset 8E", 2, "--offset '8E': no file is so large"),
        ("upload a.raw ''", 2, "the name of the file is empty"),
        ("upload base.qcow2 /dev/null", 1, "--force"),
        ("download nothing file", 3, "`astore vol list POOL`"),
        ("download a.raw ''", 2, "the name of the file is empty"),
        ("download a.raw file --length 1X", 2, "--length '1X': unknown unit 'X'"),
    ],
)
def test_bad_input(astore: Any, folder: Path, command: str, code: int, said: str) -> None:
    """One line that says what is wrong and what to do about it; nothing is changed."""
    before = sorted(os.listdir(folder)), (folder / "a.raw").stat().st_mtime_ns
    ran = astore("vol", *shlex.split(command))
    assert ran.code == code, ran
    assert said in ran.complaint
    assert (sorted(os.listdir(folder)), (folder / "a.raw").stat().st_mtime_ns) == before


def test_an_inactive_pool(astore: Any, folder: Path) -> None:
    """Nothing can be made there: it says how to start it."""
    astore.good("pool", "stop", "images")
    ran = astore("vol", "create", "images", "b.raw", "1M")
    assert (ran.code, ran.complaint) == (
        1,
        "pool 'images' is inactive: start it first with `astore pool start images`",
    )


def test_without_qemu_img(astore: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what needs it fails, and says which package has it."""
    monkeypatch.setenv("PATH", str(folder))
    ran = astore("vol", "create", "images", "c.qcow2", "1G", "--format", "qcow2")
    assert ran.code == 1
    assert "Debian package qemu-utils" in ran.complaint
    assert ran.complaint.endswith("is not installed: install it")
    assert "c.qcow2" not in names(astore)


def test_a_volume_that_somebody_writes(astore: Any, folder: Path) -> None:
    """The second writer is told to try again."""
    path = str(folder / "a.raw")
    file = LocalFile(os.open(path, os.O_RDWR), path)
    try:
        assert file.lock()
        for command in (("wipe", "a.raw"), ("resize", "a.raw", "2M"), ("upload", "a.raw", path), ("delete", "a.raw")):
            ran = astore("vol", *command)
            assert (ran.code, ran.complaint.rpartition(": ")[2]) == (1, "try again when that is done"), command
    finally:
        file.close()
    assert astore.good("vol", "wipe", "a.raw").out == "volume 'a.raw' wiped\n"


# ------------------------------------------------------------------------------------------------ clone, resize, wipe


def test_clone(astore: Any, folder: Path, make_pool: Make) -> None:
    """Within a pool and into another; larger, if that is asked for."""
    other = make_pool("other")
    (folder / "a.raw").write_bytes(b"data" * 1000)
    assert astore.good("vol", "clone", "a.raw", "b.raw").out == "volume 'b.raw' cloned from 'a.raw'\n"
    made = astore.good("vol", "clone", "a.raw", "c.raw", "--to", "other", "--capacity", "1M", "--json")
    volume = made.shape(shapes.Volume)
    assert (volume.pool, volume.name, volume.capacity) == ("other", "c.raw", 1 << 20)
    assert (folder / "b.raw").read_bytes() == b"data" * 1000
    assert (other / "c.raw").read_bytes() == (b"data" * 1000).ljust(1 << 20, b"\0")


@pytest.mark.qemu
def test_clone_into_another_format(astore: Any, folder: Path) -> None:
    """qemu-img converts."""
    made = astore.good("vol", "clone", "a.raw", "b.qcow2", "--format", "qcow2", "--pool", "images", "--json")
    volume = made.shape(shapes.Volume)
    assert (volume.format, volume.capacity) == ("qcow2", 1 << 20)


def test_resize(astore: Any, folder: Path) -> None:
    """To a capacity, by a difference, and smaller where that is asked for, in virsh's words too."""
    for arguments, capacity in [
        (("2M",), 2 << 20),
        (("1M", "--delta"), 3 << 20),
        (("2M", "--shrink"), 2 << 20),
        (("1M", "--delta", "--shrink"), 1 << 20),
        (("--delta", "--shrink", "-512K"), 512 << 10),
        (("1M", "--allocate"), 1 << 20),
    ]:
        resized = astore.good("vol-resize", "a.raw", *arguments, "--pool", "images", "--json").shape(shapes.Volume)
        assert (resized.capacity, (folder / "a.raw").stat().st_size) == (capacity, capacity)
    assert resized.allocation >= 512 << 10
    assert astore.good("vol", "resize", "a.raw", "2M").out == "volume 'a.raw' resized to 2.00 MiB\n"


def test_wipe(astore: Any, folder: Path) -> None:
    """Its data are gone, and its size is as before."""
    (folder / "a.raw").write_bytes(b"secret" * 10_000)
    assert astore.good("vol", "wipe", "a.raw", "--algorithm", "dod", "--json").shape(shapes.Volume).capacity == 60_000
    assert (folder / "a.raw").read_bytes() == b"\xff" * 60_000
    assert astore.good("vol-wipe", "a.raw").out == "Vol a.raw wiped\n\n"
    assert (folder / "a.raw").read_bytes() == bytes(60_000)


# ---------------------------------------------------------------------------------------------- delete, rename, chain


def test_delete_several(astore: Any, folder: Path) -> None:
    """In whatever order they are given: those that are backed by the others go first."""
    ran = astore.good("vol", "delete", "base.qcow2", "web.qcow2", str(folder / "a.raw"), "base.qcow2")
    assert ran.out.splitlines() == [f"volume '{name}' deleted" for name in ("base.qcow2", "web.qcow2", "a.raw")]
    assert os.listdir(folder) == []
    assert names(astore) == []


def test_delete_some(astore: Any, folder: Path) -> None:
    """One failure costs only itself; the document has what became of each."""
    ran = astore("vol", "delete", "a.raw", "base.qcow2", "nothing", "--json")
    assert ran.code == 4
    results = ran.shape(shapes.Results)
    assert results.action == "delete"
    assert [(done.volume, done.pool, done.ok) for done in results.results] == [
        ("a.raw", "images", True),
        ("base.qcow2", "images", False),
        ("nothing", None, False),
    ]
    assert [done.error and done.error.type for done in results.results] == [
        None,
        "VolumeInUseError",
        "VolumeNotFoundError",
    ]
    assert len(ran.err.splitlines()) == 2
    assert astore("vol", "delete", "nothing").code == 3
    assert astore.good("vol-delete", "base.qcow2", "--force", "--pool", "images").out == "Vol base.qcow2 deleted\n\n"
    assert names(astore) == ["web.qcow2"]


def test_delete_a_directory(astore: Any, folder: Path) -> None:
    """Only if it is empty."""
    astore.good("vol", "create", "images", "d", "--format", "dir")
    (folder / "d" / "file").write_text("")
    ran = astore("vol", "delete", "d")
    assert ran.code == 1
    assert "Directory not empty" in ran.complaint
    (folder / "d" / "file").unlink()
    astore.good("vol", "delete", "d")
    assert not (folder / "d").exists()


def test_rename(astore: Any, folder: Path) -> None:
    """The document is that of the volume with its new name."""
    assert astore.good("vol", "rename", "a.raw", "b.raw").out == "volume 'b.raw' renamed from 'a.raw'\n"
    assert astore.good("vol", "rename", "b.raw", "c.raw", "--json").shape(shapes.Volume).name == "c.raw"
    assert names(astore) == ["base.qcow2", "c.raw", "web.qcow2"]
    astore.good("vol", "rename", "base.qcow2", "b.qcow2", "--force")


def test_chain_and_dependents(astore: Any, folder: Path) -> None:
    """Down to the bottom, and back; where no pool knows an image, its path is all there is to say."""
    links = astore.good("vol", "chain", "web.qcow2", "--json").shape(shapes.Chain).links
    assert [(link.path, link.format, link.pool, link.volume) for link in links] == [
        (str(folder / "web.qcow2"), "qcow2", "images", "web.qcow2"),
        (str(folder / "base.qcow2"), "qcow2", "images", "base.qcow2"),
    ]
    lines = astore.good("vol", "chain", "web.qcow2").out.splitlines()
    uses = ("-", "backing")
    wanted = [[link.path, use, "qcow2", "images"] for link, use in zip(links, uses, strict=True)]
    assert [line.split() for line in lines[1:]] == wanted
    dependents = astore.good("vol", "dependents", "base.qcow2", "--json").shape(shapes.Dependents).volumes
    assert [(volume.pool, volume.name) for volume in dependents] == [("images", "web.qcow2")]
    assert astore.good("vol", "dependents", "base.qcow2").out.splitlines()[1].split() == [
        "web.qcow2",
        "images",
        str(folder / "web.qcow2"),
    ]
    assert astore.good("vol", "dependents", "web.qcow2", "--json").json() == {"volumes": []}
    astore.good("vol", "delete", "base.qcow2", "--force")
    (_, last) = astore.good("vol", "chain", "web.qcow2", "--json").shape(shapes.Chain).links
    assert last == shapes.ChainLink(str(folder / "base.qcow2"), "qcow2", None, None, "backing", None)
    assert astore.good("vol", "chain", "web.qcow2").out.splitlines()[2].split()[1:] == ["backing", "qcow2", "-"]
