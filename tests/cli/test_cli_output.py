"""Tables, sizes, bars, escapes, progress and the wording of errors."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from astore import errors
from astore.cli import documents
from astore.cli.exits import CliError, Exit, code_of, code_of_all, explain
from astore.cli.output import Cell, Column, Output, bar, complain, size, when
from astore.cli.progress import Ticker
from astore.model import EntryError


class Stream(io.TextIOWrapper):
    """A stand-in for standard output: its encoding and whether it is a terminal are chosen."""

    def __init__(self, encoding: str = "utf-8", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    @property
    def text(self) -> str:
        """What was written, as a reader of this encoding sees it."""
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10 << 30, "10.00 GiB"),
        (3 << 60, "3.00 EiB"),
        (1 << 72, "4096.00 EiB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    """Sizes are read at a glance."""
    assert size(value) == text


def test_times() -> None:
    """A moment, or never."""
    assert when(None) == when(0) == "never"
    assert when(time.time())[:2] == "20"


@pytest.mark.parametrize(
    ("used", "total", "text", "style"),
    [
        (0, 0, "-", ""),
        (0, 100, "░░░░░░░░   0%", "green"),
        (50, 100, "████░░░░  50%", "green"),
        (80, 100, "██████░░  80%", "yellow"),
        (200, 100, "████████ 100%", "red"),
    ],
)
def test_bars(used: int, total: int, text: str, style: str) -> None:
    """A bar is as full as the pool, and turns yellow and red as it fills."""
    assert bar(used, total) == Cell(text, style)


def test_bars_without_unicode() -> None:
    """A terminal that has no blocks gets a bar of other characters; a pipe gets per cent."""
    assert Output(Stream("ascii", terminal=True)).bar(50, 100).text == "####....  50%"
    assert Output(Stream()).bar(50, 100).text == "50%"
    assert Output(Stream()).bar(50, 0).text == "-"
    assert Output(Stream()).bar(50, 100, drawn=True).text.startswith("█")


HOSTILE = "\x1b[31mred\x07\x9b2J\u202e[bold]x[/bold]\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_are_escaped(terminal: bool) -> None:
    """Escape sequences, bells, C1 controls, direction marks and markup come out as text."""
    stream = Stream(terminal=terminal)
    output = Output(stream)
    output.table([Column("Name")], [[HOSTILE]])
    output.fields([("Name", HOSTILE)])
    output.line(HOSTILE)
    written = stream.text
    if terminal:  # rich's own sequences
        for sequence in ("\x1b[1m", "\x1b[0m", "\x1b[3m", "\x1b[1;31m"):
            written = written.replace(sequence, "")
    assert written.count("\\x1b[31mred\\x07\\x9b2J\\u202e[bold]x[/bold]\\n") == 3
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(written)


def test_values_are_raw_for_programs_and_escaped_for_terminals() -> None:
    """A path on a pipe is the path itself, byte for byte; on a terminal it is safe to look at."""
    name = "na\u202eme\udce4"
    pipe, terminal = Stream("ascii"), Stream(terminal=True)
    Output(pipe).value(name)
    Output(terminal).value(name)
    pipe.flush()
    assert isinstance(pipe.buffer, io.BytesIO)
    assert pipe.buffer.getvalue() == name.encode("utf-8", "surrogateescape") + b"\n"
    assert terminal.text == "na\\u202eme\\xe4\n"
    text = io.StringIO()
    Output(text).value("plain")
    assert text.getvalue() == "plain\n"


def test_xml_is_safe_to_look_at() -> None:
    """Characters that a terminal obeys become character references: the document stays the same."""
    stream = Stream()
    Output(stream).xml("<a>\n  \x9b\u202e</a>\n")
    assert stream.text == "<a>\n  &#155;&#8238;</a>\n"


def test_an_encoding_that_lacks_characters() -> None:
    """What the stream cannot take is written as an escape; nothing fails."""
    stream = Stream("latin-1")
    output = Output(stream)
    output.table([Column("Name"), Column("N", right=True)], [["ä→", "1"], ["名前", "22"]])
    lines = stream.text.splitlines()
    assert lines == ["Name   N", "ä\\u2192     1", "\\u540d\\u524d  22"]


def test_tables_on_a_terminal() -> None:
    """rich draws them, with styles."""
    stream = Stream(terminal=True)
    Output(stream).table([Column("State"), Column("N", right=True)], [[Cell("running", "green"), "1"]])
    assert "running" in stream.text
    assert "─" in stream.text


WIDE = [Column("Name", folds=True), Column("N", right=True), Column("State")]


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (60, ["Name                             N  State", "─" * 43, "a-name-of-thirty-characters-123  1  running"]),
        (28, ["Name              N  State", "a-name-of-thirty  1  running", "-characters-123"]),
        (21, ["Name:  a-name-of-thirty-characters-123", "N:     1", "State: running"]),
    ],
)
def test_narrow_terminals(width: int, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that may be folded are; where that is not enough, each row is a paragraph. Nothing is lost."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = Stream(terminal=True)
    output = Output(stream)
    row = ["a-name-of-thirty-characters-123", "1", Cell("running", "green")]
    output.table(WIDE, [row])
    written = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.text).splitlines()]
    assert set(lines) <= set(written)
    assert all(len(line) <= width for line in written if not line.startswith("Name:"))
    if width == 21:
        output.table(WIDE, [row, row])
        assert stream.text.count("\n\n") == 1, "an empty line between two paragraphs"


def test_only_the_names_of_fields_are_bold() -> None:
    """What they say has a colour of its own."""
    stream = Stream(terminal=True)
    Output(stream).fields([("State", Cell("running", "green")), ("Name", "images")])
    assert stream.text == "\x1b[1mState: \x1b[0m\x1b[32mrunning\x1b[0m\n\x1b[1mName:  \x1b[0mimages\n"


def test_an_empty_table() -> None:
    """People are told what to do; programs get the headings that they count on."""
    for terminal, text in ((True, "nothing: do this\n"), (False, "Name  N  State\n")):
        stream = Stream(terminal=terminal)
        Output(stream).table(WIDE, [], empty="nothing: do this")
        assert stream.text == text


def test_a_stderr_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Complaining to nobody is no error."""
    stream = Stream()
    stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        complain("nobody hears this")


