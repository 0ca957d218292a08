"""What is known of C: the structures of this machine's C library, and the prototypes of libgfapi's own headers."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import stat
import sys
from pathlib import Path

import pytest

from astore_gluster.layout import (
    DIRENT_NAME,
    DIRENT_ROOM,
    NAME_ROOM,
    STATVFS_ROOM,
    decode_stat,
    decode_statvfs,
    stat_layout,
)
from astore_gluster.libgfapi import Gfapi

HEADERS = Path("/usr/include/glusterfs/api")

needs_stat = pytest.mark.skipif(
    stat_layout() is None or not hasattr(ctypes.CDLL(None), "stat"),
    reason="this machine's struct stat is not known, or its C library is older than glibc 2.33",
)


@needs_stat
def test_stat_as_the_c_library_lays_it_out(tmp_path: Path) -> None:
    """What stat(2) writes into memory is decoded into what os.stat() says."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 70_000)
    os.truncate(path, 5 << 40)
    os.chmod(path, 0o6754)
    os.utime(path, ns=(1_999_999_999_123_456_789, 5_000_000_001_000_000_001))
    layout = stat_layout()
    assert layout is not None
    guard = b"\xa5" * 64
    buffer = ctypes.create_string_buffer(bytes(layout.size) + guard, layout.size + len(guard))
    assert ctypes.CDLL(None).stat(os.fsencode(path), buffer) == 0
    found, st = decode_stat(layout, buffer.raw), os.stat(path)
    assert found == (
        st.st_mode,
        st.st_ino,
        st.st_size,
        st.st_blocks,
        st.st_uid,
        st.st_gid,
        st.st_atime_ns,
        st.st_mtime_ns,
        st.st_ctime_ns,
        0,
    )
    assert found.size == 5 << 40
    assert stat.S_ISREG(found.mode)
    assert buffer.raw[layout.size :] == guard, "the structure is larger than thought"


def test_times_before_the_epoch() -> None:
    """Seconds are signed, nanoseconds count forward from them."""
    layout = stat_layout("x86_64")
    assert layout is not None
    data = bytearray(layout.size)
    data[72:88] = (-2).to_bytes(8, sys.byteorder, signed=True) + (5).to_bytes(8, sys.byteorder)
    assert decode_stat(layout, data).atime_ns == -2_000_000_000 + 5


@pytest.mark.parametrize(("machine", "size"), [("x86_64", 144), ("AMD64", 144), ("aarch64", 128), ("ppc64le", 144)])
def test_known_machines(machine: str, size: int) -> None:
    """The members lie within the structure's size, the last of them in its rest."""
    layout = stat_layout(machine)
    assert layout is not None
    assert layout.size == size
    assert size - 32 <= layout.members.size <= size


def test_unknown_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine nobody looked at has no layout, and neither has a 32-bit Python on a 64-bit machine."""
    assert stat_layout("s390x") is None
    assert stat_layout("i686") is None
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert stat_layout() is stat_layout("x86_64")
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)
    assert stat_layout() is None


def test_statvfs_as_the_c_library_lays_it_out(tmp_path: Path) -> None:
    """What statvfs(3) writes into memory is decoded into what os.statvfs() says."""
    buffer = ctypes.create_string_buffer(b"\xa5" * STATVFS_ROOM, STATVFS_ROOM)
    assert ctypes.CDLL(None).statvfs(os.fsencode(tmp_path), buffer) == 0
    assert buffer.raw[112:] == b"\xa5" * (STATVFS_ROOM - 112)
    total, free = decode_statvfs(buffer.raw)
    vfs = os.statvfs(tmp_path)
    assert total == vfs.f_frsize * vfs.f_blocks
    assert abs(free - vfs.f_frsize * vfs.f_bfree) < 1 << 30


def test_dirent_as_the_c_library_lays_it_out(tmp_path: Path) -> None:
    """The name is where it is looked for, and the longest has room."""
    name = "x" * 255
    (tmp_path / name).touch()
    libc = ctypes.CDLL(None)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.readdir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    listing = libc.opendir(os.fsencode(tmp_path))
    names = set()
    while entry := libc.readdir(listing):
        names.add(ctypes.string_at(entry + DIRENT_NAME))
    libc.closedir(listing)
    assert names == {b".", b"..", name.encode()}
    assert len(name) + 1 == NAME_ROOM
    assert DIRENT_NAME + NAME_ROOM <= DIRENT_ROOM
    assert DIRENT_ROOM >= 512  # what glfs.h asks for


# ------------------------------------------------------------------------------------------------- prototypes

_NUMBERS = {
    "int": "int",
    "unsigned int": "uint",
    "uint32_t": "uint",
    "mode_t": "uint",
    "uid_t": "uint",
    "gid_t": "uint",
    "glfs_upcall_reason_t": "int",
    "off_t": "int64",
    "size_t": "size",
    "uint64_t": "size",
    "ssize_t": "ssize",
    "void": "void",
}
_OURS = {
    ctypes.c_int: "int",
    ctypes.c_uint: "uint",
    ctypes.c_int64: "int64",
    ctypes.c_size_t: "size",
    ctypes.c_ssize_t: "ssize",
    ctypes.c_void_p: "pointer",
    ctypes.c_char_p: "pointer",
    None: "void",
}
if ctypes.c_int64 is ctypes.c_ssize_t:  # on most 64-bit machines
    _NUMBERS["off_t"] = "ssize"


def _kind(declared: str) -> str:
    if "*" in declared:
        return "pointer"
    words = [word for word in declared.split() if word not in ("const", "struct")]
    for type_ in (" ".join(words), " ".join(words[:-1])):  # with and without the parameter's name
        if type_ in _NUMBERS:
            return _NUMBERS[type_]
    raise AssertionError(f"what is {declared!r}?")


def _prototypes() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """The functions that are used, as libgfapi's headers have them: kinds of result and arguments, and the version."""
    found = {}
    for name in ("glfs.h", "glfs-handles.h"):
        text = re.sub(r"/\*.*?\*/", "", (HEADERS / name).read_text(), flags=re.DOTALL)
        for match in re.finditer(
            r"([\w \t*]+?)\s*\n?\s*\bglfs_(\w+)\s*\(([^()]*)\)\s*__THROW\s*GFAPI_PUBLIC\(\w+,\s*([\d.]+)\)", text
        ):
            result, function, arguments, version = match.groups()
            if function in Gfapi.declarations:
                found[function] = _kind(result.strip()), tuple(map(_kind, arguments.split(","))), version
    return found


@pytest.mark.root
def test_declarations_are_those_of_the_headers() -> None:
    """Each function is declared with the types of glfs.h and glfs-handles.h, and with the version that they name."""
    assert HEADERS.is_dir(), "Debian package libglusterfs-dev"
    ours = {
        name: (_OURS[result], tuple(_OURS[argument] for argument in arguments), version)
        for name, (version, result, arguments, _) in Gfapi.declarations.items()
    }
    assert ours == _prototypes()
