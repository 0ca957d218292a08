"""The pools of many hosts as one fleet, on NATS JetStream: see docs/fleet.md."""

from astore_fleet.agent import Agent
from astore_fleet.engine import Access
from astore_fleet.event_stream import FleetEvents
from astore_fleet.fleet import Fleet
from astore_fleet.fleet_pool import FleetPool
from astore_fleet.job_records import JobUnknownError
from astore_fleet.records import FleetEvent, FleetPoolInfo, FleetVolume, HostInfo, Placement
from astore_fleet.store import NatsStore

__all__ = [
    "Access",
    "Agent",
    "Fleet",
    "FleetEvent",
    "FleetEvents",
    "FleetPool",
    "FleetPoolInfo",
    "FleetVolume",
    "HostInfo",
    "JobUnknownError",
    "NatsStore",
    "Placement",
]
