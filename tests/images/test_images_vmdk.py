"""VMDK's parents and extents, beside qemu-img where it opens the image at all."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path

import pytest
from image_heads import VALID
from images.more_heads import probed, sparse_vmdk, split_vmdk

from astore.images import HEADER_SIZE, ImageError, needs_full_header, probe
from astore.images.references import located
from astore.model import Reference, ReferenceKind

WORD = b"parentFileNameHint"
CIDS = b"CID=1\nparentCID=ffffffff\n"
FLAT = b'RW 2048 FLAT "flat" 0\n'


def padded(text: bytes) -> bytes:
    return text.ljust(HEADER_SIZE, b"\0")


PARENTS = {
    "plain": (CIDS + WORD + b'="base.vmdk"\n', "base.vmdk"),
    "comment": (CIDS + b"#" + WORD + b'="base.vmdk"\n', "base.vmdk"),
    "anything between": (CIDS + WORD + b'xxbase.vmdk"\n', "base.vmdk"),
    "spaces": (CIDS + WORD + b' = "base.vmdk"\n', " "),
    "newline": (CIDS + WORD + b'="\nbase.vmdk"\n', "\nbase.vmdk"),
    "no end of line": (CIDS + b"x" + WORD + b'="base.vmdk"x', "base.vmdk"),
    "behind the word a NUL": (CIDS + WORD + b'\0"base.vmdk"', "base.vmdk"),
    "behind a NUL": (CIDS + b"\0" + WORD + b'="base.vmdk"', None),
    "empty": (CIDS + WORD + b'=""\n', None),
    "the first of two": (CIDS + WORD + b'="base.vmdk"\n' + WORD + b'="other.vmdk"\n', "base.vmdk"),
    "far": (CIDS + b"#" * 10_100 + WORD + b'="base.vmdk"\n', "base.vmdk"),
    "too far": (CIDS + b"#" * 10_240 + WORD + b'="base.vmdk"\n', None),
    "long": (CIDS + WORD + b'="' + b"d/" * 2047 + b'x"\n', "d/" * 2047 + "x"),
    "json": (CIDS + WORD + b'="json:{}"\n', "json:{}"),
}

NO_PARENTS = {
    "without an end": (CIDS + WORD + b"=base.vmdk\n", "has no end"),
    "ended by a NUL": (CIDS + WORD + b'="base.vmdk\0"', "has no end"),
    "end too far": (CIDS + b"#" * (10_240 - len(CIDS) - 22) + WORD + b'="base.vmdk"\n', "has no end"),
    "too long": (CIDS + WORD + b'="' + b"d/" * 2048 + b'x"\n', "more than 4,095"),
}


def qemu_image(path: Path, text: bytes) -> Path:
    """An image that qemu-img makes, with another text in the place where QEMU looks."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(path), "1M"], check=True, stdin=subprocess.DEVNULL)
    with path.open("r+b") as file:
        file.seek(28)
        file.write(struct.pack("<QQ", 5, 0))  # descriptorOffset, descriptorSize
        file.seek(512)
        file.write(text.ljust(20 * 512, b"\0")[: 20 * 512])
    return path


@pytest.mark.qemu
@pytest.mark.parametrize("name", [*PARENTS, *NO_PARENTS])
def test_parents_beside_qemu(tmp_path: Path, name: str) -> None:
    """The parent is found where QEMU finds it, whatever the header says of the descriptor."""
    text, expected = (PARENTS | NO_PARENTS)[name]
    path = qemu_image(tmp_path / "a.vmdk", text)
    head = path.read_bytes()[:HEADER_SIZE]
    theirs = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=False)
    if name in NO_PARENTS:
        assert theirs.returncode != 0
        with pytest.raises(ImageError, match=expected):
            probe(head)
        return
    assert theirs.returncode == 0, theirs.stderr
    said = json.loads(theirs.stdout)
    ours = probed(head)
    assert ours.backing == said.get("backing-filename") == expected
    assert ours.backing_format == said.get("backing-filename-format") == (expected and "vmdk")
    assert ours.capacity == said["virtual-size"]


