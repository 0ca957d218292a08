"""What happens to a folder of images between two steps: made, changed and removed by others, the same in each twin."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from beds.images import template

FORMATS = ("qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "raw")
NAMES = (
    *(f"v{number}" for number in range(6)),
    "two words.img",
    "Größe.img",
    "100%.img",
    "a+b&c=d?e#f;g:h@i,j".replace("@", "_"),
    "'q'(x)*!~$",
    '"<>[]\\^`{|}',
    ".hidden",
    "-rf",
    "n" * 255,
    "tab\there",
    "line\nbreak",
    "del\x7f",
    "\u200bzero width",
)
"""What entries are called."""

Change = Callable[[Path], None]
"""Done to a folder, and to its twin."""


def change(random: Random) -> tuple[str, Change]:
    """Something that happens to a folder: in words, and done. Images that may be copied in full are small."""
    name, other = random.choice(NAMES), random.choice(NAMES)
    make = random.choices((_image, _odd, _changed), (5, 2, 4))[0]
    what, act = make(random, name, other)

    def happen(folder: Path) -> None:
        if folder.is_dir():
            act(folder)

    return what, happen


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    _remove(path)
    path.write_bytes(data)
    path.chmod(mode)


def _image(random: Random, name: str, other: str) -> tuple[str, Change]:
    kind = random.choice(FORMATS)
    size = random.choice((1, 3, 10)) << 20
    mode = random.choice((0o600, 0o644, 0o000))
    backing = random.choice((None, None, other, f"./{other}", "sub/x", "/nowhere/base", "nbd:host:10809"))
    if (
        kind not in ("qcow2", "qed")
        or (backing or "").startswith(('"', "-", "."))
        or not (backing or "x").isprintable()
    ):
        backing = None
    made = template(kind, size, backing, random.choice(("raw", "qcow2")) if backing else None)

    def happen(folder: Path) -> None:
        path = folder / name
        _remove(path)
        made.write(path)
        path.chmod(mode)

    return f"{kind} of {size} backed by {backing!r} at {name!r}", happen


def _odd(random: Random, name: str, other: str) -> tuple[str, Change]:
    def link(to: str) -> Change:
        def happen(folder: Path) -> None:
            _remove(folder / name)
            (folder / name).symlink_to(to)

        return happen

    def replaced(make: Callable[[Path], object]) -> Change:
        def happen(folder: Path) -> None:
            _remove(folder / name)
            make(folder / name)

        return happen

    def listen(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as one:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                one.bind(f"/proc/self/fd/{here}/s")  # a socket's path has 107 bytes at most
                os.rename(path.parent / "s", path)
            finally:
                os.close(here)

    def full(path: Path) -> None:
        path.mkdir()
        (path / "inner").touch()

    choices: Sequence[tuple[str, Change]] = (
        (f"link to {other!r}", link(other)),
        ("dangling link", link("nowhere")),
        ("link to itself", link(name)),
        ("link to a folder", link("/etc")),
        ("FIFO", replaced(os.mkfifo)),
        ("socket", replaced(listen)),
        ("character device", replaced(lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)))),
        ("folder", replaced(Path.mkdir)),
        ("folder that is not empty", replaced(full)),
        ("empty file", replaced(Path.touch)),
        ("iso", replaced(lambda path: path.write_bytes(b"\0" * 32_769 + b"CD001" + b"\0" * 4_096))),
    )
    what, happen = random.choice(choices)
    return f"{what} at {name!r}", happen


def _changed(random: Random, name: str, other: str) -> tuple[str, Change]:
    size, mode, owner, seed = (
        random.choice((0, 3, 511, 70_000)),
        random.choice((0o600, 0o640, 0o777)),
        1234,
        random.random(),
    )

    def if_file(act: Callable[[Path], object]) -> Change:
        def happen(folder: Path) -> None:
            path = folder / name
            if path.is_file() and not path.is_symlink():
                act(path)

        return happen

    def rename(folder: Path) -> None:
        path = folder / name
        if os.path.lexists(path) and name != other:
            _remove(folder / other)
            path.rename(folder / other)

    def grow(path: Path) -> None:
        with path.open("ab") as file:
            file.write(Random(seed).randbytes(max(size, 1)))

    choices: Sequence[tuple[str, Change]] = (
        (f"truncated to {size}", if_file(lambda path: os.truncate(path, size))),
        (f"made {size} longer", if_file(grow)),
        (f"mode {mode:o}", if_file(lambda path: path.chmod(mode))),
        ("another owner", if_file(lambda path: os.chown(path, owner, owner))),
        (f"written anew with {size} bytes", lambda folder: _write(folder / name, Random(seed).randbytes(size), mode)),
        ("removed", lambda folder: _remove(folder / name)),
        (f"renamed to {other!r}", rename),
    )
    what, happen = random.choice(choices)
    return f"{name!r} {what}", happen
