"""Completion in real shells, each with the script that ``--install-completion`` puts into a new home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminals import Terminal

Make = Callable[..., Path]

STARTED = {
    "bash": ("--rcfile", ".bashrc", "-i"),
    "zsh": ("-i",),
    "fish": ("--interactive",),
}
"""How each shell is started."""

SETTINGS = {
    "bash": (".bashrc", "source /usr/share/bash-completion/bash_completion\nPS1='ready> '\n"),
    "zsh": (".zshrc", "PS1='ready> '\nzstyle ':completion:*' insert-tab false\n"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo -n 'ready> '; end\nset -g fish_greeting\n"),
}
"""What a home has already, as distributions or users have it: a prompt, and for bash the package bash-completion."""


@pytest.fixture(params=list(STARTED))
def shell(request: pytest.FixtureRequest, astore: Any, tmp_path: Path) -> Iterator[Terminal]:
    """A shell on a terminal, in a home in which the completion was installed. The command is on its PATH."""
    name = request.param
    home = tmp_path / "home"
    file, text = SETTINGS[name]
    (home / file).parent.mkdir(parents=True)
    (home / file).write_text(text)
    command = home / "bin" / "astore"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -W error -m astore.cli "$@"\n')
    command.chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "ASTORE_STATE_DIR": str(astore.state_dir),
        "LANG": "C.UTF-8",
    }
    subprocess.run([command, "--install-completion", name], env=environment, check=True, capture_output=True)
    program = shutil.which(name)
    assert program is not None, f"{name} is not installed: scripts/setup.sh test installs it"
    arguments = [str(home / one) if one.startswith(".") else one for one in STARTED[name]]
    opened = Terminal([program, *arguments], environment)
    opened.until("ready> ")
    yield opened
    opened.close()


def test_completion_in_a_shell(shell: Terminal, make_pool: Make) -> None:
    """Tab names the pools that the verb can be used on, volumes, verbs and options; the commands that come out of it run."""
    make_pool("images")
    make_pool("isos", start=False)
    for keys, answer in (
        ("astore pool start i\t\r", "pool 'isos' started"),
        ("astore vol li\t --det\t im\t\r", "base.qcow2"),
        ("astore vol path web\t --pool im\t\r", "images-folder/web.qcow2"),
        ("astore pool destroy im\t\r", "pool 'images' stopped"),
        ("astore pool-sta\t im\t\r", "Pool images started"),
    ):
        shell.seen = b""
        shell.type(keys)
        shell.until(answer, "ready> ")
