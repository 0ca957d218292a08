"""The pool type ``rbd`` and the conformance suite, on a real cluster."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from astore.testing.conformance import BackendConformance, SourceUnderTest
from astore.testing.conformance.source import BREAK, BYTES, CONTROL

if TYPE_CHECKING:
    from astore.model import PoolDef
    from beds.ceph import CephBed

_numbers = itertools.count(1)


class Namespace(SourceUnderTest):
    """A namespace of a pool; it breaks by having the OSD stopped."""

    can = frozenset({CONTROL, BYTES, BREAK})
    shared = True

    def __init__(self, bed: CephBed, definition: PoolDef) -> None:
        from tests.rbd.clients import OtherClient

        self.definition = definition
        self._bed = bed
        self._client = OtherClient(bed, definition.source.name or "")

    async def put(self, name: str, data: bytes) -> None:
        """Make an image."""
        await asyncio.to_thread(self._client.put, name, data)

    async def put_all(self, files: Mapping[str, bytes]) -> None:
        """Make many, several at once."""
        await asyncio.to_thread(self._client.put_all, files)

    async def remove(self, name: str) -> None:
        """Remove an image."""
        await asyncio.to_thread(self._client.remove, name)

    async def names(self) -> set[str]:
        """All names."""
        return await asyncio.to_thread(self._client.names)

    async def content(self, name: str) -> bytes:
        """The bytes of an image."""
        return await asyncio.to_thread(self._client.content, name)

    async def break_(self) -> None:
        """Stop the OSD."""
        await asyncio.to_thread(self._bed.pause, "osd")

    async def mend(self) -> None:
        """Let it go on."""
        self._bed.resume("osd")

    async def aclose(self) -> None:
        """End the client's connection."""
        await asyncio.to_thread(self._client.close)


@pytest.mark.ceph
class TestRbd(BackendConformance):
    """Namespaces of one pool."""

    source_class = Namespace
    many = 300

    @pytest.fixture(autouse=True)
    def _bed(self, ceph: CephBed, ceph_pool: str) -> None:
        from tests.rbd.clients import secrets_of

        self.bed, self.images = ceph, ceph_pool
        self.secrets = secrets_of(ceph)

    def make_source(self, folder: Path) -> Namespace:
        """An empty namespace."""
        from tests.rbd.clients import definition_of

        where = f"{self.images}/source{next(_numbers)}"
        self.bed.rbd("namespace", "create", where)
        options = {"rados_osd_op_timeout": "3", "rbd_default_order": "16"}  # small objects, to see what is allocated
        definition = definition_of(self.bed, where, folder.name, **options)
        return Namespace(self.bed, msgspec.structs.replace(definition, refresh_allocation="default"))
