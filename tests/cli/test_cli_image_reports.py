"""``vol check`` and ``vol snapshots``: nothing is opened because a header names it, and qemu-img is bounded."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from astore import ImageCheck, Manager, PoolDef, StorageError, Target
from astore.commands import Command
from astore.model import VolumeInfo
from astore.pools.services import PROGRAMS
from astore.pools.volume import Volume
from astore.volume_io import qemu_img

pytestmark = pytest.mark.qemu

REAL = shutil.which("qemu-img") or ""


def make(*arguments: object) -> None:
    subprocess.run([REAL, *map(str, arguments)], check=True)


def one_of(ran: Any) -> dict[str, Any]:
    """The one volume that was checked."""
    (found,) = ran.json()["volumes"]
    return dict(found)


def put_header(image: Path, header: Path) -> None:
    """Write one image's header over another's, as a guest of the image would."""
    with open(image, "r+b") as file:
        file.write(header.read_bytes()[:4096])


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no pool has."""
    found = tmp_path / "outside"
    found.mkdir()
    return found


@pytest.fixture
def wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script before qemu-img, and returns a file of which the script's ``$LOG`` is the path."""

    def wrap(script: str) -> Path:
        log, programs = tmp_path / "log", tmp_path / "programs"
        programs.mkdir()
        (programs / "qemu-img").write_text(f"#!/bin/sh\nLOG={log}\n{script}\n")
        (programs / "qemu-img").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        return log

    return wrap


@pytest.fixture
def disk(folder: Path, outside: Path) -> Path:
    """A qcow2 volume with a snapshot inside, and at ``outside/hostile`` the same with ``outside/data`` as its data file."""
    made = folder / "disk.qcow2"
    make("create", "-q", "-f", "qcow2", made, "1M")
    make("snapshot", "-c", "first", made)
    make("create", "-q", "-f", "qcow2", "-o", f"data_file={outside}/data", outside / "hostile", "1M")
    return made


# ------------------------------------------------------------------------------------------- what headers name


@pytest.mark.parametrize("extent", ["FLAT", "SPARSE"])
def test_extents_are_not_opened(
    astore: Any, folder: Path, outside: Path, wrapped: Callable[[str], Path], extent: str
) -> None:
    """qemu-img would wait for the FIFO for ever. It is not even started."""
    os.mkfifo(outside / "fifo")
    log = wrapped(f'touch $LOG; exec {REAL} "$@"')
    line = f'RW 2048 {extent} "{outside}/fifo"' + (" 0" if extent == "FLAT" else "")
    (folder / "disk.vmdk").write_text(
        f"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\n{line}\nddb.adapterType = "ide"\n'
    )
    astore.good("pool", "refresh", "images")
    found = one_of(astore.good("vol", "check", "disk.vmdk", "--json", "--timeout", "60"))
    assert (found["verdict"], found["note"]) == ("skipped", "its data are in another file")
    assert not log.exists()


def test_data_files_are_not_opened(
    astore: Any, folder: Path, disk: Path, outside: Path, wrapped: Callable[[str], Path]
) -> None:
    """Neither that of a volume that was listed with one, nor that of one whose header has changed since the listing."""
    log = wrapped(f'touch $LOG; exec {REAL} "$@"')
    shutil.copy(outside / "hostile", folder / "listed.qcow2")
    astore.good("pool", "refresh", "images")
    put_header(disk, outside / "hostile")
    for name in ("listed.qcow2", "disk.qcow2"):
        found = one_of(astore.good("vol", "check", name, "--json"))
        assert (found["verdict"], found["note"]) == ("skipped", "its data are in another file")
        ran = astore("vol", "snapshots", name)
        assert (ran.code, ran.complaint) == (1, f"volume {name!r}: its data are in another file")
    assert not log.exists()


@pytest.mark.parametrize(("verb", "complaint"), [("check", "refresh it first"), ("snapshots", "it changed meanwhile")])
def test_headers_that_change_after_the_look(
    astore: Any,
    disk: Path,
    outside: Path,
    wrapped: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    complaint: str,
) -> None:
    """The header is compared on the open file, so qemu-img is not started."""
    log = wrapped(f'touch $LOG; exec {REAL} "$@"')
    refresh = Volume.refresh

    async def then_swap(volume: Volume, *, timeout: float | None = None) -> VolumeInfo:
        info = await refresh(volume, timeout=timeout)
        await asyncio.to_thread(put_header, disk, outside / "hostile")
        return info

    monkeypatch.setattr(Volume, "refresh", then_swap)
    ran = astore("vol", verb, "images/disk.qcow2")
    assert ran.code == 1
    assert complaint in ran.complaint
    assert not log.exists()


