"""What is logged, and how: by the standard logger ``astore``, which is the application's to configure."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from core_fakes import FakeBackend, fake, fake_registry

import astore
from astore.logs import get_logger


def test_fields_are_in_the_message_and_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    """Bound fields are read as ``key=value``, and are a dictionary for handlers that write others."""
    caplog.set_level(logging.DEBUG, "astore")
    log = get_logger().bind(pool="a b")
    log.info("pool started", volumes=3)
    log.info("plain %s text")
    get_logger().warning("alone")
    first, second, third = caplog.records
    assert first.getMessage() == "pool started pool='a b' volumes=3"
    assert first.astore == {"pool": "a b", "volumes": 3}  # type: ignore[attr-defined]
    assert second.getMessage() == "plain %s text pool='a b'"
    assert (third.getMessage(), third.levelno, third.name) == ("alone", logging.WARNING, "astore")


def test_exceptions(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is logged is in the record."""
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger().exception("it failed", pool="a")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert "it failed" in record.getMessage()


def test_what_is_not_wanted_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Below the level that the application set, nothing is made."""
    caplog.set_level(logging.ERROR, "astore")
    get_logger().warning("not wanted")
    assert caplog.records == []


async def test_hostile_names_stay_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What comes from the storage cannot begin a line of its own in a log."""
    backend = FakeBackend()
    backend.fail("refresh", OSError(5, "first\nastore: all is well\x1b[2J"))
    async with astore.Manager(tmp_path / "state", registry=fake_registry(backend)) as manager:
        pool = await manager.define(fake("p"))
        with pytest.raises(OSError):
            await pool.start()
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert record.astore["pool"] == "p"  # type: ignore[attr-defined]
