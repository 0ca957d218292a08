"""Probing of headers made by hand: every field, every refusal, every truncation."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_heads import BACKING, VALID, qcow2, vdi, vpc
from images.more_heads import probed

from astore.errors import AstoreError
from astore.images import FIRST_PAGE, HEADER_SIZE, ImageError, needs_full_header, probe
from astore.model import ImageInfo, Reference, ReferenceKind

BACKED = (Reference(ReferenceKind.BACKING, BACKING.decode()),)
BACKED_BY_QCOW2 = (Reference(ReferenceKind.BACKING, BACKING.decode(), "qcow2"),)
BACKED_BY_RAW = (Reference(ReferenceKind.BACKING, BACKING.decode(), "raw"),)
PARENT = (Reference(ReferenceKind.BACKING, "base.vmdk", "vmdk"),)
EXTENTS = (Reference(ReferenceKind.EXTENT, "a.vmdk", "vmdk"), Reference(ReferenceKind.EXTENT, "b.vmdk", "raw"))

EXPECTED = {
    "qcow": ImageInfo("qcow", 1 << 30, BACKED, cluster_size=4096),
    "qcow2-2": ImageInfo("qcow2", 1 << 30, BACKED_BY_QCOW2, "0.10", (), None, 1 << 16),
    "qcow2-3": ImageInfo("qcow2", 1 << 30, BACKED_BY_QCOW2, "1.1", ("lazy_refcounts",), None, 1 << 16),
    "qcow2-plain": ImageInfo("qcow2", 1 << 30, (), "1.1", ("lazy_refcounts",), None, 1 << 16),
    "qed": ImageInfo("qed", 1 << 30, BACKED_BY_RAW, cluster_size=1 << 16),
    "vmdk": ImageInfo("vmdk", 2048 * 512, PARENT, cluster_size=1 << 16),
    "vmdk-cowd": ImageInfo("vmdk", 2048 * 512, cluster_size=8192),
    "vmdk-descriptor": ImageInfo("vmdk", 6144 * 512, PARENT + EXTENTS),
    "vdi": ImageInfo("vdi", 1 << 30, cluster_size=1 << 20),
    "vpc": ImageInfo("vpc", 100 * 4 * 17 * 512),
    "ploop": ImageInfo("ploop", 1 << 30, cluster_size=1 << 20),
    "ploop-old": ImageInfo("ploop", 1 << 30, cluster_size=1 << 20),
    "cow": ImageInfo("cow", 1 << 20, BACKED),
    "iso": ImageInfo("iso"),
    "luks": ImageInfo("luks", encryption="luks"),
    "luks2": ImageInfo("luks", encryption="luks"),
}

SMALLEST = {
    "qcow": 64,
    "qcow2-2": 128,
    "qcow2-3": 160,
    "qcow2-plain": 104,
    "qed": 80,
    "vmdk": 708,
    "vmdk-cowd": 20,
    "vmdk-descriptor": 250,
    "vdi": 0x180,
    "vpc": 512,
    "ploop": 64,
    "ploop-old": 64,
    "cow": 1048,
    "luks": 592,
    "luks2": 4096,
}
"""How many bytes of each header are needed: cut off anywhere before, it is malformed."""

VERSION_END = {
    "qcow": 8,
    "qcow2-2": 8,
    "qcow2-3": 8,
    "qcow2-plain": 8,
    "qed": 4,
    "vmdk": 8,
    "vmdk-cowd": 8,
    "vmdk-descriptor": 32,
    "vdi": 0x48,
    "vpc": 16,
    "ploop": 20,
    "ploop-old": 20,
    "cow": 8,
    "luks": 8,
    "luks2": 8,
}
"""Where magic and version end: what is shorter is not recognised, and raw."""


def patched(head: bytes, offset: int, data: bytes) -> bytes:
    return head[:offset] + data + head[offset + len(data) :]


def outcome(head: bytes) -> object:
    try:
        return probe(head)
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("name", VALID)
def test_every_format(name: str) -> None:
    """What the header says is found."""
    assert probe(VALID[name]) == EXPECTED[name]


REFUSED = [
    ("qcow2-3", 8, struct.pack(">QI", 40_000, 100), "name at 40000, 100 bytes, lies beyond the header"),
    ("qcow2-3", 8, struct.pack(">QI", 65_530, 100), "beyond the first cluster"),
    ("qcow2-3", 8, struct.pack(">QI", 1 << 63, 10), "beyond the first cluster"),
    ("qcow2-3", 8, struct.pack(">QI", (1 << 64) - 1, 1), "beyond the first cluster"),
    ("qcow2-3", 16, struct.pack(">I", 1024), "more than 1,023"),
    ("qcow2-3", 16, b"\xff" * 4, "more than 1,023"),
    ("qcow2-3", 20, struct.pack(">I", 8), "cluster_bits 8"),
    ("qcow2-3", 20, struct.pack(">I", 22), "cluster_bits 22"),
    ("qcow2-3", 20, b"\xff" * 4, "cluster_bits 4294967295"),
    ("qcow2-3", 24, b"\xff" * 8, "more than any file"),
    ("qcow2-3", 32, struct.pack(">I", 3), "crypt_method 3"),
    ("qcow2-3", 100, struct.pack(">I", 72), "header_length 72"),
    ("qcow2-3", 100, struct.pack(">I", 65_544), "header_length 65544"),
    ("qcow2-3", 108, struct.pack(">I", 0xFFFFFFF0), "extension 0xe2792aca at 104 reaches too far"),
    ("qcow2-3", 108, struct.pack(">I", 16), "backing format's name has 16 bytes"),
    ("qcow2-3", 112, b"\xff\xfe", "backing format is not UTF-8"),
    ("qcow2-3", 112, b"a\n\x01", "backing format has control characters"),
    ("qcow2-2", 8, struct.pack(">QI", 40_000, 100), "lies beyond the header"),
    ("qcow", 32, b"\x08", "cluster_bits 8"),
    ("qcow", 32, b"\x11", "cluster_bits 17"),
    ("qcow", 36, struct.pack(">I", 2), "crypt_method 2"),
    ("qcow", 16, struct.pack(">I", 2000), "more than 1,023"),
    ("qcow", 8, struct.pack(">Q", 1 << 40), "lies beyond the header"),
    ("qcow", 24, b"\xff" * 8, "more than any file"),
    ("qed", 4, struct.pack("<I", 3), "cluster_size 3 "),
    ("qed", 4, struct.pack("<I", 0), "cluster_size 0 "),
    ("qed", 4, struct.pack("<I", 1 << 30), "not a power of two"),
    ("qed", 12, struct.pack("<I", 0), "header of 0 clusters ends before"),
    ("qed", 56, struct.pack("<I", 65_530), "header of 1 clusters ends before"),
    ("qed", 56, struct.pack("<I", 40_000), "lies beyond the header"),
    ("qed", 60, struct.pack("<I", 4096), "more than 4,095"),
    ("qed", 48, b"\xff" * 8, "more than any file"),
    ("vmdk", 12, b"\xff" * 8, "more than any file"),
    ("vmdk", 20, b"\xff" * 8, "grain"),
    ("vmdk", 12, struct.pack("<QQQ", 0, 128, 66), "descriptor at 33792 lies beyond the header"),
    ("vmdk", 12, struct.pack("<QQQ", 0, 128, (1 << 64) - 1), "lies beyond the header"),
    ("vdi", 0x178, bytes(4), "block size is 0"),
    ("vdi", 0x170, b"\xff" * 8, "more than any file"),
    ("vpc", 60, struct.pack(">I", 9), "disk type 9"),
    ("ploop", 36, b"\xff" * 8, "more than any file"),
    ("cow", 1036, b"\xff" * 8, "more than any file"),
]


@pytest.mark.parametrize(("name", "offset", "data", "words"), REFUSED)
def test_malformed_headers_are_refused_in_words(name: str, offset: int, data: bytes, words: str) -> None:
    """The right magic over nonsense is an error that names format and field, whatever follows the header."""
    for head in (VALID[name], VALID[name].ljust(HEADER_SIZE, b"\0")):
        with pytest.raises(ImageError, match=words) as caught:
            probe(patched(head, offset, data))
        assert str(caught.value).startswith(f"{caught.value.format}: ")
        assert caught.value.format == name.partition("-")[0]


def test_the_exception_is_two_things() -> None:
    """ImageError is astore's, and a ValueError."""
    with pytest.raises(ValueError, match="block size") as caught:
        probe(vdi(block=0))
    assert isinstance(caught.value, AstoreError)