@pytest.mark.strace
@pytest.mark.parametrize("verb", ["check", "snapshots"])
def test_headers_that_change_after_the_check(
    astore: Any, disk: Path, outside: Path, wrapped: Callable[[str], Path], verb: str
) -> None:
    """qemu-img gets the header that was checked. It opens nothing in the pool's folder or outside."""
    log = wrapped(
        f"dd if={outside}/hostile of={disk} bs=4096 count=1 conv=notrunc status=none\n"
        f'exec strace -f -qq -e trace=%file,connect -e signal=none -o $LOG {REAL} "$@"'
    )
    said = astore.good("vol", verb, "images/disk.qcow2", "--json").json()
    if verb == "check":
        assert [one["verdict"] for one in said["volumes"]] == ["ok"]
    else:
        assert [one["name"] for one in said["snapshots"]] == ["first"]
    assert disk.read_bytes()[:4096] == (outside / "hostile").read_bytes()[:4096]
    lines = log.read_text().splitlines()
    named = [line for line in lines if str(outside) in line or str(disk.parent) in line or "/proc/self/fd" in line]
    assert named == []
    assert any("connect(" in line and "astore-" in line for line in lines), "nothing was served"


@pytest.mark.strace
def test_backing_files_are_not_opened(astore: Any, folder: Path, wrapped: Callable[[str], Path]) -> None:
    """A check and a list need the image alone."""
    log = wrapped(f'exec strace -f -qq -e trace=%file -e signal=none -o $LOG {REAL} "$@"')
    assert one_of(astore.good("vol", "check", "web.qcow2", "--json"))["verdict"] == "ok"
    assert astore.good("vol", "snapshots", "web.qcow2", "--json").json()["snapshots"] == []
    assert not [line for line in log.read_text().splitlines() if str(folder) in line]


# ------------------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("verb", ["check", "snapshots"])
def test_limits(astore: Any, disk: Path, wrapped: Callable[[str], Path], verb: str) -> None:
    """qemu-img runs with those of all its work: memory in KiB, processor time in seconds."""
    log = wrapped(f'(ulimit -v; ulimit -t) >$LOG; exec {REAL} "$@"')
    astore.good("vol", verb, "images/disk.qcow2")
    memory, seconds = map(int, log.read_text().split())
    assert memory << 10 == qemu_img.MEMORY
    assert qemu_img.PROCESSOR_SECONDS <= seconds <= qemu_img.PROCESSOR_SECONDS + 2


def test_images_that_need_too_much(astore: Any, folder: Path) -> None:
    """The counts of 800 GiB of clusters of 512 bytes take more memory than qemu-img may use."""
    make("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", folder / "huge.qcow2", "1G")
    os.truncate(folder / "huge.qcow2", 800 << 30)
    ran = astore("vol", "check", "images/huge.qcow2", "--json")
    found = one_of(ran)
    assert (found["verdict"], found["note"]) == ("failed", "qemu-img: Check failed: Cannot allocate memory")
    assert ran.code == 1


def test_programs_that_were_killed(astore: Any, disk: Path, wrapped: Callable[[str], Path]) -> None:
    """The limit of processor time ends in a signal; the note says what it means."""
    wrapped("kill -KILL $$")
    found = one_of(astore("vol", "check", "images/disk.qcow2", "--json"))
    assert found["verdict"] == "failed"
    assert "more processor time or memory" in found["note"]
    assert "more processor time or memory" in astore("vol", "snapshots", "images/disk.qcow2").complaint


