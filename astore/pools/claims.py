"""Claims: which volumes of a pool are being written, and on which others are being made."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

from astore.cancellation import left_behind
from astore.errors import VolumeBusyError
from astore.pools.record import PoolRecord


class Claims:
    """The claims of the tasks of this process on the volumes of one pool."""

    def __init__(self, record: PoolRecord) -> None:
        self._record = record
        self._written: dict[str, str] = {}  # the volumes that are being written, and what is done to them
        self._relied_on: Counter[str] = Counter()  # the volumes on which others are being made

    @contextlib.contextmanager
    def claim(self, name: str, operation: str) -> Iterator[None]:
        """Claim a volume for writing. :raises VolumeBusyError: another task has the claim."""
        self._require_not_written(name, operation)
        self._written[name] = operation
        try:
            yield
        finally:
            _when_cleaned_up(lambda: self._written.pop(name, None))

    @contextlib.contextmanager
    def relied_on(self, name: str) -> Iterator[None]:
        """Protect a volume while another is being made on it. :raises VolumeBusyError: it is being changed."""
        self._require_not_written(name, "create")
        self._relied_on[name] += 1
        try:
            yield
        finally:
            _when_cleaned_up(lambda: self._rely_no_more(name))

    def _rely_no_more(self, name: str) -> None:
        self._relied_on[name] -= 1
        if not self._relied_on[name]:
            del self._relied_on[name]

    def require_not_relied_on(self, name: str, operation: str) -> None:
        """Check that no volume is being made on this one. :raises VolumeBusyError: one is."""
        if name in self._relied_on:
            raise self._busy(name, "made the backing file of another", operation)

    def require_unclaimed(self) -> None:
        """Check that no volume of the pool is in use, so that it can be stopped. :raises VolumeBusyError: one is."""
        busy = self._written | dict.fromkeys(self._relied_on, "made the backing file of another")
        if busy:
            told = ", ".join(f"{name!r} ({what})" for name, what in list(busy.items())[:3])
            name = self._record.name
            raise self._error(f"volumes of pool {name!r} are being worked on: {told}; wait, or force the stop", "stop")

    def _require_not_written(self, name: str, operation: str) -> None:
        if (other := self._written.get(name)) is not None:
            raise self._busy(name, other, operation)

    def _busy(self, name: str, what: str, operation: str) -> VolumeBusyError:
        return self._error(f"volume {name!r} of pool {self._record.name!r} is being {what} at the moment", operation)

    def _error(self, what: str, operation: str) -> VolumeBusyError:
        return VolumeBusyError(what, pool=self._record.name, state=self._record.state, operation=operation)


def _when_cleaned_up(give_back: Callable[[], object]) -> None:
    """Give a claim back: now, or after the clean-up that this task has left behind and that may change the volume yet."""
    left = left_behind()
    if left is None:
        give_back()
    else:
        left.add_done_callback(lambda _: give_back())
