"""The pages of the site about the command: one for each group, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from manual.commands import Help, Part, help_of, page_name, pages

_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")


def command_pages() -> dict[str, str]:
    """Return the Markdown of each page by its name, such as ``astore-pool``."""
    return {page_name(group): "\n".join(_page(group, commands)) for group, commands in pages(help_of())}


def _page(group: Help, commands: list[Help]) -> Iterator[str]:
    yield f"# {group.path}"
    yield ""
    yield from _help(group)
    for command in commands:
        yield f"## {command.path}"
        yield ""
        yield from _help(command)


def _help(help: Help) -> Iterator[str]:
    yield "```text"
    yield f"{help.path} {help.usage}"
    yield "```"
    yield ""
    for part in help.parts:
        yield from _part(part)


def _part(part: Part) -> Iterator[str]:
    if part.title:
        yield f"**{part.title}**"
        yield ""
    for paragraph in part.paragraphs:
        yield _text(paragraph)
        yield ""
    for term, text in part.terms:
        yield f"`{term}`"
        yield f": {_text(text) or '-'}"
        yield ""
    if part.lines:
        yield "```text"
        yield from part.lines
        yield "```"
        yield ""


def _text(text: str) -> str:
    """Return a sentence in which only its code is markup."""
    parts = _CODE.split(text)
    parts[::2] = [_OPTION.sub(r"`\1`", re.sub(r"([\\*_\[\]<>#|~$&])", r"\\\1", plain)) for plain in parts[::2]]
    return "".join(parts)
