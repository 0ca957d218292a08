"""Images that qemu-img makes, and what it and astore say of them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from astore.images import HEADER_SIZE, needs_full_header, probe
from astore.images.references import located
from astore.model import ImageInfo, Reference, ReferenceKind

MIB = 1 << 20
SECRET = ["--object", "secret,id=s0,data=abcdefgh"]


def where(name: str, volume_path: str) -> str | None:
    """Where the backing file of this name is, of an image with this path or URL; None if that cannot be told."""
    return located((Reference(ReferenceKind.BACKING, name),), volume_path)[0].location


def create(path: Path, *arguments: str) -> Path:
    """Run ``qemu-img create``.

    Where the machine counts a thread's CPU time roughly, qemu-img cannot always measure how fast it derives a LUKS key,
    says so, and makes no image; which means nothing, and another try helps.
    """
    for _ in range(40):
        done = subprocess.run(
            ["qemu-img", "create", "-q", *arguments],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if "accurate CPU usage" not in done.stderr:
            break
        path.unlink(missing_ok=True)
    assert done.returncode == 0, done.stderr
    return path


def make(path: Path, kind: str, *options: str, size: str = "64M", extra: tuple[str, ...] = ()) -> Path:
    """An empty image."""
    argv = [argument for option in options for argument in ("-o", option)]
    return create(path, *extra, "-f", kind, *argv, str(path), size)


def make_backed(path: Path, kind: str, backing: str, backing_format: str, *options: str) -> Path:
    """An image backed by another, which need not exist."""
    argv = [argument for option in options for argument in ("-o", option)]
    return create(path, "-u", "-f", kind, *argv, "-b", backing, "-F", backing_format, str(path), "64M")


def qemu_info(path: Path) -> dict[str, Any]:
    said = subprocess.run(["qemu-img", "info", "--output=json", str(path)], check=True, capture_output=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def astore_info(path: Path) -> ImageInfo:
    """What astore says of an image that it recognises."""
    info = in_two_steps(path)
    assert info is not None
    return info


def in_two_steps(path: Path) -> ImageInfo | None:
    """What astore says; read in two steps, as a refresh does, it must say the same."""
    with path.open("rb") as file:
        head = file.read(HEADER_SIZE)
    info = probe(head)
    first = head[:4096]
    assert probe(head if needs_full_header(first) else first) == info
    return info