@pytest.mark.parametrize("name", PARENTS)
def test_parents(name: str) -> None:
    """Sparse files, VMware 3's and descriptor files are searched alike, in one step and in two."""
    text, expected = PARENTS[name]
    for head in (sparse_vmdk(text), VALID["vmdk-cowd"] + text):
        whole = padded(head)
        info = probed(whole)
        assert info.references == (() if expected is None else (Reference(ReferenceKind.BACKING, expected, "vmdk"),))
        first = whole[:4096]
        assert needs_full_header(first) or probe(first) == info
    descriptor = split_vmdk(extents=FLAT) + text
    if len(descriptor) < 10_240 or name == "too far":
        assert probed(descriptor).backing == expected
        assert probed(padded(descriptor)).backing == expected


@pytest.mark.parametrize("name", NO_PARENTS)
def test_malformed_parents(name: str) -> None:
    """A parent's name that QEMU refuses is an error everywhere."""
    text, words = NO_PARENTS[name]
    for head in (sparse_vmdk(text), VALID["vmdk-cowd"] + text):
        with pytest.raises(ImageError, match=words):
            probe(padded(head))


def line(text: str) -> bytes:
    return split_vmdk(extents=text.encode())


ONE = [("flat", "raw")]
EXTENTS: list[tuple[str, int, list[tuple[str, str]]]] = [
    ('RW 2048 FLAT "flat" 0\n', 2048, ONE),
    ('RW 2040 FLAT "flat" 8', 2040, ONE),
    ('RW 2048 VMFS "flat"\n', 2048, ONE),
    ('  RW\t2048\vFLAT\f"flat"\r0\n', 2048, ONE),
    ('RW\n2048\nFLAT\n"flat"\n0\n', 2048, ONE),
    ('RW +2048FLAT "flat" 0 and more\n', 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nRW 100 ZERO\n', 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nRDONLY 100 FLAT "other" 0\nNOACCESS 100 FLAT "other" 0\n', 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nrw 100 FLAT "other" 0\n# RW 1 FLAT "other" 0\nRW 0x8 FLAT "other" 0\n', 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nRW 0 FLAT "other" 0\nRW -5 FLAT "other" 0\nRW 5 FOO "other"\n', 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nRW 5 FLAT "" 0\nRW RW 5 FLAT "other" 0\n', 2048, ONE),
    ('\n \nRW 2048 FLAT "flat" 0\n', 3 * 2048, ONE),
    ('RW 2048 FLAT "flat" 0\nRW 1024 FLAT "flat" 4\n', 3072, ONE),
    ('RW 2048 SPARSE "sparse"\n', 2048, [("sparse", "vmdk")]),
    ('RW 2048 SPARSE "sparse\n', 2048, [("sparse", "vmdk")]),
    ('RW 2048 VMFSSPARSE "sparse"\nRW 2048 FLAT "flat" 0\n', 4096, [("sparse", "vmdk"), ("flat", "raw")]),
    ('RW 2048 FLAT "flat" 0\n\0RW 2048 FLAT "other" 0\n', 2048, ONE),
]
MALFORMED = [
    ('RW 2048 FLAT "flat"\n', "extent line b'RW 2048 FLAT \"flat' is malformed"),
    ('RW 2048 FLAT "flat" -1\n', "is malformed"),
    ('RW 2048 FLAT "flat\n 0\n', "is malformed"),
    ('RW 2048 VMFS "flat" 0\n', "is malformed"),
    ('RW 2048 flat "flat" 0\n', "is malformed"),
    ("RW 2048 ZERO\n", "names no extents"),
    ("", "names no extents"),
]


@pytest.mark.parametrize(("text", "sectors", "extents"), EXTENTS)
def test_extents(text: str, sectors: int, extents: list[tuple[str, str]]) -> None:
    """Each extent line is read as QEMU reads it: in descriptor files, and in a sparse file with a capacity of 0."""
    expected = tuple(Reference(ReferenceKind.EXTENT, name, format) for name, format in extents)
    for head in (line(text), sparse_vmdk(text.encode().ljust(999, b"\0"), capacity=0, version=9)):
        info = probed(head)
        assert (info.capacity, info.references) == (sectors * 512, expected)


@pytest.mark.parametrize(("text", "words"), MALFORMED)
def test_malformed_extents(text: str, words: str) -> None:
    """An extent line that QEMU refuses is an error; so are extents that are none, or too large."""
    for head in (line(text), padded(line(text)), sparse_vmdk(text.encode().ljust(999, b"\0"), capacity=0)):
        with pytest.raises(ImageError, match=re.escape(words)):
            probe(head)


@pytest.mark.qemu
@pytest.mark.parametrize("text", [*(one[0] for one in EXTENTS), *(one[0] for one in MALFORMED)])
def test_extents_beside_qemu(tmp_path: Path, text: str) -> None:
    """Capacity and places are QEMU's, and it opens nothing that is an error here."""
    (tmp_path / "flat").write_bytes(bytes(1 << 20))
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(tmp_path / "sparse"), "1M"], check=True)
    path = tmp_path / "a.vmdk"
    path.write_bytes(line(text))
    theirs = subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=False, cwd="/")
    try:
        ours = probed(line(text))
    except ImageError:
        assert theirs.returncode != 0
        return
    assert theirs.returncode == 0, theirs.stderr
    said = json.loads(theirs.stdout)
    assert ours.capacity == said["virtual-size"]
    extents = {one["filename"] for one in said["format-specific"]["data"]["extents"]}
    assert {one.location for one in located(ours.references, str(path))} == extents


