"""The script that lets a shell complete the command's words, and where each shell looks for it."""

from __future__ import annotations

from pathlib import Path

import click
import shellingham
from click.shell_completion import get_completion_class

_PLACES = {
    "bash": ".local/share/bash-completion/completions/astore",
    "zsh": ".zfunc/_astore",
    "fish": ".config/fish/completions/astore.fish",
}
"""Below the user's home: bash-completion's, the folder that zsh's own documentation uses, fish's."""

_ZSH_LINE = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"


def script(app: click.Command) -> str:
    """The script for the shell that runs this process. :raises click.UsageError: none that there is a script for."""
    return _script(app, _shell())


def install(app: click.Command) -> str:
    """Put the script where the shell that runs this process looks for it; returns a line that says so.

    :raises click.UsageError: as :func:`script`. OSError: it cannot be written.
    """
    shell = _shell()
    place = Path.home() / _PLACES[shell]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(_script(app, shell))
    if shell == "zsh":
        settings = Path.home() / ".zshrc"
        before = settings.read_text() if settings.exists() else ""
        if _ZSH_LINE not in before:
            settings.write_text(f"{before.rstrip()}\n{_ZSH_LINE}\n".lstrip())
    return f"{shell} completion installed in {place}: it works in the next shell"


def _shell() -> str:
    try:
        shell = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        shell = "this program"
    if shell not in _PLACES:
        raise click.UsageError(f"there is no completion for {shell}, only for {', '.join(_PLACES)}")
    return str(shell)


def _script(app: click.Command, shell: str) -> str:
    found = get_completion_class(shell)
    assert found is not None
    return found(app, {}, "astore", "_ASTORE_COMPLETE").source()
