"""Shell completion scripts: print one, or install it where the shell looks for it."""

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
"""Paths below the user's home: bash-completion's, the one in zsh's documentation, and fish's."""

_AUTOLOADED = ("$zsh_eval_context[-1] == loadautofunc", "$funcstack[1] == _astore")
"""How click's script for zsh finds out that zsh calls it as a function, which it does the first time only, and our way."""

_ZSH_LINE = "fpath+=~/.zfunc; autoload -Uz compinit; compinit"


def script(app: click.Command, shell: str) -> str:
    """Return the script for a shell. :param shell: "" is the one that runs this process.

    :raises click.UsageError: there is none for this shell.
    """
    return _script(app, _known(shell))


def install(app: click.Command, shell: str) -> str:
    """Install the script for a shell, and return a line that says where.

    :param shell: "" is the one that runs this process.
    :raises click.UsageError: there is no script for this shell. OSError: the script cannot be written.
    """
    shell = _known(shell)
    place = Path.home() / _PLACES[shell]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(_script(app, shell))
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


def _script(app: click.Command, shell: str) -> str:
    found = get_completion_class(shell)
    assert found is not None
    return found(app, {}, "astore", "_ASTORE_COMPLETE").source().replace(*_AUTOLOADED)
