"""The command in this process, and as a process of its own; a state folder and images for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import pytest
from terminals import Terminal

T = TypeVar("T")

WARNING_FREE = ("-W", "error")

INTERRUPTED = ("-W", "ignore::ResourceWarning")
"""For what is to be interrupted: Python breaks off anywhere then, before it knows what it opened (in an import, say)."""


class Ran(NamedTuple):
    """What an invocation returned and wrote."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Its one document."""
        return json.loads(self.out)

    def shape(self, kind: type[T]) -> T:
        """Its one document, which must be of that shape exactly: every key known, none missing, none of another type."""
        document = self.json()
        shape = msgspec.convert(document, kind, strict=True)
        assert json.loads(json.dumps(msgspec.to_builtins(shape))) == document
        return shape

    @property
    def complaint(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("astore: "), self.err
        return lines[0].removeprefix("astore: ")


class Invocations:
    """Runs the command on one state folder."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self._capture = capture

    def __call__(self, *arguments: str) -> Ran:
        """In this process, as ``main`` runs it."""
        from astore.cli.app import run

        self._capture.readouterr()
        code = run(arguments)
        out, err = self._capture.readouterr()
        return Ran(code, out, err)

    def good(self, *arguments: str) -> Ran:
        """The same, which must succeed and have nothing to complain of."""
        ran = self(*arguments)
        assert (ran.code, ran.err) == (0, ""), ran
        return ran

    def environment(self, **more: str) -> dict[str, str]:
        """For a process of its own."""
        known = {**os.environ, "ASTORE_STATE_DIR": str(self.state_dir), "COLUMNS": "200", **more}
        return {key: value for key, value in known.items() if not key.startswith("COV_")}

    def argv(self, *arguments: str, interrupted: bool = False) -> list[str]:
        """What starts the command as a process. :param interrupted: the test will do that to it."""
        warnings = (*WARNING_FREE, *INTERRUPTED) if interrupted else WARNING_FREE
        return [sys.executable, *warnings, "-m", "astore.cli", *arguments]

    def process(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Ran:
        """As a process of its own, read through pipes."""
        done = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            capture_output=True,
            timeout=200,
            env=self.environment(**environment),
            cwd=self.folder,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """As a process that the test interrupts. Its standard streams are pipes, which nobody has to write to or read."""
        process = subprocess.Popen(
            self.argv(*arguments, interrupted=True),
            env=self.environment(),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    @contextlib.contextmanager
    def terminal(self, *arguments: str, **environment: str) -> Iterator[Terminal]:
        """As a process with a terminal of its own, which has no colours."""
        terminal = Terminal(self.argv(*arguments, interrupted=True), self.environment(**environment), kind="dumb")
        try:
            yield terminal
        finally:
            terminal.close()

    def definition(self, name: str, target: Path, type_: str = "dir") -> str:
        """The path of a file that defines a pool."""
        file = self.folder / f"{name}.xml"
        file.write_text(f"<pool type='{type_}'><name>{name}</name><target><path>{target}</path></target></pool>")
        return str(file)


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """An interrupted command ignores further signals, as a process that is about to end; this one goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def astore(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Invocations:
    """The command, on a state folder of the test's own."""
    monkeypatch.setenv("ASTORE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")
    return Invocations(tmp_path, capsys)


@pytest.fixture
def make_pool(astore: Invocations, tmp_path: Path) -> Callable[..., Path]:
    """Defines a dir pool of this name with two images, and starts it unless told otherwise; returns its folder."""
    from beds.images import template

    def make(name: str = "images", *, start: bool = True) -> Path:
        folder = tmp_path / f"{name}-folder"
        folder.mkdir()
        template("qcow2", 10 << 30).write(folder / "base.qcow2")
        template("qcow2", 10 << 30, "base.qcow2", "qcow2").write(folder / "web.qcow2")
        astore.good("pool", "define", astore.definition(name, folder))
        if start:
            astore.good("pool", "start", name)
        return folder

    return make


@pytest.fixture
def folder(astore: Invocations, make_pool: Callable[..., Path]) -> Path:
    """The folder of the pool ``images``, with a raw volume of 16 MiB, a hole."""
    found = make_pool()
    astore.good("vol", "create", "images", "a.raw", "16M")
    return found
