"""Parts: the parts of one pool; and Member, a volume of a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from astore.backend import Backend
from astore.errors import LibvirtCode, VolumeNotFoundError
from astore.model import PoolDef, Snapshot, VolumeInfo
from astore.pools.claims import Claims
from astore.pools.lifecycle import Host, Lifecycle
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
        self.claims: Claims = Claims(record)
        self.refresher: Refresher = Refresher(record, services)
        self.lifecycle: Lifecycle = Lifecycle(record, services, host, self.refresher, self.claims)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.record.name

    @property
    def definition(self) -> PoolDef:
        """The definition that the pool runs by; of an inactive pool, the one for its next start."""
        return self.record.running

    @property
    def backend(self) -> Backend | None:
        """The backend of the pool; None until this process has loaded it."""
        life = self.record.life
        return (None if life is None else life.backend) or self.services.registry.loaded(self.definition.type)

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self.record.active

    @property
    def snapshot(self) -> Snapshot:
        """The result of the last good refresh."""
        return self.record.snapshot

    @property
    def idle(self) -> bool:
        """Whether the pool is inactive and not busy."""
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
    """The volume ``name`` of ``pool``, without its record."""

    pool: Parts
    name: str

    @property
    def info(self) -> VolumeInfo:
        """The volume's record. :raises VolumeNotFoundError: the volume is gone."""
        return self.pool.volume(self.name)
