"""The pool type ``dir``: a folder of this machine."""

from __future__ import annotations

import errno
from typing import ClassVar

import msgspec

from astore.backend import Backend, Context, PoolSession
from astore.backends.target import build_target, delete_target
from astore.errors import DefinitionError, StorageError
from astore.model import PoolDef, Source
from astore.model.formats import FILE_FORMATS
from astore.names import check_path
from astore.trees.session import WritableTreeSession
from astore.trees.writable_local import WritableLocalTree


class DirectoryBackend(Backend):
    """Pools that are a folder, ``<target><path>``."""

    type: ClassVar[str] = "dir"
    volume_formats: ClassVar[tuple[str, ...]] = FILE_FORMATS

    def check(self, definition: PoolDef) -> PoolDef:
        """Require a target path; a source means nothing here and is kept unchanged."""
        path = definition.target.path
        if not path:
            raise DefinitionError("a dir pool needs a target path", element="target")
        target = msgspec.structs.replace(definition.target, path=check_path(path))
        return msgspec.structs.replace(definition, target=target, source=definition.source or Source())

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        """Return the target path."""
        return (("target path", definition.target.path or ""),)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        """Open the folder."""
        path = definition.target.path or ""
        try:
            tree = await context.lane.run(WritableLocalTree, path, discard=WritableLocalTree.close)
        except NotADirectoryError as error:
            raise StorageError(f"{path} is not a directory", errno=errno.ENOTDIR) from error
        except FileNotFoundError as error:
            raise StorageError(f"{path} does not exist: create it, or build the pool", errno=errno.ENOENT) from error
        return WritableTreeSession(tree, context)

    build = staticmethod(build_target)
    delete = staticmethod(delete_target)
