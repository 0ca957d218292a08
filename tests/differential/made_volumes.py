"""Volumes that libvirt and astore make of the same documents, and what each says of what the other made."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from differential.mutations import mutated
from differential.oracle import LibvirtRefusedError, Oracle
from differential.pool_documents import LARGE_IDS, Difference, Disagreement
from differential.volume_documents import UNSAFE_NAME, tree, without
from hypothesis import strategies as st
from lxml import etree

from astore import AstoreError, Pool
from astore.xml.reading import string_of

BASE = "base.qcow2"
"""A volume of both pools, that others are backed by."""

POOL = "POOL"
"""What stands for the pool's folder in a document."""

_FORMATS = (
    *["raw"] * 12,
    *["dir"] * 2,
    *["qcow2"] * 4,
    "qcow",
    "qed",
    "vmdk",
    "vdi",
    "vpc",
    "iso",
    "bochs",
    "cow",
    "fat",
)
_SIZES = ("0", "1", "511", "512", "1000", "1024", "1025", "65536", "65537", "1000003", "4194304")
_CLUSTERS = ("512", "4096", "65536", "2097152", "1000")
_NUMBERS = st.sampled_from(_SIZES)


class Made(NamedTuple):
    """What came of one document on one side: the volume's description, or why there is none."""

    xml: str = ""
    refusal: str = ""


def _text(root: Any, path: str) -> str:
    return string_of(root, path) or ""


def _put(parent: Any, name: str, text: str | None = None, **attributes: str) -> None:
    """Have one element of this name, or none if the text is empty."""
    for old in parent.findall(name):
        parent.remove(old)
    if text != "":
        etree.SubElement(parent, name, attributes).text = text


def _one_in(draw: st.DrawFn, number: int) -> bool:
    """True once in so many times: not for an end of a range, which hypothesis likes better than what is between."""
    return draw(st.integers(1, number)) == (number + 1) // 2


@st.composite
def makeable_documents(draw: st.DrawFn) -> str:
    """Documents of volumes that can be made most of the time, small ones, with a name that is to be replaced."""
    root = etree.fromstring(draw(mutated("storagevol", most=1)).encode())
    for name in ("name", "target"):
        if root.find(name) is None:
            etree.SubElement(root, name)
    target = root.find("target")
    _put(root, "name", "NAME")
    _put(root, "capacity", draw(_NUMBERS))
    _put(root, "allocation", draw(st.just("") | st.just("0") | _NUMBERS))
    if _one_in(draw, 16):  # sparse, and large
        _put(root, "capacity", draw(st.sampled_from(["3", "1000"])), unit="GiB")
        _put(root, "allocation", "0")
    kind = draw(st.sampled_from(_FORMATS))
    _put(target, "format", type=kind)
    inside = kind == "qcow2" or _one_in(draw, 12)
    _put(target, "compat", draw(st.sampled_from(["", "0.10", "1.1"])) if inside else "")
    _put(target, "clusterSize", draw(st.just("") | st.sampled_from(_CLUSTERS)) if inside else "")
    for name, odds in (("encryption", 20), ("nocow", 10), ("features", 1 if inside else 20), ("permissions", 2)):
        if not _one_in(draw, odds):
            _put(target, name, "")
    for mode in root.iterfind(".//permissions/mode"):
        mode.text = draw(st.sampled_from(["0", "07", "0600", "644", "0777"]))
    _put(root, "backingStore", "")
    if _one_in(draw, 3 if inside else 24):
        backing = etree.SubElement(root, "backingStore")
        _put(backing, "path", draw(st.sampled_from([BASE, f"{POOL}/{BASE}", f"{POOL}/{BASE}", f"{POOL}/absent"])))
        _put(backing, "format", type=draw(st.sampled_from(["qcow2", "qcow2", "raw", "", "qcow2"])))
    return str(etree.tostring(root, encoding="unicode"))


def made_by_libvirt(document: str, pool: str, oracle: Oracle) -> Made:
    """Have libvirt make it."""
    try:
        return Made(xml=oracle.ask("create_volume", pool, document))
    except LibvirtRefusedError as error:
        return Made(refusal=f"{error.code} {error}")


