"""What is made of the answers of the gluster command: of good ones, of hostile ones, and of a real server's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import astore
from astore.backend import CommandResult, Context
from astore.errors import CommandError, StorageError
from astore.model import Host
from astore_gluster.backend import GlusterBackend
from astore_gluster.discovery import MAX_OUTPUT, parse

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

HOST = Host("h")


def answer(*names: str, head: str = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>', ret: str = "0") -> bytes:
    """What ``gluster --xml volume info all`` prints (glusterfs's cli-xml-output.c)."""
    volumes = "".join(
        f"<volume><name>{name}</name><id>1</id><status>1</status><bricks><brick>h:/b<name>h:/b</name></brick></bricks></volume>"
        for name in names
    )
    return (
        f"{head}<cliOutput><opRet>{ret}</opRet><opErrno>0</opErrno><opErrstr/>"
        f"<volInfo><volumes>{volumes}<count>{len(names)}</count></volumes></volInfo></cliOutput>"
    ).encode()


def result(stdout: bytes, returncode: int = 0, stderr: bytes = b"") -> CommandResult:
    return CommandResult(("gluster",), returncode, stdout, stderr)


def test_names_in_their_order() -> None:
    """The volumes' names, not the bricks'; each once."""
    assert parse(HOST, result(answer("b", "a", "c", "a"))) == ["b", "a", "c"]
    assert parse(HOST, result(answer())) == []


def test_names_that_no_volume_has() -> None:
    """A server is trusted no more than a user: what could not be defined is left out."""
    hostile = ["-oevil", "a/b", "../x", "", "x" * 255, "a&#10;b", " ", "good", "&lt;b&gt;"]
    assert parse(HOST, result(answer(*hostile))) == [" ", "good", "<b>"]


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]>"
)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    """Neither ones that grow, nor files of this machine, become names."""
    (tmp_path / "secret").write_text("secret")
    outside = f'<!DOCTYPE x [<!ENTITY s SYSTEM "file://{tmp_path}/secret">]>'
    for head, entity in ((BOMB, "&j;"), (outside, "&s;"), ('<!DOCTYPE x [<!ENTITY e "name">]>', "&e;")):
        try:
            names = parse(HOST, result(answer("good", entity, head=head)))
        except StorageError:
            continue
        assert names == ["good"]


@pytest.mark.parametrize(
    ("stdout", "number"),
    [
        (b"", errno.EPROTO),
        (b"Connection failed. Please check if gluster daemon is operational.", errno.EPROTO),
        (b"<cliOutput>", errno.EPROTO),
        (b"\xff\xfe\x00", errno.EPROTO),
        (b'<?xml version="1.0" encoding="nonsense"?><a/>', errno.EPROTO),
        (b"<a>" * 10_000, errno.EPROTO),
        (b"<other/>", errno.EIO),
        (answer("a", ret="-1"), errno.EIO),
        (
            b"<cliOutput><opRet>-1</opRet><opErrstr>it\nhurts\x1b[31m</opErrstr></cliOutput>".replace(b"\x1b", b""),
            errno.EIO,
        ),
        (b" " * (MAX_OUTPUT + 1), errno.EMSGSIZE),
    ],
    ids=["nothing", "text", "cut off", "bytes", "encoding", "deep", "other", "failed", "says why", "huge"],
)
def test_answers_that_are_none(stdout: bytes, number: int) -> None:
    """An error of one printable line that names the host."""
    with pytest.raises(StorageError) as caught:
        parse(HOST, result(stdout))
    assert caught.value.errno == number
    assert "Gluster host h" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_the_command_failed() -> None:
    """What it said is told, made printable; and its return code where it said nothing."""
    with pytest.raises(StorageError) as caught:
        parse(HOST, result(b"no\n", 1, b"Connection failed.\x1b[2J\n"))
    assert caught.value.errno == errno.ENOTCONN
    assert "Connection failed." in str(caught.value)
    assert str(caught.value).isprintable()
    with pytest.raises(StorageError, match="returned 7"):
        parse(HOST, result(b"", 7))


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 400))
def test_any_answer(noise: bytes, start: int, end: int) -> None:
    """Whatever is printed, there are names that could be defined, or a StorageError."""
    good = answer("one", "two")
    for stdout in (noise, good[:start] + noise + good[end:]):
        try:
            names = parse(HOST, result(stdout))
        except StorageError:
            continue
        assert all(name and "/" not in name and name.isprintable() for name in names)