DESCRIPTORS = {
    "signature": (b"# Disk DescriptorFile\nversion=1\n", True),
    "version first": (b"version=3\n", True),
    "comments": (b"# a\n#\nversion=2\r\n", True),
    "blank lines": (b"  \n \r\n# a\nversion=1\n", True),
    "empty line": (b"# a\n\nversion=1\n", False),
    "indented": (b"# a\n version=1\n", False),
    "version 4": (b"# a\nversion=4\n", False),
    "no version": (b"# Disk DescriptorFile\nCID=1\n", False),
    "within what is probed": (b"#" * 501 + b"\nversion=1\n", True),
    "beyond what is probed": (b"#" * 502 + b"\nversion=1\n", False),
    "script": (b"#!/bin/sh\nversion=1\n", True),
}


@pytest.mark.qemu
@pytest.mark.parametrize("name", DESCRIPTORS)
def test_descriptor_files_beside_qemu(tmp_path: Path, name: str) -> None:
    """What QEMU takes for a descriptor file is one, and nothing else is."""
    begin, is_one = DESCRIPTORS[name]
    (tmp_path / "flat").write_bytes(bytes(1 << 20))
    path = tmp_path / "a.vmdk"
    path.write_bytes(begin + CIDS + b'createType="monolithicFlat"\n' + FLAT)
    said = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", str(path)], capture_output=True, check=True).stdout
    )
    ours = probe(path.read_bytes())
    assert (said["format"] == "vmdk") == (ours is not None) == is_one
    assert ours is None or ours.capacity == said["virtual-size"]


def test_versions() -> None:
    """QEMU opens a sparse file of version 0; of a version that it does not know only the descriptor's extents."""
    text = (CIDS + FLAT).ljust(999, b"\0")
    assert probed(sparse_vmdk(text, version=0)).capacity == 1 << 20
    with pytest.raises(ImageError, match="version 4 is one that QEMU does not read"):
        probe(sparse_vmdk(text, version=4))
    with pytest.raises(ImageError, match="header ends after 100 bytes"):
        probe(sparse_vmdk(text, version=4)[:100])
    assert len(probed(sparse_vmdk(text, version=4, capacity=0)).references) == 1
    assert probed(sparse_vmdk(text, capacity=0, offset=0)).capacity == 0


def test_too_much() -> None:
    """A descriptor that goes on behind what was read is an error."""
    whole = line('RW 2048 FLAT "flat" 0\n')
    with pytest.raises(ImageError, match="33,280 bytes or more"):
        probe(whole.ljust(HEADER_SIZE, b"\n"))
    embedded = sparse_vmdk(FLAT, capacity=0)
    with pytest.raises(ImageError, match="lies beyond the header"):
        probe(embedded.ljust(HEADER_SIZE, b"\n"))
    with pytest.raises(ImageError, match="lies beyond the header"):
        probe(sparse_vmdk(FLAT, capacity=0, offset=1000))
    assert needs_full_header(padded(sparse_vmdk(bytes(10), capacity=0, offset=9))[:4096])
    assert needs_full_header(whole.ljust(4096, b"\n"))
