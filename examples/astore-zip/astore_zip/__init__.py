"""Disk images in a zip archive as an astore pool, read-only: ``<source><device path='/srv/appliance.zip'/></source>``.

A member is a volume, and a folder in the archive is a directory. The CRC in the archive's table shows whether a member
changed, so astore reads only the members that differ when an archive is rewritten.
"""

import contextlib
import errno
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from astore import Backend, Context, DefinitionError, Device, PoolDef, PoolSession, StorageError
from astore.images import HEADER_SIZE
from astore.model import FileStat
from astore.names import check_path
from astore.trees import FIRST_READ, Entry, FileTree, FileTreeSession


class ZipBackend(Backend):
    """Drive pools that are zip archives."""

    type = "zip"
    volume_formats = ("raw", "qcow2", "vmdk", "vdi", "vhd", "iso")

    def check(self, definition: PoolDef) -> PoolDef:
        if len(definition.source.devices) != 1:
            raise DefinitionError("a zip pool needs one source device: its archive", element="source")
        archive = check_path(definition.source.devices[0].path, what="archive", element="device")
        return replace(definition, source=replace(definition.source, devices=(Device(archive),)))

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        return (("source device", definition.source.devices[0].path),)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        tree = await context.lane.run(ZipTree, definition.source.devices[0].path, discard=ZipTree.close)
        return FileTreeSession(tree, context)


class ZipTree(FileTree):
    """The top level of an archive. Every call opens the archive again: archives are replaced rather than changed."""

    def __init__(self, path: str) -> None:
        self.path, self.closed = path, False
        self.entries()  # raises if there is no archive: the pool does not start

    def entries(self) -> dict[str, Entry]:
        if self.closed:
            raise OSError(errno.EBADF, "the pool is closed", self.path)
        found, own = {}, os.stat(self.path)
        if not stat.S_ISREG(own.st_mode):  # opening a FIFO would wait for its writer
            raise OSError(errno.EINVAL, "not a regular file", self.path)
        with _os_errors(self.path):
            archive = zipfile.ZipFile(self.path)  # closed when the last entry that holds it is gone
            for member in archive.infolist():
                name, slash, _ = member.filename.partition("/")
                mode = (stat.S_IFDIR if slash else stat.S_IFREG) | (stat.S_IMODE(member.external_attr >> 16) or 0o444)
                at = int(time.mktime((*member.date_time, 0, 0, -1))) * 10**9
                size, blocks = 0 if slash else member.file_size, -(-member.compress_size // 512)
                st = FileStat(mode, member.CRC or 1, size, blocks, own.st_uid, own.st_gid, at, at, at)
                if name not in ("", ".", ".."):
                    found[name] = Entry(name, st, (archive, member))
        return found

    def key(self, name: str) -> str:
        return f"{self.path}/{name}"

    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry]:
        return (entry for entry in self.entries().values() if want(entry.name, entry.stat))

    def lookup(self, name: str) -> Entry | None:
        return self.entries().get(name)

    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        archive, member = entry.handle
        if stat.S_ISLNK(member.external_attr >> 16):
            raise StorageError("it is a symbolic link, and those are not followed", errno=errno.EPERM)
        with _os_errors(), archive.open(member) as file:
            head = bytes(file.read(FIRST_READ))
            return head + bytes(file.read(HEADER_SIZE - len(head))) if more(head) else head

    def statvfs(self) -> tuple[int, int]:
        return os.stat(self.path).st_size, 0

    def close(self) -> None:
        self.closed = True


@contextlib.contextmanager
def _os_errors(path: str | None = None) -> Iterator[None]:
    """Turn zipfile's exceptions, of which there are a dozen, into the OSError that a FileTree raises."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, str(error) or type(error).__name__, path) from error