def described_by_libvirt(pool: str, oracle: Oracle) -> dict[str, str]:
    """What libvirt says of a pool's volumes; nothing of one that it cannot describe for the reason :data:`UNDESCRIBED`."""
    described = {}
    for name in oracle.ask("pool_call", pool, "listVolumes"):
        try:
            described[name] = oracle.ask("volume_call", pool, name, "XMLDesc")
        except LibvirtRefusedError as error:
            if not re.search(r"format.* -2\b", str(error)):  # it has found no format, and has no word for that
                raise
            described[name] = ""
    return described


async def made_by_astore(document: str, pool: Pool) -> Made:
    """Have astore make it."""
    try:
        return Made(xml=(await pool.create_volume(document)).to_xml())
    except AstoreError as error:
        return Made(refusal=f"{type(error).__name__} {error}")


# ------------------------------------------------------------------------------------------- what is meant to differ


def _format(root: Any) -> str:
    return _text(root, "./target/format/@type") or "raw"


LIBVIRT_ONLY = (
    UNSAFE_NAME,
    Difference(
        "a raw volume with compat, features or clusterSize",
        "libvirt takes no notice of them; astore says that it cannot have them",
        lambda root: (
            _format(root) == "raw" and bool(root.xpath("target/compat | target/features | target/clusterSize"))
        ),
        "of format 'raw' have no",
    ),
    Difference(
        "a new volume of format iso",
        "libvirt makes an empty raw one; ISO images are made by other programs",
        lambda root: _format(root) == "iso",
        "can be kept but not created",
    ),
)
"""libvirt makes it, astore does not."""

ASTORE_ONLY = (
    Difference(
        "a backing file that does not exist",
        "it is not looked at where the document says format and capacity, since it may be anywhere",
        lambda root: _text(root, "./backingStore/path").endswith("absent"),
        "inaccessible backing store",
    ),
    Difference(
        "nocow for a raw volume, not on btrfs",
        "there is nothing to switch off, and libvirt itself makes a qcow2 volume of such a document",
        lambda root: _format(root) == "raw" and root.find("target/nocow") is not None,
        "not btrfs",
    ),
    Difference(
        "a directory with a backing file or encryption",
        "astore takes no notice of it, as both do of all else that concerns images only",
        lambda root: _format(root) == "dir" and bool(root.xpath("backingStore | target/encryption")),
        "backing storage not supported for directories|secret",
    ),
)
"""astore makes it, libvirt does not."""

NO_CAPACITY = "a capacity of 0 bytes of a volume that is backed by another"
NO_SIZE_IN_HEADER = "the capacity of an image whose header says 0 bytes"
KIBIBYTES = "a capacity of a new image that is not a multiple of 1 KiB"
SECTORS = "the size of a new image's file"
IMAGE_BLOCKS = "the blocks of a new image's file"
MORE_THAN_CAPACITY = "a raw volume with more allocation than capacity"
DIRECTORY_MODE = "the mode of a new directory"
DEFAULT_COMPAT = "the compat of a new qcow2 volume that names none"
BACKING_FORMAT = "the format of a backing file, if the document names none"
UNDESCRIBED = "a volume backed by an image that is not raw, if its own header cannot say so"

IN_WHAT_IS_MADE = {
    NO_CAPACITY, NO_SIZE_IN_HEADER, KIBIBYTES, SECTORS, IMAGE_BLOCKS, MORE_THAN_CAPACITY, DIRECTORY_MODE, DEFAULT_COMPAT,
    BACKING_FORMAT, LARGE_IDS, UNDESCRIBED,
}  # fmt: skip
"""Both make it, and it is not quite the same."""


def compare_making(document: str, libvirts: Made, astores: Made) -> str:
    """How it came out: for both, for neither, or a deliberate difference's name. :raises Disagreement: it should not."""
    if bool(libvirts.xml) == bool(astores.xml):
        return "made by both" if libvirts.xml else "made by neither"
    refusal = libvirts.refusal or astores.refusal
    root = etree.fromstring(document.encode())
    kinds = ASTORE_ONLY if astores.xml else LIBVIRT_ONLY
    for difference in kinds:
        if difference.met(root) and re.search(difference.says, refusal):
            return difference.name
    raise Disagreement(f"only {'astore' if astores.xml else 'libvirt'} makes it ({refusal}):\n{document}")


def _same_ids(libvirts: Any, met: set[str]) -> None:
    """Write owners and groups as they are."""
    for element in libvirts.xpath(".//permissions/owner | .//permissions/group"):
        if element.text.startswith("-"):
            element.text = str(int(element.text) + (1 << 32))
            met.add(LARGE_IDS)


