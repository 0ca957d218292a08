"""The entry point of the command: it guards against interruptions from its first line, and ends the process at once."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # as typing's, which costs as much to import as Python to start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_HINT = "astore: the command needs the extra `cli`: pip install 'astore[cli]'"


def main(argv: Sequence[str] | None = None, *, leave: Callable[[int], object] = os._exit) -> None:
    """The console script: run the command, then end the process at once.

    Ending it by ``os._exit`` is what keeps an invocation from waiting for threads that hang in storage, and for libraries
    whose clean-up takes seconds. Ctrl-C ends it with 130, from the first line on.

    :param argv: the arguments; None takes the process's. :param leave: called with the exit code, everything written.
    """
    try:
        code = _run(argv, leave is os._exit)
    except KeyboardInterrupt:
        code = 130
    leave(code)


def _run(argv: Sequence[str] | None, alone: bool) -> int:
    """Run the command and write all that it says. :param alone: nothing else goes on in this process."""
    from astore.cli.interruptions import interruptions_exit

    if alone:
        interruptions_exit()
        gc.set_threshold(
            50_000
        )  # what is imported stays: looking through it again and again takes a twentieth of the time
    hold_standard_streams()
    try:
        from astore.cli.app import run
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        print(_HINT, file=sys.stderr)
        code = 1
    else:
        code = run(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a reader that is gone, or a stream that was closed
            pass
    return code


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
    import io

    stream = sys.stdout
    if type(stream) is io.TextIOWrapper and isinstance(stream.buffer, io.RawIOBase):
        sys.stdout = _stream(stream.fileno(), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


def _stream(fd: int, mode: str, **options: Any) -> Any:
    return open(fd, mode, closefd=False, **options)
