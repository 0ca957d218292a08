"""The numbers of errors: in the same situation, ``error.libvirt_code`` is what libvirt's ``get_error_code()`` is.

A situation is a list of steps that both sides can do, and a last one that both refuse. What differs on purpose is listed with
the reason, and in docs/differences-from-libvirt.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from differential.counts import counting
from differential.operations import AstoreSide, LibvirtSide, astore_side
from differential.oracle import Oracle

from astore import LibvirtCode

DIFFERENCES = (Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md").read_text()

pytestmark = [pytest.mark.root, pytest.mark.libvirt, pytest.mark.qemu]

UUID, OTHER = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def pool(name: str, *, folder: str | None = None, uuid: str = "", type: str = "dir", source: str = "") -> str:
    known = f"<uuid>{uuid}</uuid>" if uuid else ""
    target = f"<target><path>@/{folder or name}</path></target>"
    return f"<pool type='{type}'><name>{name}</name>{known}<source>{source}</source>{target}</pool>"


def volume(name: str = "v", *, capacity: str = "<capacity>1048576</capacity>", target: str = "", rest: str = "") -> str:
    return f"<volume><name>{name}</name>{capacity}<target>{target}</target>{rest}</volume>"


Step = tuple[Any, ...]
DEFINED: list[Step] = [("define", pool("p", uuid=UUID))]
BUILT: list[Step] = [*DEFINED, ("build", "p")]
STARTED: list[Step] = [*DEFINED, ("start", "p", True)]
TRANSIENT: list[Step] = [("create", pool("t", uuid=UUID), True)]
FILLED: list[Step] = [*STARTED, ("new_volume", "p", volume(), False)]
FULL: list[Step] = [
    *FILLED,
    ("new_volume", "p", volume("d", target="<format type='dir'/>"), False),
    ("put", "p/d/file"),
]
FOREIGN: list[Step] = [*STARTED, ("put", "p/v")]
NETFS = "<host name='127.9.9.9'/><dir path='/d'/>"
GLUSTER = "<host name='127.9.9.9'/><name>v</name>"


class Situation(NamedTuple):
    what: str
    before: list[Step]
    refused: Step
    code: int
    """libvirt's."""
    ours: int | None = None
    """astore's, where it is another on purpose …"""
    row: str = ""
    """… by this row of docs/differences-from-libvirt.md."""


def define(what: str, xml: str, code: int, before: list[Step] | None = None) -> Situation:
    return Situation(what, before or [], ("define", xml), code)


def make(what: str, xml: str, code: int, before: list[Step] | None = None) -> Situation:
    return Situation(what, STARTED if before is None else before, ("new_volume", "p", xml, False), code)


