"""The sample backend of examples/, installed as the distribution that it is, and the conformance suite."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import os
import random
import subprocess
import sys
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from blockbuster import BlockBuster
from loop_guard import loop_guard

from astore.errors import DefinitionError
from astore.manager import Manager
from astore.model import Device, PoolDef, PoolState, Source
from astore.pools.pool import Pool
from astore.testing.conformance.source import qcow2, raw

SAMPLE = Path(__file__).parent.parent.parent / "examples" / "astore-zip"


def _sample_tests() -> ModuleType:
    """The sample's own test module, which is not on anybody's path."""
    spec = importlib.util.spec_from_file_location("astore_zip_tests", SAMPLE / "tests" / "test_zip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_tests = _sample_tests()


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where pip installed the sample, built from its source; it is on the path for this module's tests."""
    folder = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(folder), str(SAMPLE)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("astore_zip", None)
        importlib.invalidate_caches()


@pytest.fixture(scope="module")
def _blockbuster(installed: Path) -> BlockBuster:
    """As for all tests; the sample must not block the loop either."""
    return loop_guard("astore", "astore_zip")


class TestSample(_tests.TestZip):  # type: ignore[misc, name-defined]
    """The sample's own test, which is the whole suite."""


# ------------------------------------------------------------------------------------------------- the distribution


def test_about_60_lines() -> None:
    """The sample is as short as is said of it: about 60 lines that are neither blank, comment nor docstring."""
    text = (SAMPLE / "astore_zip" / "__init__.py").read_text()
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            is_docstring = token.type == tokenize.STRING and token.line.lstrip().startswith('"""')
            code.update(() if is_docstring else range(token.start[0], token.end[0] + 1))
    assert len(code) < 75


def test_backend_list_shows_it(installed: Path, tmp_path: Path) -> None:
    """``astore backend list`` has found it by its entry point: type, distribution, version, and that it works."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "ASTORE_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "astore.cli", "backend", "list", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (shown,) = (item for item in json.loads(done.stdout)["backends"] if item["type"] == "zip")
    assert (shown["status"], shown["distribution"], shown["version"]) == ("ready", "astore-zip", "0.1.0")


async def test_found_by_its_entry_point(installed: Path, tmp_path: Path) -> None:
    """A Manager lists it before it is imported, and drives a pool with the code that was installed."""
    async with Manager(tmp_path / "state") as manager:
        (before,) = (info for info in manager.registry.backends() if info.type == "zip")
        assert (before.status, before.distribution) == ("unloaded", "astore-zip")
        backend = await manager.registry.get("zip")
    file = sys.modules[type(backend).__module__].__file__
    assert file is not None
    assert Path(file).is_relative_to(installed)


# ------------------------------------------------------------------------------------------------- strange archives


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Where a test puts its archive."""
    return tmp_path / "images.zip"


async def start(manager: Manager, archive: Path) -> Pool:
    definition = PoolDef("zip", "images", source=Source(devices=(Device(str(archive)),)))
    pool = await manager.define(definition)
    await pool.start()
    return pool


async def test_strange_members(archive: Path, tmp_path: Path) -> None:
    """Links are told and not followed, names that lead elsewhere are no entries, folders are seen without one of their own."""
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr(link, "/etc/passwd")
        for name in ("/absolute", "../above", "./here", "folder/inner/a.img", "a.img"):
            made.writestr(name, raw())
        made.writestr("far.img", raw())
        made.getinfo("far.img").date_time = (1980, 0, 0, 0, 0, 0)  # as programs write it that have no clock
    async with Manager(tmp_path / "state") as manager:
        pool = await start(manager, archive)
        assert [(volume.name, volume.format) for volume in pool.volumes] == [
            ("a.img", "raw"),
            ("far.img", "raw"),
            ("folder", "dir"),
        ]
        assert [(error.name, error.skipped) for error in pool.snapshot.errors] == [("link", True)]
        assert pool.state is PoolState.RUNNING
        await pool.stop()


