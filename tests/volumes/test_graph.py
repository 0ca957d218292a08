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
from astore.model import Host, PoolDef, Reference, ReferenceKind, Source, VolumeInfo, VolumeType
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


def remote(name: str, backing: str | None = None, uri: str = "gluster://one/vol/dir/") -> VolumeInfo:
    """An image on a Gluster volume."""
    key = f"{uri}{name.replace(' ', '%20')}"
    references = located((Reference(ReferenceKind.BACKING, backing, "qcow2"),), key) if backing else ()
    return volume(name, type=VolumeType.NETWORK, key=key, path=key, format="qcow2", references=references)


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


GLUSTER = Source(hosts=(Host("one"), Host("fd00::2", 24007), Host("/run/g.sock")), name="vol", directory="/dir")


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("gluster://one/vol/dir/a%20b", True),
        ("gluster://one:24007/vol/dir/a b", True),
        ("gluster+tcp://[fd00::2]/vol//dir//a%20b", True),
        ("gluster+unix:///vol/dir/a%20b?socket=/run/g.sock", True),
        ("gluster://other/vol/dir/a%20b", False),
        ("gluster://one/vol2/dir/a%20b", False),
        ("gluster://one/vol/a%20b", False),
        ("gluster://one", False),
        ("/dir/a b", False),
        ("nbd://one/vol/dir/a%20b", False),
    ],
)
async def test_hosts_of_one_volume(manager: Manager, backend: FakeBackend, uri: str, same: bool) -> None:
    """Whichever of its pool's hosts a URL names, it means the same Gluster volume; other hosts are others."""
    backend.put("a b", remote("a b"), "g")
    backend.put("over", local("over", uri), "p")
    pool = await manager.create(fake("p"))
    far = await manager.create(PoolDef(type="fake", name="g", source=GLUSTER))
    base, over = far.volume("a b"), pool.volume("over")
    assert [one.name for one in manager.dependents(base)] == (["over"] if same else [])
    assert over.backing_chain()[1].volume == (base if same else None)


async def test_key_that_is_no_uri(manager: Manager, backend: FakeBackend) -> None:
    """A key that only begins like Gluster's is nobody's but its own."""
    backend.put("odd", volume("odd", key="gluster!odd", path="gluster!odd"), "g")
    reference = Reference(ReferenceKind.BACKING, "gluster!odd", "raw", "gluster!odd")
    backend.put("over", volume("over", references=(reference,)), "p")
    backend.put("other", local("other", "gluster://one/vol/odd"), "p")
    await manager.create(fake("p"))
    far = await manager.create(PoolDef(type="fake", name="g", source=GLUSTER))
    assert [one.name for one in manager.dependents(far.volume("odd"))] == ["over"]