@pytest.mark.parametrize("verb", ["check", "snapshots"])
def test_the_time_limit(astore: Any, disk: Path, wrapped: Callable[[str], Path], verb: str) -> None:
    """A qemu-img that hangs is killed at --timeout."""
    log = wrapped("echo $$ >$LOG; exec sleep 500")
    for timeout in (3, 30):  # more if it was killed before it had begun
        began = time.monotonic()
        ran = astore("vol", verb, "images/disk.qcow2", "--timeout", str(timeout))
        assert ran.code != 0
        assert f"not done within {timeout} s" in ran.complaint
        assert time.monotonic() - began < timeout + 60
        if log.exists() and log.read_text():
            break
    number = int(log.read_text())
    for _ in range(200):
        if not Path(f"/proc/{number}").exists():
            break
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()


# ---------------------------------------------------------------------------------------------- normal images


@pytest.fixture
def used(disk: Path) -> Iterator[Path]:
    """The disk, while a QEMU writes it."""
    program = shutil.which("qemu-io")
    assert program is not None
    running = subprocess.Popen(
        [program, "-f", "qcow2", str(disk)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert running.stdin is not None and running.stdout is not None
    guard = threading.Timer(60, running.kill)
    guard.start()
    running.stdin.write(b"write 0 64k\n")
    running.stdin.flush()
    assert b"wrote" in running.stdout.readline()
    try:
        yield disk
    finally:
        guard.cancel()
        running.communicate(b"quit\n")


def test_images_in_use(astore: Any, used: Path) -> None:
    """They are not checked, but their snapshots are listed."""
    found = one_of(astore.good("vol", "check", f"images/{used.name}", "--json"))
    assert (found["verdict"], found["note"]) == ("skipped", "it is in use")
    listed = astore.good("vol", "snapshots", f"images/{used.name}", "--json").json()["snapshots"]
    assert [(one["id"], one["name"], one["vm_state_size"]) for one in listed] == [("1", "first", 0)]


def test_leaks(astore: Any, disk: Path) -> None:
    """An image with lost clusters is no damaged one."""
    with open(disk, "r+b") as file:  # the refcount of a cluster that nothing uses
        file.seek(0x20000 + 2 * 20)
        file.write(b"\0\1")
        file.truncate(21 << 16)
    found = one_of(astore.good("vol", "check", "images/disk.qcow2", "--json"))
    assert (found["verdict"], found["leaks"], found["errors"]) == ("leaks", 1, 0)


@pytest.mark.parametrize("format", ["qed", "vdi", "vmdk", "vhdx", "parallels"])
def test_other_formats(astore: Any, folder: Path, format: str) -> None:
    """All that qemu-img checks are served to it as well."""
    make("create", "-q", "-f", format, folder / "disk", "8M")
    found = one_of(astore("vol", "check", "images/disk", "--json"))
    assert (found["verdict"], found["note"]) == ("ok", None)


# ------------------------------------------------------------------------------------------------- for programs


async def test_of_the_library(tmp_path: Path) -> None:
    """A program is told the same: ``check()`` never raises because of what the image is, ``image_snapshots()`` does."""
    folder = tmp_path / "images"
    folder.mkdir()
    await asyncio.to_thread(make, "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1M")
    await asyncio.to_thread(make, "snapshot", "-c", "first", folder / "disk.qcow2")
    (folder / "disk.raw").write_bytes(b"x" * 512)
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.create(PoolDef(name="images", type="dir", target=Target(path=str(folder))))
        image, raw = pool.volume("disk.qcow2"), pool.volume("disk.raw")
        assert await image.check() == ImageCheck("ok")
        (snapshot,) = await image.image_snapshots()
        assert (snapshot.id, snapshot.name, snapshot.vm_state_size) == ("1", "first", 0)
        assert await raw.check() == ImageCheck("skipped", note="a raw image has no structure to check")
        with pytest.raises(StorageError, match="only qcow2 images have snapshots inside"):
            await raw.image_snapshots()


async def test_few_programs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many volumes a program asks about, a few instances of qemu-img run."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        await asyncio.to_thread(make, "create", "-q", "-f", "qcow2", folder / f"disk{number}", "1M")
    running, most = 0, 0
    run = Command.run

    def counted(command: Command) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return run(command)
        finally:
            with lock:
                running -= 1

    lock = threading.Lock()
    monkeypatch.setattr(Command, "run", counted)
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.create(PoolDef(name="images", type="dir", target=Target(path=str(folder))))
        found = await asyncio.gather(*(pool.volume(info.name).check() for info in pool.volumes))
    assert [one.verdict for one in found] == ["ok"] * 12
    assert most <= PROGRAMS
