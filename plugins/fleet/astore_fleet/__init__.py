"""The pools of many hosts as one fleet, on NATS JetStream: see docs/fleet.md."""

from astore_fleet.access import Access
from astore_fleet.client.event_reader import FleetEvents
from astore_fleet.client.fleet import Fleet
from astore_fleet.client.fleet_pool import FleetPool
from astore_fleet.hosts.agent import Agent
from astore_fleet.jobs.job_records import JobUnknownError
from astore_fleet.records import FleetEvent, FleetPoolInfo, FleetVolume, HostInfo, Placement
from astore_fleet.store.nats_store import NatsStore

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
