"""Probing of headers made by hand: every field, every refusal, every truncation."""

from __future__ import annotations

import os
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_heads import BACKING, VALID, qcow2, vdi, vpc

from astore.images import HEADER_SIZE, ImageError, needs_full_header, probe
from astore.model import ImageInfo

EXPECTED = {
    "qcow": ImageInfo("qcow", 1 << 30, BACKING.decode(), cluster_size=4096),
    "qcow2-2": ImageInfo("qcow2", 1 << 30, BACKING.decode(), "qcow2", "0.10", (), None, 1 << 16),
    "qcow2-3": ImageInfo("qcow2", 1 << 30, BACKING.decode(), "qcow2", "1.1", ("lazy_refcounts",), None, 1 << 16),
    "qcow2-plain": ImageInfo("qcow2", 1 << 30, None, None, "1.1", ("lazy_refcounts",), None, 1 << 16),
    "qed": ImageInfo("qed", 1 << 30, BACKING.decode(), "raw", cluster_size=1 << 16),
    "vmdk": ImageInfo("vmdk", 2048 * 512, "base.vmdk", "vmdk", cluster_size=1 << 16),
    "vmdk-cowd": ImageInfo("vmdk", 2048 * 512, cluster_size=8192),
    "vmdk-descriptor": ImageInfo("vmdk", 6144 * 512, "base.vmdk", "vmdk"),
    "vdi": ImageInfo("vdi", 1 << 30, cluster_size=1 << 20),
    "vpc": ImageInfo("vpc", 100 * 4 * 17 * 512),
    "ploop": ImageInfo("ploop", 1 << 30, cluster_size=1 << 20),
    "ploop-old": ImageInfo("ploop", 1 << 30, cluster_size=1 << 20),
    "cow": ImageInfo("cow", 1 << 20, BACKING.decode()),
    "iso": ImageInfo("iso"),
    "luks": ImageInfo("luks", encryption="luks"),
    "luks2": ImageInfo("luks", encryption="luks"),
}


@pytest.mark.parametrize("name", VALID)
def test_every_format(name: str) -> None:
    """What the header says is found."""
    assert probe(VALID[name]) == EXPECTED[name]


def patched(head: bytes, offset: int, data: bytes) -> bytes:
    return head[:offset] + data + head[offset + len(data) :]


REFUSED = [
    ("qcow2-3", 8, struct.pack(">QI", 4090, 100), "lies beyond the header"),
    ("qcow2-3", 8, struct.pack(">QI", 1 << 63, 10), "lies beyond the header"),
    ("qcow2-3", 16, struct.pack(">I", 1024), "more than 1,023"),
    ("qcow2-3", 20, struct.pack(">I", 8), "cluster_bits 8"),
    ("qcow2-3", 20, struct.pack(">I", 22), "cluster_bits 22"),
    ("qcow2-3", 24, b"\xff" * 8, "more than any file"),
    ("qcow2-3", 32, struct.pack(">I", 3), "crypt_method 3"),
    ("qcow2-3", 100, struct.pack(">I", 72), "header_length 72"),
    ("qcow2-3", 108, struct.pack(">I", 0xFFFFFFF0), "reaches too far"),
    ("qcow2-3", 112, b"\xff\xfe", "not UTF-8"),
    ("qcow2-3", 144, b"\xff\xfe", "not UTF-8"),
    ("qcow", 32, b"\x08", "cluster_bits 8"),
    ("qcow", 36, struct.pack(">I", 2), "crypt_method 2"),
    ("qcow", 16, struct.pack(">I", 2000), "more than 1,023"),
    ("qcow", 8, struct.pack(">Q", 1 << 40), "lies beyond the header"),
    ("qcow", 24, b"\xff" * 8, "more than any file"),
    ("qed", 4, struct.pack("<I", 3), "no power of two"),
    ("qed", 4, struct.pack("<I", 1 << 30), "no power of two"),
    ("qed", 56, struct.pack("<I", 1 << 30), "lies beyond the header"),
    ("qed", 60, struct.pack("<I", 5000), "more than 1,023"),
    ("vmdk", 12, b"\xff" * 8, "more than any file"),
    ("vmdk", 20, b"\xff" * 8, "grain"),
    ("vdi", 0x178, bytes(4), "block size is 0"),
    ("vdi", 0x170, b"\xff" * 8, "more than any file"),
    ("vpc", 60, struct.pack(">I", 9), "disk type 9"),
    ("ploop", 36, b"\xff" * 8, "more than any file"),
    ("cow", 1036, b"\xff" * 8, "more than any file"),
    ("cow", 8, b"\xff", "not UTF-8"),
]


@pytest.mark.parametrize(("name", "offset", "data", "words"), REFUSED)
def test_malformed_headers_are_refused_in_words(name: str, offset: int, data: bytes, words: str) -> None:
    """The right magic over nonsense is an error that names format and field."""
    with pytest.raises(ImageError, match=words) as caught:
        probe(patched(VALID[name], offset, data))
    assert caught.value.format in str(caught.value)


UNKNOWN_VERSIONS = [
    ("qcow2-3", 4, b"\0\0\0\4"),
    ("qcow2-3", 4, b"\0\0\0\0"),
    ("vmdk", 4, b"\x09\0\0\0"),
    ("vmdk-cowd", 4, b"\x02\0\0\0"),
    ("vdi", 0x44, b"\2\0\2\0"),
    ("vpc", 12, b"\0\2\0\0"),
    ("vpc", 4, b"xxxx"),
    ("ploop", 16, b"\1\0\0\0"),
    ("ploop", 8, b"x"),
    ("cow", 4, b"\0\0\0\1"),
    ("luks", 6, b"\0\3"),
    ("luks", 4, b"xx"),
    ("vmdk-descriptor", 5, b"x"),
    ("iso", 32_769, b"CDx"),
]


