"""Parts: everything that one pool is made of; and Member, a volume of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from astore.errors import LibvirtCode, VolumeNotFoundError
from astore.model import PoolDef, Snapshot, VolumeInfo
from astore.pools.claims import Claims
from astore.pools.host import Host
from astore.pools.lifecycle import Lifecycle
from astore.pools.record import PoolRecord
from astore.pools.refresher import Refresher
from astore.pools.services import Services


class Parts:
    """The parts of one pool.

    :ivar others: returns the parts of all pools of the Manager, in name order, these included.
    """

    def __init__(
        self, record: PoolRecord, services: Services, host: Host, others: Callable[[], Sequence[Parts]]
    ) -> None:
        self.record = record
        self.services = services
        self.others = others
        self.claims = Claims(record)
        self.refresher = Refresher(record, services)
        self.lifecycle = Lifecycle(record, services, host, self.refresher, self.claims)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.record.name

    @property
    def definition(self) -> PoolDef:
        """What the pool runs by, if it is active; else its definition."""
        return self.record.running

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self.record.active

    @property
    def snapshot(self) -> Snapshot:
        """What the last good refresh found."""
        return self.record.snapshot

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The volumes' records in name order."""
        return self.record.snapshot.volumes

    @property
    def idle(self) -> bool:
        """Whether the pool is inactive, and nothing is done to it."""
        return not self.active and not self.lifecycle.busy

    def volume(self, name: str) -> VolumeInfo:
        """Return a volume's record. :raises VolumeNotFoundError: the last snapshot has none of this name."""
        info = self.record.snapshot.get(name)
        if info is None:
            raise VolumeNotFoundError(
                f"pool {self.name!r} has no volume {name!r}",
                what=name,
                libvirt_code=None if self.active else LibvirtCode.OPERATION_INVALID,
            )
        return info


class Member(NamedTuple):
    """The volume ``name`` of ``pool``, whatever its record is at the moment."""

    pool: Parts
    name: str

    @property
    def info(self) -> VolumeInfo:
        """Its record. :raises VolumeNotFoundError: it is not there any more."""
        return self.pool.volume(self.name)
