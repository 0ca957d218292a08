"""What all tests share: a private namespace, a loop that must not block, real servers, and a check of what is left."""

from __future__ import annotations

import contextlib
import os

from beds import BedUnavailable
from beds.namespace import HOST_NAMESPACE, enter_private_namespaces, in_private_namespaces

_namespace_problem: str | None = None
"""Why the session does not run in namespaces of its own; None if it does."""
if os.environ.get(HOST_NAMESPACE) == "1":
    _namespace_problem = f"{HOST_NAMESPACE}=1 keeps the tests out of private namespaces"
else:
    # Before anything else is imported: a namespace belongs to a thread, and there must be one thread only.
    try:
        enter_private_namespaces()
    except BedUnavailable as _error:
        _namespace_problem = str(_error)

import asyncio  # noqa: E402
import importlib.util  # noqa: E402
import itertools  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import AsyncIterator, Callable, Iterator  # noqa: E402
from functools import cache  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import pytest  # noqa: E402
from blockbuster import BlockBuster  # noqa: E402
from hypothesis import settings  # noqa: E402
from leaks import LeakCheck, SessionCheck  # noqa: E402
from loop_guard import loop_guard  # noqa: E402

if TYPE_CHECKING:
    from astore.lanes import Lanes
    from beds.ceph import CephBed
    from beds.fuse_fs import FuseFs
    from beds.gluster import GlusterBed
    from beds.iscsi import IscsiBed
    from beds.libvirt import LibvirtBed

REQUIRE_ALL = "ASTORE_REQUIRE_ALL"
"""Set to 1, a test that would be skipped for want of a server or a program fails instead."""

# Whoever started the tests in the background, or by nohup, has these ignored, by all programs that the tests start too.
for _signal in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

settings.register_profile("astore", deadline=None, print_blob=True)
settings.load_profile("astore")


# ------------------------------------------------------------------------------------------------- what is available


def _lacks_root() -> str | None:
    return None if os.geteuid() == 0 else "needs root"


def _lacks_gluster() -> str | None:
    from beds import gluster

    if why := gluster.missing() or _namespace_problem:
        return why
    # not "gluster" alone: a folder of the tests has that name
    if importlib.util.find_spec("gluster") is None or importlib.util.find_spec("gluster.gfapi") is None:
        return "the package gfapi is not installed"
    return None


def _lacks_fuse() -> str | None:
    if os.geteuid() != 0:
        return "mounting needs root"
    return None if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


def _lacks_libvirt() -> str | None:
    from beds import libvirt

    if not os.path.exists("/usr/lib/python3/dist-packages/libvirt.py"):
        return "there are no libvirt bindings for Debian's Python (Debian package python3-libvirt)"
    return libvirt.missing() or _namespace_problem


def _lacks_iscsi() -> str | None:
    from beds import iscsi

    return iscsi.missing()


def _lacks_programs(packages: str, *programs: str) -> str | None:
    # What belongs to the administrator is not on every user's PATH.
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    absent = [name for name in programs if shutil.which(name, path=path) is None]
    return f"there is no {', '.join(absent)} (Debian packages {packages})" if absent else None


def _lacks_nfs() -> str | None:
    packages = "user-mode-linux nfs-kernel-server nfs-common samba cifs-utils kmod iproute2"
    return _lacks_programs(packages, "linux.uml", "exportfs", "mount.nfs", "depmod", "smbd", "mount.cifs", "ip")


def _lacks_ceph() -> str | None:
    from beds import ceph

    return ceph.missing()


_LACKS: dict[str, Callable[[], str | None]] = {
    "root": _lacks_root,
    "gluster": _lacks_gluster,
    "ceph": _lacks_ceph,
    "fuse": _lacks_fuse,
    "iscsi": _lacks_iscsi,
    "libvirt": _lacks_libvirt,
    "qemu": lambda: _lacks_programs("qemu-utils", "qemu-img"),
    "nfs": _lacks_nfs,
    "systemd": lambda: _lacks_programs("systemd", "systemd-analyze", "systemctl", "journalctl"),
    "strace": lambda: _lacks_programs("strace", "strace"),
}


