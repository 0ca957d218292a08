"""The click application: groups, global options, virsh's command names and the handling of errors.

Each command's module is imported only when that command runs, which keeps start-up fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

import astore
from astore.cli.command_line import INSTEAD
from astore.cli.completion import completion_of
from astore.cli.exits import CliError, Exit
from astore.cli.interruptions import ignore_interruptions
from astore.cli.output import complain, drop_stdout
from astore.cli.session import Settings, common_options, connect_option
from astore.cli.virsh import VERBS
from astore.entry_points import installed_types

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

POOL = {
    "define": "pools:define",
    "define-as": "pool_as:define_as",
    "create": "pools:create",
    "create-as": "pool_as:create_as",
    "edit": "pool_edit:edit",
    "start": "pools:start",
    "stop": "pools:stop",
    "build": "pools:build",
    "delete": "pools:delete",
    "undefine": "pools:undefine",
    "autostart": "pools:autostart",
    "import": "pool_import:import_command",
    "discover": "pool_sources:discover",
    "capabilities": "pool_sources:capabilities",
    "list": "pool_list:list_pools",
    "info": "pool_views:show_info",
    "dumpxml": "pool_views:dumpxml",
    "refresh": "pool_refresh:refresh",
    "event": "pool_event:pool_event",
}
VOLUME = {
    "list": "volumes:list_volumes",
    "info": "volumes:show_info",
    "dumpxml": "volumes:dumpxml",
    "path": "volumes:path",
    "create": "volume_changes:create",
    "create-as": "volume_changes:create",
    "create-xml": "volume_changes:create_xml",
    "create-from": "volume_copies:create_from",
    "clone": "volume_copies:clone",
    "move": "volume_copies:move",
    "resize": "volume_changes:resize",
    "wipe": "volume_changes:wipe",
    "delete": "volume_changes:delete",
    "rename": "volume_changes:rename",
    "set-format": "volume_changes:set_format",
    "chain": "volume_changes:chain",
    "dependents": "volume_changes:dependents",
    "check": "image_reports:check",
    "snapshots": "image_reports:snapshots",
    "upload": "volume_streams:upload",
    "download": "volume_streams:download",
}
SECRET = {
    "set": "secrets:set_secret",
    "list": "secrets:list_secrets",
    "remove": "secrets:remove",
    "define": "secrets:define",
    "set-value": "secrets:set_value",
    "dumpxml": "secrets:dumpxml",
    "undefine": "secrets:undefine",
}
BACKEND = {"list": "backends:list_backends"}
"""The ``module:object`` of each command, in the order of the help."""


class Verbs(click.Group):
    """A group that imports a command when it is used.

    :param places: the ``module:object`` of each command by its name. :param hidden: more of them, not listed in the help.
    """

    def __init__(self, name: str, places: Mapping[str, str], hidden: Mapping[str, str], **settings: Any) -> None:
        super().__init__(name, no_args_is_help=True, **settings)
        self._places = places
        self._hidden = hidden

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help."""
        return [*self.commands, *self._places]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Return None if there is no command of this name."""
        place = self._places.get(cmd_name) or self._hidden.get(cmd_name)
        return super().get_command(ctx, cmd_name) if place is None else _imported(place)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first word names. :raises click.UsageError: there is none; similar names are told."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = self._near(ctx, args[0])
            meant = f": did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}{meant}", ctx) from error

    def _near(self, ctx: click.Context, name: str) -> list[str]:
        """Return the commands that one may have meant by a name that none has: `vol check` by `vol-check` or `check`."""
        from difflib import get_close_matches

        group, _, verb = name.partition("-")
        own = [*self.list_commands(ctx)]
        groups = {one: found for one in own if isinstance(found := self.get_command(ctx, one), click.Group)}
        if group in groups and verb in groups[group].list_commands(ctx):
            return [f"{group} {verb}"]
        near = get_close_matches(name, (*own, *self.unlisted()), cutoff=0.7)
        return near or [f"{one} {name}" for one, found in groups.items() if name in found.list_commands(ctx)]

    def unlisted(self) -> Iterable[str]:
        """Return the names of commands that the help does not list."""
        return self._hidden

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of our names and options. Where there are none, return those of the names not listed."""
        found = super().shell_complete(ctx, incomplete)
        if found or not incomplete:
            return found
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in self._hidden if name.startswith(incomplete)]


COMMANDS = "astore.commands"
"""Distributions announce a command here: the entry point's name is the command's, its object a click Command."""

OPTIONS = "astore.options"
"""Distributions announce options of ``astore`` here: the entry point's object is a function that returns click Options.

They are looked for if an option before the command is unknown, and by the help. The callback of one may put a click Group into
``context.meta`` under INSTEAD.
"""


