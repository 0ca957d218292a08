"""Record: the base of the records that programs pass on as plain values."""

from __future__ import annotations

from typing import Any

import msgspec


class Record(msgspec.Struct, frozen=True):
    """A frozen record that can be made into plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for JSON: words for enums, the message of an error.

        What is not Unicode (a byte of a file's name, in Python a lone surrogate) is written out, as in ``\\udce4``: encoders
        of JSON refuse it.
        """
        found: dict[str, Any] = msgspec.to_builtins(self, enc_hook=_plain)
        try:
            msgspec.json.encode(found)
        except UnicodeEncodeError:
            return {key: _unicode(value) for key, value in found.items()}
        return found


def _plain(value: object) -> str:
    if isinstance(value, Exception):
        return str(value) or type(value).__name__
    raise NotImplementedError(f"{type(value).__name__} has no plain value")


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _unicode(one) for key, one in value.items()}
    return [_unicode(one) for one in value] if isinstance(value, (list, tuple)) else value
