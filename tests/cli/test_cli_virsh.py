"""virsh's names, held against the virsh that is installed: its verbs and options, and what it prints."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from astore.cli.examples import EXAMPLES
from astore.cli.virsh import VERBS

PAGE = (Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md").read_text()


BY_NAME = {"secret-set-value": "file"}
"""Options with a value that virsh takes by name alone; for the others that is ``--xpath``."""


def virsh(*arguments: str) -> str:
    """What virsh prints without a connection."""
    done = subprocess.run(["virsh", *arguments], capture_output=True, text=True, check=True, env={"LC_ALL": "C"})
    return done.stdout


def explained() -> set[str]:
    """The verbs and options of virsh that the page explains not to be here."""
    section = PAGE.partition("## virsh\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]*`: (?:`--|all of it)[^|]*) \|", section, re.MULTILINE)
    return {
        f"{verb} {option}"
        for first in rows
        for verb in re.findall(r"`([a-z-]+)`", first)
        for option in re.findall(r"`(--[\w-]+)`", first) or [""]
    }


@pytest.mark.libvirt
@pytest.mark.parametrize("group", ["pool", "volume", "secret"])
def test_every_verb_and_option_of_virsh_is_here(astore: Any, group: str) -> None:
    """Under virsh's names, or docs/differences-from-libvirt.md says why not."""
    verbs = re.findall(r"^    ([a-z-]+) ", virsh("help", group), re.MULTILINE)
    assert len(verbs) > 5
    missing = set()
    for verb in verbs:
        if verb not in VERBS:
            missing.add(f"{verb} ")
            continue
        options = re.findall(r"^    \[?(--[\w-]+)\]?", virsh("help", verb), re.MULTILINE)
        ours = re.findall(r"--[\w-]+", astore.good(verb, "--help").out)
        missing |= {f"{verb} {option}" for option in options if option not in ours}
    of_group = {entry for entry in explained() if entry.partition(" ")[0] in verbs}
    assert missing == of_group


@pytest.mark.libvirt
def test_words_fill_options_in_virshs_order(astore: Any) -> None:
    """The table has virsh's options with a value in the order in which virsh fills them."""
    for verb, entry in VERBS.items():
        options = re.findall(r"^    \[?--([\w-]+)\]? <(?:string|number)>", virsh("help", verb), re.MULTILINE)
        left_out = {one.partition(" --")[2] for one in explained() if one.startswith(f"{verb} ")}
        taken = [name for name, _ in entry.slots]
        by_name = BY_NAME.get(verb, "xpath")
        assert taken == [name for name in options if name not in (*left_out, "timeout", by_name)], verb


def test_every_command_has_two_examples_that_parse(astore: Any) -> None:
    """Each line begins a command that there is, with options that it has."""
    import click

    from astore.cli.app import COMMANDS, app
    from astore.entry_points import installed_types

    def paths(group: click.Group, context: click.Context, prefix: str) -> list[str]:
        found = []
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            inner = isinstance(command, click.Group)
            found += paths(command, context, f"{prefix}{name} ") if inner else [f"{prefix}{name}"]
        return found

    own = {path for path in paths(app, click.Context(app), "") if path.split()[0] not in installed_types(COMMANDS)}
    assert set(EXAMPLES) == own | set(VERBS)
    for name, lines in EXAMPLES.items():
        shown = astore.good(*name.split(), "--help").out
        assert not re.search(r"\b(INTEGER|TEXT|FLOAT|BOOLEAN|RANGE)\b", shown)
        assert shown.count("General options") == 1
        for line in lines:
            assert f"  {line}\n" in shown
            words = re.search(r"astore (.*?)(?: [|&<>]|\)|$)", line)
            assert words is not None
            parsed = click.Context(app, info_name="astore")
            verb = app
            tokens = [token.strip("'") for token in re.findall(r"'[^']*'|\S+", words[1])]
            while isinstance(verb, click.Group):
                verb = verb.get_command(parsed, tokens.pop(0))  # type: ignore[assignment]
            verb.make_context(name, tokens, parent=parsed)