SITUATIONS = [
    # which state lets what be done
    Situation("start an active pool", STARTED, ("start", "p", False), 55),
    Situation("build an active pool", STARTED, ("build", "p"), 55),
    Situation("delete an active pool", STARTED, ("delete", "p"), 55),
    Situation("undefine an active pool", STARTED, ("undefine", "p"), 55),
    Situation("undefine a transient pool", TRANSIENT, ("undefine", "t"), 55),
    Situation("mark a transient pool for autostart", TRANSIENT, ("autostart", "t", True), 1),
    Situation("stop an inactive pool", DEFINED, ("stop", "p"), 55),
    Situation("refresh an inactive pool", BUILT, ("refresh", "p"), 55),
    Situation("create a volume in an inactive pool", BUILT, ("new_volume", "p", volume(), False), 55),
    Situation("look at a volume of an inactive pool", [*FILLED, ("stop", "p")], ("download", "p", "v", 0, 0), 55),
    Situation("stop a pool twice", [*STARTED, ("stop", "p")], ("stop", "p"), 55),
    Situation("use a transient pool that was stopped", [*TRANSIENT, ("stop", "t")], ("refresh", "t"), 49),
    Situation("use a pool that was undefined", [*DEFINED, ("undefine", "p")], ("start", "p", False), 49),
    # storage that says no
    Situation("start a pool without its folder", DEFINED, ("start", "p", False), 38),
    Situation("delete a pool without its folder", DEFINED, ("delete", "p"), 38),
    Situation("delete a pool that is not empty", [*FILLED, ("stop", "p")], ("delete", "p"), 38),
    Situation("delete a directory that is not empty", FULL, ("delete_volume", "p", "d"), 38),
    Situation("a server that is not there, by libgfapi", [("define", pool("g", type="gluster", source=GLUSTER))],
              ("start", "g", False), 38),
    Situation("a server that is not there, by mount", [("define", pool("n", type="netfs", source=NETFS)), ("build", "n")],
              ("start", "n", False), 1),
    Situation("destroy what a backend cannot", [("define", pool("g", type="gluster", source=GLUSTER))], ("delete", "g"), 3),
    # what is not there
    Situation("a pool by its name", [], ("start", "nosuch", False), 49),
    Situation("a pool by its uuid", [], ("by_uuid", OTHER), 49),
    Situation("a pool by what is no uuid", [], ("by_uuid", "nonsense"), 8),
    Situation("a pool by its target", DEFINED, ("by_target", "@/p"), 49),
    Situation("a volume by its name", STARTED, ("delete_volume", "p", "nosuch"), 50),
    Situation("a volume by its key", STARTED, ("by_key", "@/p/nosuch"), 50),
    Situation("a volume by its path", STARTED, ("by_path", "@/p/nosuch"), 50),
    Situation("a volume to copy", STARTED, ("clone", "p", volume("w"), "p", "nosuch"), 50),
    # what is there already
    define("a pool with another's name", pool("p", folder="q", uuid=OTHER), 9, DEFINED),
    define("a pool with another's uuid", pool("q", uuid=UUID), 9, DEFINED),
    define("a pool with another's source", pool("q", folder="p"), 9, DEFINED),
    Situation("a transient pool with another's name", STARTED, ("create", pool("p", folder="q"), True), 9),
    Situation("a transient pool that is active already", TRANSIENT, ("create", pool("t", uuid=UUID), False), 55),
    make("a volume that is there", volume(), 90, FILLED),
    Situation("a file that no refresh has seen", FOREIGN, ("new_volume", "p", volume(), False), 55, 90,
              "A new volume with the name of a file that no refresh has seen"),
    Situation("a copy named as a volume that is there", FILLED, ("clone", "p", volume(), "p", "v"), 1, 90,
              "A copy with the name of an existing volume"),
    # documents of pools
    define("no XML", "nonsense", 35),
    define("an empty document", "", 35),
    define("XML cut short", "<pool type='dir'><name>p</name>", 35),
    define("another document", "<volume/>", 27),
    define("no type", "<pool><name>p</name></pool>", 27),
    define("no name", "<pool type='dir'><target><path>@/p</path></target></pool>", 27),
    define("no target", "<pool type='dir'><name>p</name></pool>", 27),
    define("a name with a slash", pool("a/b", folder="p"), 27),
    define("a malformed uuid", pool("p", uuid="nonsense"), 27),
    define("a malformed mode", pool("p").replace("</target>", "<permissions><mode>9</mode></permissions></target>"), 27),
    define("no host", pool("p", type="netfs", source="<dir path='/d'/>"), 27),
    define("a host without a name", pool("p", type="netfs", source="<host/><dir path='/d'/>"), 27),
    define("a malformed port", pool("p", type="netfs", source="<host name='h' port='x'/><dir path='/d'/>"), 27),
    define("no directory", pool("p", type="netfs", source="<host name='h'/>"), 27),
    define("an unknown source format", pool("p", type="netfs", source=NETFS + "<format type='x'/>"), 67),
    define("a protocol that the format has not",
           pool("p", type="netfs", source=NETFS + "<format type='cifs'/><protocol ver='3'/>"), 67),
    define("a feature that the type has not",
           pool("p", type="netfs", source=NETFS).replace("<source>", "<features><cow state='yes'/></features><source>"), 3),
    # documents of volumes
    make("volume: no XML", "<volume", 35),
    make("volume: another document", "<pool/>", 27),
    make("volume: no name", "<volume><capacity>1</capacity></volume>", 27),
    make("volume: no capacity", volume(capacity=""), 27),
    make("volume: a name with a slash", volume("a/b"), 55),
    make("volume: a capacity that is no number", volume(capacity="<capacity>q</capacity>"), 27),
    make("volume: an unknown unit", volume(capacity="<capacity unit='X'>1</capacity>"), 8),
    make("volume: too large", volume(capacity="<capacity unit='E'>99</capacity>"), 82),
    make("volume: a malformed mode", volume(target="<permissions><mode>9</mode></permissions>"), 27),
    make("volume: an unknown format", volume(target="<format type='nonsense'/>"), 67),
    make("volume: an unknown feature", volume(target="<format type='qcow2'/><features><nonsense/></features>"), 67),
    make("volume: qemu-img refuses", volume(target="<format type='qcow2'/><clusterSize>7</clusterSize>"), 1),
    # resizing, wiping, transfers
    Situation("shrinking that nobody asked for", FILLED, ("resize", "p", "v", 4096, []), 8),
    Situation("a capacity of nothing", FILLED, ("resize", "p", "v", 0, []), 8),
    Situation("resizing what is no image", FULL, ("resize", "p", "d", 1 << 30, []), 1, 38,
              "Resizing a directory"),
    Situation("an upload longer than it was to be", FILLED, ("upload", "p", "v", b"x" * 100, 0, 10), 38),
]  # fmt: skip


