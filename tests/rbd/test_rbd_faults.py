"""A cluster that does not answer, refuses, is full, or whose clients are killed: errors in time, and nothing left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from core_fakes import PATIENCE, eventually, quiet

import astore
from astore.errors import AstoreError, PoolInaccessibleError, StorageError, VolumeBusyError
from astore.model import Auth, Host, PoolState, VolumeDef
from astore.testing.secrets import GivenSecrets
from astore.volume_io.volume_names import new_hidden_name
from astore_rbd.cluster import Cluster, Settings
from astore_rbd.images import image as image_module
from astore_rbd.images import reading
from astore_rbd.images.image import RbdVolume
from astore_rbd.images.pool import RbdPool
from tests.rbd.clients import USAGE, OtherClient, definition_of, secrets_of

if TYPE_CHECKING:
    from beds.ceph import CephBed

pytestmark = pytest.mark.ceph

MIB = 1 << 20
WAIT = 2
"""Seconds after which librados gives up a server that hangs, in these tests."""
USUAL = 27
"""Seconds after which it does so otherwise. A sound server answers earlier, however busy the machine is."""
IN_TIME = PATIENCE
"""Seconds within which a call to a server that hangs has failed: librados gives up, or else the call's deadline ends it."""

MOUNT = {"client_mount_timeout": str(WAIT)}
SHORT = {**MOUNT, "rados_osd_op_timeout": str(WAIT), "rados_mon_op_timeout": str(WAIT)}
LONG = dict.fromkeys(SHORT, str(int(PATIENCE)))


@pytest.fixture(autouse=True)
def clusters(monkeypatch: pytest.MonkeyPatch) -> list[Cluster]:
    """The connections that are made in a test."""
    made: list[Cluster] = []
    connect = Cluster._connect

    def noted(cluster: Cluster, settings: Settings) -> None:
        made.append(cluster)
        connect(cluster, settings)

    monkeypatch.setattr(Cluster, "_connect", noted)
    return made


def give_up_after(clusters: list[Cluster], seconds: int) -> None:
    """Have connections that are there wait for servers for so long, from the next call on."""
    for cluster in clusters:
        for option in (b"rados_osd_op_timeout", b"rados_mon_op_timeout"):
            if not cluster._over:
                assert cluster.lib.rados_conf_set(cluster._cluster, option, str(seconds).encode()) == 0


@contextlib.asynccontextmanager
async def paused(bed: CephBed, daemon: str, clusters: list[Cluster], wait: int = WAIT) -> AsyncIterator[None]:
    """A daemon that answers nothing inside the block. :param wait: seconds after which these connections give it up."""
    give_up_after(clusters, wait)
    await asyncio.sleep(0.5)  # what was asked before is answered
    await asyncio.to_thread(bed.pause, daemon)
    try:
        yield
    finally:
        give_up_after(clusters, USUAL)
        bed.resume(daemon)


async def started(manager: astore.Manager, bed: CephBed, where: str) -> astore.Pool:
    """A pool."""
    pool = await manager.define(definition_of(bed, where))
    await pool.start()
    return pool


async def test_osd_stopped(
    manager: astore.Manager, ceph: CephBed, where: str, other: OtherClient, clusters: list[Cluster]
) -> None:
    """Every kind of work fails within the deadline, no thread stays behind, and the pool is well again after it."""
    pool = await started(manager, ceph, where)
    names = ("disk", "read", "wiped", "old", "gone", "base")
    disk, read, wiped, old, gone, base = [await pool.create_volume(VolumeDef(name, capacity=8 * MIB)) for name in names]
    await disk.upload(b"before")
    before = pool.volumes
    making = asyncio.create_task(pool.create_volume(VolumeDef("large", capacity=4096 * MIB, allocation=4096 * MIB)))
    await eventually(lambda: any(has_data(other, name) for name in other.names() - {*names}), "an unfinished image")

    async def download() -> None:
        async with read.download() as blocks:
            async for _ in blocks:
                pass

    async with paused(ceph, "osd", clusters):
        work = {
            "refresh": pool.refresh(),
            "create": pool.create_volume(VolumeDef("new", capacity=MIB)),
            "upload": disk.upload(b"after"),
            "download": download(),
            "wipe": wiped.wipe(),
            "rename": old.rename("renamed"),
            "delete": gone.delete(),
            "clone": pool.copy_volume(base, VolumeDef("clone")),
        }
        began = time.monotonic()
        results = dict(zip(work, await asyncio.gather(*work.values(), return_exceptions=True), strict=True))
        assert time.monotonic() - began < IN_TIME
        assert {name: type(one) for name, one in results.items() if isinstance(one, VolumeBusyError)} == {}
        assert {name for name, one in results.items() if isinstance(one, AstoreError)} == set(work), results
        began = time.monotonic()
        with pytest.raises(AstoreError, match="disk"):
            await disk.resize(16 * MIB)
        assert time.monotonic() - began < IN_TIME
        assert pool.state is PoolState.INACCESSIBLE
        assert pool.volumes == before
        with pytest.raises(AstoreError, match="large"):
            await making  # which tries to remove what it made
        await eventually(lambda: quiet(manager), "an end of all calls")
    await well_again(pool)
    await eventually_clean(pool, other)
    await pool.refresh()  # the cluster may have done later what it was asked for
    assert {one.name for one in pool.volumes} == other.names()
    assert {"disk", "read", "wiped", "base"} <= other.names() <= {*names, "renamed"}
    assert ("old" in other.names()) != ("renamed" in other.names())
    assert other.content("disk")[:6] in (b"before", b"aftere")
    await disk.upload(b"after")
    await base.delete()


