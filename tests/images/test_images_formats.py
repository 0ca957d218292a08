"""The list of formats, headers without references, and the formats that libvirt leaves out."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from image_heads import VALID
from images.more_heads import (
    HEAD,
    METADATA_AT,
    MORE,
    REGIONS_AT,
    VHDX,
    bochs,
    cloop,
    differencing_vhd,
    luks2,
    probed,
    split_vmdk,
    vhdx,
)

from astore.images import HEADER_SIZE, ImageError, needs_full_header, probe
from astore.images.formats import WRITTEN, driver_of, format_of, is_raw, name_of_driver
from astore.images.headers import without_references
from astore.model import ImageInfo, Reference, ReferenceKind
from astore.model.formats import FORMATS


def test_names_of_formats() -> None:
    """libvirt's words and QEMU's lead to one another."""
    for libvirts, qemus in (
        ("qcow2", "qcow2"),
        ("vpc", "vpc"),
        ("ploop", "parallels"),
        ("raw", "raw"),
        ("luks", "luks"),
    ):
        assert driver_of(libvirts) == qemus
        assert name_of_driver(qemus) == libvirts
    assert [driver_of(word) for word in (None, "iso", "vhd", "cow", "unheard")] == [
        "raw",
        "raw",
        "vpc",
        "cow",
        "unheard",
    ]
    for word in ("file", "host_device", "nbd", "blkdebug", "ploop", "vhd", "iso", "cow", "fat", ""):
        assert name_of_driver(word) is None
    assert [one.name for one in FORMATS if is_raw(one.name)] == ["raw", "iso"]
    assert is_raw(None)
    assert not is_raw("unheard")
    assert format_of("unheard").driver is None
    assert WRITTEN == ("vpc", "vdi", "qcow", "qcow2", "qed", "vmdk", "luks")


def test_the_list_is_sound() -> None:
    """Each name is there once, and a format without a driver is neither made nor converted nor backed."""
    assert len({one.name for one in FORMATS}) == len(FORMATS)
    for one in FORMATS:
        assert one.driver is not None or not (one.made or one.converted or one.backed)
        assert one.backed or not one.backed_later
    assert {head.format for head in map(probe, VALID.values()) if head} <= {one.name for one in FORMATS}


@pytest.mark.qemu
def test_drivers_are_qemus() -> None:
    """qemu-img knows each driver."""
    said = subprocess.run(["qemu-img", "--help"], capture_output=True, text=True, check=True).stdout
    known = said.rpartition("Supported formats:")[2].split("\n\n")[0].split()
    for one in FORMATS:
        assert one.driver is None or one.driver in known


# ------------------------------------------------------------------------------------------ headers without references


@pytest.mark.parametrize("name", [*VALID, *MORE])
def test_headers_without_references(name: str) -> None:
    """A header without references is the same but for the backing file."""
    head = (VALID | MORE)[name]
    info = probed(head)
    bare = without_references(info.format, head)
    assert len(bare) == len(head)
    left = probed(bare)
    kept = info.format in ("cow", "vpc")
    assert left.references == tuple(one for one in info.references if kept or one.kind is not ReferenceKind.BACKING)
    assert (left.capacity, left.cluster_size, left.features) == (info.capacity, info.cluster_size, info.features)
    assert without_references(info.format, bare) == bare
    for length in (0, 4, 17, 600):
        assert len(without_references(info.format, head[:length])) == min(length, len(head))


def test_every_occurrence_goes() -> None:
    """VMDK's word is taken out wherever QEMU looks for it, and nowhere else."""
    word = b"parentFileNameHint"
    head = VALID["vmdk"][:512] + word * 3 + b"\0" + word + bytes(10_240) + word
    bare = without_references("vmdk", head)
    assert bare.count(word) == 1
    assert bare.endswith(word)
    assert without_references("vmdk", split_vmdk(more=word + b'="x"\n')).count(word) == 0
    assert without_references(None, head) == head


