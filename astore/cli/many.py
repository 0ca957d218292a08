"""Commands on several pools, files or volumes. Failures are independent, and each gets its own line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from astore.cli.documents import failure
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Output
from astore.cli.parameters import LIMIT

if TYPE_CHECKING:
    from astore.cli.session import Session
    from astore.pools.pool import Pool


class Outcome(NamedTuple):
    """The outcome for one pool, definition file or volume.

    :ivar asked: the pool's name on the command line, if it was there. :ivar pool: the pool, if it was found.
    :ivar error: the failure, if any. :ivar file: the definition file, if there was one.
    :ivar volume: the volume's name, if there was one.
    """

    asked: str | None
    pool: Pool | None
    error: Exception | None
    file: str | None = None
    volume: str | None = None


async def each(
    session: Session,
    names: Sequence[str],
    act: Callable[[Pool], Awaitable[object]],
    *,
    label: str,
    limit: int = LIMIT,
) -> list[Outcome]:
    """Call ``act`` for each pool, ``limit`` at a time. Return the outcomes in the order of ``names``."""
    import asyncio

    session.ticker.begin(label, len(names))
    turn = asyncio.Semaphore(limit)

    async def one(name: str) -> Outcome:
        pool: Pool | None = None
        async with turn:
            try:
                pool = session.pool(name)
                await act(pool)
            except Exception as error:
                return Outcome(name, pool, error)
            finally:
                session.ticker.step()
            return Outcome(name, pool, None)

    return await asyncio.gather(*(one(name) for name in dict.fromkeys(names)))


def chosen(
    session: Session, names: Sequence[str], all_of_them: bool, candidates: Sequence[Pool], options: str = "--all"
) -> list[str]:
    """Return the names of the pools to work on: those given, or those of all candidates.

    :param options: the options that mean all candidates, for the error message.
    :raises CliError: both or neither were given.
    """
    if bool(names) == all_of_them:
        raise CliError(f"name the pools, or say {options} (not both)", Exit.USAGE)
    return [pool.name for pool in candidates] if all_of_them else list(names)


def answer(
    action: str,
    outcomes: Sequence[Outcome],
    done: str,
    *,
    nothing: str = "no pool to do that to",
    warnings: Sequence[str] = (),
    more: Callable[[Pool], str] = lambda pool: "",
) -> Answer:
    """Make the answer for several outcomes: a line for each success, and a line on stderr for each failure.

    :param done: the sentence for a success, with ``{name}`` and ``{file}``.
    :param nothing: the sentence if there are no outcomes. :param warnings: more lines for stderr.
    :param more: returns the end of the sentence for a pool.
    """
    results = [
        {
            "ok": outcome.error is None,
            "pool": outcome.pool.name if outcome.pool is not None else outcome.asked,
            "uuid": outcome.pool.uuid if outcome.pool is not None else None,
            "state": outcome.pool.state if outcome.pool is not None else None,
            "file": outcome.file,
            "volume": outcome.volume,
            "error": failure(outcome.error),
        }
        for outcome in outcomes
    ]

    def show(output: Output) -> None:
        for outcome in outcomes:
            if outcome.error is None and outcome.pool is not None:
                name = outcome.pool.name if outcome.volume is None else outcome.volume
                output.line(done.format(name=repr(name), file=outcome.file) + more(outcome.pool))
        if not outcomes:
            output.line(nothing)

    failed = [(outcome.file, outcome.error) for outcome in outcomes if outcome.error is not None]
    problems = [f"{file}: {explain(error)}" if file else explain(error) for file, error in failed]
    problems = [*dict.fromkeys(problems), *warnings]
    code = code_of_all([error for _, error in failed], len(outcomes) - len(failed))
    return Answer({"action": action, "results": results}, show, problems, code)