def has_data(other: OtherClient, name: str) -> bool:
    """Whether something has been written to an image, which is there."""
    with contextlib.suppress(FileNotFoundError), other.open(name).closing() as image:
        return image.next_data(0) is not None
    return False


async def eventually_clean(pool: astore.Pool, other: OtherClient) -> None:
    """Refresh until no image is left of work that failed: the cluster may yet do what it was asked for before it stopped."""
    deadline = time.monotonic() + 200
    while left := [name for name in other.names() if name.startswith(".astore-")]:
        assert time.monotonic() < deadline, left
        await pool.refresh()
        await asyncio.sleep(0.2)


async def well_again(pool: astore.Pool) -> None:
    """Refresh until the pool answers."""
    deadline = time.monotonic() + 200
    while True:
        try:
            await pool.refresh()
            return
        except PoolInaccessibleError:
            assert time.monotonic() < deadline


async def test_other_pools_go_on(
    manager: astore.Manager, ceph: CephBed, where: str, tmp_path: Path, clusters: list[Cluster]
) -> None:
    """While a cluster hangs, other pools are refreshed as ever, all at once."""
    pool = await started(manager, ceph, where)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "one").write_bytes(b"1")
    files = await manager.define(astore.PoolDef(type="dir", name="files", target=astore.model.Target(path=str(folder))))
    await files.start()
    async with paused(ceph, "osd", clusters, wait=5):
        refreshing = asyncio.create_task(pool.refresh())
        for _ in range(5):
            await files.refresh()
        assert not refreshing.done()
        with pytest.raises(PoolInaccessibleError, match="does not answer"):
            await refreshing
    await well_again(pool)


async def test_monitor_stopped(manager: astore.Manager, ceph: CephBed, where: str) -> None:
    """A start fails in time; a running pool's images can be read, for OSDs alone have them."""
    pool = await started(manager, ceph, where)
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    second = await manager.define(definition_of(ceph, f"{where.partition('/')[0]}", "second", **MOUNT))
    async with paused(ceph, "mon", []):
        began = time.monotonic()
        with pytest.raises(AstoreError, match="does not answer"):
            await second.start()
        assert time.monotonic() - began < IN_TIME
        async with disk.download() as blocks:
            assert sum([len(block) async for block in blocks]) == MIB
        await eventually(lambda: quiet(manager), "an end of all calls")
    await well_again(pool)
    while not second.active:
        with contextlib.suppress(AstoreError):
            await second.start()


async def test_deadlines_without_options(tmp_path: Path, ceph: CephBed, ceph_pool: str) -> None:
    """A definition that sets no timeouts has shorter ones than the Manager's calls: no thread waits longer than its call."""
    async with astore.Manager(tmp_path / "state", secrets=secrets_of(ceph), call_timeout=8) as manager:
        pool = await manager.define(definition_of(ceph, ceph_pool))
        async with paused(ceph, "mon", []):
            with pytest.raises(
                AstoreError, match="or not to this user with this key"
            ):  # librados gave up, and not the call
                await pool.start()
            await eventually(lambda: quiet(manager), "an end of all calls")