async def test_what_is_run(context: Context) -> None:
    """The host is part of one argument, or the socket is; every volume found is a source, ready to be defined."""
    ran: list[tuple[str, ...]] = []

    async def run(argv: tuple[str, ...], **options: Any) -> CommandResult:
        ran.append(argv)
        assert options == {"check": False}
        return result(answer("v", "w"))

    context = msgspec.structs.replace(context, run_command=run)
    backend = GlusterBackend()
    found = await backend.discover("h", context, port=24007)
    assert [source.source.name for source in found] == ["v", "w"]
    assert {source.source.directory for source in found} == {"/"}
    assert found[0].source.hosts == (Host("h"),)  # as in libvirt, without the port
    await backend.discover("/run/glusterd.socket", context)
    start = ("gluster", "--xml", "--mode=script", "--log-file=/dev/null")
    assert ran == [
        (*start, "--remote-host=h", "volume", "info", "all"),
        (*start, "--glusterd-sock=/run/glusterd.socket", "volume", "info", "all"),
    ]


async def test_a_large_answer_does_not_keep_the_loop(context: Context) -> None:
    """Thousands of volumes are looked at by a thread of the lane."""
    names = [f"volume{n}" for n in range(20_000)]
    threads: list[bool] = []

    async def run(argv: tuple[str, ...], **options: Any) -> CommandResult:
        return result(answer(*names))

    class Lane:
        async def run(self, func: Callable[..., Any], *arguments: Any) -> Any:
            threads.append(True)
            return await context.lane.run(func, *arguments)

    found = await GlusterBackend().discover("h", msgspec.structs.replace(context, run_command=run, lane=Lane()))
    assert [source.source.name for source in found] == names
    assert threads == [True]


async def test_program_that_is_missing(context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the program, that is said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandError, match="'gluster' is not installed"):
        await GlusterBackend().discover("h", context)


async def test_program_that_hangs(
    make_context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command that does not end is killed at its deadline."""
    script = tmp_path / "gluster"
    script.write_text("#!/bin/sh\nexec sleep 100\n")
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(TimeoutError):
        await GlusterBackend().discover("h", make_context(0.5))


@pytest.mark.root
@pytest.mark.gluster
async def test_a_real_server(
    gluster: GlusterBed, volume_factory: Callable[..., str], context: Context, tmp_path: Path
) -> None:
    """The volumes of a glusterd, by its address and by its socket; one found is a pool that starts."""
    name = volume_factory()
    socket = f"{gluster.folder}/node1/run/glusterd.socket"
    for host in (gluster.host, socket):
        found = await GlusterBackend().discover(host, context)
        (source,) = [source.source for source in found if source.source.name == name]
    async with astore.Manager(tmp_path / "state") as manager:
        assert name in {found.source.name for found in await manager.discover("gluster", host=gluster.host)}
        pool = await manager.create(astore.PoolDef(type="gluster", name="found", source=source))
        assert pool.state == "running"
        await pool.stop()


@pytest.mark.root
@pytest.mark.gluster
async def test_a_server_that_is_not_there(gluster: GlusterBed, context: Context) -> None:
    """An address at which no glusterd listens is an error that names it."""
    with pytest.raises(StorageError) as caught:
        await GlusterBackend().discover("127.9.9.9", context)
    assert "127.9.9.9" in str(caught.value)
