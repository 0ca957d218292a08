"""Completion for bash, zsh and fish: read the line that the shell sends, and write what may follow in its way.

Our scripts send the command line up to the cursor, as it was typed, and get a line for each completion. Scripts that were
installed by earlier versions send and get what click's scripts do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import click

from astore.errors import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_ASTORE_COMPLETE"
"""The environment variable that asks for completion. It holds the name of a shell, and ``source`` or ``complete``."""

LINE = "_ASTORE_LINE"
"""The environment variable with the line up to the cursor."""

WORD = "_ASTORE_WORD"
"""The environment variable with what bash replaces: the end of the line, often less than a word."""

BASH = """\
_astore_completion() {
    local IFS=$' \\t\\n'
    local line="${COMP_WORDS[*]:0:COMP_CWORD + 1}" word="${2-${COMP_WORDS[COMP_CWORD]-}}" program="$1" answer answers
    if [[ -n "${COMP_LINE-}" ]]; then
        line="${COMP_LINE:0:COMP_POINT}"
    fi
    if ! type -P -- "$program" > /dev/null; then
        program=astore
    fi
    answers=$(env _ASTORE_COMPLETE=bash_complete _ASTORE_LINE="$line" _ASTORE_WORD="$word" "$program" 2> /dev/null)
    COMPREPLY=()
    while IFS= read -r answer; do
        case "$answer" in
            plain,*) COMPREPLY+=("${answer#*,}") ;;
            part,*) COMPREPLY+=("${answer#*,}"); compopt -o nospace 2> /dev/null ;;
            file,*) compopt -o default 2> /dev/null ;;
        esac
    done <<< "$answers"
    return 0
}

complete -o nosort -F _astore_completion astore 2> /dev/null || complete -F _astore_completion astore
"""

ZSH = """\
#compdef astore

