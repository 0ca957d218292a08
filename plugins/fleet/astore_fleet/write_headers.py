"""The headers of a write: its conditions, and its time to live."""

from __future__ import annotations


def conditions(after: int | None, among: str | None, at: int | None, ttl: float | None) -> dict[str, str]:
    """Return the headers of a write's conditions and time to live; see :meth:`astore_fleet.engine.Engine.publish`."""
    found = {
        "Nats-Expected-Last-Subject-Sequence": after,
        "Nats-Expected-Last-Subject-Sequence-Subject": among,
        "Nats-Expected-Last-Sequence": at,
        "Nats-TTL": None if ttl is None else f"{max(round(ttl), 1)}s",
    }
    return {name: str(value) for name, value in found.items() if value is not None}
