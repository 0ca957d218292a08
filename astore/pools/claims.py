"""What surrounds all work on a pool's volumes: what is checked, locked, opened, named and told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from errno import EAGAIN
from typing import TYPE_CHECKING, TypeVar, cast

from astore.backend import SESSION_ABILITIES, OpensVolumes, PoolSession, Progress
from astore.cancellation import CLEANUP_SECONDS, shielded
from astore.errors import (
    AstoreError,
    InvalidStateError,
    StorageError,
    UnsupportedOperationError,
    VolumeBusyError,
    VolumeInUseError,
    reason,
)
from astore.events import VolumeProgress
from astore.model import PoolState, VolumeInfo
from astore.plugin_calls import answer, record
from astore.pools import graph
from astore.pools.refresher import RefreshedPool
from astore.pools.volume import Volume
from astore.volume_io.named_file import NamedFile

if TYPE_CHECKING:
    from astore.pools.pool import Pool

T = TypeVar("T")

LOOK_SECONDS = 10.0
"""How long a pool is waited for of which nothing is known yet."""

PROGRESS_SECONDS = 0.25
"""The least time between two progress events of one piece of work."""


class PoolAtWork(RefreshedPool):
    """The part of :class:`~astore.pools.pool.Pool` that looks after work on its volumes, whatever that is."""

    _able_session: PoolSession | None = None  # and what it was seen to be able to
    _able_to: set[str]

    def _require_workable(self, operation: str) -> None:
        self._manager._check_open()
        self._require_active(operation)
        if self._stopping:
            raise InvalidStateError(
                f"pool {self.name!r} is being stopped", pool=self.name, state=self._state, operation=operation
            )

    async def _volume_to_change(self, name: str, operation: str, force: bool) -> VolumeInfo:
        """The volume's record. :raises VolumeInUseError: others are backed by it."""
        self._require_workable(f"{operation} a volume")
        if not force:
            await self._know_others()
            self._require_workable(f"{operation} a volume")
        info = Volume(cast("Pool", self), name).info
        if not force and self._relied_on[name]:
            raise self._busy(name, "made the backing file of another", operation)
        if not force:
            pools = self._manager.pools()
            if others := graph.dependents(info, cast("Pool", self), pools):
                names = ", ".join(repr(one.name) for one in others[:3]) + (" …" if len(others) > 3 else "")
                raise VolumeInUseError(
                    f"volume {name!r} of pool {self.name!r} is what others are backed by or have data in ({names}): "
                    "they would be damaged; force it if that is meant",
                    pool=self.name,
                    operation=operation,
                    dependents=[one.key for one in others],
                )
            if behind := [pool.name for pool in graph.pools_behind(info, cast("Pool", self), pools)]:
                raise VolumeInUseError(
                    f"volume {name!r} of pool {self.name!r} is a directory with the folder of an active pool in it "
                    f"({', '.join(map(repr, behind[:3]))}); force it if that is meant",
                    pool=self.name,
                    operation=operation,
                    dependents=[],
                )
        return info

    async def _know_others(self) -> None:
        """See that all active pools that answer have been looked at: of one of which nothing is known nobody is protected."""
        await self._manager.registry.load((self.type,))  # the backend knows by which URLs others name its volumes
        unknown = [pool for pool in self._manager.pools(active=True) if not pool.snapshot.taken_at]
        if unknown:
            looks = (pool.refresh(timeout=LOOK_SECONDS) for pool in unknown if pool.state is not PoolState.INACCESSIBLE)
            await asyncio.gather(*looks, return_exceptions=True)

    async def _able(self, operation: str) -> PoolSession:
        """The session. :raises UnsupportedOperationError: it cannot do this."""
        try:
            session = await self._attached()
        except Exception as error:
            raise self._translate(error, operation) from error
        if self._able_session is not session:
            self._able_session, self._able_to = session, set()
        if operation not in self._able_to:  # to ask a protocol takes as long as to make a file
            if not isinstance(session, SESSION_ABILITIES[operation]):
                raise UnsupportedOperationError(pool=self.name, type=self.type, operation=operation)
            self._able_to.add(operation)
        return session

    @contextlib.contextmanager
    def _claim(self, name: str, operation: str) -> Iterator[None]:
        """The volume is this task's to write. :raises VolumeBusyError: it is somebody else's."""
        if (other := self._written.get(name)) is not None:
            raise self._busy(name, other, operation)
        self._written[name] = operation
        try:
            yield
        finally:
            del self._written[name]

    @contextlib.contextmanager
    def _relying_on(self, backing: Volume | None) -> Iterator[None]:
        """Something is being made inside that is backed by this volume of any pool: it must stay as it is.

        :raises VolumeBusyError: it is being changed.
        """
        if backing is None:
            yield
            return
        home = backing.pool
        if (other := home._written.get(backing.name)) is not None:
            raise home._busy(backing.name, other, "create")
        home._relied_on[backing.name] += 1
        try:
            yield
        finally:
            home._relied_on[backing.name] -= 1
            if not home._relied_on[backing.name]:
                del home._relied_on[backing.name]

    def _busy(self, name: str, what: str, operation: str) -> VolumeBusyError:
        return VolumeBusyError(
            f"volume {name!r} of pool {self.name!r} is being {what} at the moment",
            pool=self.name,
            state=self._state,
            operation=operation,
        )

    @contextlib.contextmanager
    def _reporting(self, name: str, operation: str, on_progress: Progress | None) -> Iterator[Progress]:
        """Tells the caller of every step, and who listens to events now and then, and of the last if there were others."""
        told = time.monotonic()
        last: tuple[int, int | None] | None = None

        def publish(done: int, total: int | None) -> None:
            self._publish(VolumeProgress, name=name, operation=operation, done=done, total=total)

        def tell(done: int, total: int | None) -> None:
            nonlocal told, last
            if on_progress is not None:
                on_progress(done, total)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS:
                told = now
                last = None
                publish(done, total)
                return
            last = done, total

        began = told
        yield tell
        if last is not None and told > began:
            publish(*last)

    @contextlib.asynccontextmanager
    async def _opened(self, session: PoolSession, info: VolumeInfo, *, write: bool = False) -> AsyncIterator[NamedFile]:
        """The volume's bytes. What happens inside is the caller's, and is raised as it is."""
        stack = contextlib.AsyncExitStack()
        opening = cast(OpensVolumes, session).open_volume(info, write=write)
        file = await self._worked(stack.enter_async_context(opening))
        try:
            yield NamedFile(file, self.name, info.name, write=write)
        except BaseException as error:
            await stack.__aexit__(type(error), error, error.__traceback__)
            raise
        await self._worked(stack.aclose())

    async def _worked(self, call: Awaitable[T]) -> T:
        try:
            return await answer(call)
        except Exception as error:
            raise self._named(error) from error.__cause__

    def _named(self, error: Exception) -> Exception:
        """The error with the pool's name in it."""
        if isinstance(error, StorageError):
            if error.pool is None:
                error.pool = self.name
                error.message = f"pool {self.name!r}: {error.message}"
            return error
        if isinstance(error, VolumeBusyError) and not error.pool:
            return VolumeBusyError(
                f"pool {self.name!r}: {error}", pool=self.name, state=self._state, operation=error.operation
            )
        if isinstance(error, (AstoreError, TimeoutError)) or not isinstance(error, OSError):
            return error
        return StorageError(f"pool {self.name!r}: {reason(error)}", errno=error.errno, pool=self.name)

    @contextlib.asynccontextmanager
    async def _making(self, session: PoolSession, name: str) -> AsyncIterator[None]:
        """A volume is made inside. Where that fails, a refresh beside it may have seen it in its place for a moment."""
        generation = self._generation
        try:
            yield
        except BaseException:
            if self._session is session and (self._refresh is not None or self._generation != generation):
                await self._look_again(name)
            raise

    @contextlib.asynccontextmanager
    async def _seeing_change(self, name: str) -> AsyncIterator[None]:
        """A volume is read inside. Where it turns out to be another by now, its record is brought up to date."""
        try:
            yield
        except StorageError as error:
            if error.errno == EAGAIN:
                await self._look_again(name)
            raise

    def _made(self, session: PoolSession, info: VolumeInfo) -> Volume:
        self._check_same(session, "create")
        self._apply({record(info).name: info})
        return Volume(cast("Pool", self), info.name)

    def _check_same(self, session: PoolSession, operation: str) -> None:
        """:raises InvalidStateError: the pool was stopped meanwhile: there is nobody whom the work's result concerns."""
        if self._session is not session:
            raise self._stopped_meanwhile(operation)

    async def _look_again(self, *names: str) -> None:
        """After work that may have changed volumes: see what they are now. Bounded; never raises."""
        for name in names:
            await shielded(self._refresh_quietly(name))

    async def _look_at_same(self, name: str) -> None:
        """See what a volume is now. :raises StorageError: EAGAIN: it is another file than it was known as."""
        before = self._snapshot.get(name)
        await self._look_again(name)
        now = self._snapshot.get(name)
        if before is not None and now is not None and now.inode != before.inode:
            raise StorageError(
                f"volume {name!r} of pool {self.name!r} is another file than it was: look at it before you use it",
                errno=EAGAIN,
                pool=self.name,
            )

    async def _refresh_quietly(self, name: str) -> None:
        with contextlib.suppress(Exception):
            await self._refresh_volume(name, CLEANUP_SECONDS)
