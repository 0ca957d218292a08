"""The pools of many hosts as one fleet, on NATS JetStream: see docs/fleet.md."""

from astore_fleet.engine import Access
from astore_fleet.store import NatsStore

__all__ = ["Access", "NatsStore"]
