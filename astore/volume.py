"""A volume of a pool: a handle that looks into the pool's last snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from astore.errors import VolumeNotFoundError
from astore.model import VolumeInfo

if TYPE_CHECKING:
    from astore.pool import Pool


class Volume:
    """The volume ``name`` of ``pool``. It stays valid over refreshes, for as long as there is a volume of that name."""

    __slots__ = ("name", "pool")

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name

    def __repr__(self) -> str:
        return f"<Volume {self.name!r} of pool {self.pool.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Volume) and other.pool is self.pool and other.name == self.name

    def __hash__(self) -> int:
        return hash((id(self.pool), self.name))

    @property
    def info(self) -> VolumeInfo:
        """Its record in the pool's last snapshot.

        :raises VolumeNotFoundError: it is not there any more.
        """
        info = self.pool.snapshot.get(self.name)
        if info is None:
            raise VolumeNotFoundError(f"pool {self.pool.name!r} has no volume {self.name!r}", what=self.name)
        return info

    @property
    def key(self) -> str:
        """What names it among all volumes of all pools."""
        return self.info.key

    @property
    def path(self) -> str:
        """Where it is: an absolute path, or a URL."""
        return self.info.path

    async def refresh(self, *, timeout: float | None = None) -> VolumeInfo:
        """Read its header anew.

        :param timeout: seconds.
        :raises VolumeNotFoundError: it is not there any more. OSError: it cannot be read. TimeoutError: not in time.
        """
        await self.pool.refresh(self.name, timeout=timeout)
        return self.info

    def to_xml(self) -> str:
        """libvirt's ``<volume>`` document for it."""
        from astore.xml import volume_info_to_xml

        return volume_info_to_xml(self.info)
