"""What names in headers mean, beside qemu-img: the file and the format that QEMU opens, or that it opens none."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest
from images.qemu_images import astore_info, make, make_backed

from astore.images.references import located
from astore.model import ReferenceKind

pytestmark = pytest.mark.qemu

JSON_NAMES = [
    {"driver": "qcow2", "file": {"driver": "file", "filename": "BASE"}},
    {"driver": "raw", "file": {"driver": "file", "filename": "BASE"}},
    {"driver": "file", "filename": "BASE"},
    {"file": {"filename": "BASE"}},
    {"file.filename": "BASE"},
    {"driver": "qcow2", "file.driver": "file", "file.filename": "BASE"},
    {"driver": "qcow2", "file": {"driver": "raw", "file": {"driver": "file", "filename": "BASE"}}},
    {"driver": "qcow2", "node-name": "n", "read-only": True, "file": {"driver": "file", "filename": "BASE"}},
    "json:{'driver':'qcow2','file':{'driver':'file','filename':'BASE'}}",
    "BASE",
    "base",
    "./base",
    "file:BASE",
    "file://BASE",
]
REFUSED = [
    {"filename": "BASE"},
    {"driver": "raw", "filename": "BASE"},
    {"driver": "qcow2", "file": "BASE"},
    {"file": {"filename": "nbd://localhost:1/x"}},
    {"file": {"filename": "file:BASE"}},
    {"file": {"filename": "base"}},
    {"driver": "raw", "file": {"driver": "file", "filename": "BASE", "x": 1}},
    "json:[]",
    "json:{}",
    "file:base",
    "ubuntu:22.04.qcow2",
    "qcow2:BASE",
]


def overlay(path: Path, name: object, format: str | None) -> str:
    """A qcow2 image over a backing file of this name, with the format in its header or none; returns the name."""
    told = name if isinstance(name, str) else "json:" + json.dumps(name)
    told = told.replace("BASE", str(path.parent / "base"))
    make_backed(path, "qcow2", told, "raw")
    whole = path.read_bytes()
    extension = struct.pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0")
    word = (format or "").encode()
    path.write_bytes(whole.replace(extension, struct.pack(">II", 0xE2792ACA, len(word)) + word.ljust(8, b"\0")))
    return told


def chain_of(path: Path) -> tuple[str, str] | None:
    """Name and format of the file behind an image, as QEMU opens it from another folder; None if it does not."""
    argv = ["qemu-img", "info", "--backing-chain", "--output=json", str(path)]
    said = subprocess.run(argv, capture_output=True, check=False, cwd="/")
    if said.returncode:
        return None
    below = json.loads(said.stdout)[1]
    return below["filename"], below["format"]


@pytest.mark.parametrize("format", [None, "raw", "qcow2"])
@pytest.mark.parametrize("name", JSON_NAMES, ids=str)
def test_what_qemu_opens(tmp_path: Path, name: object, format: str | None) -> None:
    """Where there is no doubt, QEMU opens this file in this format; where it cannot, there is a doubt."""
    make(tmp_path / "base", "qcow2", size="1M")
    path = tmp_path / "a"
    overlay(path, name, format)
    ours = astore_info(path)
    (reference,) = located(ours.references, str(path))
    theirs = chain_of(path)
    assert reference.location == str(tmp_path / "base")
    if reference.doubt is not None:
        assert format is not None
        return
    assert theirs is not None
    filename, kind = theirs
    where = json.loads(filename[5:])["file"]["file"]["filename"] if filename.startswith("json:") else filename
    assert Path(where).resolve() == tmp_path / "base"
    # a protocol's driver reads the bytes as they are, and without any format QEMU guesses
    assert reference.format == (
        "raw" if kind == "file" else None if format is None and reference.format is None else kind
    )


@pytest.mark.parametrize("name", REFUSED, ids=str)
def test_what_qemu_does_not_open(tmp_path: Path, name: object) -> None:
    """What QEMU does not open, from another folder at least, has a doubt."""
    make(tmp_path / "base", "qcow2", size="1M")
    path = tmp_path / "a"
    overlay(path, name, None)
    assert chain_of(path) is None
    ours = astore_info(path)
    assert all(one.doubt for one in located(ours.references, str(path)))


@pytest.mark.parametrize(("header", "node", "read"), [("raw", "qcow2", "raw"), ("qcow2", "raw", "qcow2")])
def test_the_headers_format_wins(tmp_path: Path, header: str, node: str, read: str) -> None:
    """Where header and json: name two formats, QEMU takes the header's; there is a doubt."""
    make(tmp_path / "base", "qcow2", size="1M")
    path = tmp_path / "a"
    overlay(path, {"driver": node, "file": {"driver": "file", "filename": "BASE"}}, header)
    assert chain_of(path) == (str(tmp_path / "base"), read)
    ours = astore_info(path)
    (reference,) = located(ours.references, str(path))
    assert reference.format == read
    assert reference.doubt == f"is said to be {header}, and described as {node}"


DATA_NAMES = [(name, name == "DATA") for name in ("DATA", "data", "./data", "file:DATA", "", "nbd://localhost:1/x")]


@pytest.mark.parametrize(("name", "opened"), DATA_NAMES)
def test_where_qemu_looks_for_data_files(tmp_path: Path, name: str, opened: bool) -> None:
    """An absolute name is a data file's place; any other QEMU looks up where it was started, and is doubted."""
    data = tmp_path / "data"
    path = make(tmp_path / "a", "qcow2", f"data_file={tmp_path / ('d' * 100)}", size="1M")
    (tmp_path / ("d" * 100)).rename(data)
    whole, told = path.read_bytes(), name.replace("DATA", str(data)).encode()
    at = whole.index(struct.pack(">I", 0x44415441))
    (length,) = struct.unpack_from(">I", whole, at + 4)
    path.write_bytes(
        whole[: at + 4] + struct.pack(">I", len(told)) + told.ljust(length, b"\0") + whole[at + 8 + length :]
    )
    # what pads the shorter name are extensions' ends
    argv = ["qemu-img", "map", "--output=json", str(path)]
    assert (subprocess.run(argv, capture_output=True, check=False, cwd="/").returncode == 0) == opened
    ours = astore_info(path)
    (reference,) = located(ours.references, str(path))
    assert (reference.kind, reference.format, reference.name) == (ReferenceKind.DATA, "raw", told.decode())
    assert (reference.doubt is None) == opened
    assert reference.location == (str(data) if "DATA" in name else told.decode() if "://" in name else None)