def qemu_reads(node: dict[str, object]) -> bytes:
    """What qemu-img reads of a node, as raw bytes."""
    target = Path(str(node.pop("target")))
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(node), str(target)], check=True, capture_output=True
    )
    return target.read_bytes()


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("kind", "option"),
    [("qcow2", "compat=1.1"), ("qcow2", "compat=0.10"), ("qcow", ""), ("qed", ""), ("vmdk", ""), ("vmdk", "split")],
)
def test_qemu_opens_headers_without_references(tmp_path: Path, kind: str, option: str) -> None:
    """With no backing file the image has what it has itself; with another one it has that one's bytes."""
    base, image = tmp_path / "base", tmp_path / "image"
    base_format = "vmdk" if kind == "vmdk" else "raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", base_format, str(base), "1M"], check=True)
    other = tmp_path / "other"
    other.write_bytes(b"o" * (1 << 20))
    options = ["-o", "subformat=twoGbMaxExtentSparse" if option == "split" else option] if option else []
    argv = ["-f", kind, *options, "-b", str(base), "-F", base_format, str(image)]
    subprocess.run(["qemu-img", "create", "-q", *argv], check=True)
    with image.open("r+b") as file:
        head = file.read(16_384)
        file.seek(0)
        file.write(without_references(kind, head))
    whole: dict[str, object] = {"driver": kind, "file": {"driver": "file", "filename": str(image)}}
    target = str(tmp_path / "out")
    assert qemu_reads({**whole, "backing": None, "target": target}) == bytes(1 << 20)
    assert qemu_reads({**whole, "target": target}) == bytes(1 << 20)
    if kind != "vmdk":  # which compares its parent's CID
        over = {"driver": "raw", "file": {"driver": "file", "filename": str(other)}}
        assert qemu_reads({**whole, "backing": over, "target": target}) == other.read_bytes()


@pytest.mark.qemu
def test_extensions_that_end_at_the_name(tmp_path: Path) -> None:
    """A header whose extensions have no end mark ends at the backing name, also when that has no length."""
    image = tmp_path / "image"
    name = b"n" * 64
    argv = ["-u", "-f", "qcow2", "-o", "compat=0.10", "-b", name.decode(), "-F", "raw", str(image), "1M"]
    subprocess.run(["qemu-img", "create", "-q", *argv], check=True)
    whole = bytearray(image.read_bytes())
    whole[72:152] = struct.pack(">II", 0xE2792ACA, 3) + b"raw".ljust(8, b"\0") + name
    whole[8:20] = struct.pack(">QI", 88, len(name))
    info = probed(bytes(whole[:HEADER_SIZE]))
    assert info.references == (Reference(ReferenceKind.BACKING, name.decode(), "raw"),)
    image.write_bytes(without_references("qcow2", bytes(whole)))
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}, "backing": None}
    assert qemu_reads({**node, "target": str(tmp_path / "out")}) == bytes(1 << 20)


# ------------------------------------------------------------------------------------------------------- more formats