@pytest.mark.parametrize("name", ["usage", "uuid"])
async def test_first_monitor_is_dead(tmp_path: Path, ceph: CephBed, ceph_pool: str, name: str) -> None:
    """Another host of the definition is a monitor that answers. The secret is found by its usage or its uuid."""
    definition = definition_of(ceph, ceph_pool, **LONG)
    uuid = "8a9b4d8e-5ae3-4b4d-9e6b-1d6f3a2c9c11"
    source = msgspec.structs.replace(definition.source, hosts=(Host("127.0.0.1", 1), *definition.source.hosts))
    if name == "uuid":
        source = msgspec.structs.replace(source, auth=Auth("ceph", "admin", secret_uuid=uuid))
    secrets = GivenSecrets({uuid if name == "uuid" else USAGE: base64.b64decode(ceph.key)})
    async with astore.Manager(tmp_path / "state", secrets=secrets, call_timeout=2 * PATIENCE) as manager:
        pool = await manager.define(msgspec.structs.replace(definition, source=source))
        await pool.start()
        assert pool.state is PoolState.RUNNING
        await pool.stop()


async def test_shut_out(manager: astore.Manager, ceph: CephBed, where: str, other: OtherClient) -> None:
    """A client that the cluster shut out connects anew: by a refresh, by the next call, and with an image open."""
    pool = await started(manager, ceph, where)
    disk = await pool.create_volume(VolumeDef("disk", capacity=MIB))
    await disk.upload(b"before")

    async def shut_out() -> None:
        async with disk.open(write=True) as file:
            with other.open("disk").closing() as image:
                ((_, address),) = [one for one in image.watchers() if one[0] != other.cluster.client]
            await asyncio.to_thread(ceph.ceph, "osd", "blocklist", "add", address)

            async def read_on() -> None:  # until the OSD knows. (librbd 16 lets a write hang for ever.)
                for _ in range(100):
                    await file.pread(512, 0)
                    await asyncio.sleep(0.1)

            with pytest.raises(OSError, match="shut this client out") as caught:
                await read_on()
            assert caught.value.errno == errno.ESHUTDOWN

    for again in (pool.refresh, lambda: pool.refresh("disk"), lambda: disk.upload(b"after")):
        await shut_out()
        await again()
        assert pool.state is PoolState.RUNNING
    assert other.content("disk")[:5] == b"after"
    await disk.delete()
    await eventually(lambda: quiet(manager), "an end of all calls")


