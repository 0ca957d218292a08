"""Man pages: ``astore(1)`` and one for each group of commands, in man(7)'s macros."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import astore
from manual.commands import Help, Part, help_of, page_name, pages

FILES = {
    "/var/lib/astore": "The state folder of root: the definitions of pools, which of them are active, and secrets.",
    "~/.local/state/astore": "The state folder of other users, or `$XDG_STATE_HOME/astore`.",
    "/etc/libvirt/storage": "The definitions of libvirt, which `astore pool import` reads.",
}

_CODE = re.compile(r"``?([^`]+)``?")


def write_man_pages(folder: Path) -> list[Path]:
    """Write all man pages into ``folder/man1``. :returns: their paths."""
    (folder / "man1").mkdir(parents=True, exist_ok=True)
    top = help_of()
    groups = pages(top)
    written = []
    for group, commands in groups:
        others = [page_name(one) for one, _ in groups if one is not group]
        written.append(folder / "man1" / f"{page_name(group)}.1")
        written[-1].write_text(man_page(group, commands, others, top.path == group.path))
    return written


def man_page(group: Help, commands: list[Help], others: list[str], top: bool) -> str:
    """Return the man page of a group, with all its commands.

    :param others: the names of the other pages. :param top: whether this is astore(1), which has the files too.
    """
    name = page_name(group)
    return "\n".join(
        [
            f'.TH {name.upper()} 1 "" "astore {astore.__version__}" "User Commands"',
            ".SH NAME",
            f"{_escape(name)} \\- {_text(_uncapitalized(group.summary))}",
            ".SH SYNOPSIS",
            *_usage(group),
            ".SH DESCRIPTION",
            *_body(group.parts[0]),
            *(line for part in group.parts[1:] if part.title != "Commands" for line in _part(part, ".SH")),
            ".SH COMMANDS",
            *(line for command in commands for line in _command(command)),
            *(_files() if top else ()),
            ".SH SEE ALSO",
            ",\n".join(f".BR {_escape(one)} (1)" for one in [*others, "virsh"]),
            "",
        ]
    )


def _usage(help: Help) -> list[str]:
    return [f".B {_escape(help.path)}", _escape(help.usage)]


def _command(help: Help) -> Iterator[str]:
    yield f".SS {_escape(help.path)}"
    yield from _usage(help)
    yield ".PP"
    yield from _body(help.parts[0])
    for part in help.parts[1:]:
        yield from _part(part, ".PP\n.I")


def _part(part: Part, heading: str) -> Iterator[str]:
    if part.title:
        yield f"{heading} {_escape(part.title.upper() if heading == '.SH' else part.title)}"
    else:
        yield ".PP"
    yield from _body(part)


def _body(part: Part) -> Iterator[str]:
    for number, paragraph in enumerate(part.paragraphs):
        if number:
            yield ".PP"
        yield _text(paragraph)
    for term, text in part.terms:
        yield ".TP"
        yield f".B {_escape(term)}"
        yield _text(text) or "\\&"
    if part.lines:
        yield ".PP"
        yield ".nf"
        yield from (_line(line) for line in part.lines)
        yield ".fi"


def _files() -> Iterator[str]:
    yield ".SH FILES"
    for path, text in FILES.items():
        yield ".TP"
        yield f".I {_escape(path)}"
        yield _text(text)


def _uncapitalized(text: str) -> str:
    """Return the text with a small first letter, as NAME has it, unless a name comes first."""
    return text[:1].lower() + text[1:]


def _text(text: str) -> str:
    """Return a paragraph whose code is bold."""
    return _line(_CODE.sub(lambda code: f"\0{code[1]}\1", text)).replace("\0", "\\fB").replace("\1", "\\fR")


def _line(text: str) -> str:
    """Return a line that groff takes for text, whatever it begins with."""
    return re.sub(r"^([.'])", r"\\&\1", _escape(text))


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
