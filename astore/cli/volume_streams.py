"""``astore vol upload`` and ``download``: copy files into volumes and back, also by standard input and output."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from astore.cli.command_line import argument, option
from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, size
from astore.cli.parameters import force_option
from astore.cli.session import Session
from astore.cli.volume_changes import SIZE, how_far
from astore.cli.volumes import volume_command

if TYPE_CHECKING:
    from astore.pools.volume import Volume


offset_option = option(
    "--offset", type=SIZE, default="0", show_default=True, metavar="SIZE", help="Where in the volume to begin."
)


@volume_command("upload")
@argument("file", metavar="FILE", help="What to write into it: a file, `-` for standard input, or https://...")
@offset_option
@option("--length", type=SIZE, metavar="SIZE", help="The most to write: a longer file is an error.")
@option("--sparse", is_flag=True, help="Make holes of zeros.")
@option("--replace", is_flag=True, help="Cut the volume off behind it: nothing stays of what the volume had.")
@option(
    "--unpack/--no-unpack",
    default=None,
    help="Unpack .gz, .xz, .zst and .bz2 (the default, but under virsh's name not).",
)
@force_option
@option("--allow-references", is_flag=True, help="Also an image whose header names other files.")
async def upload(
    session: Session,
    volume: Volume,
    file: str,
    offset: int,
    length: int | None,
    sparse: bool,
    replace: bool,
    unpack: bool | None,
    force: bool,
    allow_references: bool,
) -> Answer:
    """Write a file into a volume."""
    from astore.cli.upload_sources import UploadSource

    _check(file)
    if replace and offset:
        raise CliError("--replace and --offset: say one of them", Exit.USAGE)
    source = UploadSource(file, unpack=not session.settings.virsh if unpack is None else unpack)
    total = await source.size()
    _check_room(volume, file, total, offset, length)
    began = time.monotonic()
    session.ticker.begin_bytes(f"uploading to {volume.name}", total if total is not None else length)
    pieces = source.pieces(total)
    call = volume.upload(
        pieces,
        offset=offset,
        length=length,
        sparse=sparse,
        on_progress=session.ticker.progress,
        force=force,
        allow_references=allow_references,
    )
    closing = contextlib.nullcontext() if isinstance(pieces, str) else contextlib.aclosing(pieces)
    async with closing:
        with how_far(session, volume):
            count = await session.in_time(call)
        if replace:
            await session.in_time(_cut_off(volume, count, force))
    return _told(volume, count, time.monotonic() - began, "uploaded to")


@volume_command("download")
@argument("file", metavar="FILE", help="Where to write it to; `-` is standard output.")
@offset_option
@option("--length", type=SIZE, metavar="SIZE", help="The most to read.")
@option("--sparse", is_flag=True, help="Keep holes holes.")
async def download(
    session: Session, volume: Volume, file: str, offset: int, length: int | None, sparse: bool
) -> Answer:
    """Read a volume into a file: complete, or not at all."""
    _check(file)
    began = time.monotonic()
    session.ticker.begin_bytes(f"downloading {volume.name}", length)
    count = await session.in_time(_download(session, volume, file, offset, length, sparse))
    if file == "-":  # standard output is the volume's content
        return Answer(None, lambda output: None)
    return _told(volume, count, time.monotonic() - began, "downloaded from")


def _check_room(volume: Volume, file: str, total: int | None, offset: int, length: int | None) -> None:
    """Refuse a file that is too long before anything is written. :raises CliError: it is."""
    if total is None:
        return
    if length is not None and total > length:
        raise CliError(f"{file} has {total} bytes, more than the {length} of --length: nothing was written")
    room = volume.info.capacity - offset
    if volume.info.type in ("block", "network") and total > room:
        raise CliError(
            f"{file} has {total} bytes, and volume {volume.name!r} room for {max(room, 0)}: nothing was written"
        )


async def _cut_off(volume: Volume, length: int, force: bool) -> None:
    """Leave nothing behind so many bytes: a file is cut off, a device is zeroed."""
    async with volume.open(write=True, force=force) as file:
        size = (await file.stat()).size
        if volume.info.type in ("block", "network"):
            await file.punch(length, max(size - length, 0))
        else:
            await file.truncate(length)
        await file.sync()


async def _download(session: Session, volume: Volume, file: str, offset: int, length: int | None, sparse: bool) -> int:
    from astore.cli.local_files import opened, save, target_for
    from astore.cli.replacing import Replacing

    target = await target_for(file, Replacing(session.manager.pools(active=True)).check)
    call = volume.download(
        offset=offset, length=length, sparse=sparse and target.keeps_holes, on_progress=session.ticker.progress
    )
    async with call as chunks, opened(target):
        return await save(chunks, target)


def _check(file: str) -> None:
    if not file:  # the system takes an empty name for the current folder, or for none
        raise CliError("the name of the file is empty: `-` is standard input or output", Exit.USAGE)


def _told(volume: Volume, count: int, seconds: float, what: str) -> Answer:
    rate = f" in {seconds:.1f} s, {size(int(count / seconds))}/s" if count and seconds >= 0.1 else ""
    line = f"{size(count)} {what} volume {volume.name!r}{rate}"
    document = {"pool": volume.pool.name, "name": volume.name, "bytes": count, "seconds": seconds}
    return Answer(document, lambda output: output.line(line))
