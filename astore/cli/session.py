"""Running a command: its settings, its session and its answer, and the decorators that turn functions into commands.

Only the commands that need asyncio and the Manager import them. The others read the state folder.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec

from astore.cli.command_line import Command, CommonOption, Number, complete_files
from astore.cli.exits import CliError, Exit, code_of, explain
from astore.cli.interruptions import interruptions_raise, run
from astore.cli.output import Answer, Output, complain, writing
from astore.errors import NotFoundError

if TYPE_CHECKING:
    from asyncio import Runner

    from astore.cli.progress import Ticker
    from astore.cli.standing import Standing
    from astore.manager import Manager
    from astore.pools.pool import Pool
    from astore.secrets import SecretFiles

T = TypeVar("T")


class Settings(msgspec.Struct):
    """The options of every command, wherever on the command line they were given.

    :ivar kept: the Manager of the shell that runs the command, if one does.
    """

    state_dir: str | None = None
    json: bool = False
    timeout: float | None = None
    verbose: bool = False
    virsh: bool = False
    quiet: bool = False
    kept: KeptManager | None = None


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    """Keep a common option. What follows the command overrides what precedes it."""
    if option.name == "state_dir" and value == "":  # from an unset shell variable
        raise CliError("--state-dir: the folder has no name", Exit.USAGE)
    settings = context.ensure_object(Settings)
    if value is not None and value is not False:
        setattr(settings, option.name or "", value)


def _common(name: str, *more: str, **settings: Any) -> click.Option:
    return CommonOption([name, *more], expose_value=False, callback=_keep, **settings)


def common_options(envvar: str | None = None) -> list[click.Parameter]:
    """Make the options of every command.

    :param envvar: the environment variable of --state-dir. Give it for the options before the command only: after the
        command, the environment would override the option given before it.
    """
    return [
        _common(
            "--state-dir",
            shell_complete=complete_files,
            envvar=envvar,
            show_envvar=True,
            metavar="FOLDER",
            help="The folder of definitions (else ASTORE_STATE_DIR, root's /var/lib/astore, or the user's own).",
        ),
        _common("--json", is_flag=True, help="One JSON document instead of a table."),
        _common("--virsh", is_flag=True, help="Print what virsh prints, as its names (pool-list, vol-info ...) do."),
        _common("--quiet", "-q", is_flag=True, help="As virsh -q: what virsh prints without headings and sentences."),
        _common(
            "--timeout",
            type=Number(min=0.001),
            metavar="SECONDS",
            help="The time limit; with several pools, for each of them.",
        ),
        verbose_option(),
    ]


def verbose_option() -> click.Option:
    """Make the option --verbose."""
    return _common("--verbose", "-v", is_flag=True, help="Log to stderr, and show where errors come from.")


def _connected(context: click.Context, option: click.Parameter, uri: str | None) -> None:
    from urllib.parse import urlsplit

    if uri and urlsplit(uri).netloc:
        raise CliError(f"--connect {uri}: astore works on the pools of this machine only", Exit.USAGE)


def connect_option() -> click.Option:
    """Make virsh's option --connect, which scripts give: it is accepted for this machine."""
    return CommonOption(
        ["--connect", "-c"],
        expose_value=False,
        callback=_connected,
        metavar="URI",
        help="For scripts that were written for virsh: a URI of this machine, which changes nothing.",
    )


class KeptManager:
    """The Manager and event loop that the commands of one shell share.

    :ivar runner: the event loop's.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._manager: Manager | None = None
        self._state_dir: str | None = None

    async def manager(self, state_dir: str | None) -> Manager:
        """Return the Manager of a state folder, which has read what is in the folder now."""
        from astore.manager import Manager

        if self._manager is not None and state_dir == self._state_dir:
            await self._manager.reload()
            return self._manager
        await self.aclose()
        self._manager = await Manager(state_dir).__aenter__()
        self._state_dir = state_dir
        return self._manager

    async def aclose(self) -> None:
        """Close the Manager. May be called twice."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.aclose()


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
        except PoolNotFoundError as error:
            with suppress(PoolNotFoundError):
                return self.manager.pool_by_uuid(name)
            from astore.cli.similar import closest, suggest

            suggest(error, closest(name, (pool.name for pool in self.manager.pools())))
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

OnSession = Callable[[Session], Coroutine[Any, Any, Answer]]


def command(name: str, *, signed: bool = False, each_call: bool = False) -> Callable[[Work], click.Command]:
    """Turn a coroutine function whose first parameter is a :class:`Session` into a command with the common options.

    :param signed: an argument may be a negative number. :param each_call: --timeout is the limit of each call to storage.
    """
    act = partial(perform, each_call=each_call)
    return lambda work: _command(name, work, act, {"ignore_unknown_options": True} if signed else {})