class _Root(Verbs):
    """The command ``astore``, which knows the commands of other distributions, and virsh's names, which no help lists."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        if ctx.resilient_parsing and args and args[0].startswith("-"):  # unknown options are no errors then
            self._look_for_options(ctx)
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption:
            if OPTIONS in ctx.meta or not self._look_for_options(ctx):
                raise
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options, with those of other distributions if they were looked for."""
        return [*super().get_params(ctx), *ctx.meta.get(OPTIONS, ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and the commands."""
        self._look_for_options(ctx)
        super().format_options(ctx, formatter)

    @staticmethod
    def _look_for_options(ctx: click.Context) -> bool:
        """Look for options of other distributions. Return whether there are any."""
        if installed_types(OPTIONS):
            from importlib.metadata import entry_points

            ctx.meta[OPTIONS] = [option for announced in entry_points(group=OPTIONS) for option in announced.load()()]
        return OPTIONS in ctx.meta

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help."""
        other = ctx.meta.get(INSTEAD)
        if other is not None:
            return list(other.list_commands(ctx))
        own = super().list_commands(ctx)
        return [*own, *sorted(installed_types(COMMANDS) - set(own))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Return None if there is no command of this name."""
        other: click.Group | None = ctx.meta.get(INSTEAD)
        if other is not None:
            return other.get_command(ctx, cmd_name)
        verb = VERBS.get(cmd_name)
        if verb is None:
            found = super().get_command(ctx, cmd_name)
            if found is None and cmd_name in installed_types(COMMANDS):
                from importlib.metadata import entry_points

                (announced, *_) = entry_points(group=COMMANDS, name=cmd_name)
                found = announced.load()
                assert isinstance(found, click.Command)
            return found
        from astore.cli.virsh_command import VirshCommand

        return VirshCommand(cmd_name, verb, _imported(verb.place))

    def unlisted(self) -> Iterable[str]:
        """Return virsh's names."""
        return VERBS

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of our names and options, and of virsh's names once they have their dash."""
        if incomplete.startswith("-"):
            self._look_for_options(ctx)
        found = super().shell_complete(ctx, incomplete)
        if "-" in incomplete:
            from click.shell_completion import CompletionItem

            found += [CompletionItem(name) for name in VERBS if name.startswith(incomplete)]
        return found


def _imported(place: str) -> click.Command:
    module, _, name = place.partition(":")
    found = getattr(import_module(f"astore.cli.{module}"), name)
    assert isinstance(found, click.Command)
    return found


_THIS = "this"
"""The shell that runs this process, if none is named."""


def _completion(context: click.Context, parameter: click.Parameter, shell: str | None) -> None:
    if shell is not None and not context.resilient_parsing:
        from astore.cli.completion_scripts import install, script

        act = script if parameter.name == "show_completion" else install
        try:
            said = act("" if shell == _THIS else shell)
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the script'}: {error.strerror}") from error
        print(said)
        context.exit()


def _completion_option(name: str, help: str) -> click.Option:
    return click.Option(
        [name],
        is_flag=False,
        flag_value=_THIS,
        metavar="[bash|zsh|fish]",
        is_eager=True,
        expose_value=False,
        callback=_completion,
        shell_complete=completion_of("bash", "zsh", "fish"),
        help=help,
    )


app = _Root(
    "astore",
    {
        "watch": "watch:watch",
        "events": "events:show_events",
        "demo": "demo_command:demo",
        "shell": "shell:shell",
        "help": "help_command:help_command",
    },
    {},
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Storage pools and volumes: libvirt's pools without the daemon.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such pool, volume or secret, 4 some of several failed, "
        "124 timed out, 130 interrupted. virsh's names work too (pool-list, vol-upload, ...)."
    ),
    params=[*common_options("ASTORE_STATE_DIR"), connect_option()],
)
click.version_option(
    astore.__version__, "--version", "-V", message="astore %(version)s", help="Print the version and exit."
)(app)
app.params += [
    _completion_option(
        "--install-completion", "Install completion for a shell; for the current one, if none is named."
    ),
    _completion_option("--show-completion", "Show the script of the completion instead."),
]
for _group in (
    Verbs("pool", POOL, {"destroy": POOL["stop"]}, help="Define, start, refresh and look at pools."),
    Verbs("vol", VOLUME, {}, help="Make, fill, change and look at the volumes of pools."),
    Verbs("secret", SECRET, {}, help="Keep the passwords and keys that pools need."),
    Verbs("backend", BACKEND, {}, help="Look at the backends."),
):
    app.add_command(_group)


def run(argv: Sequence[str], command: click.Command | None = None, settings: Settings | None = None) -> int:
    """Run one invocation in this process.

    :param argv: without the program's name. :param command: another command than ``astore``.
    :param settings: the options to begin with. :returns: the exit code.
    """
    command = app if command is None else command
    try:
        if instruction := os.environ.get("_ASTORE_COMPLETE"):
            from astore.cli.completion_shells import answer

            return answer(app, instruction)
        with command.make_context(command.name, list(argv), obj=settings) as context:
            command.invoke(context)
        sys.stdout.flush()
        return Exit.OK
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        drop_stdout()
        return Exit.BROKEN_PIPE
    except OSError as error:
        complain(f"standard output: {error.strerror}")
        drop_stdout()
        return Exit.FAILED
    except (KeyboardInterrupt, click.Abort):
        ignore_interruptions()
        complain("interrupted")
        return Exit.INTERRUPTED
    except CliError as error:
        complain(str(error))
        return error.code
    except click.ClickException as error:
        return _wrong_usage(error)


def _wrong_usage(error: click.ClickException) -> int:
    """Print the error in one line that points to the help."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(error.format_message(), file=sys.stderr)
        return Exit.USAGE
    path = context.command_path if context is not None else "astore"
    complain(f"{' '.join(error.format_message().split()).rstrip('.')}: see `{path} --help`")
    return Exit.USAGE
