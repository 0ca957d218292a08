"""The command's pages and man pages have every command, and say what its help says."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from astore.cli.app import app
from manual.command_pages import command_pages
from manual.commands import help_of, page_name, pages
from manual.roff import write_man_pages


def walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    """Yield each command that the help shows, with its path."""
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, click.Context(found, context, name))


COMMANDS = dict(walk(app, click.Context(app, info_name="astore")))


@pytest.fixture(scope="module")
def man(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The man pages as groff prints them, by name."""
    if shutil.which("groff") is None:
        pytest.fail("the tests need groff (Debian: groff-base), which scripts/setup.sh installs")
    texts = {}
    for page in write_man_pages(tmp_path_factory.mktemp("man")):
        argv = ["groff", "-man", "-Tutf8", "-ww", "-K", "utf8", "-P", "-cbou", str(page)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        texts[page.stem] = done.stdout
    return texts


def words(text: str) -> str:
    """The text without line ends, hyphenation, and the marks of code."""
    return re.sub(r"[\s\u2010\\`]+", "", text.replace("\u2010\n", ""))


def test_each_group_has_a_page() -> None:
    """There is a page for astore and for each group, and each command is on one of them."""
    groups = [path.replace(" ", "-") for path, command in COMMANDS.items() if isinstance(command, click.Group)]
    found = pages(help_of())
    assert [page_name(group) for group, _ in found] == groups == list(command_pages())
    assert sorted(one.path for group, commands in found for one in (group, *commands)) == sorted(COMMANDS)


def test_man_pages_say_what_the_help_says(man: dict[str, str]) -> None:
    """groff has nothing to complain about, and prints every sentence, option and argument of each command's help."""
    for page, commands in pages(help_of()):
        text = words(man[page_name(page)])
        for command in (page, *commands):
            assert words(command.path + command.usage) in text
            for part in command.parts:
                said = [*part.paragraphs, *part.lines]
                if part.title != "Commands":
                    said += [word for term in part.terms for word in term]
                assert [one for one in said if words(one) not in text] == []


def test_pages_have_every_option() -> None:
    """The Markdown pages name every option of every command, also those that a callback handles.

    The first page has the options that all commands share.
    """
    written = command_pages()
    for path, command in COMMANDS.items():
        page = path if isinstance(command, click.Group) or path.count(" ") == 1 else path.rpartition(" ")[0]
        text = written.get(page.replace(" ", "-"), "") + written["astore"]
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(name in text for name in option.opts), (path, option.opts)


def test_man_pages_can_be_reproduced(tmp_path: Path) -> None:
    """They have no date: the same command has the same pages."""
    first, second = ({one.name: one.read_bytes() for one in write_man_pages(tmp_path / name)} for name in "ab")
    assert first == second
    assert b".TH ASTORE 1" in first["astore.1"]


def test_summaries_fit_apropos(man: dict[str, str]) -> None:
    """NAME is one line, as apropos(1) wants it."""
    for name, text in man.items():
        (line,) = re.findall(rf"^NAME\n +{name} . (.+)$", text, re.MULTILINE)
        assert line