# ------------------------------------------------------------------------------------------------------------- JSON


def test_json_is_ascii_and_keeps_every_name() -> None:
    """Names in any bytes go through JSON unharmed, and no byte of it is beyond ASCII."""
    names = ["é", "\x9b", "\udce4", "名", '"\\']
    entries = [EntryError(name, "no", 5) for name in names]
    for chosen in (entries, entries[:2]):  # with a lone surrogate, and without
        text = documents.text({"seconds": 1.0, "pools": [{"entries": chosen}]})
        assert text.isascii()
        assert [entry["name"] for entry in json.loads(text)["pools"][0]["entries"]] == names[: len(chosen)]
        assert text.startswith('{\n  "seconds": 1.0,\n')


# ----------------------------------------------------------------------------------------------------------- errors

WRONG_STATE = errors.InvalidStateError


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (CliError("no", Exit.USAGE), 2, "no"),
        (errors.PoolNotFoundError("there is no pool 'x'"), 3, "`astore pool list --all`"),
        (errors.VolumeNotFoundError("no volume"), 3, "`astore vol list POOL`"),
        (WRONG_STATE("m", pool="a b", state="inactive", operation="refresh"), 1, "`astore pool start 'a b'`"),
        (WRONG_STATE("m", pool="x", state="inactive", operation="stop"), 1, "inactive already"),
        (WRONG_STATE("m", pool="x", state="degraded", operation="start"), 1, "is degraded already"),
        (WRONG_STATE("m", pool="x", state="running", operation="delete"), 1, "`astore pool stop x`"),
        (WRONG_STATE("it is being stopped", pool="x", state="running", operation="refresh"), 1, "it is being stopped"),
        (errors.UnknownBackendError("none", type="gluster"), 1, "pip install 'astore[gluster]'"),
        (errors.UnknownBackendError("none", type="rbd"), 1, "pip install 'astore[rbd]'"),
        (errors.UnknownBackendError("none", type="iscsi-direct"), 1, "pip install 'astore[iscsi]'"),
        (errors.UnknownBackendError("none", type="sheepdog"), 1, "install its plugin"),
        (errors.BackendLoadError("no", type="x"), 1, "`astore backend list`"),
        (errors.UnsupportedOperationError(pool="x", type="dir", operation="wipe"), 1, "`astore backend list`"),
        (errors.LaneTimeoutError("late"), 124, "--timeout"),
        (TimeoutError("late"), 124, "--timeout"),
        (errors.StoreError("no"), 1, "no"),
        (errors.PoolInaccessibleError("gone", pool="x"), 1, "gone"),
        (errors.PoolInaccessibleError("create it, or build the pool", pool="x"), 1, "`astore pool build x`"),
        (errors.DefinitionError("bad", line=3, element="name"), 1, "line 3, <name>: bad"),
        (errors.VolumeBusyError("it is written", pool="x", state="inactive"), 1, "try again when that is done"),
        (errors.VolumeInUseError("others are backed by it", pool="x"), 1, ": --force"),
        (errors.VolumeExistsError("it is there"), 1, "choose another name"),
        (errors.TransferError("full", errno=errno.ENOSPC), 1, "make room there, and try again"),
        (errors.StorageError("full", errno=errno.EDQUOT), 1, "make room there, and try again"),
        (
            errors.CommandError(
                "the program 'qemu-img' is not installed", argv=["qemu-img"], returncode=None, stderr=""
            ),
            1,
            "install it",
        ),
        (errors.CommandError("mount failed\x1b", argv=["mount"], returncode=1, stderr=""), 1, "mount failed\\x1b"),
        (UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range(128)"), 1, "LC_ALL=C.UTF-8"),
        (KeyError("x"), 1, "--verbose shows where it happened"),
    ],
)
def test_errors_are_one_line_and_say_what_to_do(error: Exception, code: int, line: str) -> None:
    """Each kind has its code, and its hint where there is one."""
    assert code_of(error) == code
    assert line in explain(error)
    assert "\n" not in explain(error)


