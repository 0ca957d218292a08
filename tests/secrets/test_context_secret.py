"""What a backend gets when it asks its context for a secret."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from core_fakes import fake_registry, run_python

import astore
from astore import Auth, Backend, BackendRegistry, Context, Manager, PoolDef, PoolSession, SecretName, Snapshot, Source
from astore.model import SecretValue
from astore.secrets import SecretFiles
from astore.testing.secrets import GivenSecrets

UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
VALUE = b"s3cret"


class LockedBackend(Backend):
    """Pools that need a login. :ivar got: the value that the last start got."""

    type: ClassVar[str] = "locked"
    got: ClassVar[list[SecretValue]] = []

    def check(self, definition: PoolDef) -> PoolDef:
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        return (("name", definition.name),)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        auth = definition.source.auth
        assert auth is not None
        value = await context.secret(auth.secret("iscsi" if auth.type == "chap" else auth.type))
        context.log.warning("logged in", secret=value, definition=definition, context=context)
        self.got.append(value)
        return LockedSession()


class LockedSession(PoolSession):
    """A pool without volumes."""

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        return Snapshot({})

    async def aclose(self) -> None:
        pass


@pytest.fixture(autouse=True)
def got() -> list[SecretValue]:
    """The values that the backend got."""
    LockedBackend.got.clear()
    return LockedBackend.got


@pytest.fixture
def registry() -> BackendRegistry:
    """The backend alone."""
    return fake_registry(LockedBackend())


def pool(auth: Auth) -> PoolDef:
    """A pool with a login."""
    return PoolDef(type="locked", name="vault", source=Source(auth=auth))


CEPH = pool(Auth("ceph", "admin", secret_usage="client.admin"))
CHAP = pool(Auth("chap", "joe", secret_uuid=UUID))


@pytest.mark.parametrize(
    ("auth", "usage_type", "name"),
    [
        (Auth("ceph", "a", secret_usage="u"), "ceph", SecretName("ceph", usage="u")),
        (Auth("chap", "a", secret_uuid=UUID), "iscsi", SecretName("iscsi", UUID)),
        (Auth("own", "a", secret_usage="u", secret_type="ignored"), "own", SecretName("own", usage="u")),
    ],
)
def test_the_name_of_a_logins_secret(auth: Auth, usage_type: str, name: SecretName) -> None:
    """Its usage type is the backend's to say."""
    assert auth.secret(usage_type) == name


async def test_from_the_state_folder(tmp_path: Path, registry: BackendRegistry, got: list[SecretValue]) -> None:
    """By uuid and by usage; each start asks again."""
    files = SecretFiles(tmp_path)
    await asyncio.to_thread(files.set, "ceph", "client.admin", b"one")
    await asyncio.to_thread(files.define, f"<secret><uuid>{UUID}</uuid></secret>")
    await asyncio.to_thread(files.set_value, UUID, b"chap")
    async with Manager(tmp_path, registry=registry) as manager:
        vault = await manager.define(CEPH)
        await vault.start()
        await asyncio.to_thread(files.set, "ceph", "client.admin", b"two")
        await vault.stop()
        await vault.start()
        await vault.stop()
        await (await manager.define(msgspec.structs.replace(CHAP, name="other"))).start()
    assert got == [b"one", b"two", b"chap"]


