"""Backing chains and dependents, over pools that show what they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from core_fakes import FakeBackend, fake, fake_registry, volume

from astore.errors import StorageError
from astore.images.references import located
from astore.manager import Manager
from astore.model import PoolDef, Reference, ReferenceKind, VolumeInfo, VolumeType
from astore.pools.graph import DEEPEST


@pytest.fixture
def backend() -> FakeBackend:
    """What the pools show."""
    return FakeBackend()


@pytest.fixture
async def manager(tmp_path: Path, backend: FakeBackend) -> AsyncIterator[Manager]:
    """A Manager with no other backend."""
    async with Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        yield manager


def local(name: str, backing: str | None = None, folder: str = "/pool") -> VolumeInfo:
    """An image in a folder; ``backing`` is the name of its backing file."""
    path = f"{folder}/{name}"
    references = located((Reference(ReferenceKind.BACKING, backing, "qcow2"),), path) if backing else ()
    return volume(name, key=path, path=path, format="qcow2", references=references)


async def test_detours(manager: Manager, backend: FakeBackend) -> None:
    """A backing file's path may take detours that mean nothing; `..` may mean anything, and nobody guesses."""
    for number, path in enumerate(("/pool/base", "/pool/./base", "base", "/pool//base", "/pool/x/../base")):
        backend.put(f"over{number}", local(f"over{number}", path))
    backend.put("base", local("base"))
    pool = await manager.create(fake("p"))
    base = pool.volume("base")
    assert [one.name for one in manager.dependents(base)] == ["over0", "over1", "over2", "over3"]
    for number in range(5):
        found = [link.volume for link in pool.volume(f"over{number}").backing_chain()][1]
        assert found == (base if number < 4 else None)


async def test_data_files(manager: Manager, backend: FakeBackend) -> None:
    """A file that has the data of an image is needed like a backing file, named in whatever way."""
    for number, path in enumerate(("data", "/pool/data", "/elsewhere/data", "json:{")):
        image = local(f"image{number}")
        references = located((Reference(ReferenceKind.DATA, path, "raw"),), image.key)
        backend.put(f"image{number}", msgspec.structs.replace(image, references=references))
    backend.put("data", local("data"))
    pool = await manager.create(fake("p"))
    # QEMU takes a relative one from wherever it was started
    assert [one.name for one in manager.dependents(pool.volume("data"))] == ["image1"]
    own, link = pool.volume("image1").backing_chain()
    assert (own.kind, link.kind, link.volume) == (None, ReferenceKind.DATA, pool.volume("data"))


async def test_depth(manager: Manager, backend: FakeBackend) -> None:
    """A chain of 200 images is followed to its end; a longer one is an error."""
    for number in range(DEEPEST + 1):
        below = f"/pool/{number - 1}" if number else None
        backend.put(f"{number}", local(f"{number}", below))
    pool = await manager.create(fake("p"))
    assert len(pool.volume(f"{DEEPEST - 1}").backing_chain()) == DEEPEST
    with pytest.raises(StorageError, match="deeper"):
        pool.volume(f"{DEEPEST}").backing_chain()


async def test_name_that_nobody_can_tell(manager: Manager, backend: FakeBackend) -> None:
    """Where a backing file's name means nothing here, the chain ends with it, as the header has it."""
    reference = Reference(ReferenceKind.BACKING, "json:{}", "raw", None, "means nothing")
    backend.put("over", volume("over", references=(reference,)))
    pool = await manager.create(fake("p"))
    link = pool.volume("over").backing_chain()[1]
    assert (link.path, link.volume, link.format, link.doubt) == ("json:{}", None, "raw", "means nothing")


class NamingBackend(FakeBackend):
    """A backend whose volumes are called ``far:NAME``, in whichever case."""

    disk_source = blockdev = FakeBackend.source_key  # which nothing here asks for

    def volume_named(self, definition: PoolDef, location: str) -> str | None:
        """What follows the colon."""
        scheme, _, name = location.partition(":")
        return name if scheme.lower() == definition.name else None


@pytest.mark.parametrize(
    ("location", "same"),
    [
        ("far:a b", True),
        ("FAR:a b", True),
        ("far:a%20b", False),
        ("fa:a b", False),
        ("far:", False),
        ("/far:a b", False),
        ("key/a%20b", False),
        ("key/a b", True),
    ],
)
async def test_backend_says_what_is_meant(tmp_path: Path, location: str, same: bool) -> None:
    """Which volume a name means its pool's backend says, unless it is the volume's key, or a path of this machine."""
    backend = NamingBackend()
    backend.put("a b", volume("a b", type=VolumeType.NETWORK, key="key/a b", path="key/a b"), "far")
    reference = Reference(ReferenceKind.BACKING, "name", "raw", location)
    backend.put("over", volume("over", references=(reference,)), "near")
    async with Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        over = (await manager.create(fake("near"))).volume("over")
        base = (await manager.create(fake("far"))).volume("a b")
        assert manager.dependents(base) == ([over] if same else [])
        assert over.backing_chain()[1].volume == (base if same else None)


async def test_key_is_compared_without_an_ability(manager: Manager, backend: FakeBackend) -> None:
    """A backend that cannot say what a name means has volumes that are known by their keys."""
    backend.put("odd", volume("odd", key="odd!odd", path="odd!odd"), "g")
    for name, location in (("over", "odd!odd"), ("other", "odd!other/odd")):
        reference = Reference(ReferenceKind.BACKING, location, "raw", location)
        backend.put(name, volume(name, references=(reference,)), "p")
    await manager.create(fake("p"))
    far = await manager.create(fake("g"))
    assert [one.name for one in manager.dependents(far.volume("odd"))] == ["over"]
