"""Faults of targets: killed, frozen, locked, replaced; and work that is cancelled. Nothing hangs, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from core_fakes import eventually
from iscsi_support import INITIATOR, MIB, TIMEOUT, NewPool, Passwords, definition_of
from leaks import LeakCheck
from secret_traces import show_nowhere

from astore.errors import AstoreError, PoolInaccessibleError, StorageError
from astore.manager import Manager
from astore.model import Auth, Device, Host, PoolDef, PoolState, Target
from astore.model.secrets import SecretName
from astore.testing.conformance.base import cancel_everywhere
from astore_iscsi import libiscsi
from astore_iscsi.target.answers import Login
from astore_iscsi.target.connection import Connection
from astore_iscsi.target.survey import Survey
from beds.iscsi import ADDRESS, IscsiBed
from beds.iscsi import Target as IscsiTarget

pytestmark = pytest.mark.iscsi

CHAP = Auth("chap", "me", secret_usage="luns")


class Faucet:
    """A source of bytes that gives the second half when the test lets it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"\xee" * (self.size // 2)
        self.asked.set()
        await self.open.wait()
        yield b"\xee" * (self.size // 2)


# -------------------------------------------------------------------------------------------------------------- logins


async def test_chap(target: IscsiTarget, manager: Manager) -> None:
    """A target that wants a password gets the secret's value, which no error shows; a wrong one is refused in words."""
    target.require_chap("me", "correct horse")
    target.add_lun(1, MIB)
    pool = await manager.define(definition_of(target, auth=CHAP))
    await pool.start()
    assert [one.name for one in pool.volumes] == ["unit:0:0:1"]
    await pool.stop()
    Passwords.password, right = b"wrong battery", Passwords.password
    try:
        with pytest.raises(StorageError, match=r"the login was refused: .*Authentication failure") as caught:
            await pool.start()
    finally:
        Passwords.password = right
    assert caught.value.errno == errno.EACCES
    assert "battery" not in f"{caught.value!r} {caught.value.__cause__!r} {pool.info!r}"
    nobody = await manager.define(definition_of(target, auth=None))
    with pytest.raises(StorageError, match="the login was refused"):
        await nobody.start()


def test_password_is_shown_nowhere(target: IscsiTarget, tmp_path: Path) -> None:
    """Not in what the command prints and logs, nor in what it keeps beside the secret."""
    target.require_chap("another", "correct horse")
    target.add_lun(1, MIB)
    auth = Auth("chap", "another", secret_usage="luns")
    show_nowhere(tmp_path, definition_of(target, auth=auth), "iscsi", "luns", Passwords.password)


async def test_secret_that_is_not_there(target: IscsiTarget, manager: Manager, tmp_path: Path) -> None:
    """A pool whose secret does not exist does not start, and says what to do."""

    class Nothing:
        async def value(self, name: SecretName) -> bytes | None:
            return None

    async with Manager(tmp_path / "other", secrets=Nothing()) as others:
        pool = await others.define(definition_of(target, auth=CHAP))
        with pytest.raises(AstoreError, match="astore secret set iscsi luns"):
            await pool.start()


async def test_no_such_target(target: IscsiTarget, manager: Manager) -> None:
    """A target that its portal does not have is told by name, and so is a portal that nobody listens on."""
    pool = await manager.define(definition_of(target, devices=(Device("iqn.2026-01.a:x"),)))
    with pytest.raises(StorageError, match=r"iqn\.2026-01\.a:x: .*Target not found") as caught:
        await pool.start()
    assert caught.value.errno == errno.ENOENT
    closed = await manager.define(definition_of(target, "closed", hosts=(Host(ADDRESS, 1), Host("localhost", 1))))
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1: .*refused.*; localhost:1: .*refused") as caught:
        await closed.start()
    assert caught.value.errno == errno.ECONNREFUSED


# ------------------------------------------------------------------------------------------------------------- portals


async def test_second_portal(target: IscsiTarget, new_pool: NewPool) -> None:
    """A pool starts if its second portal answers, and a name is looked up."""
    target.add_lun(1, MIB)
    pool = await new_pool(target, hosts=(Host(ADDRESS, 1), Host("localhost", target.bed.port)))
    await pool.volume("unit:0:0:1").upload(b"here")
    assert pool.volume("unit:0:0:1").key.startswith(f"ip-{ADDRESS}:1-"), (
        "the key does not change with the portal in use"
    )


async def test_ipv6_portal(manager: Manager, tmp_path: Path) -> None:
    """A portal may have an IPv6 address; the volume's key, disk and URI have it in brackets where libvirt and QEMU do."""
    with tempfile.TemporaryDirectory(prefix="astore-iscsi-") as folder, IscsiBed(folder, address="::1") as bed:
        target = bed.new_target()
        target.add_lun(1, MIB)
        pool = await manager.define(definition_of(target, "six", hosts=(Host("::1", bed.port),)))
        await pool.start()
        disk = pool.volume("unit:0:0:1")
        await disk.upload(b"here")
        assert disk.key == f"ip-[::1]:{bed.port}-iscsi-{target.iqn}-lun-1"
        assert f"<host name='::1' port='{bed.port}'/>" in disk.disk_xml().replace('"', "'")
        assert disk.qemu_blockdev()["file"]["portal"] == f"[::1]:{bed.port}"
        (found,) = await manager.discover("iscsi-direct", "::1", port=bed.port)
        assert found.source.hosts == (Host("::1", bed.port),)
        await pool.stop()


async def test_name_with_several_addresses(
    target: IscsiTarget, new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each address of a name is tried: nobody may listen on the first."""
    target.add_lun(1, MIB)
    look_up = socket.getaddrinfo

    def two(host: str, port: int, **what: Any) -> list[Any]:
        if host != "san.test":
            return look_up(host, port, **what)
        return [*look_up("::1", port, **what), *look_up(ADDRESS, port, **what)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    pool = await new_pool(target, hosts=(Host("san.test", target.bed.port),))
    assert [volume.name for volume in pool.volumes] == ["unit:0:0:1"]


async def test_dropped_while_used(target: IscsiTarget, new_pool: NewPool) -> None:
    """A connection that breaks between calls, or during them, is made anew: nobody notices."""
    path = target.add_lun(1, 64 * MIB)
    pool = await new_pool(target)
    disk = pool.volume("unit:0:0:1")
    faucet = Faucet(64 * MIB)
    task = asyncio.ensure_future(disk.upload(faucet))
    await faucet.asked.wait()
    for _ in range(3):
        await asyncio.to_thread(target.drop_connections)
        async with disk.open() as file:
            assert await file.pread(1, 0) == b"\xee"
    faucet.open.set()
    await asyncio.to_thread(target.drop_connections)
    await task
    assert (await pool.refresh()).unchanged == 1
    assert path.read_bytes() == b"\xee" * 64 * MIB


async def test_portal_lost_while_written(new_bed: Callable[[], IscsiBed], iscsi: IscsiBed, new_pool: NewPool) -> None:
    """A target that is killed while it is written goes on at its other portal, which has the same disks."""
    first_bed, second_bed = new_bed(), new_bed()
    first, second = (bed.new_target("iqn.2026-01.test.bed:both") for bed in (first_bed, second_bed))
    path = first.add_lun(1, 32 * MIB)
    second.add_lun(1, path)
    for one in (first, second):
        one.update_lun(1, scsi_id="the-same", scsi_sn="the-same")
    pool = await new_pool(first, hosts=(Host(ADDRESS, first_bed.port), Host(ADDRESS, second_bed.port)))
    faucet = Faucet(32 * MIB)
    task = asyncio.ensure_future(pool.volume("unit:0:0:1").upload(faucet))
    await faucet.asked.wait()
    assert first.connections()
    first_bed.kill()
    faucet.open.set()
    await task
    assert path.read_bytes() == b"\xee" * 32 * MIB
    assert pool.state is PoolState.RUNNING


async def test_portal_without_the_target(own_bed: IscsiBed, target: IscsiTarget, new_pool: NewPool) -> None:
    """A portal that is back without its target does not keep the next one from being tried, at a start or later."""
    target.add_lun(1, MIB)
    own_bed.new_target()
    both = Host(ADDRESS, own_bed.port), Host(ADDRESS, target.bed.port)
    pool = await new_pool(target, "start", hosts=both)
    assert [volume.name for volume in pool.volumes] == ["unit:0:0:1"]
    await pool.stop()
    lost = own_bed.new_target(target.iqn)
    lost.add_lun(1, MIB)
    await pool.start()
    assert lost.connections()
    own_bed.kill()
    own_bed.start()
    own_bed.new_target()  # without any, tgtd says nothing
    await pool.refresh()
    assert pool.state is PoolState.RUNNING
    assert target.connections()


async def test_name_with_an_address_without_the_target(
    own_bed: IscsiBed, target: IscsiTarget, new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for the addresses of one name."""
    target.add_lun(1, MIB)
    own_bed.new_target()
    addresses = [f"{ADDRESS}:{bed.port}" for bed in (own_bed, target.bed)]

    async def addresses_of(portal: object, context: object) -> list[str]:
        return addresses

    monkeypatch.setattr("astore_iscsi.target.client.addresses_of", addresses_of)
    pool = await new_pool(target, hosts=(Host("san.test"),))
    assert [volume.name for volume in pool.volumes] == ["unit:0:0:1"]


@pytest.mark.parametrize("first", [False, True])
async def test_what_portals_say(own_bed: IscsiBed, target: IscsiTarget, manager: Manager, first: bool) -> None:
    """If no portal has the target, the error tells what each said, and is the most telling one's."""
    own_bed.new_target()
    hosts = Host(ADDRESS, own_bed.port), Host(ADDRESS, 1)
    pool = await manager.define(definition_of(target, hosts=hosts if first else hosts[::-1]))
    with pytest.raises(StorageError) as caught:
        await pool.start()
    assert caught.value.errno == errno.ENOENT
    assert "Target not found" in str(caught.value)
    assert f"{ADDRESS}:1: " in str(caught.value)


async def test_refused_once(
    target: IscsiTarget, own_bed: IscsiBed, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong password is tried at one portal."""
    target.require_chap("joe", "another word")
    own_bed.new_target(target.iqn)
    hosts = Host(ADDRESS, target.bed.port), Host(ADDRESS, own_bed.port)
    joe = Auth("chap", "joe", secret_usage="luns")
    pool = await manager.define(definition_of(target, hosts=hosts, auth=joe))
    with pytest.raises(StorageError) as caught:
        await pool.start()
    assert caught.value.errno == errno.EACCES
    assert str(own_bed.port) not in str(caught.value)


@pytest.mark.parametrize(("timeout", "least", "most"), [(None, 0, TIMEOUT / 2), (600.0, TIMEOUT, TIMEOUT)])
async def test_units_have_the_callers_time(
    target: IscsiTarget,
    new_pool: NewPool,
    monkeypatch: pytest.MonkeyPatch,
    timeout: float | None,
    least: float,
    most: float,
) -> None:
    """Units that answer late have a call's time, and not half of it, if the caller of a refresh gives more than usual."""
    target.add_lun(1, MIB)
    pool = await new_pool(target)
    given: list[float] = []
    real = Survey.run

    async def run(survey: Survey, patience: float) -> Any:
        given.append(patience)
        return await real(survey, patience)

    monkeypatch.setattr(Survey, "run", run)
    await pool.refresh(timeout=timeout)
    (one,) = given
    assert least <= one <= most


async def test_frozen_portal(own_bed: IscsiBed, target: IscsiTarget, new_pool: NewPool) -> None:
    """A portal that falls silent is given up well before the deadline, and the other one is used."""
    path = target.add_lun(1, MIB)
    first = own_bed.new_target(target.iqn)
    first.add_lun(1, path)
    pool = await new_pool(target, hosts=(Host(ADDRESS, own_bed.port), Host(ADDRESS, target.bed.port)))
    own_bed.freeze()
    try:
        await pool.refresh()
        assert pool.state is PoolState.RUNNING
    finally:
        own_bed.thaw()


# ---------------------------------------------------------------------------------------------------- killed and frozen


async def test_killed_while_written(own_bed: IscsiBed, new_pool: NewPool) -> None:
    """An upload to a target that is killed fails, with the bytes that are certain; the pool is back when the target is."""
    target = own_bed.new_target()
    path = target.add_lun(1, 32 * MIB)
    pool = await new_pool(target)
    before = pool.volumes
    faucet = Faucet(32 * MIB)
    task = asyncio.ensure_future(pool.volume("unit:0:0:1").upload(faucet))
    await faucet.asked.wait()
    own_bed.kill()
    faucet.open.set()
    with pytest.raises(StorageError, match=r"refused.*after \d+ bytes") as caught:
        await task
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(PoolInaccessibleError):
        await pool.refresh()
    assert pool.volumes == before
    own_bed.start()
    own_bed.new_target(target.iqn).add_lun(1, path)
    await pool.refresh()
    assert pool.state is PoolState.RUNNING
    await pool.volume("unit:0:0:1").upload(b"back")


async def test_frozen_target(
    own_bed: IscsiBed, target: IscsiTarget, manager: Manager, new_pool: NewPool, no_leaks: LeakCheck, tmp_path: Path
) -> None:
    """Every call on a target that is stopped fails by its deadline; other pools do not wait, and no thread is stuck."""
    frozen = own_bed.new_target()
    frozen.add_lun(1, 8 * MIB)
    target.add_lun(1, 8 * MIB)
    pool, other = await new_pool(frozen, "frozen"), await new_pool(target, "other")
    (tmp_path / "files").mkdir()
    folder = await manager.create(PoolDef("dir", "folder", target=Target(str(tmp_path / "files"))))
    disk = pool.volume("unit:0:0:1")
    own_bed.freeze()
    try:
        began = time.monotonic()

        async def read() -> None:
            async with disk.open() as file:
                await file.pread(4096, 0)

        calls: list[Any] = [disk.upload(b"x" * 4 * MIB), read(), pool.refresh(), pool.refresh("unit:0:0:1")]
        tasks = [asyncio.ensure_future(call) for call in calls]
        uploading = other.volume("unit:0:0:1").upload(b"y" * MIB)
        *_, sent = await asyncio.gather(other.refresh(), folder.refresh(), uploading)
        assert not any(task.done() for task in tasks), "the others waited for it"
        assert sent == MIB
        for _ in range(4):
            await other.refresh()
            await folder.refresh()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        took = time.monotonic() - began
        assert all(isinstance(one, (StorageError, TimeoutError, PoolInaccessibleError)) for one in results), results
        assert took < 4 * TIMEOUT, "opening has a deadline, and so has the write"
        assert pool.state is PoolState.INACCESSIBLE
        assert not manager.statistics().lanes.stuck
    finally:
        own_bed.thaw()
    await pool.refresh()
    assert pool.state is PoolState.RUNNING
    for one in (pool, other, folder):
        await one.stop()


async def test_stopped_while_frozen(own_bed: IscsiBed, tmp_path: Path) -> None:
    """A pool whose target is stopped is stopped at once, without force."""
    target = own_bed.new_target()
    target.add_lun(1, MIB)
    async with Manager(tmp_path / "patient", call_timeout=300.0, secrets=Passwords()) as manager:
        pool = await manager.define(definition_of(target))
        await pool.start()
        own_bed.freeze()
        try:
            began = time.monotonic()
            await pool.stop()
            assert time.monotonic() - began < 60
        finally:
            own_bed.thaw()


# -------------------------------------------------------------------------------------------- what is behind a number


async def test_replaced_while_open(target: IscsiTarget, new_pool: NewPool) -> None:
    """A unit that takes the number of an open one is neither read nor written."""
    target.add_lun(1, MIB)
    pool = await new_pool(target)
    async with pool.volume("unit:0:0:1").open(write=True) as file:
        await file.pwrite(b"mine", 0)
        target.remove_lun(1)
        path = target.add_lun(1, MIB)
        await asyncio.to_thread(target.drop_connections)
        for call in (lambda: file.pwrite(b"x" * 4096, 0), lambda: file.pread(512, 0), file.sync):
            with pytest.raises(OSError, match="another unit now") as caught:
                await call()
            assert caught.value.errno == errno.ESTALE
    assert not path.read_bytes().strip(b"\0")


# -------------------------------------------------------------------------------------------------------- cancellation


async def test_cancelled_everywhere(target: IscsiTarget, new_pool: NewPool, no_leaks: LeakCheck) -> None:
    """Transfers, refreshes and starts that are cancelled at each step leave nothing, and the pool works."""
    target.add_lun(1, 8 * MIB)
    pool = await new_pool(target)
    disk = pool.volume("unit:0:0:1")

    async def again(_: bool) -> None:
        if not pool.active:
            await pool.start()
        async with disk.open() as file:
            await file.pread(1, 0)

    async def restart() -> None:
        await pool.stop()
        await pool.start()

    async def download() -> None:
        async with disk.download() as pieces:
            async for _ in pieces:
                pass

    for call in (lambda: disk.upload(b"x" * 6 * MIB), download, disk.wipe, lambda: pool.refresh(full=True), restart):
        await cancel_everywhere(call, again)
    await pool.stop()


async def test_memory_of_a_cancelled_call(own_bed: IscsiBed) -> None:
    """The buffer of a cancelled read stays until the target has answered, or the connection is gone."""
    target = own_bed.new_target()
    target.add_lun(1, MIB)
    login = Login(INITIATOR, target.iqn, 14)
    for ends in ("answered", "destroyed"):
        connection = Connection(libiscsi.load(), login, 30.0)
        await connection.connect(f"{ADDRESS}:{own_bed.port}")
        answers: list[object] = []
        buffer = bytearray(512)
        own_bed.freeze()
        try:
            memory = libiscsi.memory_of(buffer)
            connection.send(1, bytes.fromhex("88000000000000000000000000010000"), memory, False, answers.append)
            del memory
            await asyncio.sleep(0.05)
            with pytest.raises(BufferError):  # it is lent
                buffer.clear()
            if ends == "destroyed":
                connection.destroy()
        finally:
            own_bed.thaw()
        await eventually(lambda answers=answers: answers)
        buffer.clear()
        await connection.close()
