"""What libvirt and astore do differently on purpose, step by step: docs/differences-from-libvirt.md has the reasons.

Each is seen on both sides. A test that fails here, because they agree now, has a row there that is to go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from differential.comparing import put_away
from differential.operations import AstoreSide, LibvirtSide, astore_side
from differential.oracle import Oracle
from lxml import etree

from beds.images import template

pytestmark = [pytest.mark.root, pytest.mark.libvirt, pytest.mark.qemu]

Sides = tuple[LibvirtSide, AstoreSide]
POOLS = ("m0", "m1")


def document(name: str, target: str, inner: str = "") -> str:
    """A definition."""
    uuid = f"<uuid>00000000-0000-4000-8000-00000000030{POOLS.index(name)}</uuid>"
    return f"<pool type='dir'><name>{name}</name>{uuid}{inner}<target><path>{target}</path></target></pool>"


def volume(name: str, inner: str) -> str:
    """A volume to make."""
    return f"<volume><name>{name}</name>{inner}</volume>"


@pytest.fixture
async def sides(oracle: Oracle, tmp_path: Path) -> AsyncIterator[Sides]:
    """libvirt and astore, each with an active pool ``m0``."""
    theirs = LibvirtSide(tmp_path / "twin1", oracle)
    async with astore_side(tmp_path / "twin2", tmp_path / "state", lambda name: None) as mine:
        try:
            for side in (theirs, mine):
                assert (await side.do("define", document("m0", "@/m0"))).code is None
                assert (await side.do("start", "m0", True)).code is None
            yield theirs, mine
        finally:
            put_away(oracle, POOLS)


async def codes(sides: Sides, operation: str, *arguments: object) -> tuple[int | None, int | None]:
    """libvirt's and astore's code for a step; None where it was done."""
    theirs, mine = [await side.do(operation, *arguments) for side in sides]
    return theirs.code, mine.code


async def xml(side: LibvirtSide | AstoreSide, pool: str, what: str = "xml") -> etree._Element:
    """A pool's document."""
    return etree.fromstring((await side.world([pool]))[pool][what])


async def seen(side: LibvirtSide | AstoreSide, name: str) -> etree._Element:
    """A volume's document after a refresh."""
    await side.do("refresh", "m0")
    return etree.fromstring((await side.world(["m0"]))["m0"]["volumes"][name])


async def test_a_definition_has_no_figures(sides: Sides) -> None:
    """libvirt writes the figures of the last refresh into the definition, and keeps them when the pool is stopped."""
    for what in ("inactive xml", "xml"):
        theirs, mine = [await xml(side, "m0", what) for side in sides]
        assert theirs.findtext("capacity") != "0"
        if what == "inactive xml":
            assert mine.findtext("capacity") == "0"
        await codes(sides, "stop", "m0")


async def test_a_definition_keeps_its_permissions(sides: Sides) -> None:
    """A refresh puts the folder's permissions into libvirt's definition, by which the folder is built anew later."""
    theirs, mine = [await xml(side, "m0", "inactive xml") for side in sides]
    assert theirs.findtext("target/permissions/mode") == "0711"
    assert mine.find("target/permissions") is None


async def test_names_with_tabs_and_line_ends(sides: Sides) -> None:
    """libvirt has volumes of such names; in astore they are left out of the list, and told in the report."""
    for side in sides:
        for name in ("a\tb", "a\nb", "a\x7fb"):
            (side.root / "m0" / name).touch()
        await side.do("refresh", "m0")
    theirs, mine = [(await side.world(["m0"]))["m0"]["volumes"] for side in sides]
    assert set(theirs) == {"a\tb", "a\nb", "a\x7fb"}
    assert not mine


async def test_a_damaged_image(sides: Sides) -> None:
    """A VHD that is cut off within its header: libvirt reads what is there, astore says that it is damaged."""
    for side in sides:
        (side.root / "m0" / "cut").write_bytes(b"".join(data for _, data in template("vpc", 1 << 20).parts)[:511])
        await side.do("refresh", "m0")
    theirs, mine = [(await side.world(["m0"]))["m0"] for side in sides]
    assert "cut" in theirs["volumes"]
    assert mine["damaged"] == {"cut"}