REFUSED += [
    ("qcow2-3", 4, b"\0\0\0\4", "version 4 is one that QEMU does not read"),
    ("qcow2-3", 4, b"\xff" * 4, "version 4294967295 is one"),
    ("vmdk", 4, b"\x04\0\0\0", "version 4 is one"),
    ("vdi", 0x44, b"\2\0\1\0", "version 1.2 is one"),
]
"""The last are known by their magic, and QEMU refuses them."""
UNKNOWN_VERSIONS = [
    ("qcow2-3", 4, b"\0\0\0\0"),
    ("qcow2-3", 3, b"\xfa"),
    ("qed", 3, b"\1"),
    ("vpc", 4, b"xxxx"),
    ("ploop", 16, b"\1\0\0\0"),
    ("ploop", 8, b"x"),
    ("cow", 4, b"\0\0\0\1"),
    ("luks", 6, b"\0\3"),
    ("luks", 4, b"xx"),
    ("vmdk-descriptor", 30, b"x"),
    ("vmdk-descriptor", 22, b"\n"),
    ("iso", 32_769, b"CDx"),
]


@pytest.mark.parametrize(("name", "offset", "data"), UNKNOWN_VERSIONS)
def test_unknown_versions_are_raw(name: str, offset: int, data: bytes) -> None:
    """What QEMU does not know by its magic is raw, as in libvirt; what follows may still be an ISO image."""
    head = patched(VALID[name], offset, data)
    assert probe(head) is None
    whole = head.ljust(HEADER_SIZE, b"\0")
    assert needs_full_header(whole[:FIRST_PAGE])
    assert probe(patched(whole, 32_769, b"CD001")) == ImageInfo("iso")