@cache
def lacking(marker: str) -> str | None:
    """Why tests with this marker cannot run here; None if they can, or if the marker asks for nothing."""
    return _LACKS[marker]() if marker in _LACKS else None


def _skip(reason: str) -> None:
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"{reason}; and {REQUIRE_ALL}=1 lets nothing be skipped for that", pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip (or fail, see REQUIRE_ALL) a test whose marker asks for what is not here."""
    for marker in item.iter_markers():
        if reason := lacking(marker.name):
            _skip(f"{marker.name}: {reason}")


# ------------------------------------------------------------------------------------------------- nothing may be left

_check_key = pytest.StashKey[SessionCheck]()
_left_key = pytest.StashKey[list[str]]()


def pytest_report_header() -> list[str]:
    """Where the tests run, and what will be skipped for which reason."""
    where = "in private namespaces" if in_private_namespaces() else f"in the machine's namespaces: {_namespace_problem}"
    lines = [f"astore: {where}"]
    lines += [f"astore: no {name} tests: {reason}" for name in _LACKS if (reason := lacking(name))]
    return lines


def pytest_sessionstart(session: pytest.Session) -> None:
    """Count what is there already."""
    from astore.commands.starter import STARTER

    session.config.stash[_check_key] = SessionCheck(grace=float(os.environ.get("ASTORE_TEST_GRACE", "60")))
    STARTER.acquire()  # one helper for all tests
    STARTER.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session for a process, a mount or a thread that is left."""
    check = session.config.stash.get(_check_key, None)
    if check is None or session.config.option.collectonly:
        return
    from astore.commands.starter import STARTER

    STARTER.release(keep=False)
    left = session.config.stash[_left_key] = check.finish()
    if left and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left."""
    if left := config.stash.get(_left_key, None):
        terminalreporter.section("left behind by the session", red=True, bold=True)
        for line in left:
            terminalreporter.write_line(line, red=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have ``no_leaks`` made before the fixtures whose traces it looks for, however a test names them."""
    for item in items:
        if isinstance(item, pytest.Function) and "no_leaks" in item.fixturenames:
            item.fixturenames.remove("no_leaks")
            item.fixturenames.insert(item.fixturenames.index("blockbuster"), "no_leaks")  # the first of a single test


@pytest.fixture
async def no_leaks() -> AsyncIterator[LeakCheck]:
    """Fails the test if tasks, threads or descriptors are more after it than before.

    It counts before the test's other fixtures are made, and compares after their end. Its ``grace``, ``native`` and
    ``files`` may be set in the test.
    """
    check = LeakCheck()
    yield check
    loop = asyncio.get_running_loop()
    deadline = loop.time() + check.grace
    while (problems := check.problems()) and loop.time() < deadline:
        await asyncio.sleep(0.02)
    assert not problems, "left behind: " + "; ".join(problems)


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    """The threads of a test; closed after it."""
    from astore.lanes import Lanes

    lanes = Lanes()
    yield lanes
    lanes.close()


# ------------------------------------------------------------------------------------------------- the loop must not block


@pytest.fixture(scope="session")
def _blockbuster() -> BlockBuster:
    plugins = ("astore_fleet", "astore_gluster", "astore_iscsi", "astore_netfs", "astore_rbd")
    scanned = ["astore", *(name for name in plugins if importlib.util.find_spec(name))]
    return loop_guard(*scanned)


@pytest.fixture(autouse=True)
def blockbuster(_blockbuster: BlockBuster) -> Iterator[BlockBuster]:
    """A blocking call by astore in an event loop's thread raises BlockingError. Tests and beds may block."""
    _blockbuster.activate()
    try:
        yield _blockbuster
    finally:
        _blockbuster.deactivate()


# ------------------------------------------------------------------------------------------------- real servers


