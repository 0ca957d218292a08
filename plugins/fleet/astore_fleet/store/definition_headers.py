"""The headers of a definition in the engine, whose body is libvirt's document."""

from __future__ import annotations

import json

import msgspec

from astore_fleet.records import Placement

VERSION, AUTOSTART, BY = "Astore-Version", "Astore-Autostart", "Astore-By"
"""Headers of a definition, whose body is libvirt's document: its version, its mark, and the connection that wrote it."""

HOST, PLACE, SAME = "Astore-Host", "Astore-Place", "Astore-Same"
"""More of them: the host that defined the pool, where it may run (JSON), and that the document is the same as before."""


class New(msgspec.Struct, frozen=True):
    """What a new definition begins with."""

    placement: Placement = Placement()
    autostart: bool = False


def placement_of(text: str | None) -> Placement:
    """Return the placement that a header has."""
    try:
        return msgspec.json.decode(text, type=Placement) if text else Placement()
    except Exception:  # anybody may have written anything: then it may run nowhere
        return Placement(hosts=("",))


def as_json(placement: Placement) -> str:
    """Return a placement as a header, in ASCII."""
    return json.dumps(msgspec.to_builtins(placement))


def kept_headers(host: str, kept: New) -> dict[str, str]:
    """Return the headers that stay when a definition is written again. :param host: the one that defined it."""
    return {AUTOSTART: str(int(kept.autostart)), HOST: host, PLACE: as_json(kept.placement)}
