"""The click application: groups, global options, virsh's command names and the handling of errors.

Each command's module is imported only when that command runs, which keeps start-up fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

import astore
from astore.cli.exits import CliError, Exit
from astore.cli.interruptions import ignore_interruptions
from astore.cli.output import complain, drop_stdout
from astore.cli.session import common_options
from astore.entry_points import installed_types

POOL = {
    "define": "pools:define",
    "create": "pools:create",
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
}
VOLUME = {
    "list": "volumes:list_volumes",
    "info": "volumes:show_info",
    "dumpxml": "volumes:dumpxml",
    "path": "volumes:path",
    "create": "volume_changes:create",
    "create-xml": "volume_changes:create_xml",
    "clone": "volume_changes:clone",
    "resize": "volume_changes:resize",
    "wipe": "volume_changes:wipe",
    "delete": "volume_changes:delete",
    "rename": "volume_changes:rename",
    "set-format": "volume_changes:set_format",
    "chain": "volume_changes:chain",
    "dependents": "volume_changes:dependents",
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

_OUR_OWN = {"stop", "import", "discover", "capabilities", "create-xml", "rename", "set-format", "chain", "dependents"}
VIRSH = {
    **{f"pool-{verb}": place for verb, place in POOL.items() if verb not in _OUR_OWN},
    **{f"vol-{verb}": place for verb, place in VOLUME.items() if verb not in _OUR_OWN},
    **{f"secret-{verb}": place for verb, place in SECRET.items() if verb not in ("set", "remove")},
    "pool-destroy": POOL["stop"],
    "pool-name": "pool_views:pool_name",
    "pool-uuid": "pool_views:pool_uuid",
    "pool-capabilities": "pool_sources:capabilities_xml",
    "find-storage-pool-sources": "pool_sources:find_sources_by_file",
    "find-storage-pool-sources-as": "pool_sources:find_sources",
    "vol-key": "volumes:vol_key",
    "vol-name": "volumes:vol_name",
    "vol-pool": "volumes:vol_pool",
    "vol-create": VOLUME["create-xml"],
    "vol-create-as": VOLUME["create"],
}
"""The ``module:object`` of each command by its virsh name. The help does not list these names."""


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
        if place is None:
            return super().get_command(ctx, cmd_name)
        module, _, name = place.partition(":")
        found = getattr(import_module(f"astore.cli.{module}"), name)
        assert isinstance(found, click.Command)
        return found


COMMANDS = "astore.commands"
"""Distributions announce a command here: the entry point's name is the command's, its object a click Command."""


class App(Verbs):
    """The application. Its own commands come first, then those of other distributions."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help."""
        own = super().list_commands(ctx)
        return [*own, *sorted(installed_types(COMMANDS) - set(own))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command. Return None if there is no command of this name."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in installed_types(COMMANDS):
            from importlib.metadata import entry_points

            (announced, *_) = entry_points(group=COMMANDS, name=cmd_name)
            found = announced.load()
            assert isinstance(found, click.Command)
        return found


def _completion(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from astore.cli.completion_scripts import install, script

        act = script if parameter.name == "show_completion" else install
        try:
            said = act(context.find_root().command)
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the script'}: {error.strerror}") from error
        print(said)
        context.exit()


def _completion_option(name: str, help: str) -> click.Option:
    return click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=_completion, help=help)


app = App(
    "astore",
    {"watch": "watch:watch", "events": "events:show_events", "demo": "demo_command:demo"},
    VIRSH,
    help="Storage pools and volumes: libvirt's pools without the daemon.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such pool, volume or secret, 4 some of several failed, "
        "124 timed out, 130 interrupted. virsh's names work too (pool-list, vol-upload, ...)."
    ),
    params=common_options("ASTORE_STATE_DIR"),
)
click.version_option(astore.__version__, message="astore %(version)s", help="Print the version and exit.")(app)
app.params += [
    _completion_option("--install-completion", "Install completion for the current shell."),
    _completion_option("--show-completion", "Show completion for the current shell, to copy or customize it."),
]
for _group in (
    Verbs("pool", POOL, {"destroy": POOL["stop"]}, help="Define, start, refresh and look at pools."),
    Verbs("vol", VOLUME, {}, help="Make, fill, change and look at the volumes of pools."),
    Verbs("secret", SECRET, {}, help="Keep the passwords and keys that pools need."),
    Verbs("backend", BACKEND, {}, help="Look at the backends."),
):
    app.add_command(_group)


def run(argv: Sequence[str], command: click.Command | None = None) -> int:
    """Run one invocation in this process.

    :param argv: without the program's name. :param command: another command than ``astore``. :returns: the exit code.
    """
    command = app if command is None else command
    try:
        if instruction := os.environ.get("_ASTORE_COMPLETE"):
            from click.shell_completion import shell_complete

            return shell_complete(app, {}, "astore", "_ASTORE_COMPLETE", instruction)
        with command.make_context(command.name, list(argv)) as context:
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
