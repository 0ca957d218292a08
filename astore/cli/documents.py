"""The documents of ``--json``, described in docs/cli-json.md. Sizes are in bytes, times in seconds.

Fields are only ever added. Every key is always present; unknown values are null. A record of the library that has the fields
of its document is that document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from astore.cli.exits import explain
from astore.errors import AstoreError
from astore.model import VolumeInfo

Document = dict[str, Any]


def failure(error: BaseException | None) -> Document | None:
    """Return the document of an exception, or None for None."""
    if error is None:
        return None
    return {
        "type": type(error).__name__,
        "message": explain(error),
        "errno": error.errno if isinstance(error, OSError) else None,
        "libvirt_code": int(error.libvirt_code) if isinstance(error, AstoreError) else None,
    }


def volume(pool: str, info: VolumeInfo, users: Sequence[str] | None = None) -> Document:
    """Return the document of a volume's record. :param users: who else has it open; None: nobody was asked, or can tell."""
    found: Document = msgspec.to_builtins(info)
    del found["device"]
    for name in ("atime", "mtime", "ctime"):
        found[name] = found.pop(f"{name}_ns") / 1e9
    for reference in found["references"]:
        del reference["place"]
    return {
        "pool": pool,
        **found,
        "backing": info.backing,
        "backing_path": info.backing_path,
        "backing_format": info.backing_format,
        "data_file": info.data_file,
        "users": users,
    }


def text(document: Document) -> str:
    """Return one indented JSON document, in ASCII, which survives every locale and terminal.

    A name that is not UTF-8 has its bytes as lone surrogates (``\\udce4`` is byte 0xE4), as from ``os.fsdecode``.
    """
    compact = line(document)
    try:
        # much faster than json.dumps(indent=2), but it rejects lone surrogates
        return msgspec.json.format(compact, indent=2)
    except msgspec.DecodeError:
        import json

        return json.dumps(json.loads(compact), indent=2)


def line(document: Document) -> str:
    """Return JSON in one line, for a stream of documents."""
    import json

    return json.dumps(msgspec.to_builtins(document))
