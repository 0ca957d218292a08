"""Doing the same steps on both sides, and comparing what comes of them and what there is to see afterwards."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from differential import meant
from differential.counts import counting
from differential.operations import (
    Outcome,
    Side,
    differences,
    figureless,
    is_image,
    on_disk,
    timeless,
    without_chance,
)
from differential.oracle import Oracle
from lxml import etree


class Comparing:
    """Both sides, the steps that they have done, and what was compared.

    :param shared: the names of pools that both have on the same storage, so that all times are the same.
    :param figures: False where others use the storage, so that its free space is another at each look.
    :param why: is said of a failure.
    """

    def __init__(
        self, libvirt: Side, astore: Side, *, shared: Collection[str] = (), figures: bool = True, why: str = ""
    ) -> None:
        self.libvirt, self.astore = libvirt, astore
        self._shared, self._figures, self._why = shared, figures, why
        self._count, self._shown, self._happened = (
            counting(what) for what in ("operations", "pools looked at", "events")
        )
        self._done: list[str] = []
        self._seen_by_libvirt: set[str] = set()
        self.known: dict[str, dict[str, Any]] = {}
        """What libvirt told last of each pool that there is; of volumes, those that both have."""

    async def both(self, operation: str, *arguments: Any) -> Outcome:
        """A step, and the comparison of what came of it; libvirt's outcome."""
        theirs = await self.libvirt.do(operation, *arguments)
        ours = await self.astore.do(operation, *arguments)
        self.note(f"{operation} {', '.join(repr(one)[:500] for one in arguments)} -> {theirs}")
        if name := meant.outcome(operation, ours, theirs):
            self._count.differed(name)
        elif ours[:2] != theirs[:2]:
            self.fail(f"astore: {ours}\nlibvirt: {theirs}")
        else:
            self._count.came_out("accepted by both" if ours.code is None else "refused by both")
        return theirs

    async def look(self, *names: str) -> None:
        """Compare what is told of these pools, after a refresh: libvirt reads a volume anew whenever it is asked of it."""
        for name in names:
            await self.both("refresh", name)
        theirs, ours = await self.libvirt.world(names), await self.astore.world(names)
        for name in names:
            self.known.pop(name, None)
        self.known.update({name: dict(told) for name, told in theirs.items()})
        for name in ours.keys() & theirs.keys():
            for told in (ours[name], theirs[name]):
                shown = str if name in self._shared else timeless
                told["volumes"] = {key: shown(text) for key, text in told["volumes"].items()}
                if not self._figures:
                    told["xml"] = figureless(told["xml"])
            if met := meant.level(ours[name], theirs[name]):
                self._shown.differed(*met)
            else:
                self._shown.came_out("the same")
            (self._seen_by_libvirt.add if met & meant.SEEN else self._seen_by_libvirt.discard)(name)
            both = ours[name]["volumes"].keys()
            self.known[name]["volumes"] = {
                key: text for key, text in self.known[name]["volumes"].items() if key in both
            }
        if found := differences(ours, theirs):
            self.fail("\n".join(found))

    async def look_at_events(self) -> None:
        """Compare what happened since this was asked last, in order."""
        ours, theirs = await self.astore.events(), await self.libvirt.events()
        if ours != theirs:
            self.fail(f"events\nastore  {ours}\nlibvirt {theirs}")
        for _ in ours:
            self._happened.came_out("the same")

    def look_at_files(self) -> None:
        """Compare what is in the folders of both."""
        if found := differences(on_disk(self.astore.root), on_disk(self.libvirt.root)):
            self.fail("\n".join(found))

    def note(self, what: str) -> None:
        """Remember a step."""
        self._done.append(what)

    def fail(self, what: str) -> None:
        """Say what is wrong, and after which steps."""
        history = "\n".join(reversed(self._done[-25:]))
        raise AssertionError(f"{what}\nafter {len(self._done)} steps{self._why}, the last first:\n{history}")

    # ----------------------------------------------------------------- making alike what is meant to differ on the disk

    def level_wiped(self, document: str) -> None:
        """Wiped is wiped, but libvirt gives space back, or writes beyond the end: see that, and make both alike."""
        mine, other = self._paths(document)
        data = mine.read_bytes()
        if any(data) or any(other.read_bytes()):
            self.fail(f"something is left in {mine} or {other}")
        if _taken(mine) != _taken(other):
            self._count.met("what is wiped keeps its size and its space")
        for path in (mine, other):
            _rewrite(path, data)

    def level_image(self, document: str, *, copied: bool = False) -> None:
        """The same image in files of different lengths, or with other holes in them: see that, and make both alike.

        :param document: the volume's, or its path. :param copied: a raw volume as well.
        """
        mine, other = self._paths(document)
        if not mine.is_file() or not other.is_file() or not (is_image(data := mine.read_bytes()) or copied):
            return
        theirs = other.read_bytes()
        wanted = data.replace(
            os.fsencode(self.astore.root), os.fsencode(self.libvirt.root)
        )  # where it names its backing file
        if is_image(data):
            same = without_chance(wanted).rstrip(b"\0") == without_chance(theirs).rstrip(b"\0")
        else:
            same = data == theirs
        if not same:
            return  # which is seen when the folders are compared
        if _taken(mine) != _taken(other):
            self._count.met("files of new images and copies end elsewhere, and have other holes")
        _rewrite(mine, data)
        _rewrite(other, wanted)

    def alike(self, pool: str, volume: str) -> bool:
        """Whether both have the same bytes in a volume."""
        told = self.known.get(pool)
        if told is None or volume not in told["volumes"]:
            return True
        mine, other = self._paths(told["volumes"][volume])
        return mine.read_bytes() == other.read_bytes()

    def is_image(self, pool: str, volume: str) -> bool:
        """Whether a volume is an image."""
        told = self.known.get(pool)
        return (
            told is not None
            and volume in told["volumes"]
            and is_image(self._paths(told["volumes"][volume])[0].read_bytes())
        )

    def in_the_way(self, pool: str, name: str) -> bool:
        """Whether there is something of this name in the pool's folder."""
        told = self.known.get(pool)
        return told is not None and any(os.path.lexists(path / name) for path in self._paths(told["xml"]))

    def builds_alike(self, pool: str) -> bool:
        """Whether libvirt builds by what the definition says, not by what it saw of the folder, which is in it since."""
        return pool not in self._seen_by_libvirt

    def _paths(self, document: str) -> tuple[Path, Path]:
        path = etree.fromstring(document).findtext("target/path") if document.startswith("<") else document
        return Path(self.astore.real(str(path))), Path(self.libvirt.real(str(path)))


def _taken(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_size, st.st_blocks


def _rewrite(path: Path, data: bytes) -> None:
    """The file with these bytes, and holes wherever a whole page is zeros."""
    with path.open("r+b") as file:
        file.truncate(0)
        for offset in range(0, len(data), 4096):
            if any(block := data[offset : offset + 4096]):
                os.pwrite(file.fileno(), block, offset)
        file.truncate(len(data))


def put_away(oracle: Oracle, names: Collection[str]) -> None:
    """Stop and undefine libvirt's pools of these names, whatever state a test has left them in."""
    for name in names:
        if (told := oracle.ask("world", [name]).get(name)) is not None:
            if told["active"]:
                oracle.ask("pool_call", name, "destroy")
            if told["persistent"]:
                oracle.ask("pool_call", name, "undefine")
