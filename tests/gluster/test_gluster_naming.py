"""How Gluster volumes are named to others, and what URLs mean. No Gluster is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from core_fakes import FakeBackend, fake, fake_registry, volume
from hypothesis import given
from hypothesis import strategies as st

from astore.backend import DiskHost, DiskSource, NamesVolumes
from astore.images.references import located
from astore.manager import Manager
from astore.model import Host, PoolDef, Reference, ReferenceKind, Source, VolumeInfo, VolumeType
from astore_gluster import naming
from astore_gluster.backend import GlusterBackend
from astore_gluster.uri import GlusterLocation, parse_uri

HOSTS = (Host("one"), Host("fd00::2", 1234), Host("/run/g.sock"))
POOL = PoolDef(type="gluster", name="g", source=Source(hosts=HOSTS, name="vol", directory="/dir"))


def entry(name: str, directory: str = "dir/") -> VolumeInfo:
    """An image on the volume."""
    key = f"gluster://one/vol/{directory}{name.replace(' ', '%20')}"
    return volume(name, type=VolumeType.NETWORK, key=key, path=key, format="qcow2")


def test_every_host_is_named() -> None:
    """libvirt and QEMU are told all hosts, with ports, and sockets too."""
    assert isinstance(GlusterBackend(), NamesVolumes)
    assert GlusterBackend().disk_source(POOL, entry("a b")) == DiskSource(
        "gluster",
        "vol/dir/a b",
        (DiskHost("one", 24007), DiskHost("fd00::2", 1234), DiskHost(socket="/run/g.sock", transport="unix")),
    )
    assert GlusterBackend().blockdev(POOL, entry("a b")) == {
        "driver": "gluster",
        "volume": "vol",
        "path": "dir/a b",
        "server": [
            {"type": "inet", "host": "one", "port": "24007"},
            {"type": "inet", "host": "fd00::2", "port": "1234"},
            {"type": "unix", "path": "/run/g.sock"},
        ],
    }


@pytest.mark.parametrize("directory", [None, "/", "//"])
def test_root_of_a_volume(directory: str | None) -> None:
    """The root of a volume is no part of a path in it."""
    pool = PoolDef(type="gluster", name="g", source=Source(hosts=HOSTS, name="vol", directory=directory))
    assert naming.disk_source(pool, entry("a", "")).name == "vol/a"
    assert naming.blockdev(pool, entry("a", ""))["path"] == "a"
    assert naming.volume_named(pool, "gluster://one/vol/a") == "a"


MEANT = [
    ("gluster://one/vol/dir/a%20b", "a b"),
    ("gluster://one:24007/vol/dir/a b", "a b"),
    ("gluster+tcp://[fd00::2]/vol//dir/.//a%20b", "a b"),
    ("gluster+unix:///vol/dir/a%20b?socket=/run/g.sock", "a b"),
    ("gluster://other/vol/dir/a%20b", None),
    ("gluster:///vol/dir/a%20b", None),
    ("gluster://one/vol2/dir/a%20b", None),
    ("gluster://one/vol/a%20b", None),
    ("gluster://one/vol/dir/", None),
    ("gluster://one/vol/dir/x/a%20b", None),
    ("gluster://one/vol/dir/x/../a%20b", None),
    ("gluster://one", None),
    ("gluster!odd", None),
    ("nbd://one/vol/dir/a%20b", None),
]


@pytest.mark.parametrize(("uri", "name"), MEANT)
def test_volume_named(uri: str, name: str | None) -> None:
    """Whichever of its pool's hosts a URL names, it means the same volume; other hosts are others."""
    assert naming.volume_named(POOL, uri) == name


class ShownBackend(GlusterBackend):
    """A backend whose pools show what they are told to."""

    def __init__(self, fake: FakeBackend) -> None:
        self.open = fake.open  # type: ignore[method-assign, assignment]

    def require(self) -> None:
        """The library is not needed."""


@pytest.fixture
def shown() -> FakeBackend:
    """What the pools show."""
    return FakeBackend()


@pytest.fixture
async def manager(tmp_path: Path, shown: FakeBackend) -> AsyncIterator[Manager]:
    """A Manager with fake pools, and Gluster pools without a Gluster."""
    registry = fake_registry(shown)
    registry.register(ShownBackend(shown))
    async with Manager(tmp_path / "state", registry=registry) as manager:
        yield manager


@pytest.mark.parametrize(("uri", "name"), [*MEANT, ("/dir/a b", None)])
async def test_hosts_of_one_volume(manager: Manager, shown: FakeBackend, uri: str, name: str | None) -> None:
    """An image whose header names a volume by any of its URLs needs it, and is backed by it."""
    shown.put("a b", entry("a b"), "g")
    references = located((Reference(ReferenceKind.BACKING, uri, "qcow2"),), "/pool/over")
    shown.put("over", volume("over", format="qcow2", references=references), "p")
    pool = await manager.create(fake("p"))
    base = (await manager.create(POOL)).volume("a b")
    over = pool.volume("over")
    assert [one.name for one in manager.dependents(base)] == ([] if name is None else ["over"])
    assert over.backing_chain()[1].volume == (None if name is None else base)


# ---------------------------------------------------------------------------------------------------------------- URLs


URIS = [
    ("gluster://h/v/p/a", GlusterLocation("v", "h", ("p", "a"))),
    ("gluster://Host.Example/v/a", GlusterLocation("v", "Host.Example", ("a",))),
    ("gluster+tcp://h:24007/v/a%20b", GlusterLocation("v", "h", ("a b",))),
    ("gluster+rdma://[fe80::1]:1/v/a", GlusterLocation("v", "fe80::1", ("a",))),
    ("gluster+unix:///v/a?socket=/run/x%20y", GlusterLocation("v", "/run/x y", ("a",))),
    ("gluster:///v/a", GlusterLocation("v", "", ("a",))),
    ("gluster://h//v//p//a", GlusterLocation("v", "h", ("p", "a"))),
    ("gluster://h/v/a%2Fb%3F", GlusterLocation("v", "h", ("a", "b?"))),
]


@pytest.mark.parametrize(("uri", "expected"), URIS)
def test_gluster_uris(uri: str, expected: GlusterLocation) -> None:
    """Volume, host or socket, and path are told apart."""
    assert parse_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    ["", "nfs://h/v/p", "gluster+ib://h/v/p", "gluster://h/v", "gluster://h/v/", "gluster://h", "gluster://h:x/v/p",
     "gluster://h:65536/v/p", "gluster://h:/v/p", "gluster://[h/v/p", "gluster://u@h/v/p", "gluster+unix:///v/p",
     "gluster+unix:///v/p?socket=", "gluster://h/v/p?socket=/x", "gluster://h/v/p?debug=9", "gluster://h/v/p#x",
     "gluster://h/v/a%ff", "gluster://h/v/a%00", "gluster://h/v/a\nb", "gluster://h/" + "v" * 70_000 + "/a",
     "gluster://" + "/" * 60_000],
    ids=lambda uri: uri[:40],
)  # fmt: skip
def test_what_is_no_gluster_uri(uri: str) -> None:
    """Others are refused."""
    assert parse_uri(uri) is None


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_gluster_uri(rest: str) -> None:
    """Whatever follows, a location or None comes out."""
    for start in ("gluster://", "gluster+unix:///v/p?socket=", "gluster://h:1/v/"):
        found = parse_uri(start + rest)
        assert found is None or found.volume
