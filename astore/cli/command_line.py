"""The classes of our commands, options and arguments, which decide how help shows them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.types import OptionHelpExtra

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

INSTEAD = "astore.instead"
"""In ``context.meta``: the group whose commands are used instead of those of ``astore``."""


class Number(click.FloatRange):
    """A number in a range, for people: click calls it a "float range"."""

    name = "number"


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class Option(click.Option):
    """An option whose help has no range in Python's notation."""

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        """Return what the help adds in brackets."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class CommonOption(Option):
    """An option of all commands. ``astore --help`` shows it, the help of a command does not."""


class Argument(click.Argument):
    """An argument whose usage shows whether it is optional or repeatable."""

    def make_metavar(self, ctx: click.Context) -> str:
        """Return ``POOL``, ``[POOL]``, ``POOL...`` or ``[POOL]...``."""
        text = self.human_readable_name
        return (text if self.required else f"[{text}]") + ("..." if self.nargs != 1 else "")


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Have the shell complete the names of files."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter; one that is a file is completed as one."""
    files = settings.get("metavar") in ("FILE", "FOLDER")
    return {"shell_complete": complete_files, **settings} if files else settings


def argument(name: str, **settings: Any) -> Callable[[F], F]:
    """Add an argument to a command. :param settings: those of :class:`click.Argument`."""
    return click.argument(name, cls=Argument, **_completed(settings))


def option(*names: str, **settings: Any) -> Callable[[F], F]:
    """Add an option to a command. :param settings: those of :class:`click.Option`."""
    return click.option(*names, cls=Option, **_completed(settings))


class Command(click.Command):
    """A command whose help ends with examples, and shows general options nowhere.

    :ivar examples: two lines, if it is another distribution's command.
    """

    examples: tuple[str, ...] = ()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words. Where negative numbers are allowed, other unknown options are errors all the same."""
        try:
            if ctx.ignore_unknown_options and not ctx.resilient_parsing:
                self._check_options(ctx, args)
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from astore.cli.virsh import VERBS

            verb = "-".join(ctx.command_path.split()[-2:])
            known = verb in VERBS and error.option_name.lstrip("-") in dict(VERBS[verb].slots)
            if not known or INSTEAD in ctx.meta:
                raise
            said = f"No such option {error.option_name!r}: `astore {verb}` takes virsh's options"
            raise click.UsageError(said, ctx) from error

    def _check_options(self, ctx: click.Context, args: list[str]) -> None:
        """Check that words which look like options are. :raises click.NoSuchOption: one is not, and no number either."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        known = {name: one for one in options for name in (*one.opts, *one.secondary_opts)}
        words = iter(args)
        for word in words:
            if word == "--":
                break
            name, has_value, _ = word.partition("=")
            if not re.match(r"-[^0-9]", word):
                continue
            if name not in known and word[:2] not in known:
                from difflib import get_close_matches

                raise click.NoSuchOption(name, possibilities=get_close_matches(name, known), ctx=ctx)
            if name in known and not (known[name].is_flag or has_value):
                next(words, None)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options."""
        own = [
            one for one in self.get_params(ctx) if isinstance(one, click.Option) and not isinstance(one, CommonOption)
        ]
        records = [record for one in own if (record := one.get_help_record(ctx)) is not None]
        if records:
            with formatter.section("Options"):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write two examples, and where the general options are."""
        from astore.cli.examples import examples_of

        if lines := self.examples or examples_of(ctx.command_path):
            with formatter.section("Examples"):
                for line in lines:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"General options: `{ctx.find_root().command_path} --help`")
