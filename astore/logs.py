"""astore's logger: structlog's, around the standard logger ``astore``, which the application configures.

This module configures neither structlog nor logging: without a handler, warnings go to stderr as the standard library does
it, and the rest nowhere. Bound fields appear in the message as ``key=value`` and in the record's attribute ``astore`` as a
dictionary. structlog takes ten times as long to import as Python takes to start, so the first message that the standard
logger lets through imports it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from structlog.stdlib import BoundLogger

_LOGGER = logging.getLogger("astore")
_LEVELS = {**logging.getLevelNamesMapping(), "EXCEPTION": logging.ERROR}


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], Mapping[str, Any]]:
    message = str(event.pop("event", ""))
    keywords: dict[str, Any] = {"extra": {"astore": dict(event)}}
    if event.get("exc_info"):
        keywords["exc_info"] = event.pop("exc_info")
    fields = " ".join(f"{key}={value!r}" for key, value in event.items())
    return ((f"{message} {fields}" if fields else message),), keywords


class _DeferredLogger:
    """A structlog logger that is created for the first message that is not filtered out."""

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def bind(self, **fields: object) -> _DeferredLogger:
        """Add fields, as structlog's ``bind``."""
        return _DeferredLogger({**self._fields, **fields})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # such as what copy and pickle ask for, before there are any fields
            raise AttributeError(name)
        level = _LEVELS.get(name.upper())
        if level is not None and not _LOGGER.isEnabledFor(level):
            return _drop
        return getattr(self._bound, name)

    @cached_property
    def _bound(self) -> BoundLogger:
        import structlog

        logger = structlog.wrap_logger(
            _LOGGER,
            processors=[structlog.stdlib.filter_by_level, _render],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
        return cast("BoundLogger", logger.bind(**self._fields))


def _drop(*_: object, **__: object) -> None:
    """Log nothing."""


def get_logger() -> BoundLogger:
    """Return the logger."""
    return cast("BoundLogger", _DeferredLogger({}))


def prepare() -> None:
    """Import structlog, if warnings are logged at all. Blocks: call it on a thread, before an event loop logs."""
    if _LOGGER.isEnabledFor(logging.WARNING):
        import structlog  # noqa: F401
