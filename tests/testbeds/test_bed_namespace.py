"""The private namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from beds import BedUnavailable, namespace

_PROBE = """
import os
from beds import namespace
before = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
namespace.enter_private_namespaces()
first = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
namespace.enter_private_namespaces()
second = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/mnt")
print(before[0] != first[0], before[1] != first[1], first == second, namespace.in_private_namespaces())
"""


def _start(code: str, *arguments: object, **changes: str) -> subprocess.Popen[str]:
    """Start Python outside the private namespaces."""
    environment = {key: value for key, value in os.environ.items() if key != "ASTORE_PRIVATE_NAMESPACES"}
    pipe = subprocess.PIPE
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, env={**environment, **changes}, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _run(code: str, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    with _start(code, *arguments, **changes) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.root
def test_entering_changes_both_namespaces_once() -> None:
    """The first call moves the process, the second finds it moved already."""
    assert _run(_PROBE).stdout.split() == ["True"] * 4, _run(_PROBE).stderr


@pytest.mark.root
def test_a_child_knows_that_it_is_inside() -> None:
    """What was started inside does not enter again, and a mark of other namespaces is not believed."""
    code = "from beds import namespace; print(namespace.in_private_namespaces())"
    inside = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert inside == str(namespace.in_private_namespaces())
    assert _run(code, ASTORE_PRIVATE_NAMESPACES="1:2").stdout.strip() == "False"


@pytest.mark.root
def test_threads_are_refused_in_words() -> None:
    """A process with threads cannot enter, and says so."""
    code = (
        "import threading\n"
        "from beds import namespace\n"
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
        "from beds import namespace\n"
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


_COVER = """
import os, sys
from beds import namespace
namespace.enter_private_namespaces()
folder, new = sys.argv[1:]
assert namespace.cover(new) and namespace.cover(folder)
print(os.listdir(folder), os.listdir(new))
for covered in (folder, new):
    open(f"{covered}/inside", "w").close()
    namespace.uncover(covered)
print(sorted(os.listdir(folder)), os.path.exists(new))
"""


@pytest.mark.root
def test_a_cover_hides_and_shows_again(tmp_path: Path) -> None:
    """A covered folder is empty until it is uncovered; a folder that was made for it is removed."""
    folder, new = tmp_path / "folder", tmp_path / "new"
    folder.mkdir()
    (folder / "file").touch()
    assert _run(_COVER, folder, new).stdout.splitlines() == ["[] []", "['file'] False"]
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == ["file"]


_DETACH = """
import os, sys
from beds import namespace
namespace.enter_private_namespaces()
parent = sys.argv[1]
namespace.cover(parent + "/new")
print(sorted(os.listdir(parent)), open(parent + "/folder/below/file").read(), open(parent + "/file").read(), end=" ")
print(os.readlink(parent + "/link"), oct(os.stat(parent).st_mode), os.stat(parent).st_uid, os.path.ismount(parent + "/folder"))
open(parent + "/made", "w").close()
os.remove(parent + "/link")
print(input())
"""


@pytest.mark.root
def test_what_a_bed_makes_is_not_in_the_machines_folders(tmp_path: Path) -> None:
    """A missing folder is made for the namespace alone, beside the entries of its parent."""
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder" / "below" / "file").write_text("deep")
    (tmp_path / "link").symlink_to("nowhere")
    tmp_path.chmod(0o1750)
    os.chown(tmp_path, 7, 8)
    before = sorted(os.listdir(tmp_path))
    with _start(_DETACH, tmp_path) as inside:
        assert inside.stdout is not None
        seen = inside.stdout.readline().strip()
        assert seen == "['file', 'folder', 'link', 'new'] deep text nowhere 0o41750 7 True"
        assert sorted(os.listdir(tmp_path)) == before, "while it is there"
        inside.communicate("go on\n")
    assert inside.returncode == 0
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.root
def test_run_is_detached_from_the_start() -> None:
    """A folder made in /run stays inside the namespace."""
    code = (
        "import os\n"
        "from beds import namespace\n"
        "before = set(os.listdir('/run'))\n"
        "namespace.enter_private_namespaces()\n"
        "assert before <= set(os.listdir('/run')) <= before | {'gluster'}, os.listdir('/run')\n"
        "os.mkdir('/run/astore-test-of-namespaces')\n"
    )
    assert _run(code).returncode == 0
    assert not os.path.exists("/run/astore-test-of-namespaces")


@pytest.mark.root
def test_a_folder_without_a_parent_is_not_covered() -> None:
    """Where there is no place for the folder, nothing is mounted."""
    assert not namespace.cover("/proc/no/such/place")
