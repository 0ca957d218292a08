"""Resolver: resolves the names in the headers of a tree's images to places."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from urllib.parse import unquote

import msgspec

from astore.model.records import Place, Reference, VolumeInfo
from astore.places import beneath, own_mount, place_of, remote_mounts
from astore.trees.tree import FileTree


class Resolver:
    """Resolves the references of a tree's images, each location once. Blocks.

    :param known: returns the record of an entry of the tree's own folder, by its name.
    """

    def __init__(self, tree: FileTree, known: Callable[[str], VolumeInfo | None]) -> None:
        self._tree = tree
        self._known = known
        self._places: dict[str, Place | None] = {}
        self._done: dict[int, tuple[tuple[Reference, ...], tuple[Reference, ...]]] = {}

    @cached_property
    def folder(self) -> Place | None:
        """The place of the tree's folder."""
        return self._tree.folder_place()

    @cached_property
    def _remote(self) -> Mapping[str, str]:
        return remote_mounts()

    def placed(self, references: tuple[Reference, ...]) -> tuple[Reference, ...]:
        """Return the references with their current places; the same object if none has changed."""
        done = self._done.get(id(references))
        if done is None:
            now = tuple(self._with_place(one) for one in references)
            if all(new is old for new, old in zip(now, references, strict=True)):
                now = references
            done = self._done[id(references)] = (references, now)  # holding the key keeps its id from being reused
        return done[1]

    def _with_place(self, reference: Reference) -> Reference:
        location = reference.location
        if location is None:
            return reference
        try:
            place = self._places[location]
        except KeyError:
            place = self._places[location] = self._place_of(location)
        return reference if place == reference.place else msgspec.structs.replace(reference, place=place)

    def _place_of(self, location: str) -> Place | None:
        if location.startswith("file:///"):  # a path that is not text
            location = unquote(location.removeprefix("file://"), errors="surrogateescape")
        name = self._tree.name_of(location)
        info = None if name is None else self._known(name)
        if info is not None and info.identity is not None:
            folder = self.folder
            if folder is None or folder.identity is None:
                return Place(info.path, info.device, info.inode)
            through = (*folder.through, folder.identity)
            return Place(beneath(folder.path, info.name), info.device, info.inode, through, folder.identity)
        if not location.startswith("/"):
            return self._tree.place_of(location)
        return place_of(location, self._remote, own_mount(self.folder, self._remote))
