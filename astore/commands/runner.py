"""Programs, run without a shell: killed and reaped at their deadline, or when the caller is cancelled."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from astore.backend import CommandResult, Lane, Limits
from astore.cancellation import shielded
from astore.commands.command import MAX_OUTPUT, Command, environment
from astore.commands.starter import STARTER, words
from astore.errors import CommandError, printable
from astore.lanes.job import at_least


class LaneCommandRunner:
    """Runs programs on the threads of a lane; see :class:`astore.backend.CommandRunner`.

    :param timeout: the default deadline of a program, in seconds.
    """

    def __init__(self, lane: Lane, timeout: float = 30.0) -> None:
        self._lane = lane
        self._timeout = timeout

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        descriptors: Sequence[int] = (),
        max_output: int = MAX_OUTPUT,
    ) -> CommandResult:
        limit = at_least(self._timeout if timeout is None else timeout)
        command = Command(tuple(argv), limit, environment(env or {}), limits, descriptors, max_output)
        try:
            # the thread ends by itself at the limit; the lane's deadline is for programs that cannot even be killed
            result = await self._lane.run(command.run, timeout=limit + 2.0)
        except BaseException:
            command.kill()
            await shielded(command.gone())
            raise
        if check and result.returncode != 0:
            raise _failed(result)
        return result


async def prepare_programs(lane: Lane) -> None:
    """Start the helper process that starts programs, if it does not run. Called before a storage is opened."""
    if not STARTER.running:
        with contextlib.suppress(OSError):  # a program that is run later tells
            await lane.run(STARTER.start)


def _failed(result: CommandResult) -> CommandError:
    stderr = result.stderr.decode("utf-8", "replace").strip()
    said = stderr or result.stdout.decode("utf-8", "replace").strip() or f"exit code {result.returncode}"
    line = " ".join(printable(said[:4000].replace("\n", " ")).split())[:1000]
    return CommandError(f"{words(result.argv)}: {line}", argv=result.argv, returncode=result.returncode, stderr=stderr)