PARENT = ReferenceKind.PARENT
EXPECTED = {
    "vhdx": ImageInfo("vhdx"),
    "bochs": ImageInfo("bochs", 1 << 30),
    "bochs-1": ImageInfo("bochs", 1 << 30),
    "cloop": ImageInfo("cloop", 3 << 16, cluster_size=1 << 16),
    "vpc-4": ImageInfo(
        "vpc",
        1 << 20,
        (
            Reference(
                PARENT, "parent.vhd", "vpc", doubt="is the parent of a differencing VHD, which QEMU does not read"
            ),
        ),
    ),
    "luks2-json": ImageInfo("luks", encryption="luks", before=16 << 20),
    "qcow2-data": ImageInfo(
        "qcow2", 1 << 30, (Reference(ReferenceKind.DATA, "data", "raw"),), "1.1", ("lazy_refcounts",), None, 1 << 16
    ),
    "vmdk-split": ImageInfo("vmdk", 1 << 20, (Reference(ReferenceKind.EXTENT, "a-flat.vmdk", "raw"),)),
    "vmdk-text": ImageInfo(
        "vmdk",
        512,
        (Reference(ReferenceKind.BACKING, "base.vmdk", "vmdk"), Reference(ReferenceKind.EXTENT, "a", "raw")),
    ),
    "vmdk-cowd-parent": ImageInfo(
        "vmdk", 1 << 20, (Reference(ReferenceKind.BACKING, "base.vmdk", "vmdk"),), cluster_size=8192
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_more_formats(name: str) -> None:
    """What each header says is found, in one step and in two."""
    head = MORE[name]
    assert probe(head) == EXPECTED[name]
    whole = head.ljust(HEADER_SIZE, b"\0")
    assert probe(whole[:HEAD] if not needs_full_header(whole[:HEAD]) else whole) == EXPECTED[name]


def test_bochs_and_cloop() -> None:
    """Sizes and block sizes are checked; what is no growing disk, or no whole script, is raw."""
    assert probe(bochs().replace(b"Growing", b"Undoing")) is None
    assert probe(bochs()[:60]) is None
    assert probe(bochs().replace(b"Redolog\0", b"Redolog\0garbage"[:8])) is not None
    with pytest.raises(ImageError, match="too large"):
        probe(bochs(size=1 << 52))
    with pytest.raises(ImageError, match="ends after 100 bytes"):
        probe(bochs()[:100])
    assert probe(cloop()[:80]) is None
    for block in (0, 1000, 128 << 20):
        with pytest.raises(ImageError, match=f"block size {block} "):
            probe(cloop(block))
    with pytest.raises(ImageError, match="ends after 130 bytes"):
        probe(cloop()[:130])


def test_parents_of_vhd() -> None:
    """A parent is told even where its name is not read; nonsense there makes no image malformed."""
    untold = "(the parent's name is not in the header)"
    head = differencing_vhd()
    far = struct.pack(">Q", 1 << 40)
    for broken in (
        head[:600],
        head[:16] + far + head[24:],
        head.replace(b"cxsparse", b"cysparse"),
        differencing_vhd(""),
    ):
        info = probed(broken)
        assert [one.name for one in info.references] == [untold]
    for name in ("\x1b[2J", "\ud800"):
        raw = name.encode("utf-16-be", "surrogatepass")
        info = probed(head[:576] + raw.ljust(512, b"\0") + head[1088:])
        assert info.backing is None
        assert info.references[0].name == untold
    assert needs_full_header((head[:16] + struct.pack(">Q", 4000) + head[24:]).ljust(HEAD, b"\0"))


def test_luks_payloads() -> None:
    """The disk begins at the payload's offset: LUKS1 has it in its header, LUKS2 in its JSON area."""
    first = VALID["luks"][:104] + struct.pack(">I", 4096) + VALID["luks"][108:]
    assert probe(first) == ImageInfo("luks", encryption="luks", before=2 << 20)
    for area in (
        luks2("x"),
        luks2("9" * 20),
        luks2("-1"),
        luks2(hdr_size=4096),
        luks2()[:-1],
        luks2().replace(b'"0"', b'"1"'),
    ):
        assert probe(area) == ImageInfo("luks", encryption="luks")
    deep = luks2()[:4096] + b'{"a":' * 5000
    assert probe(deep.ljust(HEADER_SIZE, b"\0")) == ImageInfo("luks", encryption="luks")
    assert needs_full_header(luks2()[:HEAD])
    assert not needs_full_header(VALID["luks"].ljust(HEAD, b"\0"))


def test_qemus_words_for_formats() -> None:
    """A format is told in libvirt's words, and one that QEMU does not have is doubted."""
    for word, told in ((b"parallels", "ploop"), (b"vpc", "vpc"), (b"raw", "raw")):
        head = VALID["qcow2-3"][:104] + struct.pack(">II", 0xE2792ACA, len(word)) + word.ljust(16, b"\0")
        info = probed(head + bytes(8) + VALID["qcow2-3"][136:])
        assert [(one.format, one.doubt) for one in info.references] == [(told, None)]
    info = probed(VALID["qcow2-3"].replace(b"qcow2\0", b"ploop\0"))
    assert info.references[0].format == "ploop"
    assert info.references[0].doubt == "is said to be of the format 'ploop', which QEMU does not have"


# --------------------------------------------------------------------------------------------------------------- VHDX


def reader(pieces: dict[int, bytes], asked: list[tuple[int, int]] | None = None) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        if asked is not None:
            asked.append((offset, length))
        for at, piece in pieces.items():
            if at <= offset < at + len(piece):
                return piece[offset - at : offset - at + length]
        return b""

    return read


def test_vhdx() -> None:
    """A reader is asked for a few short pieces, and tells size and parent; no other format asks."""
    asked: list[tuple[int, int]] = []
    info = probe(MORE["vhdx"], reader(vhdx(5 << 20), asked))
    assert info == ImageInfo("vhdx", 5 << 20, cluster_size=1 << 25)
    assert len(asked) == 4
    assert sum(length for _, length in asked) <= 8208
    info = probed(MORE["vhdx"], reader(VHDX))
    assert [(one.kind, one.name, one.format) for one in info.references] == [(PARENT, ".\\parent.vhdx", "vhdx")]
    assert info.references[0].doubt == "is the parent of a differencing VHDX, which QEMU does not open"
    asked.clear()
    for name, head in (VALID | MORE).items():
        if name != "vhdx":
            probe(head, reader(VHDX, asked))
    assert not asked


def test_vhdx_with_many_regions() -> None:
    """A table that goes on behind what is read first is read as far as it goes."""
    pieces = vhdx(extra_regions=300)
    assert len(pieces[REGIONS_AT]) > HEAD
    info = probed(MORE["vhdx"], reader(pieces))
    assert info.capacity == 1 << 30
    pieces[REGIONS_AT] = pieces[REGIONS_AT][:5000]
    with pytest.raises(ImageError, match="region table is cut off"):
        probe(MORE["vhdx"], reader(pieces))


def test_malformed_vhdx() -> None:
    """Tables that are none, too long, cut off or incomplete are errors; a nonsensical locator is not."""
    good = vhdx()
    metadata, data = good[METADATA_AT], good[METADATA_AT + (64 << 10)]
    for changed, words in (
        ({REGIONS_AT: b""}, "region table is missing"),
        ({REGIONS_AT: b"regi" + b"\xff" * 100}, "more than 2047"),
        ({REGIONS_AT: good[REGIONS_AT][:48].ljust(HEAD, b"\0")}, "no metadata region"),
        ({METADATA_AT: b""}, "metadata table is missing"),
        ({METADATA_AT: metadata[:32].ljust(HEAD, b"\0")}, "has no size or no parameters"),
        ({METADATA_AT + (64 << 10): b""}, "metadata is cut off"),
        ({METADATA_AT + (64 << 10): data[:8] + b"\xff" * 8}, "more than 64 TiB"),
        ({REGIONS_AT: good[REGIONS_AT].replace(struct.pack("<Q", METADATA_AT), b"\xff" * 8)}, "beyond any file"),
    ):
        with pytest.raises(ImageError, match=words):
            probe(MORE["vhdx"], reader({**good, **changed}))
    for parent in ({}, {"other": "x"}, {"relative_path": ""}, {"relative_path": "\x1b"}):
        info = probed(MORE["vhdx"], reader(vhdx(parent=parent)))
        assert [one.name for one in info.references] == ["(the parent's name is not in the header)"]
    pieces = vhdx(parent={"relative_path": "x"})
    at = METADATA_AT + (64 << 10)
    for locator in (b"\xff" * 60, b"", bytes(16) + b"\0\0\x09\0" + b"\0\0\0\0\0\0\0\0\3\0\3\0"):
        info = probed(MORE["vhdx"], reader({**pieces, at: pieces[at][:16] + locator}))
        assert len(info.references) == 1


def test_what_a_reader_raises_is_passed_on() -> None:
    """Errors of the storage are the caller's."""

    def read(offset: int, length: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        probe(MORE["vhdx"], read)