async def test_contents_tell_what_changed(archive: Path, tmp_path: Path) -> None:
    """In an archive written anew, under old times and with old sizes, what differs is noticed and the rest keeps its record."""

    def write(**capacities: int) -> None:
        with zipfile.ZipFile(archive, "w") as made:
            for name, capacity in capacities.items():
                made.writestr(zipfile.ZipInfo(name), qcow2(capacity))

    write(a=1 << 30, b=1 << 30)
    async with Manager(tmp_path / "state") as manager:
        pool = await start(manager, archive)
        before = pool.volume("b").info
        write(a=2 << 30, b=1 << 30)
        outcome = await pool.refresh()
        assert (outcome.changed, outcome.unchanged) == (("a",), 1)
        assert pool.volume("a").info.capacity == 2 << 30
        assert pool.volume("b").info is before
        await pool.stop()


async def test_encrypted_member(archive: Path, tmp_path: Path) -> None:
    """A member that takes a password is an entry that cannot be read, among others that can."""
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("open.img", raw())
        made.writestr("shut.img", raw())
    data = bytearray(archive.read_bytes())
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.rindex(header) + flags] |= 1
    archive.write_bytes(data)
    async with Manager(tmp_path / "state") as manager:
        pool = await start(manager, archive)
        assert [volume.name for volume in pool.volumes] == ["open.img"]
        (wrong,) = pool.snapshot.errors
        assert wrong.name == "shut.img"
        assert "encrypted" in wrong.message
        assert pool.state is PoolState.DEGRADED
        await pool.stop()


@pytest.mark.parametrize("kind", ["nothing", "no archive", "a folder", "a FIFO"])
async def test_no_archive(kind: str, archive: Path, tmp_path: Path) -> None:
    """What is no archive starts no pool, at once, by an error that names the path."""
    if kind == "no archive":
        archive.write_bytes(raw())
    elif kind == "a folder":
        archive.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(archive)
    async with Manager(tmp_path / "state") as manager:
        with pytest.raises(OSError, match=r"images\.zip") as caught:
            await start(manager, archive)
        assert not isinstance(caught.value, TimeoutError)
        assert manager.pool("images").state is PoolState.INACTIVE


async def test_damaged_archives(archive: Path, tmp_path: Path) -> None:
    """Whatever bytes of an archive are wrong: an error of the pool's or of an entry's, in the words of zipfile."""
    chance = random.Random(7)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in {"a.img": chance.randbytes(5000), "Größe.qcow2": qcow2(), "folder/": b""}.items():
            made.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    good = archive.read_bytes()
    table = good.index(b"PK\1\2")
    async with Manager(tmp_path / "state") as manager:
        pool = await start(manager, archive)
        seen: set[PoolState] = set()
        for _ in range(400):
            damaged = bytearray(good)
            for _ in range(chance.randint(1, 3)):
                start_of_part = chance.choice((0, table))  # half of the damage is in the table, which is short
                damaged[chance.randrange(start_of_part, len(good))] = chance.randrange(256)
            archive.write_bytes(damaged)
            with contextlib.suppress(OSError):
                await pool.refresh(full=True)
            seen.add(pool.state)
            assert "the backend failed" not in str(pool.error)
            assert all(error.message for error in pool.snapshot.errors)
        assert seen == {PoolState.RUNNING, PoolState.DEGRADED, PoolState.INACCESSIBLE}
        archive.write_bytes(good)
        await pool.refresh()
        assert (pool.state, len(pool.volumes)) == (PoolState.RUNNING, 3)
        await pool.stop()


@pytest.mark.parametrize(
    "devices", [(), ("relative.zip",), ("/srv/../etc/a.zip",), ("/a.zip", "/b.zip"), ("/a\n.zip",)]
)
async def test_bad_definition(devices: tuple[str, ...], tmp_path: Path) -> None:
    """A definition without its one good path is refused."""
    source = Source(devices=tuple(Device(path) for path in devices))
    async with Manager(tmp_path / "state") as manager:
        with pytest.raises(DefinitionError):
            await manager.define(PoolDef("zip", "images", source=source))
        assert manager.pools() == []
