"""How a command runs: its settings, its Manager, its answer; and the decorator that makes a command of a coroutine."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import typer

from astore.cli.exits import CliError, Exit, code_of, explain
from astore.cli.interruptions import ignore_interruptions, interruptions_cancel
from astore.cli.output import Answer, Output, complain, writing
from astore.cli.progress import Ticker

if TYPE_CHECKING:
    from astore.manager import Manager
    from astore.pools.pool import Pool

P = ParamSpec("P")
T = TypeVar("T")

_PANEL = "Options of every command"


def _state_dir(envvar: str | None) -> Any:
    return typer.Option(
        "--state-dir",
        envvar=envvar,
        metavar="FOLDER",
        help="The folder of definitions (else ASTORE_STATE_DIR, root's /var/lib/astore, or the user's own).",
        rich_help_panel=_PANEL,
        show_default=False,
    )


STATE_DIR = _state_dir("ASTORE_STATE_DIR")
"""In front of the command; there the environment counts too. Behind it, it would overrule what was said in front."""
_STATE_DIR_BEHIND = _state_dir(None)
JSON = typer.Option("--json", help="One JSON document instead of a table.", rich_help_panel=_PANEL)
TIMEOUT = typer.Option(
    "--timeout",
    metavar="SECONDS",
    min=0.001,
    help="How long it may take: each pool, where it is about several.",
    rich_help_panel=_PANEL,
    show_default=False,
)
VERBOSE = typer.Option(
    "--verbose", "-v", help="Log to stderr, and show where errors come from.", rich_help_panel=_PANEL
)


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
        try:
            async with asyncio.timeout(self.settings.timeout) as limit:
                return await call
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"not done within {self.settings.timeout:g} s") from error


Work = Callable[Concatenate[Session, P], Coroutine[Any, Any, Answer]]

VIRSH: dict[str, Callable[..., None]] = {}
"""Commands by virsh's names for them."""


CONTEXT_SETTINGS: dict[Callable[..., None], dict[str, Any]] = {}
"""What click is to be told about some of the commands."""


def command(
    app: typer.Typer, name: str, *, virsh: str = "", also: str = "", signed: bool = False
) -> Callable[[Work[P]], Work[P]]:
    """Make a command of a coroutine that takes a :class:`Session` first; the options of every command are added.

    :param virsh: virsh's name, accepted in its place. :param also: another name in the same group, not shown in the help.
    :param signed: an argument may be a number below 0.
    """

    def decorate(work: Work[P]) -> Work[P]:
        entry = entry_point(work)
        settings = {"ignore_unknown_options": True} if signed else {}
        CONTEXT_SETTINGS[entry] = settings
        app.command(name, context_settings=settings)(entry)
        if also:
            app.command(also, hidden=True, context_settings=settings)(entry)
        if virsh:
            VIRSH[virsh] = entry
        return work

    return decorate


def entry_point(work: Work[P]) -> Callable[..., None]:
    """The function that typer calls: ``work``'s parameters and the options of every command."""

    def entry(
        context: typer.Context,
        *,
        state_dir: str | None,
        json: bool,
        timeout: float | None,
        verbose: bool,
        **arguments: Any,
    ) -> None:
        given: Settings = context.obj or Settings()
        settings = Settings(
            state_dir if state_dir is not None else given.state_dir,
            json or given.json,
            timeout if timeout is not None else given.timeout,
            verbose or given.verbose,
        )
        perform(lambda session: work(session, **arguments), settings)  # type: ignore[call-arg]

    parameters = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    common: list[tuple[str, Any, object]] = [
        ("context", typer.Context, empty),
        ("state_dir", Annotated[str | None, _STATE_DIR_BEHIND], None),
        ("json", Annotated[bool, JSON], False),
        ("timeout", Annotated[float | None, TIMEOUT], None),
        ("verbose", Annotated[bool, VERBOSE], False),
    ]
    parameters = [parameter.replace(kind=keyword) for parameter in parameters]
    parameters += [inspect.Parameter(name, keyword, annotation=kind, default=value) for name, kind, value in common]
    entry.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    entry.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    entry.__name__, entry.__doc__ = work.__name__, work.__doc__
    return entry


def perform(work: Callable[[Session], Coroutine[Any, Any, Answer]], settings: Settings) -> None:
    """Open the Manager, do the work, close it, and answer.

    :raises typer.Exit: with the exit code, unless all went well; what there is to say was said.
    """
    with logs(settings.verbose), reported(settings):
        with Ticker() as ticker:
            answer = asyncio.run(_inside(work, settings, ticker))
        present(answer, settings)


async def _inside(work: Callable[[Session], Coroutine[Any, Any, Answer]], settings: Settings, ticker: Ticker) -> Answer:
    from astore.manager import Manager

    if settings.state_dir == "":  # as of an unset variable
        raise CliError("--state-dir: the folder has no name", Exit.USAGE)
    ticker.begin("reading the state folder")
    with interruptions_cancel():
        async with Manager(settings.state_dir) as manager:
            ticker.begin("")
            return await work(Session(manager, settings, ticker))


def present(answer: Answer, settings: Settings) -> None:
    """Write an answer. :raises typer.Exit: its code is not 0."""
    from astore.cli import shapes

    with writing():
        output = Output()
        if not settings.json:
            answer.show(output)
        elif answer.document is not None:
            output.raw(shapes.document(answer.document))
        sys.stdout.flush()
    for problem in answer.problems:
        complain(problem)
    if answer.code:
        raise typer.Exit(answer.code)


@contextmanager
def reported(settings: Settings) -> Iterator[None]:
    """Say errors in one line. :raises typer.Exit: in place of whatever was raised."""
    try:
        yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except (KeyboardInterrupt, asyncio.CancelledError):
        ignore_interruptions()
        complain("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        if is_usage_error(error):
            raise
        if settings.verbose:
            traceback.print_exc()
        complain(explain(error))
        raise typer.Exit(code_of(error)) from None


def is_usage_error(error: BaseException) -> bool:
    """Whether typer raised it about the arguments. (Its base class has lived in different modules.)"""
    return any(kind.__name__ == "ClickException" for kind in type(error).__mro__)


@contextmanager
def logs(verbose: bool) -> Iterator[None]:
    """astore's log on stderr, or nowhere: what is wrong is said by the command itself."""
    logger = logging.getLogger("astore")
    handler = logging.StreamHandler() if verbose else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    if verbose:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
