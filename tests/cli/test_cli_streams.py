"""Standard streams and how the process ends, in this process: what is covered here cannot be seen in another."""

from __future__ import annotations

import io
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from astore.cli import hold_standard_streams, main
from astore.cli.output import Output, drop_stdout

Make = Callable[..., Path]


def test_closed_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something stands at the number of each, and those that are open are left alone."""
    kept = os.dup(0)
    try:
        os.close(0)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", None)
            hold_standard_streams()
            assert os.get_inheritable(0)
            with pytest.raises(OSError, match="Bad file descriptor"):
                sys.stdin.read()
            sys.stdin.close()
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    before = sys.stdin, sys.stdout, sys.stderr
    hold_standard_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == before


class Pipe:
    """Standard output of this process, whose reader is gone, or which is full."""

    def __init__(self, full: bool) -> None:
        if full:
            self.stream = open("/dev/full", "w")  # noqa: SIM115
        else:
            reading, writing = os.pipe()
            os.close(reading)
            self.stream = open(writing, "w")  # noqa: SIM115


@pytest.fixture
def stdout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Replaces standard output by one that is full, or whose reader is gone."""
    streams = []

    def replace(full: bool) -> None:
        streams.append(Pipe(full).stream)
        monkeypatch.setattr(sys, "stdout", streams[-1])

    yield replace
    for stream in streams:
        stream.close()  # what it still holds goes nowhere: that raises nothing


@pytest.mark.parametrize(
    "command",
    [("pool", "list"), ("pool", "list", "--json"), ("pool", "list", "--name"), ("--help",), ("events", "--for", "30")],
)
@pytest.mark.parametrize("full", [True, False])
def test_output_that_goes_nowhere(
    astore: Any, make_pool: Make, stdout: Callable[[bool], None], command: tuple[str, ...], full: bool
) -> None:
    """The same in this process: the code, one line or none, and click's wrappers are gone again."""
    make_pool()
    before = sys.stderr
    stdout(full)
    now = sys.stdout
    ran = astore(*command)
    assert (ran.code, ran.err) == (1, "astore: standard output: No space left on device\n") if full else (141, "")
    assert (sys.stdout, sys.stderr) == (now, before)


def test_a_closed_stdout_can_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to keep from being written then."""
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        drop_stdout()


def test_a_name_from_another_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system's encoding lacks its characters, it is written in UTF-8."""

    def lacks(name: str) -> bytes:
        raise UnicodeEncodeError("ascii", name, 0, 1, "ordinal not in range(128)")

    written = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsencode", lacks)
        stream = io.TextIOWrapper(written)
        Output(stream, terminal=False).value("名\udce4")
    assert written.getvalue() == "名".encode() + b"\xe4\n"


# ------------------------------------------------------------------------------------------------------------- main


def test_python_m(monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m astore.cli`` is the command."""
    called: list[bool] = []
    monkeypatch.setattr("astore.cli.main", lambda: called.append(True))
    runpy.run_module("astore.cli", run_name="__main__")
    assert called == [True]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), click.Abort()])
def test_interruptions(astore: Any, raised: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever moment they come: one line, and 130."""

    def interrupted(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("astore.cli.standing.Standing.pools", interrupted)
    ran = astore("pool", "list")
    assert (ran.code, ran.complaint) == (130, "interrupted")
    monkeypatch.setattr("astore.cli.app.app.invoke", interrupted)
    ran = astore("pool", "list")
    assert (ran.code, ran.complaint) == (130, "interrupted")


def test_errors_that_are_nobody_s(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong outside of a command is not hidden; what is wrong with an argument is usage, wherever it is seen."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no good")

    def refused(*_: object, **__: object) -> None:
        raise click.BadParameter("no such thing")

    with monkeypatch.context() as patch:
        patch.setattr("astore.cli.app.app.invoke", broken)
        with pytest.raises(RuntimeError, match="no good"):
            astore("pool", "list")
    monkeypatch.setattr("astore.cli.standing.Standing.pools", refused)
    ran = astore("pool", "list")
    assert (ran.code, ran.complaint) == (2, "Invalid value: no such thing: see `astore pool list --help`")


def test_a_deadline_that_is_not_the_command_s(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout of the storage's keeps its words."""

    async def late(*_: object) -> None:
        raise TimeoutError("the storage does not answer")

    make_pool()
    monkeypatch.setattr("astore.pools.pool.Pool.stop", late)
    ran = astore("pool", "stop", "images", "--timeout", "30")
    assert (ran.code, ran.complaint.partition(":")[0]) == (124, "the storage does not answer")


def test_main_leaves_with_the_code(astore: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written is flushed, and the process is left at once."""
    codes: list[int] = []
    main(["pool", "list", "--json"], leave=codes.append)
    main(["pool", "info", "nobody"], leave=codes.append)
    assert codes == [0, 3]
    assert '"pools"' in capsys.readouterr().out


def test_main_takes_the_process_s_arguments(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none are given."""
    codes: list[int] = []
    monkeypatch.setattr(sys, "argv", ["astore", "nonsense"])
    main(leave=codes.append)
    assert codes == [2]


@pytest.mark.parametrize("step", ["make_context", "invoke"])
def test_interrupted_inside_of_click(astore: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while it parses, or before a command is at work, is not passed over in silence."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"click.Group.{step}", interrupted)
    ran = astore("pool", "list")
    assert (ran.code, ran.complaint) == (130, "interrupted")


def test_interrupted_before_it_begins(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while its own modules are imported."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    codes: list[int] = []
    monkeypatch.delitem(sys.modules, "astore.cli.app")
    monkeypatch.setattr("builtins.__import__", _failing("astore.cli.app", interrupted))
    main(["pool", "list"], leave=codes.append)
    assert codes == [130]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", ["click", "rich.text"])
def test_without_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without click or rich, one line says what to install."""
    codes: list[int] = []
    monkeypatch.delitem(sys.modules, "astore.cli.app")
    monkeypatch.setitem(sys.modules, "astore.cli.app", None)  # importing it fails

    def broken(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("builtins.__import__", _failing("astore.cli.app", broken))
    main(["pool", "list"], leave=codes.append)
    assert codes == [1]
    assert capsys.readouterr().err == "astore: the command needs the extra `cli`: pip install 'astore[cli]'\n"


def test_a_broken_installation_is_not_taken_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails for another reason is not explained away."""

    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'astore.lost'", name="astore.lost")

    monkeypatch.setattr("builtins.__import__", _failing("astore.cli.app", broken))
    with pytest.raises(ModuleNotFoundError):
        main(["pool", "list"], leave=lambda _: None)


def _failing(name: str, act: Callable[..., None]) -> Callable[..., Any]:
    real = __import__

    def imported(module: str, *arguments: Any) -> Any:
        if module == name:
            act()
        return real(module, *arguments)

    return imported
