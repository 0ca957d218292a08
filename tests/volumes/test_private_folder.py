"""Private folders: this process's own, and gone after it, however it ended."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from leaks import open_files

from astore.backend import Context
from astore.volume_io import private_folder as module
from astore.volume_io.private_folder import LOCK, PrivateFolder, private_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where private folders are made."""
    made = tmp_path / "temporary"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


def killed_with_a_folder(place: Path) -> Path:
    """What a process leaves behind that was killed while it had a private folder."""
    code = (
        "import os, signal; from astore.volume_io.private_folder import PrivateFolder; "
        "made = PrivateFolder(); open(made.path + '/image', 'w').close(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(place)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    (left,) = place.iterdir()
    assert (left / "image").exists()
    return left


async def test_it_goes(context: Context, place: Path) -> None:
    """Nobody else may look into it, and nothing is left of it."""
    before = open_files()
    async with private_folder(context) as made:
        assert Path(made).parent == place
        assert os.stat(made).st_mode & 0o777 == 0o700
        Path(made, "image").write_bytes(b"x")
    assert not list(place.iterdir())
    assert not open_files() - before


async def test_short_paths(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for a socket has a short path, whatever the place for temporary files is."""
    monkeypatch.setattr(module, "LONGEST", 10)
    async with private_folder(context, for_socket=True) as made:
        assert len(made) < 80
        assert made.startswith("/tmp/")


def test_what_a_killed_process_left(place: Path) -> None:
    """The next folder that is made is the end of it."""
    left = killed_with_a_folder(place)
    made = PrivateFolder()
    assert [str(path) for path in place.iterdir()] == [made.path]
    assert not left.exists()
    made.remove()
    made.remove()
    assert not list(place.iterdir())


def test_what_is_in_use_stays(place: Path) -> None:
    """What another has locked stays, and so does what is none: no lock, a link, or a file of that name."""
    other = PrivateFolder()
    (place / "astore-without").mkdir()
    (place / "astore-file").touch()
    (place / "elsewhere").mkdir()
    (place / "elsewhere" / LOCK).touch()
    (place / "astore-link").symlink_to("elsewhere")
    (place / "astore-fifo").mkdir()
    os.mkfifo(place / "astore-fifo" / LOCK)
    os.symlink("../elsewhere/" + LOCK, place / "astore-without" / LOCK)
    before = set(place.iterdir())
    mine = PrivateFolder()
    mine.remove()
    left = before - set(place.iterdir())
    assert left <= {place / "astore-fifo"}, "only what has a lock that is nobody's"
    assert Path(other.path, LOCK).exists()
    other.remove()


def test_taken_before_it_was_locked(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another may find it before it is locked, and remove it: there is another then; but not for ever."""
    real = fcntl.flock
    tries = 0

    def lock(fd: int, how: int) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BlockingIOError
        if tries == 2:
            for path in place.iterdir():
                shutil.rmtree(path)
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    made = PrivateFolder()
    assert tries >= 3
    assert [str(path) for path in place.iterdir()] == [made.path]
    made.remove()

    def never(fd: int, how: int) -> None:
        raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", never)
    with pytest.raises(OSError, match="cannot make a private folder"):
        PrivateFolder()
    assert not list(place.iterdir())
