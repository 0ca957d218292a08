"""Running a command: its settings, its session and its answer, and the decorators that turn functions into commands.

Only the commands that need asyncio and the Manager import them. The others read the state folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from astore.cli.exits import CliError, Exit, code_of, explain
from astore.cli.interruptions import (
    ignore_interruptions,
    interruptions_cancel,
    interruptions_raise,
    interruptions_wait,
)
from astore.cli.output import Answer, Output, complain, writing

if TYPE_CHECKING:
    from astore.cli.progress import Ticker
    from astore.cli.standing import Standing
    from astore.manager import Manager
    from astore.pools.pool import Pool

T = TypeVar("T")


def common_options(envvar: str | None = None) -> list[click.Parameter]:
    """Make the options of every command.

    :param envvar: the environment variable of --state-dir. Give it for the options before the command only: after the
        command, the environment would override the option given before it.
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
            help="The time limit; with several pools, for each of them.",
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
        """Return a copy that is verbose if ``verbose`` or if this one is."""
        return self._replace(verbose=verbose or self.verbose)


class Session(NamedTuple):
    """The Manager, settings and progress display of a running command. Its answer is written after the Manager closes."""

    manager: Manager
    settings: Settings
    ticker: Ticker

    def pool(self, name: str) -> Pool:
        """Return a pool by its name or UUID. :raises PoolNotFoundError: there is none."""
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
        """Await ``call`` for at most --timeout seconds. :raises TimeoutError: it took longer, and was cancelled."""
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
    """Turn a coroutine function whose first parameter is a :class:`Session` into a command with the common options.

    :param signed: an argument may be a negative number.
    """

    def decorate(work: Work) -> click.Command:
        def run(settings: Settings, arguments: dict[str, Any]) -> None:
            perform(lambda session: work(session, **arguments), settings)

        return _command(name, work, run, {"ignore_unknown_options": True} if signed else {})

    return decorate


def view(name: str) -> Callable[[Callable[..., Answer]], click.Command]:
    """Turn a function whose first parameter is a :class:`~astore.cli.standing.Standing` into a command."""

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
    """Make a command that merges the common options given before and after its name."""

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
    """Open the Manager, do the work, close the Manager, and write the answer.

    :raises click.exceptions.Exit: the exit code is not 0. All output has been written.
    """
    import asyncio

    from astore import manager  # noqa: F401 (imported while Ctrl-C still ends the process at once)
    from astore.cli.progress import Ticker

    with logs(settings.verbose), reported(settings), interruptions_raise():
        with Ticker() as ticker, ExitStack() as waiting:
            waiting.enter_context(
                interruptions_wait()
            )  # an event loop does not survive being interrupted while it starts
            try:
                answer = asyncio.run(_inside(work, settings, ticker, waiting))
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
        present(answer, settings)


async def _inside(
    work: Callable[[Session], Coroutine[Any, Any, Answer]], settings: Settings, ticker: Ticker, waiting: ExitStack
) -> Answer:
    """Work. :param waiting: delays interruptions; closed here while there is a task to cancel."""
    from astore.manager import Manager

    waiting.close()
    try:
        with interruptions_cancel():
            _check_folder(settings)
            ticker.begin("reading the state folder")
            async with Manager(settings.state_dir) as manager:
                ticker.begin("")
                return await work(Session(manager, settings, ticker))
    finally:
        waiting.enter_context(interruptions_wait())  # nor while it ends


def look(work: Callable[[Standing], Answer], settings: Settings) -> None:
    """Read the state folder and write the answer, without an event loop.

    :raises click.exceptions.Exit: the exit code is not 0. All output has been written.
    """
    from astore.cli.standing import standing

    with logs(True) if settings.verbose else nullcontext(), reported(settings), interruptions_raise():
        _check_folder(settings)
        present(work(standing(settings.state_dir, settings.timeout)), settings)


def _check_folder(settings: Settings) -> None:
    if settings.state_dir == "":  # from an unset shell variable
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
    """Report an error in one line. :raises click.exceptions.Exit: in place of that error."""
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
    """Send astore's log to stderr if verbose, else drop it: the command reports errors itself."""
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