def test_a_state_folder_that_may_not_be_read() -> None:
    """The hint names the option that chooses another."""
    error = errors.StoreError("/var/lib/astore: Permission denied", errno=13)
    assert "--state-dir" in explain(error)


@pytest.mark.parametrize(
    ("failed", "succeeded", "code"),
    [
        ([], 0, 0),
        ([], 3, 0),
        ([TimeoutError()], 1, 4),
        ([TimeoutError(), TimeoutError()], 0, 124),
        ([TimeoutError(), ValueError()], 0, 1),
        ([errors.PoolNotFoundError("x")], 0, 3),
    ],
)
def test_exit_codes_of_several(failed: list[Exception], succeeded: int, code: int) -> None:
    """Some of several is 4; all of them alike is that failure's own code."""
    assert code_of_all(failed, succeeded) == code


# --------------------------------------------------------------------------------------------------------- progress


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """A stderr that is a terminal. (Not a fixture: pytest sets stderr anew between a test's phases.)"""
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    return stream


def test_progress_is_shown_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts is shown with its count, whatever its label looks like, and the line is erased in the end."""
    stderr = terminal(monkeypatch)
    with Ticker(delay=0) as ticker:
        ticker.begin("[red]work", 3)
        ticker.step()
        ticker.step(2)
        eventually(lambda: "2/3" in stderr.text)
    assert "[red]work" in stderr.text
    assert stderr.text.endswith("\x1b[2K")


def test_mounting_takes_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a mount that another user tried says so."""
    error = errors.CommandError("mount failed", argv=["/sbin/mount.nfs"], returncode=32, stderr="")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert explain(error) == "mount failed: mounting takes root"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert explain(error) == "mount failed"


@pytest.mark.parametrize("there", [True, False])
def test_a_mount_that_fails_has_its_advice(
    astore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """So has the error of the pool that is started, which is another one."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if there:
        (programs / "mount").write_text("#!/bin/sh\necho must be superuser >&2\nexit 32\n")
        (programs / "mount").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    target = tmp_path / "target"
    target.mkdir()
    astore.good(
        "pool",
        "define-as",
        "share",
        "netfs",
        "--source-host",
        "127.0.0.1",
        "--source-path",
        "/x",
        "--target",
        str(target),
    )
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    ran = astore("pool", "start", "share")
    assert (ran.code, ran.complaint.rpartition(": ")[2]) == (1, "mounting takes root" if there else "install it")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_progress_does_not_wrap(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """However narrow the terminal is and long the label."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stderr = terminal(monkeypatch)
    with Ticker(delay=0) as ticker:
        ticker.begin_bytes(f"uploading to {'x' * 100}", 999 << 30)
        for done in range(3):
            ticker.progress(done << 33, None)
            time.sleep(0.12)
        eventually(lambda: "/999.0 GiB" in stderr.text)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stderr.text).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= columns
    assert stderr.text.count("\x1b[1A") <= 1  # rich goes up once to erase a display of one line


def test_progress_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what there is in all, the rate, and the time that is left; what comes after it is counted anew."""
    stderr = terminal(monkeypatch)
    with Ticker(delay=0) as ticker:
        ticker.begin("looking")
        eventually(lambda: "looking" in stderr.text)
        ticker.begin_bytes("uploading", 4 << 30)
        for done in range(8):
            ticker.progress(done << 28, None)
            eventually(lambda done=done: f"{done / 4:.1f}/4.0 GiB" in stderr.text)  # type: ignore[misc]
        assert ticker.done == (7 << 28, 4 << 30)
        eventually(lambda: re.search(r"\d [KMG]iB/s.*\d\d:\d\d", stderr.text))
        ticker.begin_bytes("wiping")
        ticker.progress(1 << 20, 2 << 20)
        eventually(lambda: "1.0/2.0 MiB" in stderr.text)


@pytest.mark.parametrize("waits", [True, False])
async def test_progress_that_stays(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However soon it is over, its last state stays to be seen; the event loop does not wait for the display."""
    stderr = terminal(monkeypatch)
    async with Ticker(delay=0, stays=True) as ticker:
        await asyncio.sleep(0.3 if waits else 0)
        ticker.begin("work", 3)
        ticker.step(3)
    assert "3/3" in stderr.text
    assert stderr.text.endswith("\n\x1b[?25h")


def test_nothing_is_shown_of_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the delay has passed, and while nothing was begun, the terminal is left alone."""
    stderr = terminal(monkeypatch)
    with Ticker() as ticker:
        ticker.begin("quick")
    with Ticker(delay=0):
        time.sleep(0.3)
    with Ticker(delay=0) as ticker:
        ticker.stop()
        ticker.begin("too late")
    assert stderr.text == ""


def test_no_progress_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is no display, and no thread for it."""
    with Ticker(delay=0) as ticker:
        ticker.begin("work", 1)
        ticker.step()
        assert not any(thread.name == "astore-progress" for thread in threading.enumerate())
    assert capsys.readouterr().err == ""
