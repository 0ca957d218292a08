"""The entry point of the command. It handles Ctrl-C from its first line, and ends the process without waiting."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # instead of importing typing, which takes as long as starting Python
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

FLUSH_SECONDS = 1.0
"""Seconds that an interrupted command waits for its output to be taken."""

_HINT = "astore: the command needs the extra `cli`: pip install 'astore[cli]'"


def main(argv: Sequence[str] | None = None, *, leave: Callable[[int], object] = os._exit) -> None:
    """Run the command as the console script does, then end the process at once.

    ``os._exit`` does not wait for threads that hang in storage, nor for libraries whose clean-up takes seconds.
    Ctrl-C ends the process with 130, from the first line on.

    :param argv: the arguments; None takes those of the process.
    :param leave: called with the exit code after all output is flushed.
    """
    try:
        code = _run(argv, leave is os._exit)
    except KeyboardInterrupt:
        code = 130
    leave(code)


def _run(argv: Sequence[str] | None, alone: bool) -> int:
    """Run the command and flush its output. :param alone: nothing else runs in this process."""
    from astore.cli.interruptions import INTERRUPTED, interruptions_exit

    if alone:
        interruptions_exit()
        # imported modules are never garbage, and scanning them again and again takes a twentieth of the run time
        gc.set_threshold(50_000)
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
    if code == INTERRUPTED:
        import threading

        # a reader that has stopped reading, such as a pager, must not keep what was interrupted from ending
        flushing = threading.Thread(target=_flush, name="astore-flush", daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
    else:
        _flush()
    return code


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader is gone, or the stream is closed
            pass


def hold_standard_streams() -> None:
    """Open /dev/null in place of standard streams that were closed (`<&-`, `>&-`, `2>&-`).

    Otherwise the next file that is opened takes their numbers, and a library that writes to stderr writes into it.
    Using standard input or output then fails, as with a closed one (gnulib's stdopen does the same). Writing to
    standard error succeeds and has no effect.
    """
    for number, flags in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # open(2) takes the lowest free number: this one
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, _stream(number, mode))
    _write_all()


def _write_all() -> None:
    """Buffer standard output under ``PYTHONUNBUFFERED``. Otherwise a short write(2) loses the rest of the text."""
    import io

    stream = sys.stdout
    if type(stream) is io.TextIOWrapper and isinstance(stream.buffer, io.RawIOBase):
        sys.stdout = _stream(stream.fileno(), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


def _stream(fd: int, mode: str, **options: Any) -> Any:
    return open(fd, mode, closefd=False, **options)
