"""Handling of Ctrl-C, SIGTERM and SIGHUP: clean up once, ignore further signals, and exit with 130."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Make Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. Signals that are ignored, before or inside, stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in taken:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, before[number])


@contextmanager
def interruptions_cancel() -> Iterator[None]:
    """Cancel the current task on the first Ctrl-C, SIGTERM or SIGHUP. Further ones do not disturb its clean-up.

    (asyncio.run does that for the first Ctrl-C alone.) Ignored signals stay ignored, such as those of nohup and of a
    shell's background jobs. Outside the main thread, signals are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import asyncio

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    cancelled = False

    def cancel() -> None:
        nonlocal cancelled
        if not cancelled:
            cancelled = True
            task.cancel()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in taken:
        loop.add_signal_handler(number, cancel)
    broken_off = False
    try:
        yield
    except BaseException:
        broken_off = cancelled
        raise
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
        if broken_off:
            ignore_interruptions()


@contextmanager
def terminations_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP act like Ctrl-C, so that the process cleans up first.

    The handlers are not restored after an interruption: the process is about to end, and signals that are ignored by then
    stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not interrupted:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first Ctrl-C only. A second one does not cut the clean-up short.

    (asyncio.run installs its own handler only over Python's default one.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        ignore_interruptions()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield  # no `finally`: after an interruption, further signals stay ignored
    signal.signal(signal.SIGINT, before)


@contextmanager
def interruptions_wait() -> Iterator[None]:
    """Delay an interruption until the end of the block. Use it for short blocks."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    taken = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, lambda which, _frame: came.append(which))
    try:
        yield
    finally:
        for number in reversed(taken):  # SIGINT last: it interrupts
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])


@contextmanager
def undisturbed_afterwards() -> Iterator[None]:
    """Ignore interruptions after the block, however it ends."""
    try:
        yield
    finally:
        ignore_interruptions()


def ignore_interruptions() -> None:
    """Ignore Ctrl-C, SIGTERM and SIGHUP from now on, so that nothing cuts the clean-up short."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
