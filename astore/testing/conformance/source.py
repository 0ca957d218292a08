"""The sources that the conformance suite runs on, with another client that changes their storage."""

from __future__ import annotations

import abc
import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from astore.images.blank import qcow2_by_hand
from astore.model import PoolDef

IMAGES = "images"
"""A file may hold an image of a known format, and its header counts."""
DIRECTORIES = "directories"
LINKS = "links"
FIFOS = "fifos"
CONTROL = "control"
"""Names may have control characters."""
BYTES = "bytes"
"""Names may have bytes that are not UTF-8."""
PERMISSIONS = "permissions"
"""Volumes have a mode and an owner of their own."""
BREAK = "break"
"""The source can be made to stop answering, and to answer again."""

EVERYTHING = frozenset({IMAGES, DIRECTORIES, LINKS, FIFOS, CONTROL, BYTES, PERMISSIONS, BREAK})


class SourceUnderTest(abc.ABC):
    """An empty source of one pool, and another client that changes its storage without astore.

    Names are ``str`` as os.fsdecode makes them (surrogates for bytes that are not UTF-8). Tests that need an ability
    which :attr:`can` lacks are not collected.

    :ivar definition: a definition of a pool on this source; its name is unique in the test.
    """

    can: ClassVar[frozenset[str]] = frozenset()
    """The abilities of this storage: any of this module's constants."""

    shared: ClassVar[bool] = False
    """Other pools have volumes on the same storage: a pool's allocation is its own, and the sizes do not add up."""

    lag: ClassVar[float] = 0.0
    """Seconds that the storage's caches may hide another client's change."""

    definition: PoolDef

    @abc.abstractmethod
    async def put(self, name: str, data: bytes) -> None:
        """Make a file with this content, or replace the existing one by a new file (as a rename does)."""

    @abc.abstractmethod
    async def remove(self, name: str) -> None:
        """Remove a file, an empty directory, or any other entry made here."""

    async def put_all(self, files: Mapping[str, bytes]) -> None:
        """Make many files. Override it if one by one is slow."""
        for name, data in files.items():
            await self.put(name, data)

    async def names(self) -> set[str]:
        """Return all names, hidden files included. (Backends that can change volumes.)"""
        raise NotImplementedError

    async def content(self, name: str) -> bytes:
        """Return a file's content. (Backends that can change volumes.)"""
        raise NotImplementedError

    async def settled_names(self) -> set[str]:
        """Return all names, once what astore did can be seen."""
        await self.settle()
        return await self.names()

    async def settled_content(self, name: str) -> bytes:
        """Return a file's content, once what astore did can be seen."""
        await self.settle()
        return await self.content(name)

    async def mkdir(self, name: str) -> None:
        """Make a directory. (``directories``)"""
        raise NotImplementedError

    async def symlink(self, target: str, name: str) -> None:
        """Make a symbolic link; ``target`` is a name beside it. (``links``)"""
        raise NotImplementedError

    async def mkfifo(self, name: str) -> None:
        """Make a FIFO. (``fifos``)"""
        raise NotImplementedError

    async def break_(self) -> None:
        """Make the source stop answering: calls fail soon. (``break``)"""
        raise NotImplementedError

    async def mend(self) -> None:
        """Undo :meth:`break_`, if that was called: new connections work. (``break``)"""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Let go of everything. The pool is stopped by then."""

    async def settle(self) -> None:
        """Wait until all clients see earlier changes."""
        if self.lag:
            await asyncio.sleep(self.lag)


class FolderSource(SourceUnderTest):
    """A source whose other side is a folder: the pool's own, or another client's mount of the same storage.

    :param definition: of the pool. :param folder: where the other side sees the pool's files. It must exist, and a
        folder beside it (``NAME.new``) must be on the same file system: files are renamed from there.
    """

    can = EVERYTHING - {BREAK}

    def __init__(self, definition: PoolDef, folder: Path) -> None:
        self.definition = definition
        self.folder = folder

    async def put(self, name: str, data: bytes) -> None:
        """Write a file beside the folder and rename it into it."""
        await asyncio.to_thread(self._put, {name: data})

    async def put_all(self, files: Mapping[str, bytes]) -> None:
        await asyncio.to_thread(self._put, files)

    async def remove(self, name: str) -> None:
        await asyncio.to_thread(self._remove, name)

    async def names(self) -> set[str]:
        return set(await asyncio.to_thread(os.listdir, self.folder))

    async def content(self, name: str) -> bytes:
        return await asyncio.to_thread(self._content, name)

    async def mkdir(self, name: str) -> None:
        await asyncio.to_thread(os.mkdir, self.folder / name)

    async def symlink(self, target: str, name: str) -> None:
        await asyncio.to_thread(os.symlink, target, self.folder / name)

    async def mkfifo(self, name: str) -> None:
        await asyncio.to_thread(os.mkfifo, self.folder / name)

    def _put(self, files: Mapping[str, bytes]) -> None:
        beside = self.folder.with_name(self.folder.name + ".new")
        beside.mkdir(exist_ok=True)
        try:
            for name, data in files.items():
                (beside / "file").write_bytes(data)
                os.rename(beside / "file", self.folder / name)
        finally:
            beside.rmdir()

    def _content(self, name: str) -> bytes:
        with (self.folder / name).open("rb") as file:
            # what this side's kernel has in its cache may be older than what the pool wrote; see posix_fadvise(2)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return file.read()

    def _remove(self, name: str) -> None:
        path = self.folder / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()


class MovableFolder(FolderSource):
    """A local folder, which breaks by being moved away."""

    can = EVERYTHING

    async def break_(self) -> None:
        """Rename the folder."""
        await asyncio.to_thread(os.rename, self.folder, self._away)

    async def mend(self) -> None:
        """Rename it back."""
        await asyncio.to_thread(self._mend)

    async def aclose(self) -> None:
        """Remove the folder, wherever it is."""
        for folder in (self.folder, self._away):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @property
    def _away(self) -> Path:
        return self.folder.with_name(self.folder.name + ".away")

    def _mend(self) -> None:
        if self._away.exists():
            os.rename(self._away, self.folder)


def renamed(definition: PoolDef, name: str, **changes: Any) -> PoolDef:
    """The definition of another pool on the same source."""
    return msgspec.structs.replace(definition, name=name, uuid=None, **changes)


def raw(size: int = 8192, fill: bytes = b"\0") -> bytes:
    """Return the content of a raw image of ``size`` bytes."""
    return fill * size


def qcow2(size: int = 1 << 30, backing: str | None = None, backing_format: str | None = None) -> bytes:
    """Return the beginning of a qcow2 image, as much as astore reads of it.

    :param size: the virtual size, in bytes. :param backing: the backing file's name in the header.
    """
    return qcow2_by_hand(size, backing, backing_format).parts[0][1].ljust(512, b"\0")


TRUNCATED = qcow2()[:24]
"""An image that is truncated within its header."""
