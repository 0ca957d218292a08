"""The private namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from astore.testing.beds import BedUnavailable, namespace

_PROBE = """
import os
from astore.testing.beds import namespace
before = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
namespace.enter_private_namespaces()
first = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
namespace.enter_private_namespaces()
second = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
print(before[0] != first[0], before[1] != first[1], first == second, namespace.in_private_namespaces())
"""


def _run(code: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "ASTORE_PRIVATE_NAMESPACES"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**environment, **changes}, capture_output=True, text=True, check=False
    )


@pytest.mark.root
def test_entering_changes_both_namespaces_once() -> None:
    """The first call moves the process, the second finds it moved already."""
    assert _run(_PROBE).stdout.split() == ["True"] * 4, _run(_PROBE).stderr


@pytest.mark.root
def test_a_child_knows_that_it_is_inside() -> None:
    """What was started inside does not enter again, and a mark of other namespaces is not believed."""
    code = "from astore.testing.beds import namespace; print(namespace.in_private_namespaces())"
    inside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert inside == str(namespace.in_private_namespaces())
    assert _run(code, ASTORE_PRIVATE_NAMESPACES="1:2").stdout.strip() == "False"


@pytest.mark.root
def test_threads_are_refused_in_words() -> None:
    """A process with threads cannot enter, and says so."""
    code = (
        "import threading\n"
        "from astore.testing.beds import namespace\n"
        "stop = threading.Event(); threading.Thread(target=stop.wait).start()\n"
        "try: namespace.enter_private_namespaces()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "finally: stop.set()\n"
    )
    said = _run(code).stdout
    assert said.startswith("BedUnavailable")
    assert "threads" in said


def test_an_ordinary_user_is_refused_in_words() -> None:
    """Without root there is no namespace but a reason."""
    code = (
        "from astore.testing.beds import namespace\n"
        "import os\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: namespace.enter_private_namespaces()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    assert _run(code).stdout.strip() == "BedUnavailable private namespaces need root"


def test_servers_refuse_the_machines_own_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bed outside a private namespace is refused."""
    monkeypatch.delenv("ASTORE_PRIVATE_NAMESPACES", raising=False)
    with pytest.raises(BedUnavailable, match="enter_private_namespaces"):
        namespace.require_private_namespaces()


@pytest.mark.gluster
def test_the_session_has_loopback_and_empty_gluster_folders() -> None:
    """Any address of 127.0.0.0/8 can be bound, and Gluster's folders are this session's own."""
    with socket.create_server(("127.1.1.9", 0)) as server:
        assert server.getsockname()[0] == "127.1.1.9"
    for folder in namespace.PRIVATE_FOLDERS:
        assert os.path.ismount(folder)


@pytest.mark.root
def test_a_cover_hides_and_shows_again(tmp_path: object) -> None:
    """A covered folder is empty, and has its content back when it is uncovered."""
    folder = str(tmp_path)
    with open(f"{folder}/file", "w"):
        pass
    if not namespace.in_private_namespaces():
        pytest.skip("mounting in the machine's own namespace would be seen by all")
    assert namespace.cover(folder)
    try:
        assert os.listdir(folder) == []
    finally:
        namespace.uncover(folder)
    assert os.listdir(folder) == ["file"]
    assert threading.active_count() >= 1


@pytest.mark.root
def test_a_folder_that_cannot_be_made_is_not_covered() -> None:
    """Where there is no place for the folder, nothing is mounted."""
    assert not namespace.cover("/proc/no/such/place")