def view(name: str) -> Callable[[Callable[..., Answer | OnSession]], click.Command]:
    """Turn a function whose first parameter is a :class:`~astore.cli.standing.Standing` into a command.

    If it returns no answer but a coroutine function of a :class:`Session`, that is asked: there is more to do than to look.
    """
    return lambda work: _command(name, work, look, {})


def secret_command(name: str) -> Callable[[Callable[..., Answer]], click.Command]:
    """Turn a function whose first parameter is a :class:`~astore.secrets.SecretFiles` into a command."""
    return lambda work: _command(name, work, with_secrets, {"allow_extra_args": True})


def _command(
    name: str, work: Callable[..., T], act: Callable[[Callable[[Any], T], Settings], None], context: dict[str, Any]
) -> click.Command:
    """Make a command. :param act: opens what ``work`` works on, and writes its answer."""

    def entry(**arguments: Any) -> None:
        act(lambda opened: work(opened, **arguments), click.get_current_context().ensure_object(Settings))

    parameters: list[click.Parameter] = getattr(work, "__click_params__", [])
    return Command(
        name,
        callback=entry,
        params=[*reversed(parameters), *common_options()],
        help=work.__doc__,
        context_settings=context,
    )


def perform(work: OnSession, settings: Settings, *, each_call: bool = False) -> None:
    """Open the Manager, do the work, close the Manager, and write the answer.

    :param each_call: --timeout is the limit of each call to storage.
    :raises click.exceptions.Exit: the exit code is not 0. All output has been written.
    """
    from astore.cli.progress import Ticker
    from astore.lanes import DEFAULT_TIMEOUT
    from astore.manager import Manager  # imported while Ctrl-C still ends the process at once

    each = settings.timeout if each_call and settings.timeout is not None else DEFAULT_TIMEOUT

    kept = None if each_call else settings.kept

    async def managed() -> Answer:
        if kept is not None:
            return await work(Session(await kept.manager(settings.state_dir), settings, ticker))
        ticker.begin("reading the state folder")
        async with Manager(settings.state_dir, call_timeout=each) as manager:
            ticker.begin("")
            began = time.monotonic()
            try:
                return await work(Session(manager, settings, ticker))
            finally:
                # what hangs since before the deadline would keep this process from exiting
                await manager.aclose(cut=time.monotonic() - began >= (settings.timeout or manager.call_timeout))

    with logs(settings.verbose), reported(settings), interruptions_raise():
        with Ticker() as ticker:
            answer = run(managed, None if kept is None else kept.runner)
        present(answer, settings)


def look(work: Callable[[Standing], Answer | OnSession], settings: Settings) -> None:
    """Read the state folder and write the answer, without an event loop if there is no more to do.

    :raises click.exceptions.Exit: the exit code is not 0. All output has been written.
    """
    from astore.cli.standing import standing

    with logs(True) if settings.verbose else nullcontext(), reported(settings), interruptions_raise():
        if settings.kept is not None:  # what the shell's Manager knows is in the folder once it is closed
            run(settings.kept.aclose, settings.kept.runner)
        found = work(standing(settings.state_dir, settings.timeout))
        if isinstance(found, Answer):
            present(found, settings)
            return
    perform(found, settings)


def without_folder() -> list[str]:
    """Return a line if the state folder was named and does not exist, which virsh's text leaves out."""
    settings = click.get_current_context().ensure_object(Settings)
    if settings.state_dir is None or settings.virsh or settings.quiet or os.path.lexists(settings.state_dir):
        return []
    return [f"there is no state folder {settings.state_dir}"]


def with_secrets(work: Callable[[SecretFiles], Answer], settings: Settings) -> None:
    """Work on the secrets of the state folder and write the answer, without an event loop.

    :raises click.exceptions.Exit: the exit code is not 0. All output has been written.
    :raises CliError: there are too many arguments. One may be a value, which the error does not show.
    """
    if click.get_current_context().args:
        raise CliError(
            "too many arguments. Other users can see arguments, so a value is read from --file or standard input",
            Exit.USAGE,
        )
    from astore.secrets.files import SecretFiles
    from astore.store.local_files import default_state_dir

    with logs(settings.verbose), reported(settings), interruptions_raise():
        present(work(SecretFiles(settings.state_dir or default_state_dir())), settings)


def present(answer: Answer, settings: Settings) -> None:
    """Write an answer. :raises click.exceptions.Exit: its code is not 0."""
    with writing():
        output = Output()
        if not settings.json and (settings.virsh or settings.quiet) and answer.document is not None:
            from astore.cli import virsh_text

            virsh_text.show(answer, output, click.get_current_context(), quiet=settings.quiet)
        elif not settings.json:
            answer.show(output)
        elif answer.document is not None:
            from astore.cli import documents

            output.raw(documents.text(answer.document() if callable(answer.document) else answer.document))
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
    except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
        raise
    except Exception as error:
        if settings.verbose and not isinstance(error, CliError | NotFoundError):  # a typo is no matter of code
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
