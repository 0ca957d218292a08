"""``astore vol upload`` and ``download``: volumes out of files and into them, standard input and output among them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from astore.cli import shapes
from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, size
from astore.cli.parameters import argument, force_option, pool_option, volume_argument
from astore.cli.session import Session, command
from astore.cli.volume_changes import how_far, parse_size
from astore.cli.volumes import find_volume

if TYPE_CHECKING:
    from astore.pools.volume import Volume


offset_option = click.option(
    "--offset", default="0", show_default=True, metavar="SIZE", help="Where in the volume to begin."
)


@command("upload")
@volume_argument
@argument("file", metavar="FILE", help="What to write into it; `-` is standard input.")
@pool_option
@offset_option
@click.option("--length", metavar="SIZE", help="How much it is: more is an error.")
@click.option("--sparse", is_flag=True, help="Make holes of zeros.")
@force_option
@click.option("--allow-references", is_flag=True, help="Also an image whose header names other files.")
async def upload(
    session: Session,
    volume: str,
    file: str,
    pool: str | None,
    offset: str,
    length: str | None,
    sparse: bool,
    force: bool,
    allow_references: bool,
) -> Answer:
    """Write a file into a volume."""
    from astore.cli.local_files import pieces_of, size_to_read

    _check(file)
    start = parse_size(offset, "--offset")
    limit = None if length is None else parse_size(length, "--length")
    found = await find_volume(session, volume, pool)
    total = await size_to_read(file)
    began = time.monotonic()
    session.ticker.begin_bytes(f"uploading to {found.name}", total if total is not None else limit)
    call = found.upload(
        # the library reads regular files itself, and sees their holes
        pieces_of(file) if file == "-" or total is None else file,
        offset=start,
        length=limit,
        sparse=sparse,
        on_progress=session.ticker.progress,
        force=force,
        allow_references=allow_references,
    )
    with how_far(session, found):
        count = await session.in_time(call)
    return _told(found, count, time.monotonic() - began, "uploaded to")


@command("download")
@volume_argument
@argument("file", metavar="FILE", help="Where to write it to; `-` is standard output.")
@pool_option
@offset_option
@click.option("--length", metavar="SIZE", help="At most so much.")
@click.option("--sparse", is_flag=True, help="Keep holes holes.")
async def download(
    session: Session, volume: str, file: str, pool: str | None, offset: str, length: str | None, sparse: bool
) -> Answer:
    """Read a volume into a file: complete, or not at all."""
    _check(file)
    start = parse_size(offset, "--offset")
    limit = None if length is None else parse_size(length, "--length")
    found = await find_volume(session, volume, pool)
    began = time.monotonic()
    session.ticker.begin_bytes(f"downloading {found.name}", limit)
    count = await session.in_time(_download(session, found, file, start, limit, sparse))
    if file == "-":  # where nothing else may be written to
        return Answer(None, lambda output: None)
    return _told(found, count, time.monotonic() - began, "downloaded from")


async def _download(session: Session, volume: Volume, file: str, offset: int, length: int | None, sparse: bool) -> int:
    from astore.cli.local_files import opened, save, target_for

    target = await target_for(file)
    call = volume.download(
        offset=offset, length=length, sparse=sparse and target.keeps_holes, on_progress=session.ticker.progress
    )
    async with call as chunks, opened(target):
        return await save(chunks, target)


def _check(file: str) -> None:
    if not file:  # of which the system makes the folder one is in, or none
        raise CliError("the name of the file is empty: `-` is standard input or output", Exit.USAGE)


def _told(volume: Volume, count: int, seconds: float, what: str) -> Answer:
    rate = f" in {seconds:.1f} s, {size(int(count / seconds))}/s" if count and seconds >= 0.1 else ""
    line = f"{size(count)} {what} volume {volume.name!r}{rate}"
    document = shapes.Transfer(volume.pool.name, volume.name, count, seconds)
    return Answer(document, lambda output: output.line(line))
