"""Handling of Ctrl-C, SIGTERM and SIGHUP: clean up once, ignore further signals, and exit with 130."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager

TYPE_CHECKING = False  # instead of importing typing, which takes as long as starting Python
if TYPE_CHECKING:
    from asyncio import Runner
    from typing import Any, TypeVar

    T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""The exit code of an interrupted process: 128 + SIGINT."""


def interruptions_exit() -> None:
    """Make Ctrl-C end the process at once and silently. Use it while there is nothing to clean up.

    KeyboardInterrupt raised during an import may be swallowed by code that cannot pass it on. An ignored SIGINT stays
    ignored. (SIGTERM and SIGHUP end the process by themselves.)
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def _exit(*_: object) -> None:
    if os.isatty(2):
        os.write(2, b"\n")  # end the line on which the terminal shows ^C
    os._exit(INTERRUPTED)


@contextmanager
def interruptions_raise() -> Iterator[None]:
    """Make the first Ctrl-C, SIGTERM or SIGHUP raise KeyboardInterrupt. Further ones do not cut the clean-up short."""
    before = _heard()
    for number in before:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # not interrupted
                signal.signal(number, handler)


def run(work: Callable[[], Coroutine[Any, Any, T]], runner: Runner | None = None) -> T:
    """Run a coroutine in an event loop of its own, or in a runner's. The first Ctrl-C, SIGTERM or SIGHUP cancels it.

    :raises KeyboardInterrupt: it was interrupted, and has cleaned up.
    """
    import asyncio

    with ExitStack() as waiting:

        async def cancelled_once() -> T:
            waiting.close()
            try:
                with _interruptions_cancel():
                    return await work()
            finally:
                waiting.enter_context(interruptions_wait())  # nor while it ends

        waiting.enter_context(interruptions_wait())  # an event loop does not survive being interrupted while it starts
        try:
            return (asyncio.run if runner is None else runner.run)(cancelled_once())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


@contextmanager
def _interruptions_cancel() -> Iterator[None]:
    """Cancel the current task on the first interruption. Further ones do not disturb its clean-up.

    (asyncio.run does that for the first Ctrl-C alone.)
    """
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    cancelled = False

    def cancel() -> None:
        nonlocal cancelled
        if not cancelled:
            cancelled = True
            task.cancel()

    before = _heard()
    for number in before:
        loop.add_signal_handler(number, cancel)
    broken_off = False
    try:
        yield
    except BaseException:
        broken_off = cancelled
        raise
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
        if broken_off:
            ignore_interruptions()


@contextmanager
def interruptions_wait() -> Iterator[None]:
    """Delay an interruption until the end of the block. Use it for short blocks."""
    came: list[int] = []
    before = _heard()
    for number in before:
        signal.signal(number, lambda which, _frame: came.append(which))
    try:
        yield
    finally:
        for number, handler in reversed(before.items()):  # SIGINT last: it interrupts
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def ignore_interruptions() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP from now on, so that nothing cuts the clean-up short."""
    for number in _heard():
        signal.signal(number, signal.SIG_IGN)


def _raise(*_: object) -> None:
    ignore_interruptions()
    raise KeyboardInterrupt


def _heard() -> dict[signal.Signals, Any]:
    """Return the handlers of the signals. Ignored ones are left alone, such as those of nohup and of background jobs.

    Outside the main thread, all are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
