"""What units answer, whatever that is; and the library, as it is found and as it is not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.errors import BackendLoadError
from astore_iscsi import libiscsi, scsi
from astore_iscsi.scsi import Sense, UnitError


def page(*descriptors: bytes) -> bytes:
    """Page 83h of a disk."""
    body = b"".join(descriptors)
    return struct.pack(">BBH", 0, 0x83, len(body)) + body


def descriptor(name: bytes, association: int = 0) -> bytes:
    """A descriptor of page 83h, binary, of the type NAA."""
    return struct.pack(">BBxB", 1, association << 4 | 3, len(name)) + name


def test_identification() -> None:
    """A unit is what its own descriptors say, not its port's; without any it is what has its number at its target."""
    one = scsi.parse_identification(page(descriptor(b"12345678")), "t", 1)
    assert one == scsi.parse_identification(page(descriptor(b"12345678"), descriptor(b"port", 1)) + b"more", "u", 2)
    assert one != scsi.parse_identification(page(descriptor(b"12345679")), "t", 1)
    nameless = scsi.parse_identification(page(descriptor(b"port", 1)), "t", 1)
    assert nameless == scsi.parse_identification(bytes(4), "t", 1) != scsi.parse_identification(bytes(4), "t", 2)


def test_capacity() -> None:
    """The last block's number is one less than their count; impossible sizes are refused."""
    assert scsi.parse_capacity(struct.pack(">QI20x", 26623, 512)).size == 13_631_488
    assert scsi.parse_capacity(struct.pack(">QIxxB17x", 26623, 4096, 0xC0)) == (26624, 4096, True, True)
    assert scsi.parse_capacity(struct.pack(">QI20x", (1 << 64) - 1, 512)).size == 0
    for last, block in ((1, 0), (1, 513), (1, 256), (1, 1 << 30), (1 << 62, 512)):
        with pytest.raises(UnitError) as caught:
            scsi.parse_capacity(struct.pack(">QI20x", last, block))
        assert caught.value.errno == errno.EIO


def test_luns() -> None:
    """LUNs of one level are listed as libvirt counts them, as far as the answer goes, and the whole length is told."""
    luns = struct.pack(">8H", 1, 0, 0, 0, 0x412C, 0, 0, 0) + struct.pack(">4H", 2, 7, 0, 0)
    assert scsi.parse_luns(struct.pack(">I4x", 24) + luns) == (32, [1, 0x412C])
    assert scsi.parse_luns(struct.pack(">I4x", 4000) + luns) == (4008, [1, 0x412C])
    assert scsi.parse_luns(struct.pack(">I4x", 8) + luns) == (16, [1])


@given(st.binary(min_size=64, max_size=300))
def test_nonsense(answer: bytes) -> None:
    """Whatever a unit answers, it is read or refused."""
    scsi.parse_identification(answer, "t", 1)
    scsi.parse_luns(answer)
    scsi.parse_limits(answer, answer)
    scsi.parse_lba_status(answer)
    with contextlib.suppress(UnitError):
        scsi.parse_capacity(answer)


@pytest.mark.parametrize(
    ("key", "code", "number"),
    [
        (2, 0x0401, errno.ENXIO),
        (2, 0x3A00, errno.ENOMEDIUM),
        (3, 0x1100, errno.EIO),
        (5, 0x2000, errno.EOPNOTSUPP),
        (5, 0x2500, errno.ENOENT),
        (7, 0x2700, errno.EROFS),
        (7, 0x2707, errno.ENOSPC),
        (15, 0, errno.EIO),
    ],
)
def test_sense(key: int, code: int, number: int) -> None:
    """A refusal is an error with its number and words, and the sense in figures."""
    error = Sense(key, code).error()
    assert error.errno == number
    assert f"{key:x}h/{code >> 8:02x}h" in str(error)


class Lacking:
    """A library without one of its functions."""

    def __init__(self, lacks: str) -> None:
        self.library = ctypes.CDLL(None)
        self.lacks = lacks

    def __getattr__(self, name: str) -> Any:
        if name == self.lacks:
            raise AttributeError(name)
        return self.library


def test_old_library() -> None:
    """A library without a function is refused with its name and the version that has it."""
    with pytest.raises(BackendLoadError, match=r"no iscsi_create_context, .*1\.18 or later"):
        libiscsi.Libiscsi(Lacking("iscsi_create_context"))  # type: ignore[arg-type]


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no library, the message says what to install, and the next attempt looks again."""
    monkeypatch.setattr(libiscsi.load, "_library", None)
    with monkeypatch.context() as patch:
        patch.setattr(libiscsi, "LIBRARIES", ("libiscsi-that-is-not-there.so",))
        with pytest.raises(BackendLoadError, match="libiscsi7"):
            libiscsi.load()
    if libiscsi_is_here():
        assert libiscsi.load() is libiscsi.load()


def libiscsi_is_here() -> bool:
    """Whether the library is installed."""
    try:
        ctypes.CDLL(libiscsi.LIBRARIES[0])
    except OSError:
        return False
    return True