@pytest.fixture(scope="session")
def gluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GlusterBed]:
    """A private Gluster of one node, shared by the session; make volumes of your own (see ``new_volume``)."""
    from beds.gluster import GlusterBed

    if reason := lacking("gluster"):
        _skip(f"gluster: {reason}")
    with GlusterBed(tmp_path_factory.mktemp("gluster")) as bed:
        yield bed
        if (module := sys.modules.get("astore_gluster.volume.connection")) is not None:
            module.CONNECTIONS.close_idle()  # takes libgfapi 10 s, in threads that the session's check waits for


_volume_numbers = itertools.count(1)


@pytest.fixture
def volume_factory(gluster: GlusterBed) -> Iterator[Callable[..., str]]:
    """Makes fresh Gluster volumes, with the arguments of ``GlusterBed.create_volume`` after the name; returns the name.

    They are deleted afterwards, whatever became of them.
    """
    with contextlib.ExitStack() as made:

        def make(replica: int = 1, bricks: int = 1, options: dict[str, str | int] | None = None) -> str:
            name = f"volume{next(_volume_numbers)}"
            gluster.create_volume(name, replica, bricks, options)
            made.callback(gluster.delete_volume, name)
            return name

        yield make


@pytest.fixture
def new_volume(volume_factory: Callable[..., str]) -> str:
    """The name of a fresh, started Gluster volume of one brick."""
    return volume_factory()


@pytest.fixture
def fuse_mount(gluster: GlusterBed, new_volume: str) -> Path:
    """The folder at which ``new_volume`` is mounted by FUSE. It may be frozen or killed; it is the test's own."""
    if reason := lacking("fuse"):
        _skip(f"fuse: {reason}")
    return gluster.mount(new_volume)


@pytest.fixture
def new_fuse_fs(tmp_path: Path) -> Iterator[Callable[..., FuseFs]]:
    """Makes FUSE file systems for fault drills, with the arguments of ``FuseFs`` after the folder; ended afterwards."""
    from beds import fuse_fs

    if reason := lacking("fuse") or fuse_fs.missing():
        _skip(f"fuse: {reason}")
    with contextlib.ExitStack() as made:
        numbers = itertools.count(1)
        yield lambda **settings: made.enter_context(fuse_fs.FuseFs(tmp_path / f"fuse-fs-{next(numbers)}", **settings))


@pytest.fixture(scope="session")
def iscsi() -> Iterator[IscsiBed]:
    """A private iSCSI target daemon, shared by the session; make targets of your own."""
    import tempfile

    from beds.iscsi import IscsiBed

    if reason := lacking("iscsi"):
        _skip(f"iscsi: {reason}")
    # Not pytest's own folder: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="astore-iscsi-") as folder, IscsiBed(folder) as bed:
        yield bed


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephBed]:
    """A private Ceph cluster in memory, shared by the session; make pools of your own (see ``ceph_pool``)."""
    from beds.ceph import CephBed

    if reason := lacking("ceph"):
        _skip(f"ceph: {reason}")
    with CephBed(tmp_path_factory.mktemp("ceph")) as bed:
        yield bed


@pytest.fixture(scope="session")
def ceph_pool(ceph: CephBed) -> str:
    """The name of a pool for images; tests that share it use namespaces of their own."""
    ceph.create_pool("images")
    return "images"


@pytest.fixture(scope="session")
def libvirt_bed() -> Iterator[LibvirtBed]:
    """A private libvirtd with its storage driver, shared by the session."""
    import tempfile

    from beds.libvirt import LibvirtBed

    if reason := lacking("libvirt"):
        _skip(f"libvirt: {reason}")
    # Not pytest's own folder: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="astore-libvirt-") as folder, LibvirtBed(folder) as bed:
        yield bed


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 20 images of 1 GiB, qcow2 (three of them with a backing file) and raw."""
    from beds.images import make_images

    folder = tmp_path / "images"
    folder.mkdir()
    make_images(folder, 20, size=1 << 30, backing_every=6, formats=("qcow2", "qcow2", "raw"))
    return folder
