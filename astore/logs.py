"""astore's logger: structlog's, around the standard logger ``astore``, which the application configures.

This module configures neither structlog nor logging: without a handler, warnings go to stderr as the standard library does
it, and the rest nowhere. Bound fields appear in the message as ``key=value`` and in the record's attribute ``astore`` as a
dictionary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any, cast

import structlog


def _render(_: Any, __: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], Mapping[str, Any]]:
    message = str(event.pop("event", ""))
    keywords: dict[str, Any] = {"extra": {"astore": dict(event)}}
    if event.get("exc_info"):
        keywords["exc_info"] = event.pop("exc_info")
    fields = " ".join(f"{key}={value!r}" for key, value in event.items())
    return ((f"{message} {fields}" if fields else message),), keywords


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the logger."""
    return cast(
        structlog.stdlib.BoundLogger,
        structlog.wrap_logger(
            logging.getLogger("astore"),
            processors=[structlog.stdlib.filter_by_level, _render],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )
