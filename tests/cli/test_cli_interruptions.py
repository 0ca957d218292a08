"""Ctrl-C and its like, put off for as long as something short must not be broken off."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading

import pytest

from astore.cli.interruptions import SIGNALS, interruptions_raise, interruptions_wait
from astore.cli.output import Answer
from astore.cli.session import Session, Settings, perform


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_comes_afterwards(number: signal.Signals) -> None:
    """What is inside is done to its end, whatever comes and how often; then it is interrupted, once."""
    done = []

    def work() -> None:
        with interruptions_wait():
            for step in range(3):
                signal.raise_signal(number)
                done.append(step)

    with interruptions_raise():
        handler = signal.getsignal(signal.SIGINT)
        with interruptions_wait():
            pass
        assert signal.getsignal(signal.SIGINT) is handler
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == [0, 1, 2]
        assert {signal.getsignal(one) for one in SIGNALS} == {signal.SIG_IGN}, "more of them do not disturb"


def test_interrupted_while_it_failed() -> None:
    """An error inside does not make one forget the interruption."""

    def work() -> None:
        with interruptions_wait():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("x")

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ValueError)


def test_elsewhere() -> None:
    """Another thread hears of no signals, and those that are ignored stay so."""
    done = []

    def work() -> None:
        with interruptions_wait():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptions_wait():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            done.append(2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_the_loop_is_made(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command is interrupted without a warning of Python's about a loop or a coroutine that is left half-way."""
    before = {one: signal.getsignal(one) for one in SIGNALS}
    new_event_loop = asyncio.events.new_event_loop

    def interrupted() -> asyncio.AbstractEventLoop:
        signal.raise_signal(number)
        return new_event_loop()

    async def work(_: Session) -> Answer:
        raise AssertionError("it is interrupted before it begins")

    monkeypatch.setattr(asyncio.events, "new_event_loop", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            perform(work, Settings())
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    gc.collect()
    assert capsys.readouterr().err == ""
