"""libgfapi there, missing, too old, or on a strange machine; and what its loading leaves behind. No server is needed."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from astore.c_library import Declaration
from astore.errors import BackendLoadError
from astore_gluster import libgfapi
from astore_gluster.layout import stat_layout
from astore_gluster.libgfapi import Gfapi, failure, scratch


class Library:
    """A shared library that has some symbols."""

    def __init__(self, *symbols: str) -> None:
        for symbol in symbols:
            setattr(self, symbol, None)


def without_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Declaration, "bind", lambda self, library, symbol: symbol)


def test_every_function_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is declared is what the class says it has, under the names of the headers."""
    without_binding(monkeypatch)
    gfapi = Gfapi(Library(*(f"glfs_{name}" for name in Gfapi.declarations)), stat_layout("x86_64"))  # type: ignore[arg-type]
    assert {name: getattr(gfapi, name) for name in Gfapi.declarations} == {
        name: f"glfs_{name}" for name in Gfapi.declarations
    }
    assert set(Gfapi.__annotations__) == set(Gfapi.declarations)


@pytest.mark.parametrize("missing", ["copy_file_range", "xreaddirplus_r", "free", "new"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """A library that lacks one function is refused by naming it, its version and the oldest that will do."""
    without_binding(monkeypatch)
    library: Any = Library(*(f"glfs_{name}" for name in Gfapi.declarations if name != missing))
    with pytest.raises(BackendLoadError) as caught:
        Gfapi(library, stat_layout("x86_64"))
    assert f"libgfapi has no glfs_{missing}" in str(caught.value)
    assert Gfapi.declarations[missing].version in str(caught.value)
    assert "6.0 or later" in str(caught.value)
    assert caught.value.type == "gluster"


def test_strange_machine() -> None:
    """Where the layout of struct stat is not known, nothing is called, and the machine is named."""
    with pytest.raises(BackendLoadError, match=os.uname().machine):
        Gfapi(Library(), None)  # type: ignore[arg-type]


def run(code: str, *, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, warnings being errors."""
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
        check=False,
    )


NO_PACKAGE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gluster":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
NO_LIBRARY = """
import ctypes
real = ctypes.CDLL
def CDLL(name, *args, **kwargs):
    if name and "gfapi" in str(name):
        raise OSError(f"{name}: cannot open shared object file")
    return real(name, *args, **kwargs)
ctypes.CDLL = CDLL
"""
OTHER_LIBRARY = """
import ctypes
real = ctypes.CDLL
ctypes.CDLL = lambda name, *args, **kwargs: real(None if "gfapi" in str(name) else name, *args, **kwargs)
"""
LISTED = """
import sys
from astore.cli import main
sys.argv = ["astore", "backend", "list", "--json"]
main()
"""


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (NO_PACKAGE, "the Python package gfapi is not installed"),
        (NO_LIBRARY, "on Debian the package libgfapi0"),
        (OTHER_LIBRARY, "libgfapi"),
    ],
    ids=["no package", "no library", "other library"],
)
def test_missing_is_said_and_the_rest_works(patch: str, said: str) -> None:
    """``astore backend list`` says what to install; the other backends are ready."""
    done = run(patch + LISTED)
    assert done.returncode == 0, done.stderr
    backends = {backend["type"]: backend for backend in json.loads(done.stdout)["backends"]}
    assert backends["gluster"]["status"] != "ready"
    assert said in backends["gluster"]["error"]
    assert backends["dir"]["status"] == "ready"
    assert "Traceback" not in done.stderr


AGAIN = """
from astore.errors import BackendLoadError
from astore_gluster import libgfapi
import collections, sys
for _ in range(2):
    try:
        libgfapi.load()
    except BackendLoadError as error:
        assert "libgfapi0" in str(error), error
        assert error.__cause__ is not None
    else:
        raise AssertionError("loaded")
assert not hasattr(collections, "Iterator")
sys.meta_path[:] = [finder for finder in sys.meta_path]
ctypes.CDLL = real
try:
    libgfapi.load()
except BackendLoadError as error:
    print("still", error)
else:
    print("loaded")
"""


def test_failing_is_not_forever() -> None:
    """A failure says the same the next time; and once the library is there, it is found."""
    done = run(NO_LIBRARY + AGAIN)
    assert done.returncode == 0, done.stderr
    expected = "loaded" if _loadable() else "still"
    assert done.stdout.startswith(expected)


def _loadable() -> bool:
    try:
        libgfapi.load()
    except BackendLoadError:
        return False
    return True


needs_library = pytest.mark.skipif(os.geteuid() != 0 and not _loadable(), reason="there is no libgfapi")


@needs_library
def test_only_the_client_module_is_imported() -> None:
    """Nothing of the standard library is changed for it, and gfapi's other modules, which need an old Python, stay away."""
    done = run(
        "import collections, collections.abc, sys\nbefore = set(vars(collections))\n"
        "from astore_gluster import libgfapi\nlibgfapi.load()\n"
        "assert set(vars(collections)) == before\n"
        "assert not [name for name in sys.modules if name.startswith('gluster.gfapi')]\nprint('fine')"
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@needs_library
def test_loaded_once() -> None:
    """However many threads ask."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(libgfapi.load())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_import_errors_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing and a library that is are told apart."""

    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == "gluster":
                raise self.error

    for error, said in (
        (ModuleNotFoundError("No module named 'gluster'"), "Python package gfapi is not installed"),
        (Exception("libgfapi.so not found"), "libgfapi0"),
        (OSError("libgfapi.so.0: undefined symbol"), "undefined symbol"),
    ):
        with monkeypatch.context() as patch:
            for name in [name for name in sys.modules if name.partition(".")[0] == "gluster"]:
                patch.delitem(sys.modules, name)
            patch.setattr(sys, "meta_path", [Broken(error), *sys.meta_path])
            with pytest.raises(BackendLoadError, match=said) as caught:
                libgfapi._import_client()
            assert caught.value.__cause__ is error


@needs_library
def test_fork_while_loading() -> None:
    """A child process that was forked while another thread was loading can load."""
    done = run(
        "import os, signal\nfrom astore_gluster import libgfapi\n"
        "libgfapi.load._lock.acquire()\npid = os.fork()\n"
        "if pid == 0:\n    signal.alarm(20)\n    libgfapi.load()\n    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


@needs_library
def test_errno_is_kept() -> None:
    """A call that fails leaves its errno, from which an OSError of the right class is made."""
    gfapi = libgfapi.load()
    ctypes.set_errno(0)
    assert gfapi.new(b"/no/name") is None
    error = failure("name")
    assert (error.errno, error.filename) == (errno.EINVAL, "name")
    assert ctypes.get_errno() == errno.EINVAL


def test_failure() -> None:
    """The errno of this thread's last call, with its words; EIO where there is none."""
    ctypes.set_errno(errno.ENOENT)
    assert isinstance(failure(), FileNotFoundError)
    assert failure().strerror == os.strerror(errno.ENOENT)
    ctypes.set_errno(0)
    assert failure(b"/x").errno == errno.EIO
    assert failure(b"/x").filename == b"/x"


def test_scratch_is_the_threads_own() -> None:
    """The same memory again where it is large enough, larger memory where it is not, and another thread's for none."""
    first = scratch(100)
    assert scratch(50) is first
    larger = scratch(len(first) + 1)
    assert larger is not first
    assert scratch(10) is larger
    other: list[Any] = []
    thread = threading.Thread(target=lambda: other.append(scratch(10)))
    thread.start()
    thread.join()
    assert other[0] is not larger


def test_registry_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """``require`` loads the library, and says what ``load`` says."""
    from astore_gluster.backend import GlusterBackend

    called = SimpleNamespace(times=0)

    def load() -> None:
        called.times += 1
        raise BackendLoadError("too old", type="gluster")

    monkeypatch.setattr(libgfapi, "load", load)
    with pytest.raises(BackendLoadError, match="too old"):
        GlusterBackend().require()
    assert called.times == 1