async def test_systemd_comes_first(
    tmp_path: Path, registry: BackendRegistry, got: list[SecretValue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is enough for a Manager without a state folder."""
    await asyncio.to_thread(SecretFiles(tmp_path / "state").set, "ceph", "client.admin", b"kept")
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    (folder / "astore.ceph.client.admin").write_bytes(b"b3Vycw==")
    (folder / "astore.ceph.client.admin").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    from astore.store.memory import MemoryStore

    for manager in (Manager(tmp_path / "state", registry=registry), Manager(store=MemoryStore(), registry=registry)):
        async with manager:
            await (await manager.define(CEPH)).start()
    assert got == [b"ours", b"ours"]


async def test_the_callers_own(tmp_path: Path, registry: BackendRegistry, got: list[SecretValue]) -> None:
    """It is the only one that is asked."""
    await asyncio.to_thread(SecretFiles(tmp_path).set, "ceph", "client.admin", b"kept")
    own = GivenSecrets({UUID: VALUE})
    async with Manager(tmp_path, registry=registry, secrets=own) as manager:
        vault = await manager.define(CEPH)
        with pytest.raises(astore.PoolInaccessibleError):
            await vault.start()
        await vault.undefine()
        await (await manager.define(CHAP)).start()
    assert got == [VALUE] and own.asked == [SecretName("ceph", usage="client.admin"), SecretName("iscsi", UUID)]


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        (
            CEPH,
            "secret of usage ceph 'client.admin' does not exist, or has no value: `astore secret set ceph client.admin`",
        ),
        (
            CHAP,
            f"secret {UUID} does not exist, or has no value: `astore secret define FILE`, then `astore secret set-value",
        ),
        (
            pool(Auth("chap", "joe", secret_usage="a b;$(x)")),
            "secret of usage iscsi 'a b;$(x)' does not exist, or has no value: `astore secret set iscsi 'a b;$(x)'`",
        ),
    ],
)
async def test_a_missing_secret(
    tmp_path: Path, registry: BackendRegistry, definition: PoolDef, words: str, got: list[SecretValue]
) -> None:
    """The error names it, and the next command; libvirt's number is the same."""
    async with Manager(tmp_path, registry=registry) as manager:
        vault = await manager.define(definition)
        with pytest.raises(astore.PoolInaccessibleError) as caught:
            await vault.start()
    assert words in str(caught.value) and caught.value.libvirt_code is astore.LibvirtCode.NO_SECRET
    assert isinstance(caught.value.__cause__, astore.SecretNotFoundError)
    assert got == []


class Hanging:
    """Secrets that never come. :ivar cancelled: whether the call was ended."""

    cancelled = False

    async def value(self, name: SecretName) -> bytes | None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True
        raise AssertionError


class Wrong:
    """Secrets that are no bytes."""

    async def value(self, name: SecretName) -> bytes | None:
        return "s3cret"  # type: ignore[return-value]


async def test_one_that_never_comes(tmp_path: Path, registry: BackendRegistry) -> None:
    """The deadline of a call holds for it, too; the other pools do not wait."""
    hanging = Hanging()
    async with Manager(tmp_path, registry=registry, secrets=hanging, call_timeout=1.0) as manager:
        vault = await manager.define(CEPH)
        with pytest.raises(TimeoutError, match=r"client\.admin' was not read within 1 s"):
            await vault.start()
    assert hanging.cancelled


async def test_one_that_is_no_bytes(tmp_path: Path, registry: BackendRegistry) -> None:
    """It is not shown in the complaint."""
    async with Manager(tmp_path, registry=registry, secrets=Wrong()) as manager:
        vault = await manager.define(CEPH)
        with pytest.raises(astore.PoolInaccessibleError, match="is no bytes, but str") as caught:
            await vault.start()
    assert "s3cret" not in f"{caught.value!r}{caught.value.__cause__!r}"


async def test_it_is_shown_nowhere(
    tmp_path: Path, registry: BackendRegistry, caplog: pytest.LogCaptureFixture, got: list[SecretValue]
) -> None:
    """Not in logs, XML, records, events or the state folder's other files, even if a backend logs what it got."""
    files = SecretFiles(tmp_path)
    await asyncio.to_thread(files.set, "ceph", "client.admin", VALUE)
    caplog.set_level(logging.DEBUG)
    async with Manager(tmp_path, registry=registry) as manager:
        async with manager.events() as events:
            vault = await manager.define(CEPH)
            await vault.start()
            happened = [repr(await anext(events)) for _ in range(2)]
        shown = [vault.to_xml(), repr(vault.info), repr(vault.definition), repr(manager.statistics()), *happened]
    assert got == [VALUE] and "logged in" in caplog.text
    assert "s3cret" not in caplog.text + "".join(shown)
    (kept,) = files.folder.iterdir()
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path != kept]
    assert len(others) >= 2
    assert not [path for path in others if b"s3cret" in path.read_bytes() or b"czNjcmV0" in path.read_bytes()]


def test_a_manager_imports_no_reader_of_secrets() -> None:
    """Who needs no secret pays for none."""
    done = run_python(
        "import sys, astore\nastore.Manager\n"
        "assert not {'astore.secrets.files', 'astore.secrets.credentials', 'astore.xml.secret'} & set(sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")