def _same_capacity(libvirts: Any, astores: Any, met: set[str]) -> None:
    image = _format(astores) not in ("raw", "dir")
    if image and _text(astores, "./capacity") == "0" and _text(libvirts, "./capacity") == _text(libvirts, "./physical"):
        astores.find("capacity").text = libvirts.find("capacity").text
        met.add(NO_SIZE_IN_HEADER)


def compare_seen(libvirts: str, astores: str) -> set[str]:
    """What both say of one volume in one folder; the deliberate differences. :raises Disagreement: they say different things.

    Less the time of last access, which the one who looks first changes, and libvirt's time of birth, which is always 0.
    """
    met: set[str] = set()
    times = [f"{place}/timestamps/{name}" for place in ("target", "backingStore") for name in ("atime", "btime")]
    one, other = (without(etree.fromstring(text), *times) for text in (libvirts, astores))
    _same_ids(one, met)
    _same_capacity(one, other, met)
    if tree(one) != tree(other):
        raise Disagreement(f"libvirt says of a volume\n{libvirts}\nand astore\n{astores}")
    return met


def compare_made(document: str, libvirts: str, astores: str) -> set[str]:
    """Two volumes made of one document, one by libvirt, one by astore; the deliberate differences.

    :raises Disagreement: they differ otherwise than in place and time.
    """
    met: set[str] = set()
    place = ("key", "target/path", "target/timestamps", "backingStore/path", "backingStore/timestamps")
    one, other = (without(etree.fromstring(text), *place) for text in (libvirts, astores))
    asked = etree.fromstring(document.encode())
    kind = _format(other)
    _same_ids(one, met)
    if kind not in ("raw", "dir") and one.find("backingStore") is not None and _number(asked, "capacity") == 0:
        assert _number(other, "capacity") == 0 < _number(one, "capacity")
        one, other = (without(side, "capacity", "physical", "allocation") for side in (one, other))
        met.add(NO_CAPACITY)
    _same_capacity(one, other, met)
    if kind == "dir" and not _text(asked, "./target/permissions/mode"):
        assert (_text(one, "target/permissions/mode"), _text(other, "target/permissions/mode")) == ("0600", "0711")
        other.find("target/permissions/mode").text = "0600"
        met.add(DIRECTORY_MODE)
    if other.find("backingStore") is not None and not _text(asked, "./backingStore/format/@type"):
        assert [_text(side, "./backingStore/format/@type") for side in (one, other)] == ["raw", "qcow2"]
        other.find("backingStore/format").set("type", "raw")
        met.add(BACKING_FORMAT)
    if kind == "raw" and _larger(one, other):
        met.add(MORE_THAN_CAPACITY)
        one, other = (without(side, "capacity", "physical", "allocation") for side in (one, other))
    elif kind not in ("raw", "dir"):
        met |= _same_image(one, other)
    if kind == "qcow2" and not _text(asked, "./target/compat") and asked.find("target/features") is None:
        assert (_text(one, "./target/compat"), _text(other, "./target/compat")) == ("", "1.1")
        other = without(other, "target/compat", "target/features")
        met.add(DEFAULT_COMPAT)
    if tree(one) != tree(other):
        raise Disagreement(f"of\n{document}\nlibvirt makes\n{libvirts}\nand astore\n{astores}")
    return met


def _number(root: Any, path: str) -> int:
    return int(_text(root, path) or 0)


def _larger(libvirts: Any, astores: Any) -> bool:
    capacity = _number(libvirts, "capacity")
    return _number(astores, "capacity") < capacity <= _number(libvirts, "allocation")


def _same_image(libvirts: Any, astores: Any) -> set[str]:
    """Make alike the sizes of two images, if they differ for a reason."""
    met = set()
    for name, unit, rounded, exact, why in (
        ("capacity", 1024, libvirts, astores, KIBIBYTES),
        ("physical", 512, astores, libvirts, SECTORS),
    ):
        size = _number(exact, name)
        if size != _number(rounded, name) == -(-size // unit) * unit:
            exact.find(name).text = rounded.find(name).text
            met.add(why)
    blocks = [_number(side, "allocation") for side in (libvirts, astores)]
    if blocks[0] != blocks[1] and max(blocks) <= _number(astores, "physical") + 65_536:
        astores.find("allocation").text = libvirts.find("allocation").text
        met.add(IMAGE_BLOCKS)
    return met
