"""The headers of images: what to ask of the objects ``rbd_directory``, ``rbd_id.NAME`` and ``rbd_header.ID``, and the answers.

The encodings are those of Ceph's ``src/include/encoding.h``: little-endian numbers, and texts after their lengths.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

from astore_rbd.images.reading import Answer, Method, Question
from astore_rbd.librbd import FEATURE_FAST_DIFF, FEATURE_OBJECT_MAP, FLAG_FAST_DIFF_INVALID, FLAG_OBJECT_MAP_INVALID

_HEAD = struct.pack("<Q", 0xFFFFFFFFFFFFFFFE)
"""CEPH_NOSNAP: the image itself, none of its snapshots."""

_ASKED = (
    Method(b"get_size", _HEAD, 64),
    Method(b"get_features", _HEAD + b"\x01", 64),
    Method(b"get_flags", _HEAD, 64),
    Method(b"get_snapcontext", b"", 12 + 8 * 510),  # the kernel's client takes no more; an image with more is opened
    Method(b"get_modify_timestamp", b"", 64),
    Method(b"parent_get"),
)

_SIZE = struct.Struct("<BQ").unpack_from
_FEATURES = struct.Struct("<QQ").unpack_from
_FLAGS = struct.Struct("<Q").unpack_from
_SNAPSHOTS = struct.Struct("<QI").unpack_from
_TIME = struct.Struct("<II").unpack_from
_PARENT = struct.Struct("<BBIq").unpack_from

_TRASHED = 256 << 10
"""The room in bytes for what the trash has of some images."""

KNOWN_INCOMPATIBLE = 0x1FF
"""The features that may be among the incompatible ones of an image whose header is understood: those up to OPERATIONS."""

_NAMES = (
    "layering",
    "striping",
    "exclusive-lock",
    "object-map",
    "fast-diff",
    "deep-flatten",
    "journaling",
    "data-pool",
    "operations",
    "migrating",
    "non-primary",
    "dirty-cache",
)
"""What ``rbd info`` calls the features, from the lowest bit (Ceph's include/rbd/features.h)."""

_LARGEST_MAP = 64 << 20


class Parent(NamedTuple):
    """The snapshot that a clone reads through: numbers of the pool and of the snapshot, and the image's id."""

    pool: int
    namespace: str
    image: str
    snapshot: int


class Header(NamedTuple):
    """What an image's header says. ``size`` in bytes, ``order`` the exponent of its objects' size."""

    size: int
    order: int
    features: int
    flags: int
    snapshots: tuple[int, ...]
    changed_ns: int
    parent: Parent | None

    @property
    def has_map(self) -> bool:
        """Whether the image's object map can be relied on."""
        return has_map(self.features, self.flags)

    @property
    def whole(self) -> int:
        """The bytes of all objects that the image can have."""
        return -(-self.size >> self.order) << self.order


@functools.cache
def feature_names(features: int) -> tuple[str, ...]:
    """Return the names of an image's features; a bit that has none is its number, such as ``feature-12``."""
    bits = [bit for bit in range(64) if features >> bit & 1]
    return tuple(_NAMES[bit] if bit < len(_NAMES) else f"feature-{bit}" for bit in bits)


def has_map(features: int, flags: int) -> bool:
    """Return whether an image has an object map that can be relied on."""
    both, wrong = FEATURE_OBJECT_MAP | FEATURE_FAST_DIFF, FLAG_OBJECT_MAP_INVALID | FLAG_FAST_DIFF_INVALID
    return features & both == both and not flags & wrong


def header_question(id: str) -> Question:
    """Return the question for an image's header."""
    return Question(b"rbd_header." + os.fsencode(id), _ASKED)


def version_question(id: str) -> Question:
    """Return the question for the version of an image's header, which differs after each change of the header."""
    return Question(b"rbd_header." + os.fsencode(id))


def map_question(id: str, header: Header) -> Question:
    """Return the question for an image's object map."""
    length = min((header.whole >> header.order) // 4 + 4096, _LARGEST_MAP)
    return Question(b"rbd_object_map." + os.fsencode(id), length=length)


def id_question(name: bytes) -> Question:
    """Return the question for the id of the image of a name."""
    return Question(b"rbd_id." + name, (Method(b"get_id"),))


def name_question(id: str) -> Question:
    """Return the question for the name of the image of an id."""
    return Question(b"rbd_directory", (Method(b"dir_get_name", _packed(id)),))


def snapshots_question(id: str, snapshots: Iterable[int]) -> Question:
    """Return the question for the names of an image's snapshots."""
    asked = tuple(Method(b"get_snapshot_name", struct.pack("<Q", one), 512) for one in snapshots)
    return Question(b"rbd_header." + os.fsencode(id), asked)


def trash_question(after: str, most: int) -> Question:
    """Return the question for the ids of images in the trash, those after one in their order; see :func:`trashed_in`."""
    return Question(b"rbd_trash", (Method(b"trash_list", _packed(after) + struct.pack("<Q", most), _TRASHED),))


def _packed(text: str) -> bytes:
    data = os.fsencode(text)
    return struct.pack("<I", len(data)) + data


def trashed_in(answer: Answer) -> list[str]:
    """Return the ids of some images in the trash; none if there are no more, or the answer is none."""
    (data,) = answer.parts or (None,)
    found: list[str] = []
    if data is None or answer.result < 0:
        return found
    try:
        (count,), at = struct.unpack_from("<I", data), 4
        for _ in range(count):
            id, at = _text(data, at)
            found.append(id)
            (length,) = struct.unpack_from("<I", data, at + 2)  # of what else is known of it
            at += 6 + length
    except struct.error:
        return []
    return found


def text_in(answer: Answer) -> str | None:
    """Return the text that is the answer; None if there is none."""
    return next(iter(texts_in(answer)), None)


def texts_in(answer: Answer) -> list[str | None]:
    """Return the texts that are the answers; None for one that is none."""
    found: list[str | None] = []
    for data in answer.parts:
        try:
            found.append(None if data is None or answer.result < 0 else _text(data, 0)[0])
        except struct.error:
            found.append(None)
    return found


def header_in(answer: Answer) -> Header | None:
    """Return the header that is the answer; None if it is not understood."""
    if answer.result < 0 or len(answer.parts) != len(_ASKED) or None in answer.parts:
        return None
    size, features, flags, snapshots, changed, parent = (part or b"" for part in answer.parts)
    try:
        order, bytes_ = _SIZE(size)
        allowed, incompatible = _FEATURES(features)
        _, count = _SNAPSHOTS(snapshots)
        seconds, nanoseconds = _TIME(changed)
        if incompatible & ~KNOWN_INCOMPATIBLE or not 9 <= order < 32:
            return None
        return Header(
            bytes_,
            order,
            allowed,
            _FLAGS(flags)[0],
            struct.unpack_from(f"<{count}Q", snapshots, 12) if count else (),
            seconds * 10**9 + nanoseconds,
            _parent(parent),
        )
    except (struct.error, UnicodeDecodeError):
        return None


def _parent(data: bytes) -> Parent | None:
    """Return the parent in an encoded ParentImageSpec; None if the image has none. :raises struct.error: as it says."""
    _, oldest, _, pool = _PARENT(data)
    if oldest != 1:
        raise struct.error("a parent of another version")
    if pool < 0:
        return None
    namespace, at = _text(data, 14)
    image, at = _text(data, at)
    (snapshot,) = struct.unpack_from("<Q", data, at)
    return Parent(pool, namespace, image, snapshot)


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<I", data, at)
    end = at + 4 + length
    if end > len(data):
        raise struct.error("a text is cut short")
    return data[at + 4 : end].decode(errors="surrogateescape"), end


_THERE = bytes(sum((byte >> shift) & 3 in (1, 3) for shift in (0, 2, 4, 6)) for byte in range(256))
"""How many of the four objects of a byte of an object map exist: their states are 1 (changed) or 3 (as in a snapshot)."""


def allocation_in(answer: Answer, header: Header) -> int | None:
    """Return the bytes of the objects that exist, by the image's object map; None if it is not understood.

    The last object counts up to the image's end, as in libvirt. The map is an encoded BitVector
    (``src/common/bit_vector.hpp``): the length of a header, that, and two bits for each object.
    """
    (data,) = answer.parts or (None,)
    if answer.result < 0 or data is None:
        return None
    try:
        (length,) = struct.unpack_from("<I", data)
        (count,) = struct.unpack_from("<Q", data, 4 + 6)
    except struct.error:
        return None
    used = -(-count // 4)
    states = data[4 + length : 4 + length + used]
    if count != header.whole >> header.order or len(states) != used:
        return None
    last = count - 1
    is_whole = not count or (states[last // 4] >> (6 - 2 * (last % 4))) & 3 not in (1, 3)
    return (sum(states.translate(_THERE)) << header.order) - (0 if is_whole else header.whole - header.size)


def number_of(id: str) -> int:
    """Return the number that identifies an image in its pool: its id, or a digest of an id that is no such number."""
    try:
        number = int(id, 16)
    except ValueError:
        number = 0
    if 0 < number < 1 << 63 and f"{number:x}" == id:
        return number
    return (
        int.from_bytes(hashlib.blake2b(id.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1 or 1
    )