@pytest.mark.parametrize(("name", "offset", "data"), UNKNOWN_VERSIONS)
def test_unknown_versions_are_raw(name: str, offset: int, data: bytes) -> None:
    """The right magic and an unknown version is raw, as in libvirt."""
    assert probe(patched(VALID[name], offset, data)) is None


def test_sizes_of_vhd() -> None:
    """QEMU's and Virtual PC's images have their geometry's size, others what they say."""
    info = probe(vpc(b"win "))
    assert info is not None
    assert info.capacity == 1 << 20


def test_extended_l2_and_encryption() -> None:
    """The incompatible bit 4 and the encryption methods are told."""
    info = probe(patched(qcow2(3, crypt=2), 72, struct.pack(">QQ", 1 << 4 | 1 << 2, 1)))
    assert info is not None
    assert info.features == ("extended_l2", "lazy_refcounts")
    assert (info.encryption, info.data_file) == ("luks", "data")
    aes = probe(qcow2(2, crypt=1))
    assert aes is not None
    assert aes.encryption == "aes"


def test_vmdk_without_parent() -> None:
    """A parent CID of all ones says that there is none, whatever the hint says."""
    info = probe(VALID["vmdk"].replace(b"87654321", b"ffffffff"))
    assert info is not None
    assert info.backing is None
    huge = VALID["vmdk-descriptor"].replace(b"RW 2048", b"RW 9223372036854775807")
    with pytest.raises(ImageError, match="larger than any file"):
        probe(huge)


@pytest.mark.parametrize("name", VALID)
def test_every_truncation(name: str) -> None:
    """A header cut off anywhere is whole, raw, or an error; never anything else."""
    head = VALID[name]
    lengths = range(len(head)) if len(head) <= 4096 else [0, 1, 512, 4096, 32_768, 32_769, 32_770, 32_773]
    for length in lengths:
        try:
            probe(head[:length])
        except ImageError:
            assert length < len(head)


def test_what_is_read_in_one_step_and_two() -> None:
    """The first 4 KiB either tell, or say that they do not."""
    for head in VALID.values():
        whole = head.ljust(HEADER_SIZE, b"\0")
        first = whole[:4096]
        assert probe(whole if needs_full_header(first) else first) == probe(whole)
    far = patched(qcow2(3).ljust(HEADER_SIZE, b"\0"), 8, struct.pack(">Q", 20_000))
    far = patched(far, 20_000, BACKING)
    assert needs_full_header(far[:4096])
    info = probe(far)
    assert info is not None
    assert info.backing == BACKING.decode()
    long_extension = patched(qcow2(3, backing=b"").ljust(HEADER_SIZE, b"\0"), 104, struct.pack(">II", 1, 8000))
    assert needs_full_header(long_extension[:4096])
    endless = struct.pack(">II", 1, 0) * 3000
    assert not needs_full_header(patched(long_extension, 104, endless)[:4096])
    assert probe(patched(long_extension, 104, endless)) is not None
    assert not needs_full_header(qcow2(3)[:100])


def outcome(head: bytes) -> object:
    try:
        return probe(head)
    except ImageError as error:
        return str(error)


@given(st.binary(max_size=600))
def test_random_bytes(head: bytes) -> None:
    """Nothing but ImageError comes out of random bytes, behind any magic."""
    for magic in (
        b"",
        b"QFI\xfb\0\0\0\3",
        b"QED\0",
        b"KDMV\1\0\0\0",
        b"# Disk DescriptorFile",
        b"conectix",
        b"OOOM\0\0\0\2",
    ):
        outcome(magic + head)
        needs_full_header(magic + head)


@given(st.sampled_from(sorted(VALID)), st.integers(0, 4095), st.binary(min_size=1, max_size=16))
def test_mutations(name: str, offset: int, data: bytes) -> None:
    """A valid header with any bytes changed gives a result or an ImageError, and bytes beyond its bounds do not matter."""
    head = patched(VALID[name], min(offset, len(VALID[name])), data).ljust(HEADER_SIZE, b"\0")[:HEADER_SIZE]
    assert outcome(head) == outcome(head + b"\xff" * 5000)


@pytest.mark.fuzz
def test_fuzz() -> None:
    """As many mutated headers as ASTORE_FUZZ_HEADERS says; benchmarks/fuzz_probe.py runs a million."""
    count, seed = int(os.environ.get("ASTORE_FUZZ_HEADERS", "200000")), int(os.environ.get("ASTORE_FUZZ_SEED", "1"))
    rng = random.Random(seed)
    heads = [head[:1600] for head in VALID.values()]
    seen = set()
    for _ in range(count):
        head = bytearray(rng.choice(heads))
        for _ in range(rng.randrange(1, 6)):
            head[min(int(rng.expovariate(0.02)), len(head) - 1)] = rng.choice((0, 1, 255, rng.randrange(256)))
        del head[rng.randrange(8, 2 * len(head)) :]
        found = outcome(bytes(head))
        needs_full_header(bytes(head))
        seen.add(found.format if isinstance(found, ImageInfo) else type(found))
    assert {"qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "ploop", "cow", "luks", str, type(None)} <= seen, (
        f"seed {seed}"
    )


def test_vdi_of_another_version_needs_no_more() -> None:
    """VDI's magic is at 64, not at the beginning."""
    assert not needs_full_header(vdi().ljust(4096, b"\0"))
    assert needs_full_header(bytes(4096))
