"""Overwrite a volume's data by libvirt's algorithms (virStorageVolWipeAlgorithm).

libvirt leaves all algorithms except ``zero`` and ``trim`` to the program scrub; the passes here are those of scrub(1). A hole
has no data to overwrite and stays a hole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping

from astore.backend import Lane, VolumeFile
from astore.errors import DefinitionError, LibvirtCode, StorageError
from astore.volume_io.copying import BLOCK, Count, data_ranges, side_by_side

PUNCH_AT_ONCE = 1 << 30
"""The most bytes that one call punches."""

Pass = bytes | None
"""The pattern of one pass; None: random data."""

RANDOM: Pass = None


def _bytes(*values: int) -> tuple[Pass, ...]:
    return tuple(bytes([value]) for value in values)


_MFM = (b"\x92\x49\x24", b"\x49\x24\x92", b"\x24\x92\x49")
_RLL = (b"\x6d\xb6\xdb", b"\xb6\xdb\x6d", b"\xdb\x6d\xb6")

PASSES: Mapping[str, tuple[Pass, ...]] = {
    "zero": _bytes(0),
    "nnsa": (RANDOM, RANDOM, b"\0"),
    "dod": (RANDOM, b"\0", b"\xff"),
    "bsi": _bytes(0xFF, 0xFE, 0xFD, 0xFB, 0xF7, 0xEF, 0xDF, 0xBF, 0x7F),
    "gutmann": (
        *(RANDOM,) * 4,
        *_bytes(0x55, 0xAA),
        *_MFM,
        *_bytes(*range(0x00, 0x100, 0x11)),
        *_MFM,
        *_RLL,
        *(RANDOM,) * 4,
    ),
    "schneier": (*_bytes(0x00, 0xFF), *(RANDOM,) * 5),
    "pfitzner7": (RANDOM,) * 7,
    "pfitzner33": (RANDOM,) * 33,
    "random": (RANDOM,),
}
"""The passes of each algorithm."""

VERIFIED = frozenset({"nnsa", "dod"})
"""The algorithms whose fourth pass reads back what the third wrote."""

ALGORITHMS = (*PASSES, "trim")


def check_algorithm(algorithm: str) -> None:
    """Check the name of an algorithm. :raises DefinitionError: there is no such algorithm."""
    if algorithm not in ALGORITHMS:
        raise DefinitionError(
            f"unknown wipe algorithm {algorithm!r}; known: {', '.join(ALGORITHMS)}",
            libvirt_code=LibvirtCode.INVALID_ARG,
        )


def passes_of(algorithm: str) -> int:
    """Return how many times an algorithm goes over the data, reading included."""
    return len(PASSES.get(algorithm, (b"",))) + (algorithm in VERIFIED)


async def wipe(file: VolumeFile, algorithm: str, count: Count, lane: Lane) -> None:
    """Overwrite all data of an open volume.

    :param lane: whose threads generate random data.
    :raises StorageError: EIO: the data read back differs from what was written.
    """
    size = (await file.stat()).size
    if algorithm == "trim":
        count.total = size
        for at in range(0, size, PUNCH_AT_ONCE):
            await file.punch(at, min(PUNCH_AT_ONCE, size - at))
            count.add(min(PUNCH_AT_ONCE, size - at))
        await file.sync()
        return
    ranges = [found async for found in data_ranges(file, 0, size)]
    count.total = sum(stop - start for start, stop in ranges) * passes_of(algorithm)
    for pattern in PASSES[algorithm]:
        await _one_pass(file, ranges, pattern, count, lane)
        await file.sync()  # otherwise the next pass would overwrite data that never left the cache
    if algorithm in VERIFIED:
        await _verify(file, ranges, PASSES[algorithm][-1] or b"\0", count)


def _blocks(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    return ((at, min(at + BLOCK, stop)) for start, stop in ranges for at in range(start, stop, BLOCK))


async def _one_pass(file: VolumeFile, ranges: list[tuple[int, int]], pattern: Pass, count: Count, lane: Lane) -> None:
    blocks = _blocks(ranges)
    width = 1 if pattern is None else len(pattern)
    whole = b"" if pattern is None else pattern * (BLOCK // width + 2)

    async def work() -> None:
        for start, stop in blocks:
            if pattern is None:
                data: bytes | memoryview = await lane.run(os.urandom, stop - start)
            else:
                data = memoryview(whole)[start % width : start % width + stop - start]
            await file.pwrite(data, start)
            count.add(stop - start)

    await side_by_side(work, file.in_flight)


async def _verify(file: VolumeFile, ranges: list[tuple[int, int]], pattern: bytes, count: Count) -> None:
    whole = pattern * (BLOCK // len(pattern) + 2)
    for start, stop in _blocks(ranges):
        data = await file.pread(stop - start, start)
        shift = start % len(pattern)
        if data != whole[shift : shift + stop - start]:
            raise StorageError(f"bytes {start} to {stop} read back differ from what was written", errno=errno.EIO)
        count.add(stop - start)