_astore_completion() {
    local answer line added=1
    local -a fields plain parts described
    (( $+commands[astore] )) || return 1
    line="${(j: :)words[1,CURRENT-1]} $IPREFIX$QIPREFIX$PREFIX"
    answer=$(env _ASTORE_COMPLETE=zsh_complete _ASTORE_LINE="$line" astore 2> /dev/null)
    for line in "${(@f)answer}"; do
        fields=("${(@ps:\\t:)line}")
        case "$fields[1]" in
            plain)
                if [[ -n "$fields[3]" ]]; then
                    described+=("${${fields[2]//\\\\/\\\\\\\\}//:/\\\\:}:$fields[3]")
                else
                    plain+=("$fields[2]")
                fi ;;
            part) parts+=("$fields[2]") ;;
            file)
                [[ "$PREFIX" == -*=* ]] && compset -P 1 '*='
                _files && added=0 ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U && added=0
    (( $#plain )) && compadd -U -V unsorted -a plain && added=0
    (( $#parts )) && compadd -U -V unsorted -S '' -a parts && added=0
    return added
}

if [[ "$funcstack[1]" == _astore ]]; then
    _astore_completion "$@"
else
    compdef _astore_completion astore
fi
"""
"""It is called as a function, where the user's settings autoload it, or is run once by ``eval``."""

FISH = """\
function _astore_completion
    set -l line (commandline -cp | string collect)
    set -l word (commandline -ct | string collect)
    for answer in (env _ASTORE_COMPLETE=fish_complete "_ASTORE_LINE=$line" astore 2> /dev/null)
        set -l fields (string split \\t -- $answer)
        switch "$fields[1]"
            case plain part
                printf '%s\\t%s\\n' "$fields[2]" "$fields[3]"
            case file
                complete -C "__fish_command_without_completions $word"
        end
    end
end

complete --no-files --command astore --arguments "(_astore_completion)"
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
"""The script of each shell."""


class Typed(NamedTuple):
    """A line, up to the cursor.

    :ivar words: its whole words, without quotes. :ivar last: the word that is being typed; "" behind a blank.
    :ivar raw: the same with its quotes. :ivar quote: the quote that is open at its end, or "".
    """

    words: tuple[str, ...]
    last: str
    raw: str
    quote: str


_PIECES = re.compile(
    r"""(?P<blank>\s+) | \\(?P<escaped>.?) | '(?P<single>[^']*)(?P<ends>'?) | "(?P<double>(?:[^"\\]|\\.)*\\?)(?P<closes>"?)
    | (?P<plain>[^\s\\'"]+)""",
    re.VERBOSE | re.DOTALL,
)
_FISH_PIECES = re.compile(_PIECES.pattern.replace("[^']*", r"(?:[^'\\]|\\.)*\\?"), re.VERBOSE | re.DOTALL)
"""The pieces of words. In fish, a backslash has a meaning between single quotes as well."""


def typed(line: str, *, fish: bool = False) -> Typed:
    """Take a line apart as a shell does, without running or expanding anything but a ``~/`` at the beginning of a word."""
    words: list[str] = []
    last, begin, quote = None, 0, ""
    for piece in (_FISH_PIECES if fish else _PIECES).finditer(line):
        if piece["blank"] is not None:
            words += [] if last is None else [last]
            last, begin, quote = None, piece.end(), ""
            continue
        if piece["escaped"] is not None:
            text = piece["escaped"].replace("\n", "")
        elif piece["single"] is not None:
            text = re.sub(r"\\([\\'])", r"\1", piece["single"]) if fish else piece["single"]
            quote = "" if piece["ends"] else "'"
        elif piece["double"] is not None:
            text = re.sub(r'\\([\\"$`])', r"\1", piece["double"])
            quote = "" if piece["closes"] else '"'
        else:
            text = piece["plain"]
            if last is None and text.startswith("~/"):
                text = os.environ.get("HOME", "~") + text[1:]
        last = (last or "") + text
    return Typed(tuple(words), last or "", line[begin:], quote)


def in_bash(text: str, kept: str) -> str | None:
    """Return what completes a word to ``text`` behind the part of it that bash keeps, in quotes as they are open there.

    :returns: None if it does not begin with that part.
    """
    _, begin, _, quote = typed(kept)
    if not text.startswith(begin):
        return None
    rest = text[len(begin) :]
    if quote == "'":
        return rest.replace("'", r"'\''")
    if quote == '"':
        return re.sub(r'[\\"$`]', r"\\\g<0>", rest).replace("!", r'"\!"')  # which is about history, even in quotes
    return re.sub(r"[^\w@%+=:,./-]", r"\\\g<0>", rest)


def completions(app: click.Command, words: Sequence[str], last: str) -> list[CompletionItem]:
    """Return what may become of the last word of a command line. Nothing in it can harm a terminal.

    :param words: those before it, without the program's name.
    """
    from click.shell_completion import CompletionItem, ShellComplete

    before, word = [*words], last
    if before and re.fullmatch("-[^=]+", before[-1]) and "--" not in before and not last.startswith("-"):
        word = f"{before.pop()}={last}"  # click reads no arguments of a line that ends with an option without its value
    found = ShellComplete(app, {}, "astore", VARIABLE).get_completions(before, word)
    option, assigned, _ = last.partition("=")
    prefix = option + assigned if assigned and last.startswith("-") and "--" not in words else ""
    return [
        CompletionItem(prefix + item.value, item.type, printable(item.help) if item.help else None)
        for item in found
        if printable(item.value) == item.value
        and (prefix or "--" in words or last.startswith("-") or not item.value.startswith("-"))  # it would be an option
    ]


def answer(app: click.Command, instruction: str) -> int:
    """Answer a shell. Return the exit code. :param instruction: the content of VARIABLE."""
    from click.shell_completion import shell_complete

    shell, _, what = instruction.partition("_")
    if shell not in SCRIPTS or what not in ("source", "complete"):
        return shell_complete(app, {}, "astore", VARIABLE, instruction)
    if what == "source":
        text = SCRIPTS[shell]
    elif LINE in os.environ:
        text = "".join(f"{line}\n" for line in _lines(app, shell, os.environ[LINE]))
    else:
        text = _as_clicks_scripts_want(app, shell)
    click.echo(text.encode(), nl=False)
    return 0


def _lines(app: click.Command, shell: str, line: str) -> list[str]:
    """Return a line for each completion."""
    words, last, raw, _ = typed(line, fish=shell == "fish")
    found = completions(app, words[1:], last)
    if shell != "bash":
        return [f"{item.type}\t{item.value}\t{item.help or ''}" for item in found]
    end = os.environ.get(WORD, raw)
    kept = raw.removesuffix(end) if raw.endswith(end) else ""
    quoted = [(item.type, in_bash(item.value, kept)) for item in found]
    return [f"{type},{text}" for type, text in quoted if text is not None]


def _as_clicks_scripts_want(app: click.Command, shell: str) -> str:
    """Return the answer to a script of click's. The one for bash quotes nothing, so names that need quotes are left out."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    clicks = found(app, {}, "astore", VARIABLE)
    items = completions(app, *clicks.get_completion_args())
    safe = [one for one in items if shell != "bash" or in_bash(one.value, "") == one.value]
    return "\n".join(map(clicks.format_completion, safe)) + "\n"
