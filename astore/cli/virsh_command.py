"""Commands under virsh's names: virsh's options beside ours, and words that fill them in virsh's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from astore.cli.command_line import Command
from astore.cli.session import Settings
from astore.cli.virsh import Verb


class _Words(click.Argument):
    """The words of a command line that belong to no option.

    :param slots: the options that they fill, in order. :param arguments: by parameter name, those that are arguments of ours.
    """

    def __init__(self, slots: Sequence[click.Option], arguments: Mapping[str, click.Argument]) -> None:
        super().__init__(["words"], nargs=-1, required=False, type=click.UNPROCESSED)
        self._slots = slots
        self._arguments = arguments

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return the arguments of ours, in virsh's order."""
        found = (self._arguments.get(slot.name) for slot in self._slots)
        return [argument.make_metavar(ctx) for argument in found if argument is not None]

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete for the option that the next word fills."""
        for slot in self._slots:
            if slot.multiple or ctx.get_parameter_source(slot.name) is not ParameterSource.COMMANDLINE:
                return slot.shell_complete(ctx, incomplete)
        return []


class VirshCommand(Command):
    """A command of ours that takes virsh's options, and prints what virsh prints.

    :param name: virsh's name. :param ours: the command that does the work.
    """

    def __init__(self, name: str, verb: Verb, ours: click.Command) -> None:
        parameters = {parameter.name: parameter for parameter in ours.params}
        arguments = {one.name: one for one in ours.params if isinstance(one, click.Argument)}
        virsh = {mine: option for option, mine in verb.slots}
        made = {one.name: _option(one, virsh.get(one.name, one.name)) for one in arguments.values()}
        for mine, option in virsh.items():
            found = parameters[mine]
            if isinstance(found, click.Option) and f"--{option}" not in found.opts:
                made[mine] = _renamed(found, option)
        params = [made.get(parameter.name, parameter) for parameter in ours.params]
        by_name = {one.name: one for one in params if isinstance(one, click.Option)}
        self._slots = [by_name[mine] for _, mine in verb.slots]
        self._required = {name: one for name, one in arguments.items() if one.required}
        words = _Words(self._slots, arguments)
        super().__init__(
            name,
            callback=ours.callback,
            params=[words, *params],
            help=ours.help,
            context_settings=ours.context_settings,
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse options, then let the words fill those that were not given."""
        rest = super().parse_args(ctx, args)
        words = list(ctx.params.pop("words") or ())
        for slot in self._slots:
            if words and ctx.get_parameter_source(slot.name) is not ParameterSource.COMMANDLINE:
                self._fill(ctx, slot, [words.pop(0)])
        for slot in self._slots:
            if words and slot.multiple:
                self._fill(ctx, slot, [*ctx.params[slot.name], *words])
                words = []
        if ctx.resilient_parsing:
            return rest
        if ctx.allow_extra_args:
            ctx.args = words
        elif words:
            ctx.fail(f"Got unexpected extra argument{'s' if len(words) > 1 else ''} ({' '.join(words)})")
        for name, argument in self._required.items():
            if ctx.params[name] in (None, ()):
                raise click.MissingParameter(ctx=ctx, param=argument)
        return rest

    @staticmethod
    def _fill(ctx: click.Context, slot: click.Option, words: list[str]) -> None:
        ctx.params[slot.name] = slot.process_value(ctx, words if slot.multiple else words[0])
        ctx.set_parameter_source(slot.name, ParameterSource.COMMANDLINE)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write nothing: each argument is an option here."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, and let it print as virsh does."""
        ctx.ensure_object(Settings).virsh = True
        return super().invoke(ctx)


def _completion_of(parameter: click.Parameter) -> Callable[..., list[CompletionItem]]:
    return lambda ctx, param, incomplete: parameter.shell_complete(ctx, incomplete)


def _option(argument: click.Argument, name: str) -> click.Option:
    """Return the option ``--name`` that fills an argument's parameter."""
    many = argument.nargs == -1
    return click.Option(
        [argument.name, f"--{name}"],
        type=argument.type,
        multiple=many,
        default=() if many else argument.default,
        metavar=argument.human_readable_name,
        help=argument.help,
        shell_complete=_completion_of(argument),
    )


def _renamed(option: click.Option, name: str) -> click.Option:
    """Return an option that has another name as well."""
    return click.Option(
        [option.name, *option.opts, f"--{name}"],
        type=option.type,
        multiple=option.multiple,
        default=option.default,
        metavar=option.metavar,
        help=option.help,
        callback=option.callback,
        is_flag=option.is_flag,
        shell_complete=_completion_of(option),
    )
