"""Shell completion scripts: print one, or install it where the shell looks for it."""

from __future__ import annotations

from pathlib import Path

import click
import shellingham

from astore.cli.completion_shells import SCRIPTS

_PLACES = {
    "bash": ".local/share/bash-completion/completions/astore",
    "zsh": ".zfunc/_astore",
    "fish": ".config/fish/completions/astore.fish",
}
"""Paths below the user's home: bash-completion's, the one in zsh's documentation, and fish's."""

_ZSH_LINE = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"


def script(shell: str) -> str:
    """Return the script for a shell. :param shell: "" is the one that runs this process.

    :raises click.UsageError: there is none for this shell.
    """
    return SCRIPTS[_known(shell)].rstrip("\n")


def install(shell: str) -> str:
    """Install the script for a shell, and return a line that says where.

    :param shell: "" is the one that runs this process.
    :raises click.UsageError: there is no script for this shell. OSError: the script cannot be written.
    """
    shell = _known(shell)
    place = Path.home() / _PLACES[shell]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(SCRIPTS[shell])
    if shell == "zsh":
        settings = Path.home() / ".zshrc"
        before = settings.read_bytes() if settings.exists() else b""
        if _ZSH_LINE.encode() not in before:
            with settings.open("ab") as file:  # what is in it stays, whatever happens here
                file.write((b"" if not before or before.endswith(b"\n") else b"\n") + f"{_ZSH_LINE}\n".encode())
    return f"{shell} completion installed in {place}: it works in the next shell"


def _known(shell: str) -> str:
    try:
        shell = shell or shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        shell = "this program"
    if shell not in _PLACES:
        raise click.UsageError(f"there is no completion for {shell}, only for {', '.join(_PLACES)}")
    return str(shell)
