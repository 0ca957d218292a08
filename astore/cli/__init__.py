"""The command ``astore``. Needs the extra ``cli`` (typer and rich); without it, the command says so in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

_HINT = "astore: the command needs the extra `cli`: pip install 'astore[cli]'"


def main(argv: Sequence[str] | None = None, *, leave: Callable[[int], object] = os._exit) -> None:
    """The console script: run the command, then end the process at once.

    Ending it by ``os._exit`` is what keeps an invocation from waiting for threads that hang in storage, and for libgfapi,
    whose clean-up takes ten seconds.

    :param argv: the arguments; None takes the process's. :param leave: called with the exit code, everything written.
    """
    try:
        from astore.cli.app import run
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
