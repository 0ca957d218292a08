"""What netfs tests look at: mounts, and processes that mounts leave behind; and a kernel that refuses."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from astore.model import PoolDef
from astore.mounts import parse
from astore_netfs import Mount
from astore_netfs.mounting import kernel
from astore_netfs.mounting.mount import MARK
from astore_netfs.mounting.session import NetfsSession

Open = Callable[..., Awaitable[NetfsSession]]
"""What the fixture ``start`` gives."""


def target(definition: PoolDef) -> Path:
    """Where the pool is mounted."""
    assert definition.target.path is not None
    return Path(definition.target.path)


def table() -> list[Mount]:
    """All mounts; read by the test, since astore may not read files in the event loop's thread."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def ids(definition: PoolDef) -> list[int]:
    """The numbers of all mounts on the pool's target."""
    return [mount.id for mount in table() if mount.target == definition.target.path]


def clients() -> int:
    """How many processes are left of mounts that this process made or tried to make."""
    found = 0
    here = os.stat("/proc/self/ns/mnt")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.path.samestat((folder / "ns" / "mnt").stat(), here):  # else another test session's
                found += f"{MARK}=".encode() in (folder / "environ").read_bytes()
    return found


def refuse_to_detach(monkeypatch: pytest.MonkeyPatch, definition: PoolDef) -> None:
    """From now on the kernel takes everything out of the tree except the pool's mount."""
    detach = kernel.detach

    def refuse(path: str, *, force: bool = False) -> None:
        if path == str(target(definition)):
            raise PermissionError(errno.EPERM, "not yours")
        detach(path, force=force)

    monkeypatch.setattr(kernel, "detach", refuse)