@pytest.mark.parametrize("name", SMALLEST)
def test_every_truncation(name: str) -> None:
    """A header cut off before its version is raw, before its end an error, and after that whole."""
    head = VALID[name]
    for length in range(VERSION_END[name]):
        assert probe(head[:length]) is None, length
    for length in range(VERSION_END[name], SMALLEST[name]):
        found = outcome(head[:length])
        if name in ("vmdk", "vmdk-descriptor") and isinstance(found, ImageInfo):
            # it is text: cut off, it may look like a shorter one
            assert found.capacity in (2048 * 512, 6144 * 512)
            assert found.backing in (None, "base.vmdk")
        else:
            assert str(found).startswith(f"{EXPECTED[name].format}: "), length
    for length in range(SMALLEST[name], len(head)):
        assert outcome(head[:length]) == EXPECTED[name], length


@pytest.mark.parametrize("length", [0, 1, 512, 32_768, 32_769, 32_770, 32_773])
def test_truncated_iso(length: int) -> None:
    """An ISO image cut off before its identifier ends is raw."""
    assert probe(VALID["iso"][:length]) is None


def test_short_text_is_raw() -> None:
    """Files of text that begin with the first letters of a magic are raw, not malformed."""
    for text in (b"", b"cone", b"conectix", b"With love", b"OOOM", b"QFI\xfb", b"LUKS", b"KDMV", b"# Disk", b"COWD"):
        assert probe(text) is None


# ------------------------------------------------------------------------------------------------ format by format


