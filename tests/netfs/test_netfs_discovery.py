"""Discovery: what showmount and gluster print, made into sources; by programs that print what a test tells them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.backend import CommandResult, Context
from astore.errors import CommandError, DefinitionError, LaneTimeoutError, StorageError
from astore_netfs import discovery
from astore_netfs.discovery import discover_sources

Answer = bytes | Exception

ONE_VOLUME = (
    b"<cliOutput><opRet>0</opRet><volInfo><volumes><volume><name>v</name></volume></volumes></volInfo></cliOutput>"
)
NO_VOLUME = b"<cliOutput><opRet>0</opRet><volInfo><volumes/></volInfo></cliOutput>"


def absent(program: str) -> CommandError:
    return CommandError(f"the program {program!r} is not installed", argv=(program,), returncode=None, stderr="")


def failed(program: str, said: str) -> CommandError:
    return CommandError(f"{program}: {said}", argv=(program,), returncode=1, stderr=said)


@pytest.fixture
def answering(context: Context) -> Callable[[Answer, Answer], Context]:
    """A context in which showmount and gluster answer as told."""

    def make(showmount: Answer, gluster: Answer) -> Context:
        answers: Mapping[str, Answer] = {"showmount": showmount, "gluster": gluster}

        async def run(argv: Sequence[str], **_: Any) -> CommandResult:
            answer = answers[argv[0]]
            if isinstance(answer, Exception):
                raise answer
            return CommandResult(tuple(argv), 0, answer, b"")

        return msgspec.structs.replace(context, run_command=run)

    return make


Answering = Callable[[Answer, Answer], Context]


async def test_exports_and_volumes(answering: Answering) -> None:
    """Both are found, exports first, each with the host that was asked."""
    found = await discover_sources("server", answering(b"/srv/a 10.0.0.0/8,b\n/srv/with blank *\n/alone\n", ONE_VOLUME))
    assert [(item.source.format, item.source.directory) for item in found] == [
        ("nfs", "/srv/a"),
        ("nfs", "/srv/with blank"),
        ("nfs", "/alone"),
        ("glusterfs", "v"),
    ]
    assert {item.source.hosts[0].name for item in found} == {"server"}


async def test_lines_that_are_no_exports(answering: Answering) -> None:
    """What is no absolute path, cannot be printed, or was there before is passed over."""
    output = b"relative *\n\n/a *\n/a (everyone)\n/bell\x07 *\n/caf\xe9 *\n"
    found = await discover_sources("server", answering(output, absent("gluster")))
    assert [item.source.directory for item in found] == ["/a", "/caf\ufffd"]


async def test_host_with_nothing(answering: Answering) -> None:
    """Two answers without anything in them are no error."""
    assert await discover_sources("server", answering(b"", NO_VOLUME)) == ()


@pytest.mark.parametrize("host", [None, "", "-oevil", "a b", "a;b", "a\n"])
async def test_host_is_required(answering: Answering, host: str | None) -> None:
    """No host, or what is none, never reaches a program."""
    never = AssertionError("a program was run")
    with pytest.raises(DefinitionError):
        await discover_sources(host, answering(never, never))


async def test_one_answer_is_enough(answering: Answering) -> None:
    """Whatever becomes of one of the two, what the other says counts."""
    for failure in (absent("x"), failed("x", "no"), LaneTimeoutError("late")):
        assert len(await discover_sources("server", answering(b"/a *", failure))) == 1
        assert len(await discover_sources("server", answering(failure, ONE_VOLUME))) == 1


async def test_no_program_at_all(answering: Answering) -> None:
    """With neither program here, the error names the first."""
    with pytest.raises(CommandError, match="showmount"):
        await discover_sources("server", answering(absent("showmount"), absent("gluster")))


async def test_no_answer_at_all(answering: Answering) -> None:
    """What the host said goes before what this machine lacks, and a timeout stays one."""
    refused = failed("showmount", "connection refused")
    with pytest.raises(StorageError, match="connection refused") as caught:
        await discover_sources("server", answering(refused, absent("gluster")))
    assert caught.value.errno == errno.EHOSTUNREACH
    assert "server" in str(caught.value)
    assert caught.value.__cause__ is refused
    late = LaneTimeoutError("late")
    with pytest.raises(LaneTimeoutError):
        await discover_sources("server", answering(refused, late))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (b"", "not XML"),
        (b"Connection failed.", "not XML"),
        (b"<cliOutput><opRet>-1</opRet><opErrstr>not allowed</opErrstr></cliOutput>", "not allowed"),
        (b"<cliOutput><opRet>-1</opRet></cliOutput>", "opRet -1"),
        (b"<cliOutput/>", "opRet missing"),
        (b"<other><opRet>0</opRet></other>", "opRet 0"),
        (b"<a>" * 10_000, "not XML"),
        (b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><cliOutput><opRet>&e;</opRet></cliOutput>", "gluster"),
        (b" " * (discovery.MAX_OUTPUT + 1), "too long"),
    ],
    ids=range(9),
)
async def test_bad_answers_of_gluster(answering: Answering, output: bytes, words: str) -> None:
    """What is not the answer to the question is an error in words, not an empty list."""
    with pytest.raises(StorageError, match=words) as caught:
        await discover_sources("server", answering(absent("showmount"), output))
    assert "root:" not in str(caught.value)


async def test_odd_volume_names(answering: Answering) -> None:
    """Names that cannot be a volume's are passed over, and one that is told twice is one."""
    names = "".join(f"<volume><name>{name}</name></volume>" for name in ("v", " v ", "a/b", "", "x&#9;y", "w"))
    output = f"<cliOutput><opRet>0</opRet><volInfo><volumes>{names}<volume/></volumes></volInfo></cliOutput>"
    found = await discover_sources("server", answering(absent("showmount"), output.encode()))
    assert [item.source.directory for item in found] == ["v", "w"]


