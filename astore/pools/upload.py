"""Uploads, and the format that a volume has after one: the upload's own first bytes decide it."""

from __future__ import annotations

from errno import EPERM

from astore.backend import Progress
from astore.errors import StorageError, TransferError, printable
from astore.images import ImageError, probe
from astore.model import ImageInfo, VolumeInfo
from astore.pools.job_support import begin_change, check_range, keep_raw, opened_volume, reporting
from astore.pools.parts import Parts
from astore.pools.pool_errors import about_volume
from astore.volume_io import transfer
from astore.volume_io.copying import Count
from astore.volume_io.downloads import Download
from astore.volume_io.uploads import Beginning, Source, beginning, chunks_of


async def upload(
    pool: Parts,
    name: str,
    source: Source,
    *,
    offset: int,
    length: int | None,
    sparse: bool,
    on_progress: Progress | None,
    force: bool,
    allow_references: bool,
) -> int:
    """See :meth:`astore.Volume.upload`."""
    life, info = await begin_change(pool, name, "upload", force)
    check_range(offset, length)
    anew, made = False, None
    with pool.claims.claim(name, "uploaded to"):
        session = await life.able("open-volume")
        try:
            async with (
                chunks_of(source, life.lane, sparse=sparse) as (chunks, size),
                opened_volume(pool, session, info, write=True) as file,
                beginning(file, chunks, offset, length) as (given, start),
            ):
                anew, made = _new_format(info, start, allow_references)
                with reporting(pool.record, name, "upload", on_progress) as tell:
                    count = Count(length if size is None else size, tell)
                    if anew and made is not None:  # before the first write: the upload may break off
                        await file.note_format(made)
                    own = isinstance(chunks, Download)
                    end = await transfer.upload(file, given, offset, length, sparse, count, own=own)
                if anew and made is None:
                    await file.note_format(None)
        except TransferError as error:
            raise about_volume(pool.name, error) from error.__cause__
        finally:
            await pool.refresher.look_again(name)
            if anew and made is not None:
                keep_raw(pool, name)
        life.check("upload", session)
        return end - offset


def _new_format(info: VolumeInfo, given: Beginning, allow_references: bool) -> tuple[bool, str | None]:
    """Return whether an upload decides the volume's format, and the format to note then: ``raw``, or None for an image.

    Only the upload's own bytes decide it, and only from the first byte on: a guest may have written the others.

    :raises StorageError: EPERM: the header would name new files, or cannot be read, and references are not allowed.
    """
    if given.head is None or (info.made == "raw" and given.offset):
        return False, None
    said = _image(given.own) if not given.offset else None
    if not given.offset and said is None:
        return True, "raw"
    image = _image(given.head)
    known = {(one.kind, one.name, one.format) for one in info.references}
    what = f"what is to be uploaded to volume {info.name!r} is an image"
    if isinstance(image, ImageError) or isinstance(said, ImageError):
        if not allow_references:
            raise StorageError(
                f"{what} whose header cannot be read, and may name other files: nothing was written; allow its references "
                "(--allow-references) if that is meant",
                errno=EPERM,
            )
        return True, "raw"
    for one in () if image is None or allow_references else image.references:
        if (one.kind, one.name, one.format) not in known:
            raise StorageError(
                f"{what} whose header names another file, {printable(one.name) or one.doubt}: nothing was written; allow its "
                "references (--allow-references) if that is meant",
                errno=EPERM,
            )
    return not given.offset, None


def _image(head: bytes) -> ImageInfo | ImageError | None:
    """Return the contents of a header, or why it cannot be read."""
    try:
        return probe(head)
    except ImageError as error:
        return error
