"""Listing: the images of a pool, with as few round trips as their servers allow."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Mapping

import msgspec

from astore.blocks import Block
from astore.errors import printable, reason
from astore.model import EntryError, Place, Reference, ReferenceKind
from astore_rbd.cluster import Cluster
from astore_rbd.images import headers
from astore_rbd.images.headers import Header, Parent
from astore_rbd.images.image import RbdVolume
from astore_rbd.images.reading import Question, ask, ask_all
from astore_rbd.librbd import ImageSpec, checked
from astore_rbd.naming import is_own_snapshot, location_of

Step = Callable[[], None]

GONE = frozenset({errno.ENOTCONN, errno.EBADF, errno.ESHUTDOWN})
"""The errors of a connection: no server answers, it was closed, or the cluster shut this client out."""

_DIRECTORY = Question(b"rbd_directory")


class Seen(msgspec.Struct, frozen=True):
    """An image as it was read.

    :ivar version: of its header; None: the image was opened to read it, which tells no version.
    :ivar snapshots: whether it has snapshots, besides those that this plugin makes for clones. :ivar map_version: of its
        object map. :ivar allocation: the bytes of its objects; None: not known.
    """

    id: str
    version: int | None
    header: Header
    snapshots: bool = False
    map_version: int = 0
    allocation: int | None = None


class Listing:
    """What is known of the images of a pool since the last listing. One listing runs at a time.

    :param allocation: read object maps.
    """

    def __init__(self, cluster: Cluster, *, allocation: bool) -> None:
        self._cluster = cluster
        self._allocation = allocation
        self._version = 0  # of rbd_directory
        self._names: dict[str, str] = {}  # the ids of all images by name; "" is the id of an image of the old format
        self._removing: dict[str, str] = {}  # of those whose removal has begun
        self._seen: dict[str, Seen] = {}
        self._snapshots: dict[Parent, str] = {}  # the names of parents' snapshots

    def run(self, known: Mapping[str, Block], step: Step) -> list[Block | EntryError]:
        """List the images; return the known blocks of unchanged ones. Blocks.

        :param known: see :meth:`astore.blocks.BlockPool.list`. :param step: called now and then; what it raises ends the work.
        :raises OSError: the cluster does not answer.
        """
        ids = self._ids(again=not known)
        others: list[Block | EntryError] = [_unfinished(name, id) for name, id in self._removing.items()]
        unchanged = self._unchanged(ids, step) if known else {}
        changed = set(ids.values()) - {one.id for one in unchanged.values()}
        self._snapshots = {one: name for one, name in self._snapshots.items() if known and one.image not in changed}
        seen = unchanged | self._read(((name, id) for name, id in ids.items() if name not in unchanged), others, step)
        if self._allocation:
            seen |= self._allocations(seen, step)
        names = {id: name for name, id in ids.items() if id}
        blocks: list[Block | EntryError] = []
        for name, one in seen.items():
            references = self.references(one.header.parent, names)
            old = known.get(name)
            same = old is not None and self._seen.get(name) == one and old.references == references
            blocks.append(old if same and old is not None else block_of(name, one, references))
        self._seen = seen
        return blocks + others

    def _ids(self, *, again: bool) -> dict[str, str]:
        """Return the ids of all images by name; ``""`` is the id of an image of the old format."""
        version = ask(self._cluster, _DIRECTORY).version
        if again or version != self._version or not version or self._removing:
            listed, removing = _listed(self._cluster), _in_trash(self._cluster)
            self._names = {name: id for id, name in listed if id not in removing}
            self._removing = {name: id for id, name in listed if id in removing and name not in self._names}
            self._version = version
        return self._names

    def _unchanged(self, ids: Mapping[str, str], step: Step) -> dict[str, Seen]:
        """Return the images whose headers have the versions that they had."""
        before = (
            (name, one) for name, one in self._seen.items() if ids.get(name) == one.id and one.version is not None
        )
        asked = ((item, headers.version_question(item[1].id)) for item in before)
        return {
            name: one
            for (name, one), answer in ask_all(self._cluster, asked, step)
            if answer.result == 0 and answer.version == one.version
        }

    def _read(self, wanted: Iterable[tuple[str, str]], others: list[Block | EntryError], step: Step) -> dict[str, Seen]:
        """Read headers; open the images whose headers are not understood.

        :param others: gets what has no header, and what cannot be read.
        """
        found: dict[str, Seen] = {}
        odd: list[str] = []
        headless: dict[str, str] = {}
        asked = ((item, headers.header_question(item[1])) for item in wanted)
        for (name, id), answer in ask_all(self._cluster, asked, step):
            header = headers.header_in(answer) if id else None
            if header is None:
                odd.append(name)
            else:
                found[name] = Seen(id, answer.version, header)
            if answer.result == -errno.ENOENT:
                headless[name] = id
        found |= self._with_snapshots(found, step)
        for name in odd:
            step()
            try:
                found[name] = opened(self._cluster, name)
            except FileNotFoundError:  # removed meanwhile, not yet complete, or never to be
                if name in headless:
                    others.append(_unfinished(name, headless[name]))
            except OSError as error:
                if error.errno in GONE:
                    raise
                others.append(EntryError(printable(name), reason(error), error.errno))
        return found

    def _with_snapshots(self, seen: Mapping[str, Seen], step: Step) -> dict[str, Seen]:
        """Return the images that have snapshots of others than this plugin."""
        asked = (
            ((name, one), headers.snapshots_question(one.id, one.header.snapshots))
            for name, one in seen.items()
            if one.header.snapshots
        )
        return {
            name: msgspec.structs.replace(one, snapshots=True)
            for (name, one), answer in ask_all(self._cluster, asked, step)
            if not all(is_own_snapshot(text or "") for text in headers.texts_in(answer))
        }

    def _allocations(self, seen: Mapping[str, Seen], step: Step) -> dict[str, Seen]:
        """Return the images that have an object map, with what it says."""
        asked = (
            ((name, one), headers.map_question(one.id, one.header)) for name, one in seen.items() if one.header.has_map
        )
        return {
            name: one
            if answer.version == one.map_version and one.map_version
            else msgspec.structs.replace(
                one, map_version=answer.version, allocation=headers.allocation_in(answer, one.header)
            )
            for (name, one), answer in ask_all(self._cluster, asked, step)
        }

    def look(self, name: str) -> Block | EntryError | None:
        """Return one image; None if there is none. Blocks. :raises OSError: the cluster does not answer."""
        try:
            seen = self._look(name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in GONE:
                raise
            if error.errno == errno.ENAMETOOLONG:
                return None
            return EntryError(printable(name), reason(error), error.errno)
        if self._allocation:
            seen = self._allocations({name: seen}, _no_step).get(name, seen)
        return block_of(name, seen, self.references(seen.header.parent, {}))

    def _look(self, name: str) -> Seen:
        id = headers.text_in(ask(self._cluster, headers.id_question(os.fsencode(name))))
        if id:
            answer = ask(self._cluster, headers.header_question(id))
            header = headers.header_in(answer)
            if header is not None:
                seen = Seen(id, answer.version, header)
                return self._with_snapshots({name: seen}, _no_step).get(name, seen)
        return opened(self._cluster, name)

    # ------------------------------------------------------------------------------------------------------- parents

    def references(self, parent: Parent | None, names: Mapping[str, str]) -> tuple[Reference, ...]:
        """Return the reference of a clone to its parent. :param names: the names of this pool's images by id."""
        if parent is None:
            return ()
        cluster = self._cluster
        device = cluster.device_of(parent.pool, parent.namespace)
        if device == cluster.device and (here := names.get(parent.image)) is not None:
            pool, name = cluster.pool, here
        else:
            pool, name = self._elsewhere(parent)
        # records are stored as text, and another client may have given any bytes as a name
        name, snapshot = printable(name), self._snapshot(parent)
        snapshot = None if snapshot is None else printable(snapshot)
        location = location_of(pool, parent.namespace, name, snapshot)
        path = "/".join(part for part in (pool, parent.namespace, name) if part)
        place = Place(path, device, headers.number_of(parent.image))
        return (
            Reference(
                ReferenceKind.BACKING, location, "raw", location, place=place, snapshot=snapshot or str(parent.snapshot)
            ),
        )

    def _elsewhere(self, parent: Parent) -> tuple[str, str]:
        """Return the names of the pool and the image of a parent; numbers where this user may not know them."""
        pool, name = str(parent.pool), parent.image
        with contextlib.suppress(OSError):
            pool = self._cluster.pool_name(parent.pool)
            io = self._cluster.context_of(parent.pool, parent.namespace)
            name = headers.text_in(ask(self._cluster, headers.name_question(parent.image), io)) or name
        return pool, name

    def _snapshot(self, parent: Parent) -> str | None:
        """Return the name of a parent's snapshot; None if this user may not know it."""
        if parent not in self._snapshots:
            with contextlib.suppress(OSError):
                io = self._cluster.context_of(parent.pool, parent.namespace)
                question = headers.snapshots_question(parent.image, (parent.snapshot,))
                if name := headers.text_in(ask(self._cluster, question, io)):
                    self._snapshots[parent] = name
        return self._snapshots.get(parent)


