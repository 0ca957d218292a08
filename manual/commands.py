"""The help of each command, taken from click part by part, as ``--help`` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import click

from astore.cli.app import app


class Part(NamedTuple):
    """A part of a command's help.

    :ivar title: the heading; the first part has none. :ivar paragraphs: sentences. :ivar terms: options, arguments or
        commands, each with its description. :ivar lines: lines that stay as they are, such as examples.
    """

    title: str
    paragraphs: list[str]
    terms: list[tuple[str, str]]
    lines: list[str]


class Help(NamedTuple):
    """The help of one command.

    :ivar path: such as ``astore pool start``. :ivar usage: what follows it. :ivar parts: the first is the description.
    :ivar commands: the help of the commands of a group.
    """

    path: str
    usage: str
    parts: list[Part]
    commands: list[Help]

    @property
    def summary(self) -> str:
        """The first sentence of the description, without its full stop."""
        text = next(iter(self.parts[0].paragraphs), "")
        return text.partition(". ")[0].rstrip(".")


class _Recorder(click.HelpFormatter):
    """A formatter that keeps what it is told, instead of writing it."""

    def __init__(self) -> None:
        super().__init__(width=10_000)  # nothing is cut off or wrapped
        self.usage = ""
        self.parts = [Part("", [], [], [])]

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Keep the arguments of the usage."""
        self.usage = args

    def write_heading(self, heading: str) -> None:
        """Begin a part."""
        self.parts.append(Part(heading, [], [], []))

    def dedent(self) -> None:
        """End a part that has a heading."""
        super().dedent()
        if not self.current_indent and self.parts[-1].title:
            self.parts.append(Part("", [], [], []))

    def write_text(self, text: str) -> None:
        """Keep paragraphs."""
        self.parts[-1].paragraphs.extend(" ".join(one.split()) for one in text.split("\n\n"))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Keep terms and their descriptions."""
        self.parts[-1].terms.extend((term, " ".join(text.split())) for term, text in rows)

    def write(self, string: str) -> None:
        """Keep lines that click did not format."""
        self.parts[-1].lines.extend(line.strip() for line in string.splitlines() if line.strip())


def help_of(command: click.Command = app, parent: click.Context | None = None, name: str = "astore") -> Help:
    """Return the help of a command and of all commands below it. :param name: what the group calls it."""
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    recorder = _Recorder()
    command.format_help(context, recorder)
    first, *others = recorder.parts
    parts = [first, *(part for part in others if any(part))]
    return Help(context.command_path, recorder.usage, parts, list(_below(command, context)))


def _below(command: click.Command, context: click.Context) -> Iterator[Help]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield help_of(found, context, name)


def pages(top: Help) -> list[tuple[Help, list[Help]]]:
    """Return a page for each group: its own help, and that of the commands that have no page of their own."""
    groups = [one for one in top.commands if one.commands]
    return [(top, [one for one in top.commands if not one.commands]), *((one, one.commands) for one in groups)]


def page_name(help: Help) -> str:
    """Return the name of a group's page, such as ``astore-pool``."""
    return help.path.replace(" ", "-")
