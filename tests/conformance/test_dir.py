"""The pool type ``dir`` and the conformance suite."""

from __future__ import annotations

from pathlib import Path

from astore.model import PoolDef, Target
from astore.testing.conformance import BackendConformance, MovableFolder


class TestDirectory(BackendConformance):
    """Folders of this machine."""

    source_class = MovableFolder

    def make_source(self, folder: Path) -> MovableFolder:
        """An empty folder."""
        files = folder / "files"
        files.mkdir()
        return MovableFolder(PoolDef(type="dir", name=folder.name, target=Target(path=str(files))), files)