async def test_an_upload_into_a_header(sides: Sides) -> None:
    """libvirt writes it; astore says that what comes of it cannot be read, and writes nothing unless it is told to."""
    for side in sides:
        template("qcow2", 1 << 20).write(side.root / "m0" / "image")
        before = (side.root / "m0" / "image").read_bytes()
        await side.do("refresh", "m0")
    assert await codes(sides, "upload", "m0", "image", b"\xff" * 10, 100, 0) == (None, 38)
    theirs, mine = [(side.root / "m0" / "image").read_bytes() for side in sides]
    assert theirs[100:110] == b"\xff" * 10
    assert mine == before


async def test_a_text_about_qed(sides: Sides) -> None:
    """Three letters make an image for libvirt; its magic has a NUL byte after them (QEMU's block/qed.h)."""
    for side in sides:
        (side.root / "m0" / "text").write_bytes(b"QED, as they say")
    theirs, mine = [(await seen(side, "text")).find("target/format") for side in sides]
    assert theirs is not None and mine is not None
    assert (theirs.get("type"), mine.get("type")) == ("qed", "raw")


async def test_a_qed_image_that_is_backed(sides: Sides) -> None:
    """Such an image names no format for its backing file, and libvirt cannot describe the volume at all."""
    for side in sides:
        (side.root / "m0" / "base").write_bytes(bytes(1 << 20))
        template("qed", 1 << 20, "base", "qcow2").write(side.root / "m0" / "backed")
        await side.do("refresh", "m0")
    theirs, mine = [(await side.world(["m0"]))["m0"]["volumes"]["backed"] for side in sides]
    assert theirs.startswith("<refused")
    assert etree.fromstring(mine).findtext("backingStore/path") == "@/m0/base"


async def test_a_folder_that_is_gone(sides: Sides) -> None:
    """A refresh that fails is the end of libvirt's pool; astore's is inaccessible, and has its volumes still."""
    for side in sides:
        (side.root / "m0" / "a").touch()
        await side.do("refresh", "m0")
        (side.root / "m0").rename(side.root / "away")
    assert await codes(sides, "refresh", "m0") == (38, 38)
    theirs, mine = [(await side.world(["m0"]))["m0"] for side in sides]
    assert not theirs["active"]
    assert mine["active"] and list(mine["volumes"]) == ["a"]


async def test_what_a_start_tells(sides: Sides) -> None:
    """libvirt tells that a pool was started; astore also that it was built, and refreshed."""
    for side in sides:
        await side.do("define", document("m1", "@/m1"))
        await side.events()
    assert await codes(sides, "start", "m1", True) == (None, None)
    theirs, mine = sides
    assert await theirs.events() == [["m1", "started"]]
    async with mine._manager.events(since=0, pools=["m1"]) as events:
        told = []
        while event := events.receive_nowait():
            told.append(type(event).__name__)
    assert told[-4:] == ["PoolBuilt", "PoolStateChanged", "PoolStarted", "PoolRefreshed"]


async def test_the_next_source_of_an_active_pool(sides: Sides) -> None:
    """Another pool may not have it: with libvirt it may, and then both are active on one folder."""
    assert await codes(sides, "define", document("m0", "@/next")) == (None, None)
    assert await codes(sides, "define", document("m1", "@/next")) == (None, 9)


async def test_building_in_the_place_of_a_file(sides: Sides) -> None:
    """libvirt does not look what is there."""
    for side in sides:
        (side.root / "m1").touch()
    assert await codes(sides, "define", document("m1", "@/m1")) == (None, None)
    assert await codes(sides, "build", "m1") == (None, 38)