def test_extended_l2_and_encryption() -> None:
    """The incompatible bit 4 and the encryption methods are told."""
    info = probed(patched(qcow2(3, crypt=2), 72, struct.pack(">QQ", 1 << 4 | 1 << 2, 1)))
    assert info.features == ("extended_l2", "lazy_refcounts")
    assert (info.encryption, info.data_file) == ("luks", "data")
    assert probed(patched(VALID["qcow2-3"], 72, struct.pack(">QQ", 1 << 4, 0))).features == ("extended_l2",)
    assert probed(qcow2(2, crypt=1)).encryption == "aes"
    assert probed(patched(VALID["qcow"], 36, struct.pack(">I", 1))).encryption == "aes"


def test_data_file_without_a_backing_file() -> None:
    """The extensions are read for the data file's name as well, up to the end of the first cluster or an end mark."""
    assert probed(patched(VALID["qcow2-plain"], 72, struct.pack(">Q", 1 << 2))).data_file == "data"
    small = patched(qcow2(3, backing=b"", bits=9), 72, struct.pack(">Q", 1 << 2))
    unmarked = patched(small, 104, struct.pack(">II", 1, 400))  # ends with the cluster of 512 bytes
    assert probed(unmarked).references == (Reference(ReferenceKind.DATA, "", "raw", doubt="has no name in the header"),)
    beyond = patched(small, 104, struct.pack(">II", 1, 408))
    with pytest.raises(ImageError, match="reaches too far"):
        probe(beyond)
    cut = patched(VALID["qcow2-plain"], 72, struct.pack(">Q", 1 << 2))
    for length, words in ((136, "extension at 136 lies beyond"), (130, "0x44415441 at 120 reaches too far")):
        with pytest.raises(ImageError, match=words):
            probe(cut[:length])


def test_too_many_extensions() -> None:
    """Extensions are bounded: of a header with thousands the files are doubted, and where they do not matter none is read."""
    endless = struct.pack(">II", 1, 0) * 3000
    head = patched(VALID["qcow2-plain"].ljust(HEADER_SIZE, b"\0"), 104, endless)
    assert probed(head).format == "qcow2"
    (data,) = probed(patched(head, 72, struct.pack(">Q", 1 << 2))).references
    assert data.doubt == "has no name in the header"
    backed = patched(patched(head, 8, struct.pack(">QI", 32_000, 4)), 32_000, b"base")
    doubt = "is named in a header with more than 256 extensions"
    assert probed(backed).references == (Reference(ReferenceKind.BACKING, "base", doubt=doubt),)


def test_backing_names_without_length_or_offset() -> None:
    """An offset without a length, and a length without an offset, are no backing file."""
    for offset, length in ((0, 10), (144, 0), (1 << 40, 0)):
        info = probed(patched(VALID["qcow2-3"], 8, struct.pack(">QI", offset, length)))
        assert (info.backing, info.backing_format) == (None, None)
    info = probed(patched(VALID["qcow2-3"], 144, b"\0" * 16))
    assert (info.backing, info.backing_format) == (None, None)
    assert probed(patched(VALID["qcow"], 8, bytes(8))).backing is None
    assert probed(patched(VALID["qed"], 16, bytes(8))).backing is None
    assert probed(patched(VALID["qed"], 60, bytes(4))).backing is None


def test_a_name_ends_at_a_nul() -> None:
    """Names are C strings."""
    assert probed(patched(VALID["qcow2-3"], 148, b"\0")).backing == "base"
    assert probed(patched(VALID["qed"], 16, b"\1")).backing_format is None


def test_sizes_of_vhd() -> None:
    """QEMU's and Virtual PC's images have their geometry's size, others and the largest what they say."""
    assert probed(vpc(b"win ")).capacity == 1 << 20
    largest = patched(vpc(), 56, struct.pack(">HBB", 65_535, 16, 255))
    assert probed(largest).capacity == 1 << 20
    with pytest.raises(ImageError, match="more than any file"):
        probe(patched(vpc(b"win "), 48, b"\xff" * 8))


def test_sizes_of_ploop() -> None:
    """The first form has a size of 32 bits, and what follows it is something else."""
    head = patched(VALID["ploop-old"], 36, struct.pack("<II", 2048, 0xFFFFFFFF))
    assert probed(head).capacity == 1 << 20


