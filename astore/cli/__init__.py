"""The command ``astore``. Needs the extra ``cli`` (typer and rich); without it, the command says so in one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

_HINT = "astore: the command needs the extra `cli`: pip install 'astore[cli]'"


def main(argv: Sequence[str] | None = None, *, leave: Callable[[int], object] = os._exit) -> None:
    """The console script: run the command, then end the process at once.

    Ending it by ``os._exit`` is what keeps an invocation from waiting for threads that hang in storage, and for libraries
    whose clean-up takes seconds.

    :param argv: the arguments; None takes the process's. :param leave: called with the exit code, everything written.
    """
    hold_standard_streams()
    try:
        from astore.cli.app import run
    except KeyboardInterrupt:
        print("astore: interrupted", file=sys.stderr)
        code = 130
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "click", "rich"}:
            raise
        print(_HINT, file=sys.stderr)
        code = 1
    else:
        code = run(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a reader that is gone, or a stream that was closed
            stream.flush()
    leave(code)


def hold_standard_streams() -> None:
    """Put something behind standard input, output and error that were closed (`<&-`, `>&-`, `2>&-`).

    Else the next file that is opened takes their numbers, and what a library writes to stderr goes into it. Input and
    output fail when they are used, as closed ones should (gnulib's stdopen does the same); errors go nowhere.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # which takes the lowest number that is free
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, _stream(number, mode))
    _write_all()


def _write_all() -> None:
    """Where Python writes unbuffered (``PYTHONUNBUFFERED``), what write(2) does not take at once would be lost."""
    stream = sys.stdout
    if type(stream) is io.TextIOWrapper and isinstance(stream.buffer, io.RawIOBase):
        sys.stdout = _stream(stream.fileno(), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


def _stream(fd: int, mode: str, **options: Any) -> TextIO:
    return cast(TextIO, open(fd, mode, closefd=False, **options))
