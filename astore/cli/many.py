"""Doing something to several pools, files or volumes: one failure costs only itself, and each is said in its own line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from astore.cli import shapes
from astore.cli.exits import CliError, Exit, code_of_all, explain
from astore.cli.output import Answer, Output
from astore.cli.parameters import LIMIT

if TYPE_CHECKING:
    from astore.cli.session import Session
    from astore.pools.pool import Pool


class Outcome(NamedTuple):
    """What became of one: the word it was asked for by, the pool if there is one, and the error if there is one.

    :ivar file: the definition file that it was about. :ivar volume: the name of the volume, where it was about one.
    """

    asked: str
    pool: Pool | None
    error: Exception | None
    file: str | None = None
    volume: str | None = None

    @property
    def pool_name(self) -> str | None:
        """The pool's, as far as it is known."""
        if self.pool is not None:
            return self.pool.name
        return self.asked if self.file is None and self.volume is None else None


async def each(
    session: Session,
    names: Sequence[str],
    act: Callable[[Pool], Awaitable[object]],
    *,
    label: str,
    limit: int = LIMIT,
) -> list[Outcome]:
    """Call ``act`` for each pool, ``limit`` at a time; in the order of ``names``."""
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
    """The pools that a command is about: those named, or all candidates.

    :param options: those that mean all candidates. :raises CliError: both, or neither.
    """
    if bool(names) == all_of_them:
        raise CliError(f"name the pools, or say {options} (not both)", Exit.USAGE)
    return [pool.name for pool in candidates] if all_of_them else list(names)


def answer(action: str, outcomes: Sequence[Outcome], done: str, *, nothing: str = "no pool to do that to") -> Answer:
    """What is said about what was done: a line for each success, a line on stderr for each failure.

    :param done: the sentence for one, with ``{name}`` and ``{file}``.
    """
    problems = [_problem(outcome) for outcome in outcomes if outcome.error is not None]
    results = tuple(
        shapes.Done(
            ok=outcome.error is None,
            pool=outcome.pool_name,
            uuid=outcome.pool.uuid if outcome.pool is not None else None,
            state=outcome.pool.state if outcome.pool is not None else None,
            file=outcome.file,
            volume=outcome.volume,
            error=shapes.failure(outcome.error, explain(outcome.error) if outcome.error is not None else None),
        )
        for outcome in outcomes
    )

    def show(output: Output) -> None:
        for outcome in outcomes:
            if outcome.error is None and outcome.pool is not None:
                name = outcome.pool.name if outcome.volume is None else outcome.volume
                output.line(done.format(name=repr(name), file=outcome.file))
        if not outcomes:
            output.line(nothing)

    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    return Answer(shapes.Results(action, results), show, problems, code_of_all(errors, len(outcomes) - len(errors)))


def _problem(outcome: Outcome) -> str:
    assert outcome.error is not None
    text = explain(outcome.error)
    return f"{outcome.file}: {text}" if outcome.file else text