DESCRIPTOR = b"# Disk DescriptorFile\nversion=1\n"
SLOW = [
    DESCRIPTOR + b"\n" * HEADER_SIZE,
    DESCRIPTOR + b" " * HEADER_SIZE,
    DESCRIPTOR + b"RW 1" * HEADER_SIZE,
    DESCRIPTOR + b"RW " * HEADER_SIZE,
    DESCRIPTOR + b"\n RW\t" * HEADER_SIZE,
    DESCRIPTOR + b"RW 1 A\n" * HEADER_SIZE,
    DESCRIPTOR + b"parentFileNameHint " * HEADER_SIZE,
    DESCRIPTOR + b'parentFileNameHint="' * HEADER_SIZE,
    DESCRIPTOR + b"RW 1 FLAT\n" * HEADER_SIZE,
    DESCRIPTOR + b"RW " + b"9" * HEADER_SIZE,
    DESCRIPTOR + b'RW 1 VMFS "a"\n' + b"\n" * HEADER_SIZE,
    DESCRIPTOR + b"".join(b'RW 1 VMFS "%d"\n' % number for number in range(2500)),
    patched(VALID["vmdk"], 512, b"\n" * HEADER_SIZE),
    patched(VALID["vmdk"], 12, struct.pack("<QQQ", 0, 128, 1) + bytes(476) + b"\n" * HEADER_SIZE),
    b"# \n" * HEADER_SIZE,
    b"  \n" * HEADER_SIZE,
    VALID["cow"][:8] + b"a" * HEADER_SIZE,
    patched(VALID["qcow2-3"], 104, struct.pack(">II", 1, 0) * 4000),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("head", SLOW, ids=lambda head: repr(head[20:40]))
def test_no_header_takes_long(head: bytes) -> None:
    """Headers made to be slow are not: a hundred of anything quadratic would run into the time-out."""
    for size in (HEADER_SIZE, HEADER_SIZE - 1):
        for _ in range(100):
            outcome(head[:size])


# ----------------------------------------------------------------------------------------------------- in two steps


@pytest.mark.parametrize("name", VALID)
def test_what_is_read_in_one_step_and_two(name: str) -> None:
    """The first page either tells what the whole does, or says that it does not."""
    whole = VALID[name].ljust(HEADER_SIZE, b"\0")
    first = whole[:FIRST_PAGE]
    assert needs_full_header(first) == (name == "iso")
    assert probe(whole if needs_full_header(first) else first) == probe(whole) == EXPECTED[name]
    assert needs_full_header(whole[:512])


def test_which_pages_do_not_tell() -> None:
    """Raw, because of ISO; names and descriptors that lie further back; and extensions that go on."""
    assert needs_full_header(bytes(FIRST_PAGE))
    assert not needs_full_header(vdi().ljust(FIRST_PAGE, b"\0"))
    far = patched(qcow2(3).ljust(HEADER_SIZE, b"\0"), 8, struct.pack(">Q", 20_000))
    far = patched(far, 20_000, BACKING)
    assert needs_full_header(far[:FIRST_PAGE])
    assert probed(far).backing == BACKING.decode()
    for name, offset, data in (
        ("qcow", 8, struct.pack(">Q", 20_000)),
        ("qed", 56, struct.pack("<I", 20_000)),
        ("vmdk", 12, struct.pack("<QQQ", 0, 128, 40)),
    ):
        head = patched(VALID[name].ljust(HEADER_SIZE, b"\0"), offset, data)
        assert needs_full_header(head[:FIRST_PAGE])
    assert needs_full_header(VALID["vmdk-descriptor"].ljust(FIRST_PAGE, b"\n"))
    for name in ("vmdk", "vmdk-cowd"):
        assert not needs_full_header(VALID[name].ljust(FIRST_PAGE, b"\0"))
        assert needs_full_header(patched(VALID[name], 512, b"\n" * 4000)[:FIRST_PAGE])
    assert not needs_full_header(patched(VALID["qcow2-3"], 20, bytes(4)))


def test_extensions_that_go_on() -> None:
    """Extensions beyond the first page matter where there is a data file, and are looked for no further than the cluster."""
    data_file = patched(VALID["qcow2-plain"], 72, struct.pack(">Q", 1 << 2))
    long = patched(data_file, 104, struct.pack(">II", 1, 8000))
    assert needs_full_header(long)
    assert not needs_full_header(patched(long, 72, bytes(8)))
    whole = patched(long.ljust(HEADER_SIZE, b"\0"), 8112, struct.pack(">II", 0x44415441, 3) + b"far")
    assert probed(whole).data_file == "far"
    assert not needs_full_header(patched(long, 20, struct.pack(">I", 12)))
    assert not needs_full_header(data_file)
    endless = patched(data_file, 104, struct.pack(">II", 1, 0) * 499)
    assert not needs_full_header(endless)


def test_magic_at_the_beginning_comes_first() -> None:
    """A file made to be ISO and another format is the other, as in QEMU, and a beginning without a version says nothing."""
    whole = patched(VALID["qcow2-3"].ljust(HEADER_SIZE, b"\0"), 32_769, b"CD001")
    assert probed(whole).format == "qcow2"
    whole = patched(vdi().ljust(HEADER_SIZE, b"\0"), 32_769, b"CD001")
    assert probed(whole).format == "vdi"
    assert probed(patched(whole, 0, b"QFI\xfb\0\0\0\0")).format == "vdi"


# ------------------------------------------------------------------------------------------------ whatever the bytes

MAGICS = sorted({head[:cut] for head in VALID.values() for cut in (0, 4, 8, 24)})


@given(st.sampled_from(MAGICS), st.binary(max_size=600))
def test_random_bytes(magic: bytes, rest: bytes) -> None:
    """Nothing but ImageError comes out of random bytes, behind any magic."""
    outcome(magic + rest)
    needs_full_header(magic + rest)
    needs_full_header((magic + rest).ljust(FIRST_PAGE, b"\0"))


@given(
    st.sampled_from(sorted(VALID)),
    st.integers(0, 200) | st.integers(0, 4095),
    st.binary(min_size=1, max_size=16),
    st.binary(max_size=64),
)
def test_mutations(name: str, offset: int, data: bytes, tail: bytes) -> None:
    """A valid header with any bytes changed gives a result or an ImageError; bytes beyond do not matter; two steps are one."""
    whole = patched(VALID[name].ljust(HEADER_SIZE, b"\0"), offset, data)[:HEADER_SIZE]
    told = outcome(whole)
    assert told == outcome(whole + tail)
    assert told == outcome(whole + b"\xff" * 5000)
    if not needs_full_header(whole[:FIRST_PAGE]):
        assert told == outcome(whole[:FIRST_PAGE])


@given(st.sampled_from(sorted(VALID)), st.integers(0, HEADER_SIZE), st.binary(max_size=16))
def test_truncations_with_something_behind(name: str, length: int, rest: bytes) -> None:
    """A header cut off anywhere, and going on with anything, gives a result or an ImageError.

    What a short one says holds when more follows; but raw may turn out to be ISO, and a text may go on.
    """
    head = VALID[name][:length] + rest
    told = outcome(head)
    if isinstance(told, ImageInfo) and not name.startswith("vmdk"):
        assert outcome(head + b"\n" * HEADER_SIZE) == outcome(head.ljust(HEADER_SIZE, b"\0")) == told


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_fuzz() -> None:
    """As many mutated headers and names as ASTORE_FUZZ_HEADERS says, by the program that also runs a million."""
    count = os.environ.get("ASTORE_FUZZ_HEADERS", "50000")
    seed = os.environ.get("ASTORE_FUZZ_SEED", str(random.SystemRandom().randrange(1 << 32)))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz_probe", count, seed],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ASTORE_FUZZ_SEED={seed}: {done.stderr}"
    assert f"seed {seed}" in done.stdout
