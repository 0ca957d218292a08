"""The click application: groups, global options, virsh's command names and the handling of errors.

Each command's module is imported only when that command runs, which keeps start-up fast.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from astore.cli.exits import Exit
from astore.cli.interruptions import ignore_interruptions
from astore.cli.output import complain, drop_stdout
from astore.cli.session import Settings, common_options

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
    "info": "pool_views:info",
    "dumpxml": "pool_views:dumpxml",
    "refresh": "pool_refresh:refresh",
}
VOLUME = {
    "list": "volumes:list_volumes",
    "info": "volumes:info",
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
BACKEND = {"list": "backends:list_backends"}
"""The ``module:object`` of each command, in the order of the help."""

VIRSH = {
    "pool-define": POOL["define"],
    "pool-create": POOL["create"],
    "pool-start": POOL["start"],
    "pool-destroy": POOL["stop"],
    "pool-build": POOL["build"],
    "pool-delete": POOL["delete"],
    "pool-undefine": POOL["undefine"],
    "pool-autostart": POOL["autostart"],
    "pool-list": POOL["list"],
    "pool-info": POOL["info"],
    "pool-dumpxml": POOL["dumpxml"],
    "pool-refresh": POOL["refresh"],
    "pool-name": "pool_views:pool_name",
    "pool-uuid": "pool_views:pool_uuid",
    "pool-capabilities": "pool_sources:capabilities_xml",
    "find-storage-pool-sources": "pool_sources:find_sources_by_file",
    "find-storage-pool-sources-as": "pool_sources:find_sources",
    "vol-list": VOLUME["list"],
    "vol-info": VOLUME["info"],
    "vol-dumpxml": VOLUME["dumpxml"],
    "vol-path": VOLUME["path"],
    "vol-key": "volumes:vol_key",
    "vol-name": "volumes:vol_name",
    "vol-pool": "volumes:vol_pool",
    "vol-create": VOLUME["create-xml"],
    "vol-create-as": VOLUME["create"],
    "vol-clone": VOLUME["clone"],
    "vol-resize": VOLUME["resize"],
    "vol-wipe": VOLUME["wipe"],
    "vol-delete": VOLUME["delete"],
    "vol-upload": VOLUME["upload"],
    "vol-download": VOLUME["download"],
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


class Application(Verbs):
    """The outermost group. Ctrl-C and a broken pipe end it with the codes of :class:`Exit` instead of click's."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """Parse the arguments. :raises click.Abort: interrupted. click.exceptions.Exit: the reader of the output is gone."""
        with _broken_off():
            return super().make_context(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. :raises click.Abort: interrupted. click.exceptions.Exit: the reader of the output is gone."""
        with _broken_off():
            return super().invoke(ctx)


@contextmanager
def _broken_off() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort from None
    except BrokenPipeError:
        drop_stdout()
        raise click.exceptions.Exit(Exit.BROKEN_PIPE) from None


def _options(**given: Any) -> None:
    click.get_current_context().obj = Settings(**given)


def _version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        import astore

        print(f"astore {astore.__version__}")
        context.exit()


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


def _eager(name: str, callback: Any, help: str) -> click.Option:
    return click.Option([name], is_flag=True, is_eager=True, expose_value=False, callback=callback, help=help)


app = Application(
    "astore",
    {"events": "events:watch", "demo": "demo_command:demo"},
    VIRSH,
    help="Storage pools and volumes: libvirt's pools without the daemon.",
    epilog=(
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such pool or volume, 4 some of several failed, 124 timed out, "
        "130 interrupted. virsh's names work too (pool-list, vol-upload, ...)."
    ),
    callback=_options,
    params=[
        *common_options("ASTORE_STATE_DIR"),
        _eager("--version", _version, "Print the version and exit."),
        _eager("--install-completion", _completion, "Install completion for the current shell."),
        _eager("--show-completion", _completion, "Show completion for the current shell, to copy or customize it."),
    ],
)
for _group in (
    Verbs("pool", POOL, {"destroy": POOL["stop"]}, help="Define, start, refresh and look at pools."),
    Verbs("vol", VOLUME, {}, help="Make, fill, change and look at the volumes of pools."),
    Verbs("backend", BACKEND, {}, help="Look at the backends."),
):
    app.add_command(_group)


def run(argv: Sequence[str]) -> int:
    """Run one invocation in this process. :param argv: without the program's name. :returns: the exit code."""
    try:
        code = app.main(list(argv), prog_name="astore", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except SystemExit as error:  # raised by click's shell completion
        return error.code if isinstance(error.code, int) else int(Exit.OK)
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