def _no_step() -> None:
    """Do nothing between two answers."""


def opened(cluster: Cluster, name: str) -> Seen:
    """Open an image and return what its header says. Blocks. :raises OSError: ENOENT: there is none."""
    with RbdVolume(cluster, os.fsencode(name), write=False).closing() as image:
        kept = any(not is_own_snapshot(os.fsdecode(snapshot)) for _, snapshot in image.snapshots())
        return Seen(image.image_id(), None, image.header(), kept)


def block_of(name: str, seen: Seen, references: tuple[Reference, ...]) -> Block:
    """Return an image as a block. If no object map tells, all of its objects count as written, as in libvirt."""
    header = seen.header
    return Block(
        name=name,
        id=headers.number_of(seen.id),
        size=header.size,
        allocation=header.whole if seen.allocation is None else seen.allocation,
        version=seen.version or 0,
        changed_ns=header.changed_ns,
        references=references,
        features=headers.feature_names(header.features),
        extras=("internal snapshots",) if seen.snapshots else (),
    )


def _unfinished(name: str, id: str) -> Block:
    """Return an image that is not yet, or no longer, one that can be opened."""
    return Block(name=name, id=headers.number_of(id), size=0, unfinished=True)


def _listed(cluster: Cluster) -> list[tuple[str, str]]:
    """Return the ids and names of a pool's images, with those whose removal has begun. Blocks."""
    lib = cluster.lib
    count = ctypes.c_size_t(16384)
    while True:
        found = (ImageSpec * max(count.value, 1))()
        result = lib.rbd_list2(cluster.io, found, ctypes.byref(count))
        if result != -errno.ERANGE:
            break
    checked(result, "the list of images")
    texts = (ctypes.c_char_p * (2 * count.value)).from_buffer(found)[:]  # in turn ids and names
    ids = [(os.fsdecode(id or b""), os.fsdecode(name or b"")) for id, name in zip(texts[::2], texts[1::2], strict=True)]
    lib.rbd_image_spec_list_cleanup(found, count.value)
    return ids


def is_listed(cluster: Cluster, name: str, number: int) -> bool:
    """Return whether the pool's directory has an image of this name, whose id has this number. Blocks."""
    return any(one == name and headers.number_of(id) == number for id, one in _listed(cluster))


def _in_trash(cluster: Cluster) -> set[str]:
    """Return the ids of the images in the trash, where an image is while it is being removed. Blocks.

    ``rbd_trash_list`` leaves out those that are being removed.
    """
    found: set[str] = set()
    page = [""]
    while page:
        answer = ask(cluster, headers.trash_question(page[-1], 64))
        if answer.parts == (None,) and not answer.result:  # names are too long for so many
            answer = ask(cluster, headers.trash_question(page[-1], 1))
        page = [id for id in headers.trashed_in(answer) if id not in found]  # whatever the cluster answers, this ends
        found.update(page)
    return found