async def test_removed_while_it_is_locked(
    ceph: CephBed, where: str, other: OtherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To lock an image that another client removes at that moment fails. librbd would wait for ever."""
    monkeypatch.setattr(image_module, "LOCK_SECONDS", 1.0)
    other.create("disk", MIB)
    of_pool, _, namespace = where.partition("/")

    def removed(image: RbdVolume) -> bool:
        """Remove the image, and wait until librbd knows; say that nobody has the lock."""
        ceph.run("rados", "-p", of_pool, "-N", namespace, "rm", f"rbd_header.{image.image_id()}")
        with contextlib.suppress(FileNotFoundError):
            while image.size():
                time.sleep(0.01)
        return False

    monkeypatch.setattr(RbdVolume, "_is_owned", removed)
    with other.open("disk", write=True).closing() as image:
        with pytest.raises(OSError, match="perhaps the image was removed") as caught:
            await asyncio.to_thread(image.lock)
        assert caught.value.errno == errno.ETIMEDOUT


async def test_nothing_listens(manager: astore.Manager, ceph: CephBed) -> None:
    """A host without a monitor is an error in time."""
    definition = definition_of(ceph, "images", **SHORT)
    nowhere = msgspec.structs.replace(definition.source, hosts=(astore.model.Host("127.0.0.1", 1),))
    pool = await manager.define(msgspec.structs.replace(definition, source=nowhere))
    began = time.monotonic()
    with pytest.raises(AstoreError, match=r"127\.0\.0\.1:1 does not answer"):
        await pool.start()
    assert time.monotonic() - began < IN_TIME


async def test_wrong_key(tmp_path: Path, ceph: CephBed, ceph_pool: str) -> None:
    """A key that is wrong, or of no use, is refused in words that do not have it."""
    wrong = base64.b64decode(ceph.key)[:-1] + b"!"
    for value, said in ((wrong, "not to this user with this key"), (b"no key", "key")):
        async with astore.Manager(tmp_path / "state", secrets=GivenSecrets({USAGE: value})) as manager:
            pool = manager.pool("images") if value == b"no key" else None
            pool = pool or await manager.define(definition_of(ceph, ceph_pool, **SHORT))
            with pytest.raises(AstoreError, match=said) as caught:
                await pool.start()
            assert base64.b64encode(value).decode() not in str(caught.value)


@pytest.mark.parametrize("usage", ["nothing"])
async def test_no_secret(manager: astore.Manager, ceph: CephBed, ceph_pool: str, usage: str) -> None:
    """A secret that is not there is named."""
    definition = definition_of(ceph, ceph_pool)
    source = msgspec.structs.replace(definition.source, auth=Auth("ceph", "admin", secret_usage=usage))
    pool = await manager.define(msgspec.structs.replace(definition, source=source))
    with pytest.raises(AstoreError, match=usage):
        await pool.start()


@pytest.mark.parametrize("name", ["nothing", "images/nothing"])
async def test_no_such_pool(manager: astore.Manager, ceph: CephBed, ceph_pool: str, name: str) -> None:
    """A pool or namespace that is not there is named."""
    pool = await manager.define(definition_of(ceph, name))
    with pytest.raises(AstoreError, match="nothing"):
        await pool.start()


async def test_removed_while_read(pool: astore.Pool, other: OtherClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that is removed between the listing of names and the reading of its header is no error."""
    other.put_all({f"{n}": b"" for n in range(10)})
    ask_all = reading.ask_all
    gone: list[str] = []

    def late(cluster: object, questions: object, *rest: object, **more: object) -> object:
        if not gone:
            gone.append("7")
            other.remove("7")
        return ask_all(cluster, questions, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("astore_rbd.images.listing.ask_all", late)
    outcome = await pool.refresh()
    assert gone
    assert outcome.errors == ()
    assert [one.name for one in pool.volumes] == [str(n) for n in range(10) if n != 7]


async def test_removed_while_downloaded(pool: astore.Pool, other: OtherClient) -> None:
    """A download of an image that somebody removes ends in an error or in zeros, and not in a hanging call."""
    disk = await pool.create_volume(VolumeDef("disk", capacity=64 * MIB))
    data, seen = os.urandom(2 * MIB) + bytes(62 * MIB), 0
    await disk.upload(data[: 2 * MIB])
    with contextlib.suppress(AstoreError):
        async with disk.download() as blocks:
            async for block in blocks:
                assert bytes(block) in (data[seen : seen + len(block)], bytes(len(block)))
                seen += len(block)
                if "disk" in other.names():
                    other.remove("disk")
    assert seen
    await pool.refresh()
    assert pool.volumes == ()


CHILD = """
import asyncio, base64, sys
sys.path[:0] = {path!r}
import astore
from astore.model import VolumeDef
from astore.testing.secrets import GivenSecrets
from astore.model import PoolDef

async def chunks():
    print("begun", flush=True)
    while True:
        yield bytes(1 << 20)

async def main():
    secrets = GivenSecrets({{{usage!r}: base64.b64decode({key!r})}})
    async with astore.Manager({state!r}, secrets=secrets) as manager:
        pool = manager.pool("images")
        await pool.refresh()
        {work}

asyncio.run(main())
"""

CREATING = "await pool.create_volume(VolumeDef('made', capacity=1 << 40, allocation=1 << 40))"
CLONING = """
        print("begun", flush=True)
        for number in range(10_000):
            await pool.copy_volume(pool.volume("base"), VolumeDef(f"clone{number}"))
"""


def finished(other: OtherClient) -> list[str]:
    """The names of the images that have a header: librbd writes that last."""
    found = []
    for name in other.names():
        with contextlib.suppress(FileNotFoundError):
            other.open(name).close()
            found.append(name)
    return found


async def test_unfinished_by_librbd(pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient) -> None:
    """An image whose client was killed within librbd's own creation has no header: no pool shows it.

    Its name goes if it is one of this process's hidden ones.
    """
    name, _, namespace = where.partition("/")
    for half in ("half", new_hidden_name()):
        other.create(half, MIB)
        with other.open(half).closing() as image:
            header = f"rbd_header.{image.image_id()}"
        ceph.run("rados", "-p", name, "-N", namespace, "rm", header)
    await pool.refresh()
    assert (pool.volumes, pool.info.errors) == ((), 0)
    assert finished(other) == [] and other.names() == {"half"}
    ceph.rbd("rm", "--no-progress", f"{where}/half")
    assert other.names() == set()


async def test_own_removal_cut_off(
    pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal of a volume that the cluster has cut off half-way is completed by the next refresh."""
    of_pool, _, namespace = where.partition("/")
    real, removed = RbdPool.remove, list[str]()

    def cut_off(self: RbdPool, name: str, id: int | None = None) -> None:
        if removed:
            return real(self, name, id)
        removed.append(name)
        ceph.run("rados", "-p", of_pool, "-N", namespace, "rm", header)
        raise OSError(errno.EIO, "the OSD does not answer")

    volume = await pool.create_volume(VolumeDef("a", capacity=MIB))
    other.create("b", MIB)
    with other.open("a").closing() as image:
        header = f"rbd_header.{image.image_id()}"
    monkeypatch.setattr(RbdPool, "remove", cut_off)
    with pytest.raises(StorageError, match="delete"):
        await volume.delete()
    assert other.names() == {"a", "b"}
    await pool.refresh()
    assert ([one.name for one in pool.volumes], other.names()) == (["b"], {"b"})


@pytest.mark.timeout(300)
async def test_removal_cut_off(pool: astore.Pool, ceph: CephBed, where: str, other: OtherClient) -> None:
    """An image whose client was killed while it removed it is no volume any more. A hidden one is removed to the end."""
    hidden = new_hidden_name()
    of_pool, _, namespace = where.partition("/")
    rados = ("rados", "-p", of_pool, "-N", namespace)
    for kept in ("before", "after"):
        other.create(kept, MIB)
        ceph.rbd("trash", "mv", f"{where}/{kept}")
    for name in ("cut", hidden):
        ceph.rbd("create", "--size", "64G", "--image-feature", "layering", f"{where}/{name}")
        with other.open(name).closing() as image:
            trashed = f"id_{image.image_id()}"
        argv = ["rbd", "-c", str(ceph.configuration), "rm", "--no-progress", f"{where}/{name}"]
        child = await asyncio.to_thread(subprocess.Popen, argv, stdin=subprocess.DEVNULL)
        try:
            while trashed not in await asyncio.to_thread(ceph.run, *rados, "listomapkeys", "rbd_trash"):
                assert child.poll() is None
        finally:
            child.kill()
            await asyncio.to_thread(child.wait, 30)
    assert other.names() == {"cut", hidden}
    async with asyncio.timeout(200):
        while hidden in other.names():  # as long as the cluster takes the killed client for a living one
            await pool.refresh()
            assert (pool.volumes, pool.info.errors) == ((), 0)
    assert other.names() == {"cut"}
    volume = await pool.create_volume(VolumeDef("cut", capacity=MIB))
    await pool.refresh(full=True)
    assert (volume.info.capacity, [one.name for one in pool.volumes]) == (MIB, ["cut"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("work", ["creating", "cloning"])
async def test_killed(tmp_path: Path, ceph: CephBed, where: str, other: OtherClient, work: str) -> None:
    """What a process that was killed had begun is removed by the next one, once the cluster has noticed its end."""
    secrets = secrets_of(ceph)
    state = tmp_path / "state"
    async with astore.Manager(state, secrets=secrets) as manager:
        pool = await manager.define(definition_of(ceph, where))
        await pool.start()
        base = await pool.create_volume(VolumeDef("base", capacity=MIB))
        code = CHILD.format(
            path=sys.path, usage=USAGE, key=ceph.key, state=str(state), work=CREATING if work == "creating" else CLONING
        )
        child = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", code], stdout=subprocess.PIPE)
        try:
            wanted = 1 if work == "creating" else 3
            await eventually(lambda: len(finished(other)) > wanted, "an image of the child")
            await asyncio.sleep(random.random() / 2)  # somewhere in the work
        finally:
            child.send_signal(signal.SIGKILL)
            await asyncio.to_thread(child.wait, 30)
            assert child.stdout is not None
            child.stdout.close()
    deadline = time.monotonic() + 170
    while True:
        async with astore.Manager(state, secrets=secrets) as manager:
            pool = manager.pool("images")
            await pool.refresh()
            left = [name for name in finished(other) if name.startswith(".")]
            assert time.monotonic() < deadline, left
            if not left:
                clones = [one.name for one in pool.volumes if one.name != "base"]
                assert "made" not in clones
                try:
                    for name in clones:
                        await pool.volume(name).delete()
                    await pool.volume("base").delete()  # whatever snapshots were made for clones that came to nothing
                    await pool.stop()
                    break
                except (astore.VolumeBusyError, StorageError) as error:
                    if getattr(error, "errno", errno.EBUSY) != errno.EBUSY:
                        raise  # else the last clone was in its place, and is still open
        await asyncio.sleep(0.5)
    assert base.name not in other.names()
