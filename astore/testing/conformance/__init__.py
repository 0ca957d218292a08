"""The conformance suite: a backend is finished when its short subclass of :class:`BackendConformance` passes.

::

    from astore.testing.conformance import BackendConformance, MovableFolder

    class TestMine(BackendConformance):
        source_class = MovableFolder

        def make_source(self, folder):
            (folder / "files").mkdir()
            ...
            return MovableFolder(PoolDef(type="mine", name=folder.name, ...), folder / "files")

It runs under pytest with pytest-asyncio, in any mode (``pip install astore[testing]``). Nothing in it knows a backend
by name: its abilities (:mod:`astore.backend`) decide which tests run, and the entries that it gets depend on
what its storage can hold (``SourceUnderTest.can``). Warnings should be errors, and blocking calls in the loop should be
caught by blockbuster.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in (
            *("base", "contract", "lifecycle", "records", "refreshing", "cancelling", "sharing", "naming"),
            *("streams", "volumes_made", "volumes_streamed", "volumes_copied", "volumes_changed"),
            *("volumes_written_by_two", "volumes_cancelled", "watched"),
        )
    )
)

from astore.testing.conformance.base import ConformanceBase  # noqa: E402
from astore.testing.conformance.cancelling import CancellationChecks  # noqa: E402
from astore.testing.conformance.contract import ContractChecks  # noqa: E402
from astore.testing.conformance.lifecycle import LifecycleChecks  # noqa: E402
from astore.testing.conformance.naming import NamingChecks  # noqa: E402
from astore.testing.conformance.records import RecordChecks  # noqa: E402
from astore.testing.conformance.refreshing import RefreshChecks  # noqa: E402
from astore.testing.conformance.sharing import SharingChecks  # noqa: E402
from astore.testing.conformance.source import (  # noqa: E402
    EVERYTHING,
    FolderSource,
    MovableFolder,
    SourceUnderTest,
)
from astore.testing.conformance.volumes_cancelled import CancelledWorkChecks  # noqa: E402
from astore.testing.conformance.volumes_changed import ChangedVolumeChecks  # noqa: E402
from astore.testing.conformance.volumes_copied import CopiedVolumeChecks  # noqa: E402
from astore.testing.conformance.volumes_made import MadeVolumeChecks  # noqa: E402
from astore.testing.conformance.volumes_streamed import StreamedVolumeChecks  # noqa: E402
from astore.testing.conformance.volumes_written_by_two import TwoWriterChecks  # noqa: E402
from astore.testing.conformance.watched import WatchChecks  # noqa: E402


class BackendConformance(
    ContractChecks,
    LifecycleChecks,
    RecordChecks,
    RefreshChecks,
    CancellationChecks,
    SharingChecks,
    NamingChecks,
    WatchChecks,
    MadeVolumeChecks,
    StreamedVolumeChecks,
    CopiedVolumeChecks,
    ChangedVolumeChecks,
    TwoWriterChecks,
    CancelledWorkChecks,
    ConformanceBase,
):
    """All tests. A subclass gives :attr:`source_class` and :meth:`make_source`."""


__all__ = [
    "EVERYTHING",
    "BackendConformance",
    "FolderSource",
    "MovableFolder",
    "SourceUnderTest",
]
