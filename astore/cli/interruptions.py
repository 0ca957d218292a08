"""Ctrl-C and its like: what was begun is taken back, however impatient they are, and the process returns 130."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130
"""What the process returns then: 128 + SIGINT."""


def interruptions_exit() -> None:
    """From here on Ctrl-C ends the process at once, without a word: nothing is begun that would have to be taken back.

    An exception would not do: raised in an import, it may come out of code that cannot pass it on. What is ignored stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def _exit(*_: object) -> None:
    if os.isatty(2):
        os.write(2, b"\n")  # the terminal has written ^C
    os._exit(INTERRUPTED)


@contextmanager
def interruptions_raise() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt. Those that are ignored stay so, also those inside."""
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
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP cancels the present task; more of them do not disturb what it does then.

    (asyncio.run does that for the first Ctrl-C alone.) Those that are ignored stay so: nohup's, and a shell's for background
    jobs. Where this is not the main thread, signals are not handled.
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
    """SIGTERM and SIGHUP interrupt as Ctrl-C does: what was made is taken away first.

    An interrupted process is about to end: there, whatever is ignored by then stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs have it ignored
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
    """Inside, the first Ctrl-C interrupts, and a second one does not cut short what is done about the first.

    (asyncio.run has a handler of its own, which it takes only where there is none but Python's.)
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        ignore_interruptions()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    yield  # if it raises, whatever comes after goes on being ignored
    signal.signal(signal.SIGINT, before)


@contextmanager
def interruptions_wait() -> Iterator[None]:
    """An interruption that comes inside has its effect at the end. For what is short."""
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
    """Whatever happens inside, nothing interrupts what comes after it."""
    try:
        yield
    finally:
        ignore_interruptions()


def ignore_interruptions() -> None:
    """From here on everything is taken away again: a second Ctrl-C must not cut that short."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
