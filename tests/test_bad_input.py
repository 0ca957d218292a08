"""What bad input gets: each row of the table that concerns the core, from the Manager's side."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from core_fakes import HELD, backend_module, distribution, fake_registry, import_gate, others_loaded, run_python

import astore
from astore.model import PoolState
from astore.testing.conformance.source import qcow2


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[astore.Manager]:
    async with astore.Manager(tmp_path / "state") as manager:
        yield manager


def stored(manager: astore.Manager) -> list[str]:
    """Files of definitions."""
    return sorted(path.name for path in manager.state_dir.glob("pools/*"))


# --------------------------------------------------------------------------------------------------- documents

BOMB = "<!DOCTYPE p [<!ENTITY a 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY {chr(98 + n)} '{('&' + chr(97 + n) + ';') * 10}'>" for n in range(9)
)
HOSTILE_XML = {
    "malformed": ("<pool type='dir'>\n<name>a</name>", "line 2"),
    "no xml": ("hello", "line 1"),
    "nothing": ("", "empty"),
    "entities": (BOMB + "]><pool type='dir'><name>&j;</name></pool>", "line 1"),
    "external": ("<!DOCTYPE p SYSTEM 'file:///etc/passwd'><pool type='dir'><name>a</name></pool>", "line 1"),
    "deep": ("<pool type='dir'>" + "<a>" * 10_000, "line 1"),
    "other root": ("<domain type='kvm'><name>a</name></domain>", "line 1, <domain>"),
}


@pytest.mark.parametrize("kind", HOSTILE_XML)
async def test_hostile_documents(manager: astore.Manager, kind: str) -> None:
    """A DefinitionError that says where, for text and bytes, define and create; nothing is stored or executed."""
    text, where = HOSTILE_XML[kind]
    for document in (text, text.encode()):
        for define in (manager.define, manager.create):
            with pytest.raises(astore.DefinitionError) as caught:
                await define(document)
            assert where in str(caught.value)
    assert manager.pools() == []
    assert stored(manager) == []


LONG = """
import asyncio, resource, sys, time, astore
async def main():
    async with astore.Manager(sys.argv[1]) as manager:
        text = "<pool type='dir'><name>a</name>" + "<!-- filler -->" * (100_000_000 // 15) + "</pool>"
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        ticks = 0
        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1
        ticking = asyncio.create_task(tick())
        try:
            await manager.define(text)
        except astore.DefinitionError as error:
            print(error)
        ticking.cancel()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        print(len(manager.pools()))
asyncio.run(main())
"""


def test_a_document_of_100_megabytes(tmp_path: Path) -> None:
    """It is refused for its size, without a multiple of it in memory."""
    done = run_python(LONG, str(tmp_path / "state"))
    assert (done.returncode, done.stderr) == (0, "")
    message, grown, pools = done.stdout.splitlines()
    assert "line" in message or "longer" in message or "large" in message
    assert int(grown) < 150_000, "KiB"
    assert pools == "0"


# ------------------------------------------------------------------------------------------------------- names

HOSTILE_DEFINITIONS = [
    astore.PoolDef(type="dir", name=name, target=astore.Target("/tmp"))
    for name in ("a/b", "..", ".", "", "-rf", "a\nb", "a\0b", "\x1b[2J", "x" * 300, "\ud800")
] + [
    astore.PoolDef(type="dir", name="a", target=astore.Target(path))
    for path in ("/a/../../etc", "relative", "/a\nb", "/a\0b", "/" + "x" * 5000)
]


@pytest.mark.parametrize("definition", HOSTILE_DEFINITIONS, ids=repr)
async def test_hostile_names_in_records(manager: astore.Manager, definition: astore.PoolDef) -> None:
    """A record is held to the same rules as a document."""
    for define in (manager.define, manager.create):
        with pytest.raises(astore.DefinitionError):
            await define(definition)
    assert manager.pools() == []
    assert stored(manager) == []


@pytest.mark.parametrize(
    "source",
    [
        "<host name='-oevil'/><dir path='/export'/>",
        "<host name='a b'/><dir path='/export'/>",
        "<host name='server'/><dir path='/export/../../etc'/>",
        "<host name='server' port='99999'/><dir path='/export'/>",
        "<host name='server'/><dir path='/export'/></source><fs:mount_opts><fs:option name='a,suid'/></fs:mount_opts><source>",
        "<host name='server'/><dir path='/export'/></source><fs:mount_opts><fs:option name='a&#10;b'/></fs:mount_opts><source>",
        "<host name='server'/><dir path='/export'/></source><fs:mount_opts><fs:option name='-o'/></fs:mount_opts><source>",
    ],
)
async def test_hostile_sources(manager: astore.Manager, source: str) -> None:
    """Hosts, paths and mount options that could become something else on a command line are refused."""
    text = (
        "<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'><name>a</name>"
        f"<source>{source}</source><target><path>/mnt</path></target></pool>"
    )
    for define in (manager.define, manager.create):
        with pytest.raises(astore.DefinitionError):
            await define(text)
    assert stored(manager) == []


async def test_a_state_folder_full_of_rubbish(tmp_path: Path) -> None:
    """Files, folders, links and FIFOs of all sorts in it: reported or passed over; what is good is loaded."""
    state = tmp_path / "state"
    async with astore.Manager(state, registry=fake_registry()) as manager:
        await manager.define("<pool type='fake'><name>good</name></pool>")
        await manager.define("<pool type='fake'><name>wrong</name></pool>")
    pools = state / "pools"
    (pools / "wrong.xml").rename(pools / "other.xml")
    (pools / "empty.xml").write_bytes(b"")
    (pools / "binary.xml").write_bytes(os.urandom(1000))
    (pools / "bomb.xml").write_text(HOSTILE_XML["entities"][0])
    (pools / "deep.xml").write_text(HOSTILE_XML["deep"][0])
    (pools / "huge.xml").write_bytes(b" " * (5 << 20))
    (pools / "folder.xml").mkdir()
    (pools / "dangling.xml").symlink_to("nowhere")
    os.mkfifo(pools / "fifo.xml")
    (pools / "README").write_text("what is this?")
    (state / "run" / "good.run").write_bytes(b"\xff" * 10)
    before = {path.name: os.stat(path).st_mtime_ns for path in pools.iterdir() if path.exists()}
    async with astore.Manager(state, registry=fake_registry()) as manager:
        assert [pool.name for pool in manager.pools()] == ["good"]
        assert manager.pools()[0].state is PoolState.INACTIVE
        damaged = {file.name: file.error for file in manager.damaged}
        assert set(damaged) == {"other", "empty", "binary", "bomb", "deep", "huge", "folder", "dangling", "fifo"}
        assert all(damaged.values())
        assert "it defines a pool 'wrong'" in damaged["other"]
        await manager.pool("good").start()
    assert {path.name: os.stat(path).st_mtime_ns for path in pools.iterdir() if path.exists()} == before


# ------------------------------------------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def thousand() -> Iterator[Path]:
    """A folder of 1,000 good images, where every user may look."""
    with tempfile.TemporaryDirectory(prefix="astore-thousand-") as folder:
        Path(folder).chmod(0o755)
        for n in range(1000):
            (Path(folder) / f"good{n:04d}.qcow2").write_bytes(qcow2(1 << 30))
        yield Path(folder)


BAD_ENTRIES = ["truncated", "unreadable", "fifo", "loop", "latin-1"]


@pytest.mark.parametrize("kind", BAD_ENTRIES)
async def test_one_bad_entry_of_a_thousand(manager: astore.Manager, thousand: Path, kind: str) -> None:
    """999 good records and the entry in the report, which degrades the pool unless libvirt would pass it over too."""
    path = thousand / "good0500.qcow2"
    aside = thousand.with_name(thousand.name + ".aside")
    path.rename(aside)
    bad: bytes | Path = path
    expected: tuple[str, int | None] = (path.name, None)
    try:
        if kind == "truncated":
            path.write_bytes(qcow2()[:30])
            expected = (path.name, errno.EINVAL)
        elif kind == "unreadable":
            path.write_bytes(qcow2())
            path.chmod(0)
            expected = (path.name, errno.EACCES)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "loop":
            path.symlink_to(path.name)
            expected = (path.name, errno.ELOOP)
        else:
            bad = os.fsencode(thousand) + b"/caf\xe9.qcow2"
            Path(os.fsdecode(bad)).write_bytes(qcow2())
            expected = ("caf\\xe9.qcow2", errno.EILSEQ)
        pool = await manager.define(
            f"<pool type='dir'><name>thousand</name><target><path>{thousand}</path></target></pool>"
        )
        as_nobody = kind == "unreadable" and os.geteuid() == 0
        if as_nobody:
            await pool.start(refresh=False)
            os.seteuid(65534)  # all threads at once: it is the permission that has to fail
        try:
            outcome = await (pool.refresh() if as_nobody else pool.start()) or await pool.refresh()
        finally:
            if as_nobody:
                os.seteuid(0)
        assert len(pool.volumes) == 999
        assert {volume.format for volume in pool.volumes} == {"qcow2"}
        (wrong,) = outcome.errors
        assert (wrong.name, wrong.errno) == expected
        skipped = kind in ("unreadable", "fifo", "loop")
        assert wrong.skipped is skipped
        assert pool.state is (PoolState.RUNNING if skipped else PoolState.DEGRADED)
        assert pool.info.errors == 1
        await pool.stop()
    finally:
        Path(os.fsdecode(bad)).unlink(missing_ok=True)
        aside.rename(path)


async def test_a_long_name_that_nobody_has(manager: astore.Manager, tmp_path: Path) -> None:
    """Asking for a volume whose name no file can have says nothing about the pool."""
    folder = tmp_path / "pool"
    folder.mkdir()
    pool = await manager.define(f"<pool type='dir'><name>p</name><target><path>{folder}</path></target></pool>")
    await pool.start()
    outcome = await pool.refresh("x" * 300)
    assert (outcome.errors, pool.state, pool.snapshot.errors) == ((), PoolState.RUNNING, ())


# ------------------------------------------------------------------------------------------------------ plugins


async def test_bad_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises, one that hangs, one that claims a taken type, one of the future: named, and everything else works."""
    site = tmp_path / "site"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site))
    for name, type_, text in (
        ("bad-raises", "raises", backend_module("raises", before="raise RuntimeError('broken')")),
        ("bad-hangs", "hangs", backend_module("hangs", before=HELD)),
        ("bad-future", "future", backend_module("future", inside="api_version = 99")),
        ("bad-claims", "netfs", backend_module("netfs")),
    ):
        module = name.replace("-", "_")
        distribution(site, name, f"{type_} = {module}:Plugin", modules={module: text})
    try:
        registry = astore.BackendRegistry()
        with import_gate():
            async with astore.Manager(tmp_path / "state", registry=registry) as manager:
                await others_loaded(registry, "hangs")
                registry.import_timeout = 0.3
                infos = {info.type: info for info in await manager.registry.load_all()}
                for type_, words in (
                    ("raises", "broken"),
                    ("hangs", "did not load within 0.3 s"),
                    ("future", "api_version 99"),
                    ("netfs", "bad-claims"),
                ):
                    assert infos[type_].status == "failed"
                    assert words in (infos[type_].error or "")
                    pool = await manager.define(
                        f"<pool type='{type_}'><name>{type_}</name></pool>"
                        if type_ != "netfs"
                        else "<pool type='netfs'><name>netfs</name><source><host name='h'/><dir path='/e'/></source>"
                        "<target><path>/mnt</path></target></pool>"
                    )
                    with pytest.raises(astore.BackendError):
                        await pool.start()
                (tmp_path / "pool").mkdir()
                good = await manager.define(
                    f"<pool type='dir'><name>good</name><target><path>{tmp_path}/pool</path></target></pool>"
                )
                await good.start()
                assert not (await manager.refresh_all()).failed
                assert await manager.capabilities()
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("bad_"):
                del sys.modules[name]
        shutil.rmtree(site)
