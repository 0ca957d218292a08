"""The application: groups, options of every command, virsh's names, and what becomes of errors.

Start-up is part of what a command-line tool is judged by: what a command needs is imported when it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from astore.cli import backends, pool_import, pool_sources, pool_views, pools, volume_changes, volume_streams, volumes
from astore.cli import events as watching
from astore.cli.demo_command import register as register_demo
from astore.cli.exits import Exit
from astore.cli.interruptions import ignore_interruptions
from astore.cli.output import complain, drop_stdout
from astore.cli.session import CONTEXT_SETTINGS, JSON, STATE_DIR, TIMEOUT, VERBOSE, VIRSH, Settings, is_usage_error

# modules that are imported for the commands they add
__all__ = ["app", "pool_import", "pool_sources", "pool_views", "run", "volume_changes", "volume_streams"]


class Application(TyperGroup):
    """Lists the groups before the commands that stand alone, and says so when it is interrupted.

    What is needed every day comes first. And typer makes of a Ctrl-C that comes while it is at work a code without a word.
    """

    def make_context(self, *arguments: Any, **settings: Any) -> Any:
        """Parse the arguments. :raises typer.Abort: interrupted."""
        try:
            return super().make_context(*arguments, **settings)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command. :raises typer.Abort: interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def list_commands(self, ctx: Any) -> list[str]:
        """The names in the order of the help."""
        return sorted(super().list_commands(ctx), key=lambda name: not isinstance(self.commands[name], TyperGroup))


app = typer.Typer(
    name="astore",
    help="Storage pools and volumes: libvirt's pools without the daemon.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such pool or volume, 4 some of several failed, 124 not in time, "
        "130 interrupted. virsh's names work too (pool-list, vol-upload, ...)."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    cls=Application,
)
app.add_typer(pools.app, name="pool")
app.add_typer(volumes.app, name="vol")
app.add_typer(backends.app, name="backend")
watching.register(app)
register_demo(app)
for _name, _entry in VIRSH.items():
    app.command(_name, hidden=True, context_settings=CONTEXT_SETTINGS.get(_entry))(_entry)


def _version(wanted: bool) -> None:
    if wanted:
        import astore

        print(f"astore {astore.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    state_dir: Annotated[str | None, STATE_DIR] = None,
    json: Annotated[bool, JSON] = False,
    timeout: Annotated[float | None, TIMEOUT] = None,
    verbose: Annotated[bool, VERBOSE] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = Settings(state_dir, json, timeout, verbose)


def run(argv: Sequence[str]) -> int:
    """Run one invocation in this process. :param argv: without the program's name. :returns: the exit code."""
    stdout, stderr = sys.stdout, sys.stderr
    try:
        code = typer.main.get_command(app).main(list(argv), prog_name="astore", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as error:  # shell completion ends so, and so does typer where the reader went away
        if isinstance(error.__context__, BrokenPipeError):
            sys.stdout, sys.stderr = stdout, stderr  # which it had wrapped
            drop_stdout()
            return Exit.BROKEN_PIPE
        return error.code if isinstance(error.code, int) else int(Exit.OK)
    except BrokenPipeError:
        drop_stdout()
        return Exit.BROKEN_PIPE
    except OSError as error:
        complain(f"standard output: {error.strerror}")
        drop_stdout()
        return Exit.FAILED
    except (KeyboardInterrupt, typer.Abort):
        ignore_interruptions()
        complain("interrupted")
        return Exit.INTERRUPTED
    except Exception as error:
        if not is_usage_error(error):
            raise
        return _wrong_usage(error)


def _wrong_usage(error: Exception) -> int:
    """One line: what is wrong, and where it is said how it should be."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "astore"
    if type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help() if context is not None else path, file=sys.stderr)
        return Exit.USAGE
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    complain(f"{' '.join(message.split()).rstrip('.')}: see `{path} --help`")
    return Exit.USAGE
