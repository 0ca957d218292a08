"""Replace the mount of a Gluster volume that was deleted and made again under its name.

The client of such a mount answers ENOTCONN for ever: the new bricks refuse it (its log says "Volume-ID different"), and it
does not ask for another volume file (GlusterFS 10.3, seen). While its bricks are down a client answers the same, so the
mount alone cannot tell. A second mount of the source can.
"""

from __future__ import annotations

import asyncio
import functools
import os
import tempfile
import time

import anyio
import msgspec

from astore.backend import Context
from astore.cancellation import shielded
from astore.errors import AstoreError, reason
from astore.model import PoolDef, Target
from astore_netfs.mounting.mount import MountPoint, UnansweredError
from astore_netfs.mounting.own_threads import aside

PAUSE = 10.0
"""Seconds between attempts: each costs a mount."""

TRIAL_SECONDS = 5.0
"""How long the second mount may take."""

RECONNECT_SECONDS = 5.0
"""How long a client whose bricks are back may take to notice; it looks every 3 seconds."""


class RenewedMountPoint(MountPoint):
    """A :class:`MountPoint` that also replaces a mount whose volume is not there any more, but another of its name.

    It is replaced if a second mount of the source works, and its own client does not reconnect meanwhile.
    """

    def __init__(self, definition: PoolDef, context: Context) -> None:
        super().__init__(definition, context)
        self._tried = -PAUSE

    async def ensure(self) -> bool:
        try:
            return await super().ensure()
        except UnansweredError as error:
            now = time.monotonic()
            if now < self._tried + PAUSE:
                raise
            self._tried = now
            if not await _Trial.works(self.definition, self.context):
                raise
            if await self._reconnects():
                return False
            await self.context.lane.run(self.detach_stale, error.mount)
        return await super().ensure()

    async def _reconnects(self) -> bool:
        """Return whether the mount works again within a few seconds."""
        deadline = time.monotonic() + RECONNECT_SECONDS
        while time.monotonic() < deadline:
            await anyio.sleep(0.1)
            try:
                return await self.context.lane.run(self.look) is not None
            except UnansweredError:
                pass
        return False


class _Trial(MountPoint):
    """A second mount of a pool's source, in a folder of its own, to see whether it works."""

    @classmethod
    async def works(cls, definition: PoolDef, context: Context) -> bool:
        """Return whether the source can be mounted and answers. Nothing stays mounted."""
        make = functools.partial(tempfile.mkdtemp, prefix="astore-netfs-")
        folder = await context.lane.run(make, discard=os.rmdir)
        trial = cls(msgspec.structs.replace(definition, target=Target(path=folder)), context)
        try:
            async with asyncio.timeout(TRIAL_SECONDS):
                return await trial.ensure()
        except (AstoreError, OSError) as error:
            context.log.debug("a new mount does not work either", error=reason(error))
            return False
        finally:
            await shielded(trial.remove(folder))

    def argv(self, credentials: str | None) -> list[str]:
        argv = super().argv(credentials)
        argv[2] += ",log-file=/dev/null"  # else each trial leaves a log named after its folder
        return argv

    async def remove(self, folder: str) -> None:
        """Unmount it, and remove its folder; never raises."""
        try:
            await self.cut()
            await aside(os.rmdir, folder, timeout=TRIAL_SECONDS)
        except OSError as error:
            self.context.log.warning("a trial mount could not be removed", folder=folder, error=reason(error))