@pytest.fixture
async def sides(oracle: Oracle, tmp_path: Path) -> AsyncIterator[tuple[LibvirtSide, AstoreSide]]:
    """Both, with a folder each; libvirt's pools are gone afterwards."""
    roots = {name: tmp_path / name for name in ("libvirt", "astore")}
    for root in roots.values():
        root.mkdir()
    before = oracle.ask("pools")
    async with astore_side(roots["astore"], tmp_path / "state", lambda name: None) as astore:
        yield LibvirtSide(roots["libvirt"], oracle), astore
    forget(oracle, set(oracle.ask("pools")) - set(before))


def forget(oracle: Oracle, names: Collection[str]) -> None:
    """Leave libvirt none of these pools."""
    for name in names:
        persistent = oracle.ask("pool_call", name, "isPersistent")
        if oracle.ask("pool_call", name, "isActive"):
            oracle.ask("pool_call", name, "destroy")
        if persistent:
            oracle.ask("pool_call", name, "undefine")


@pytest.mark.parametrize("one", SITUATIONS, ids=lambda one: one.what)
async def test_same_number(one: Situation, sides: tuple[LibvirtSide, AstoreSide]) -> None:
    """Both refuse the last step, and nothing before it, with the same number unless it is another on purpose."""
    count = counting("error codes")
    codes = []
    for side in sides:
        for step, *arguments in one.before:
            if step == "put":
                (side.root / arguments[0]).touch()
            else:
                outcome = await side.do(step, *arguments)
                assert outcome.code is None, f"{side.name}: {step} {arguments}: {outcome}"
        outcome = await side.do(*one.refused)
        assert outcome.code is not None, f"{side.name} does not refuse it"
        codes.append(outcome.code)
        if side.name == "astore":
            assert isinstance(getattr(outcome.error, "libvirt_code", None), LibvirtCode)
    theirs, ours = codes
    assert theirs == one.code, outcome
    assert ours == (one.code if one.ours is None else one.ours), outcome
    if one.ours is None:
        count.came_out("the same")
    else:
        assert one.ours != one.code
        assert f"| {one.row} |" in DIFFERENCES
        count.differed(one.row)


LIBVIRT_LETS = [
    ("redefine a pool without naming its uuid", DEFINED, ("define", pool("p", folder="q")), 9, None,
     "A definition without a uuid for an existing pool"),
    ("start a defined pool by another document", BUILT, ("create", pool("p", uuid=UUID), False), None, 9,
     "A transient start of a pool that is defined and inactive"),
    ("build what has nothing to build", [("define", pool("g", type="gluster", source=GLUSTER))], ("build", "g"), None, 3,
     "Building a pool of a type that has nothing to build"),
    ("define a type without a backend", [], ("define", "<pool type='zfs'><name>z</name></pool>"), 1, None,
     "A definition of a type without a backend"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "step", "theirs", "ours", "row"), [one[1:] for one in LIBVIRT_LETS], ids=[one[0] for one in LIBVIRT_LETS]
)
async def test_what_only_one_refuses(
    before: list[Step],
    step: Step,
    theirs: int | None,
    ours: int | None,
    row: str,
    sides: tuple[LibvirtSide, AstoreSide],
) -> None:
    """What is refused by one of them on purpose; docs/differences-from-libvirt.md has a row for each."""
    for side, code in zip(sides, (theirs, ours), strict=True):
        for earlier in before:
            assert (await side.do(*earlier)).code is None
        outcome = await side.do(*step)
        assert outcome.code == code, f"{side.name}: {outcome}"
    assert f"| {row} |" in DIFFERENCES
    counting("error codes").differed(row)