HOSTILE = b"<cliOutput><opRet>-1</opRet><opErrstr>%b</opErrstr></cliOutput>" % ("bad\n\u202e\x9b2J".encode() * 50_000)


async def test_what_a_server_says_is_cut(answering: Answering) -> None:
    """The error of a server that says megabytes, or a terminal's codes, is one line that can be read."""
    for answer in (HOSTILE, b"<\x1b[31m" * 100_000):
        with pytest.raises(StorageError) as caught:
            await discover_sources("server", answering(absent("showmount"), answer))
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()


async def test_too_many_sources(answering: Answering) -> None:
    """A host that offers more than anybody has is not believed; what is much is."""
    exports = [b"/srv/%d *\n" % number for number in range(discovery.MAX_SOURCES + 1)]
    found = await discover_sources("server", answering(b"".join(exports[1:]), absent("gluster")))
    assert len(found) == discovery.MAX_SOURCES
    with pytest.raises(StorageError, match="offers more than"):
        await discover_sources("server", answering(b"".join(exports), absent("gluster")))
    assert len(await discover_sources("server", answering(b"".join(exports), ONE_VOLUME))) == 1


async def test_answers_are_read_on_the_lane(context: Context, answering: Answering) -> None:
    """Neither answer is looked at by the event loop's thread."""
    asked: list[object] = []

    class Lane:
        async def run(self, func: Callable[..., Any], *arguments: Any) -> Any:
            asked.append(arguments[1])
            return await context.lane.run(func, *arguments)

    answered = msgspec.structs.replace(answering(b"/a *", ONE_VOLUME), lane=Lane())
    assert len(await discover_sources("server", answered)) == 2
    assert asked == ["nfs", "glusterfs"]


async def test_a_program_that_writes_without_end(
    context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server that makes showmount print for ever costs its answer, soon, and not this machine's memory."""
    for name in ("showmount", "gluster"):
        (tmp_path / name).write_text("#!/bin/sh\nexec yes '/export/of/this/host *'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(StorageError, match=f"wrote more than {discovery.MAX_OUTPUT} bytes and was killed"):
        await discover_sources("server", context)


@given(st.binary(max_size=200))
def test_no_answer_is_too_odd(output: bytes) -> None:
    """Any bytes are exports that can be printed, or none; and volumes, or astore's own error."""
    assert all(path.startswith("/") and path.isprintable() for path in discovery._exports(output))
    try:
        names = list(discovery._volumes(output))
    except StorageError:
        return
    assert all(name.isprintable() for name in names)
