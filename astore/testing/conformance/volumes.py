"""All checks of work on volumes; see the modules beside this one."""

from __future__ import annotations

from astore.testing.conformance.volumes_cancelled import CancelledWorkChecks
from astore.testing.conformance.volumes_changed import ChangedVolumeChecks
from astore.testing.conformance.volumes_copied import CopiedVolumeChecks
from astore.testing.conformance.volumes_made import MadeVolumeChecks
from astore.testing.conformance.volumes_streamed import StreamedVolumeChecks
from astore.testing.conformance.volumes_written_by_two import TwoWriterChecks


class VolumeChecks(
    MadeVolumeChecks,
    StreamedVolumeChecks,
    CopiedVolumeChecks,
    ChangedVolumeChecks,
    TwoWriterChecks,
    CancelledWorkChecks,
):
    """Create, copy, upload, download, resize, wipe, rename, delete, and chains."""
