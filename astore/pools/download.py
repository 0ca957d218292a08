"""Downloads of a pool's volumes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from astore.backend import Progress
from astore.pools.job_support import check_range, opened_volume, reporting, require_usable
from astore.pools.parts import Member
from astore.volume_io.copying import Count
from astore.volume_io.downloads import Download, downloading


@contextlib.asynccontextmanager
async def download(
    member: Member, offset: int, length: int | None, sparse: bool, on_progress: Progress | None
) -> AsyncIterator[Download]:
    """See :meth:`astore.Volume.download`."""
    pool, name = member
    life = require_usable(pool, "download a volume")
    info = member.info
    check_range(offset, length)
    session = await life.able("open-volume")
    async with opened_volume(pool, session, info) as file:
        size = (await file.stat()).size
        end = size if length is None else min(size, offset + length)
        with reporting(pool.record, name, "download", on_progress) as tell:
            count = Count(max(end - offset, 0), tell)
            async with downloading(file, min(offset, end), end, sparse, count) as blocks:
                yield blocks
