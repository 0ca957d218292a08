"""How a command runs: its settings, what it works with, its answer; and the decorators that make commands of functions.

asyncio and the Manager are imported for the commands that need them. The others look at the state folder and nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from astore.cli.exits import CliError, Exit, code_of, explain
from astore.cli.interruptions import ignore_interruptions, interruptions_cancel, interruptions_raise
from astore.cli.output import Answer, Output, complain, writing

if TYPE_CHECKING:
    from astore.cli.progress import Ticker
    from astore.cli.standing import Standing
    from astore.manager import Manager
    from astore.pools.pool import Pool

T = TypeVar("T")


def common_options(envvar: str | None = None) -> list[click.Parameter]:
    """Make the options of every command.

    :param envvar: of --state-dir in front of the command; behind it, the environment would overrule what was said in front.
    """
    return [
        click.Option(
            ["--state-dir"],
            envvar=envvar,
            show_envvar=True,
            metavar="FOLDER",
            help="The folder of definitions (else ASTORE_STATE_DIR, root's /var/lib/astore, or the user's own).",
        ),
        click.Option(["--json"], is_flag=True, help="One JSON document instead of a table."),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(min=0.001),
            metavar="SECONDS",
            help="How long it may take: each pool, where it is about several.",
        ),
        verbose_option(),
    ]


def verbose_option() -> click.Option:
    """Make the option --verbose."""
    return click.Option(["--verbose", "-v"], is_flag=True, help="Log to stderr, and show where errors come from.")


class Settings(NamedTuple):
    """The options of every command."""

    state_dir: str | None = None
    json: bool = False
    timeout: float | None = None
    verbose: bool = False

    def with_verbose(self, verbose: bool) -> Settings:
        """The same, verbose if ``verbose`` or if it was before."""
        return self._replace(verbose=verbose or self.verbose)


class Session(NamedTuple):
    """What a command works with while its Manager is open. Nothing is written before that is closed again."""

    manager: Manager
    settings: Settings
    ticker: Ticker

    def pool(self, name: str) -> Pool:
        """A pool by its name or UUID. :raises PoolNotFoundError: there is none."""
        from astore.errors import PoolNotFoundError

        try:
            return self.manager.pool(name)
        except PoolNotFoundError:
            try:
                return self.manager.pool_by_uuid(name)
            except PoolNotFoundError:
                pass
            raise

    async def in_time(self, call: Coroutine[Any, Any, T]) -> T:
        """Let ``call`` take as long as --timeout says. :raises TimeoutError: it took longer, and was cancelled."""
        import asyncio

        try:
            async with asyncio.timeout(self.settings.timeout) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"not done within {self.settings.timeout:g} s") from error


Work = Callable[..., Coroutine[Any, Any, Answer]]
W = TypeVar("W", bound=Callable[..., Any])


def command(name: str, *, signed: bool = False) -> Callable[[Work], click.Command]:
    """Make a command of a coroutine that takes a :class:`Session` first; the options of every command are added.

    :param signed: an argument may be a number below 0.
    """

    def decorate(work: Work) -> click.Command:
        def run(settings: Settings, arguments: dict[str, Any]) -> None:
            perform(lambda session: work(session, **arguments), settings)

        return _command(name, work, run, {"ignore_unknown_options": True} if signed else {})

    return decorate


def view(name: str) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a command of a function that takes a :class:`~astore.cli.standing.Standing` first, and only looks at that."""

    def decorate(work: Callable[..., Answer]) -> click.Command:
        def run(settings: Settings, arguments: dict[str, Any]) -> None:
            look(lambda standing: work(standing, **arguments), settings)

        return _command(name, work, run, {})

    return decorate


def _command(
    name: str,
    work: Callable[..., object],
    run: Callable[[Settings, dict[str, Any]], None],
    context_settings: dict[str, Any],
) -> click.Command:
    """A command that merges the options in front of it and behind it, and hands its own on."""

    def entry(*, state_dir: str | None, json: bool, timeout: float | None, verbose: bool, **arguments: Any) -> None:
        given: Settings = click.get_current_context().obj or Settings()
        settings = Settings(
            state_dir if state_dir is not None else given.state_dir,
            json or given.json,
            timeout if timeout is not None else given.timeout,
            verbose or given.verbose,
        )
        run(settings, arguments)

    parameters: list[click.Parameter] = getattr(work, "__click_params__", [])
    return click.Command(
        name,
        callback=entry,
        params=[*reversed(parameters), *common_options()],
        help=work.__doc__,
        context_settings=context_settings,
    )


def perform(work: Callable[[Session], Coroutine[Any, Any, Answer]], settings: Settings) -> None:
    """Open the Manager, do the work, close it, and answer.

    :raises click.exceptions.Exit: with the exit code, unless all went well; what there is to say was said.
    """
    import asyncio

    from astore import manager  # noqa: F401 (what takes long to import, while an interruption ends the process at once)
    from astore.cli.progress import Ticker

    with logs(settings.verbose), reported(settings), interruptions_raise():
        with Ticker() as ticker:
            try:
                answer = asyncio.run(_inside(work, settings, ticker))
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
        present(answer, settings)


async def _inside(work: Callable[[Session], Coroutine[Any, Any, Answer]], settings: Settings, ticker: Ticker) -> Answer:
    from astore.manager import Manager

    _check_folder(settings)
    ticker.begin("reading the state folder")
    with interruptions_cancel():
        async with Manager(settings.state_dir) as manager:
            ticker.begin("")
            return await work(Session(manager, settings, ticker))


def look(work: Callable[[Standing], Answer], settings: Settings) -> None:
    """Read the state folder and answer, without an event loop.

    :raises click.exceptions.Exit: with the exit code, unless all went well; what there is to say was said.
    """
    from astore.cli.standing import standing

    with logs(True) if settings.verbose else nullcontext(), reported(settings), interruptions_raise():
        _check_folder(settings)
        present(work(standing(settings.state_dir)), settings)


def _check_folder(settings: Settings) -> None:
    if settings.state_dir == "":  # as of an unset variable
        raise CliError("--state-dir: the folder has no name", Exit.USAGE)


def present(answer: Answer, settings: Settings) -> None:
    """Write an answer. :raises click.exceptions.Exit: its code is not 0."""
    with writing():
        output = Output()
        if not settings.json:
            answer.show(output)
        elif answer.document is not None:
            from astore.cli import shapes

            output.raw(shapes.document(answer.document() if callable(answer.document) else answer.document))
        sys.stdout.flush()
    for problem in answer.problems:
        complain(problem)
    if answer.code:
        raise click.exceptions.Exit(answer.code)


@contextmanager
def reported(settings: Settings) -> Iterator[None]:
    """Say errors in one line. :raises click.exceptions.Exit: in place of whatever was raised."""
    try:
        yield
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        ignore_interruptions()
        complain("interrupted")
        raise click.exceptions.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, click.ClickException):
            raise
        if settings.verbose:
            import traceback

            traceback.print_exc()
        complain(explain(error))
        raise click.exceptions.Exit(code_of(error)) from None


@contextmanager
def logs(verbose: bool) -> Iterator[None]:
    """astore's log on stderr, or nowhere: what is wrong is said by the command itself."""
    import logging

    logger = logging.getLogger("astore")
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