async def test_copy_on_write_of_a_folder(sides: Sides) -> None:
    """The feature is kept, and nothing is done about it; libvirt builds such a pool on btrfs alone."""
    cow = "<features><cow state='no'/></features>"
    assert await codes(sides, "define", document("m1", "@/m1", cow)) == (None, None)
    assert await codes(sides, "build", "m1") == (38, None)


async def test_wiping(sides: Sides) -> None:
    """libvirt writes whole blocks, so that a small volume grows, makes a sparse one all hole, and cannot trim."""
    for side in sides:
        (side.root / "m0" / "small").write_bytes(b"x" * 1000)
        with (side.root / "m0" / "sparse").open("wb") as file:
            file.write(b"x" * 65_536)
            file.truncate(1 << 20)
        await side.do("refresh", "m0")
    for name in ("small", "sparse"):
        assert await codes(sides, "wipe", "m0", name, "zero") == (None, None)
    theirs, mine = [[(side.root / "m0" / name).stat() for name in ("small", "sparse")] for side in sides]
    assert (theirs[0].st_size, mine[0].st_size) == (4096, 1000)
    assert (theirs[1].st_blocks, mine[1].st_blocks) == (0, 128)
    assert await codes(sides, "wipe", "m0", "small", "trim") == (74, None)


async def test_resizing(sides: Sides) -> None:
    """What is allocated may be cut off, if it is to shrink; space is taken for what is gained, not for the holes there are."""
    for side in sides:
        (side.root / "m0" / "full").write_bytes(b"x" * 65_536)
        with (side.root / "m0" / "sparse").open("wb") as file:
            file.truncate(1 << 20)
        await side.do("refresh", "m0")
    assert await codes(sides, "resize", "m0", "full", 4096, ["shrink"]) == (8, None)
    assert await codes(sides, "resize", "m0", "sparse", 2 << 20, ["allocate"]) == (None, None)
    theirs, mine = [(side.root / "m0" / "sparse").stat().st_blocks for side in sides]
    assert (theirs >> 11, mine >> 11) == (2, 1)


async def test_what_is_said_of_a_copy(sides: Sides) -> None:
    """libvirt takes no notice of a copy's capacity and backing file, where it converts; astore does what is asked for."""
    for side in sides:
        (side.root / "m0" / "old").write_bytes(b"x" * 65_536)
        await side.do("refresh", "m0")
    larger = volume("new", "<capacity>1048576</capacity><target><format type='qcow2'/><compat>1.1</compat></target>")
    assert await codes(sides, "clone", "m0", larger, "m0", "old") == (None, None)
    theirs, mine = [(await seen(side, "new")).findtext("capacity") for side in sides]
    assert (theirs, mine) == ("65536", "1048576")
    smaller = volume("small", "<capacity>1024</capacity>")
    assert await codes(sides, "clone", "m0", smaller, "m0", "old") == (None, 27)


async def test_copying_what_is_no_file(sides: Sides) -> None:
    """libvirt makes something of a folder; astore refuses it."""
    for side in sides:
        (side.root / "m0" / "folder").mkdir()
        await side.do("refresh", "m0")
    new = volume("new", "<target><format type='raw'/></target>")
    theirs, mine = await codes(sides, "clone", "m0", new, "m0", "folder")
    assert (theirs, mine) == (None, 38)


async def test_metadata_of_a_raw_volume(sides: Sides) -> None:
    """There is none to write: libvirt refuses, astore has nothing to do."""
    assert await codes(sides, "new_volume", "m0", volume("raw", "<capacity>1024</capacity>"), True) == (67, None)


async def test_a_new_images_backing_file(sides: Sides) -> None:
    """It is not opened: what it is, is what the document says."""
    for side in sides:
        (side.root / "m0" / "raw").write_bytes(bytes(65_536))
    backed = "<capacity>65536</capacity><target><format type='qcow2'/></target>"
    backed += "<backingStore><path>@/m0/raw</path><format type='qcow2'/></backingStore>"
    assert await codes(sides, "new_volume", "m0", volume("new", backed), False) == (1, None)
