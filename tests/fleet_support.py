"""What the tests of fleets share: backends for a shared storage, hosts as agents of this process, and hosts as processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

from core_fakes import FakeBackend

from astore.backend import Backend
from astore.backends.directory import DirectoryBackend
from astore.model import PoolDef
from astore.registry import BackendRegistry

PATIENT_SECONDS = 60.0
"""Seconds that a host that is a process may take for one step."""


class SharedBackend(DirectoryBackend):
    """Folders that every host of a test sees: a pool of this type names a host, and so may run anywhere."""

    type: ClassVar[str] = "shared"


def registry(*more: Backend) -> BackendRegistry:
    """A registry with folders, local and shared, and more backends."""
    made = BackendRegistry(group=None)
    for backend in (DirectoryBackend(), SharedBackend(), *more):
        made.register(backend)
    return made


def shared(name: str, path: Path | str) -> str:
    """The definition of a pool that may run anywhere."""
    return (
        f"<pool type='shared'><name>{name}</name><source><host name='everywhere'/></source>"
        f"<target><path>{path}</path></target></pool>"
    )


def local(name: str, path: Path | str) -> str:
    """The definition of a pool of one host."""
    return f"<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"


__all__ = ["FakeBackend", "PoolDef"]
