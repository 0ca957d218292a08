"""``astore shell``: commands typed one after the other, or read from standard input, in one process.

They share an event loop and a Manager, which looks at the state folder before each of them.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import click
import msgspec

from astore.cli.command_line import Command
from astore.cli.exits import CliError, Exit
from astore.cli.interruptions import SIGNALS
from astore.cli.local_files import STANDARD_INPUT
from astore.cli.output import complain, complaints_of
from astore.cli.session import KeptManager, Settings, common_options

PROMPT = "astore> "
HISTORY = "~/.local/state/astore/history"
HISTORY_LINES = 1000


@click.command("shell", cls=Command, params=common_options())
@click.pass_context
def shell(context: click.Context) -> None:
    """Run commands one after the other: those that are typed, or the lines of standard input.

    Each line is a command, or several with `;` between them; `#` begins a comment, and `quit` ends. Errors tell the number of
    their line. The exit code is 0 if all commands succeeded, 4 if some failed, and 1 if all did.
    """
    settings = context.ensure_object(Settings)
    terminal = sys.stdin.isatty()
    codes: list[int] = []
    with asyncio.Runner() as runner:
        kept = KeptManager(runner)
        try:
            with (
                _history(settings.state_dir) if terminal else nullcontext(),
                nullcontext(_typed()) if terminal else _batch() as lines,
            ):
                for number, line in enumerate(lines, 1):
                    with complaints_of("" if terminal else f"line {number}"):
                        goes_on = _run_line(line, msgspec.structs.replace(settings, kept=kept), codes)
                    if not goes_on:
                        break
                    if codes[-1:] == [Exit.INTERRUPTED] and not terminal:
                        break
        finally:
            runner.run(kept.aclose())
    context.exit(_code_of(codes, terminal))


@contextmanager
def _batch() -> Iterator[Iterator[str]]:
    """Yield the lines of standard input. The commands get none that can be read: they would take the lines after theirs."""
    try:
        os.read(STANDARD_INPUT, 0)
        kept = os.dup(STANDARD_INPUT)
    except OSError as error:
        raise CliError(f"standard input has no commands: {error.strerror}") from error
    unreadable = os.open("/", os.O_PATH)  # whoever opens /dev/stdin is told that it is a directory
    os.dup2(unreadable, STANDARD_INPUT)
    os.close(unreadable)
    encoding = sys.stdin.encoding
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    try:
        with open(kept, encoding=encoding, errors="surrogateescape", newline="\n", closefd=False) as lines:
            yield lines
    finally:
        os.dup2(kept, STANDARD_INPUT)
        os.close(kept)


def _code_of(codes: list[int], terminal: bool) -> int:
    failed = [code for code in codes if code]
    if terminal or not failed:
        return Exit.OK
    if failed[-1] == Exit.INTERRUPTED:
        return Exit.INTERRUPTED
    return Exit.PARTIAL if len(failed) < len(codes) else Exit.FAILED


def _run_line(line: str, settings: Settings, codes: list[int]) -> bool:
    """Run the commands of a line, up to one that is interrupted; add their exit codes. Return False at the shell's end."""
    try:
        commands = split(line)
    except ValueError as error:
        complain(f"{error}: {line.strip()}")
        codes.append(Exit.USAGE)
        return True
    for words in commands:
        if words in (["quit"], ["exit"]):
            return False
        if words:
            codes.append(_run(words, msgspec.structs.replace(settings)))
            if codes[-1] == Exit.INTERRUPTED:
                break
    return True


def split(line: str) -> list[list[str]]:
    """Return the words of the commands of a line, without `astore` or `virsh` in front. :raises ValueError: a quote is open."""
    commands = []
    for match in _COMMAND.finditer(line):
        words = shlex.split(match[0], comments=True)
        commands.append(words[1:] if words[:1] in (["astore"], ["virsh"]) else words)
    return commands


_COMMAND = re.compile(
    r"""(?: [^;#'"\\] | \\. | '[^']*' | "(?:[^"\\]|\\.)*" | \#.*\Z | ['"\\].*\Z )+""", re.VERBOSE | re.DOTALL
)
"""What is between semicolons outside of quotes. An open quote, and a comment, last to the end of the line."""


def _run(words: list[str], settings: Settings) -> int:
    """Run a command. Return its exit code."""
    from astore.cli.app import run

    if words[0] in ("shell", "demo"):
        complain(f"`{words[0]}` does not run in a shell")
        return Exit.USAGE
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        return run(words, settings=settings)
    finally:
        sys.stdout.flush()
        for number, handler in before.items():  # an interrupted command has them ignored
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------- a terminal


def _typed() -> Iterator[str]:
    """Yield what the user types, line by line. Ctrl-C drops the line, Ctrl-D ends."""
    while True:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            line = input(PROMPT)
        except KeyboardInterrupt:
            print()
            continue
        except EOFError:
            print()
            return
        finally:
            signal.signal(signal.SIGINT, before)
        yield line


@contextmanager
def _history(state_dir: str | None) -> Iterator[None]:
    """Give the prompt its history and completion. A history that cannot be read or written is no error."""
    import readline

    file = Path(HISTORY).expanduser()
    with suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims(" \t\n")
    readline.set_completer(_Completer(state_dir))
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(None)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            os.chmod(file, 0o600)


class _Completer:
    """Completes words as the completion of bash does."""

    def __init__(self, state_dir: str | None) -> None:
        self._state_dir = state_dir
        self._found: list[str] = []

    def __call__(self, text: str, state: int) -> str | None:
        """Return the candidate of this number; None after the last."""
        if state == 0:
            import readline

            self._found = candidates(readline.get_line_buffer()[: readline.get_begidx()], text, self._state_dir)
        return self._found[state] if state < len(self._found) else None


def candidates(before: str, incomplete: str, state_dir: str | None = None) -> list[str]:
    """Return what may replace ``incomplete`` behind the text ``before`` it, in quotes if need be.

    A space is behind each, unless the word goes on. :param state_dir: the state folder, unless the line names another.
    """
    from astore.cli.app import app
    from astore.cli.completion import PART
    from astore.cli.completion_shells import completions, in_bash, typed

    line = before + incomplete
    command = [found[0] for found in _COMMAND.finditer(line) if found.end() == len(line)]
    words, last, raw, _ = typed(command[0] if command else "")
    words = words[1:] if words[:1] in (("astore",), ("virsh",)) else words
    words = words if state_dir is None else ("--state-dir", state_dir, *words)
    kept = raw.removesuffix(incomplete)
    found = []
    for item in completions(app, words, last):
        text = in_bash(item.value, kept)
        if text is not None and item.type in ("plain", PART):
            found.append(text if item.type == PART else f"{text}{typed(kept).quote} ")
    return found
