"""Exit codes, and error messages of one line that say what to do next."""

from __future__ import annotations

import enum
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from errno import EACCES, EBADF, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS

from astore.errors import (
    AstoreError,
    BackendLoadError,
    CommandError,
    DefinitionError,
    InvalidStateError,
    NotFoundError,
    PoolInaccessibleError,
    PoolNotFoundError,
    StorageError,
    StoreError,
    UnknownBackendError,
    UnsupportedOperationError,
    VolumeBusyError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
    printable,
    reason,
)


class Exit(enum.IntEnum):
    """The exit codes of the process. They are stable, since scripts rely on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    PARTIAL = 4
    """Some of several pools, files or volumes failed, but not all."""
    TIMEOUT = 124
    """The code of timeout(1)."""
    INTERRUPTED = 130
    """Ctrl-C, SIGTERM or SIGHUP: 128 + SIGINT for all three."""
    BROKEN_PIPE = 141
    """The reader of the output is gone: 128 + SIGPIPE."""


class CliError(Exception):
    """An error of the command line itself. Its text is the line to print."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


def code_of(error: BaseException) -> Exit:
    """Return the exit code for one failure."""
    if isinstance(error, CliError):
        return error.code
    if isinstance(error, NotFoundError):
        return Exit.NOT_FOUND
    if isinstance(error, TimeoutError):
        return Exit.TIMEOUT
    return Exit.FAILED


def code_of_all(failed: Iterable[BaseException], succeeded: int) -> Exit:
    """Return the exit code for several operations: OK, PARTIAL, or the failures' common code (FAILED if they differ)."""
    codes = {code_of(error) for error in failed}
    if not codes:
        return Exit.OK
    if succeeded:
        return Exit.PARTIAL
    return codes.pop() if len(codes) == 1 else Exit.FAILED


def shell_word(text: str) -> str:
    """Quote ``text`` for a shell."""
    return shlex.quote(printable(text))


def explain(error: BaseException) -> str:
    """Return an error as one printable line, with advice where there is any."""
    if isinstance(error, InvalidStateError) and not isinstance(error, VolumeBusyError | VolumeInUseError):
        return _wrong_state(error)
    text = reason(error).rstrip(".")
    if isinstance(error, DefinitionError) and error.line is None:  # the definition was not XML
        text = text.removeprefix(f"<{error.element}>: ")
    hint = _hint(error)
    return f"{text}: {hint}" if hint else text


def _wrong_state(error: InvalidStateError) -> str:
    pool, state = error.pool, str(error.state)
    if pool and state == "inactive" and error.operation == "stop":
        return f"pool {printable(pool)!r} is inactive already: `astore pool list --all` shows all pools"
    if pool and state == "inactive":
        return f"pool {printable(pool)!r} is inactive: start it first with `astore pool start {shell_word(pool)}`"
    if pool and state == "inaccessible" and error.operation == "start":
        return (
            f"pool {printable(pool)!r} is active and inaccessible: `astore pool refresh {shell_word(pool)}` tries again"
        )
    if pool and state and error.operation == "start":
        return f"pool {printable(pool)!r} is {state} already: `astore pool info {shell_word(pool)}` shows it"
    if pool and error.operation in {"build", "delete", "undefine"} and state not in {"", "building"}:
        return (
            f"pool {printable(pool)!r} is {state}: to {error.operation} it, stop it first "
            f"with `astore pool stop {shell_word(pool)}`"
        )
    return reason(error)


_HINTS: tuple[tuple[type[BaseException], str], ...] = (
    (PoolNotFoundError, "`astore pool list --all` shows those there are"),
    (VolumeNotFoundError, "`astore vol list POOL` shows a pool's volumes"),
    (VolumeBusyError, "try again when that is done"),
    (VolumeInUseError, "--force"),
    (VolumeExistsError, "choose another name"),
    (UnsupportedOperationError, "`astore backend list` shows what each backend can do"),
    (BackendLoadError, "`astore backend list` shows the state of all backends"),
    (TimeoutError, "give it more time with --timeout, or see whether its storage answers"),
    (UnicodeError, "a name beyond ASCII needs a UTF-8 locale, such as LC_ALL=C.UTF-8"),
)
"""Advice by kind of error."""


@contextmanager
def transient() -> Iterator[None]:
    """Note with the error of a pool that was to be made that --build makes its folder: there is no pool to be built."""
    try:
        yield
    except PoolInaccessibleError as error:
        if "build the pool" in error.message:
            error.add_note("`--build` does")
        raise


def _plugin_of(type: str) -> str:
    """Return advice on a pool type that has no backend."""
    from astore.xml.known_types import EXTRAS, POOL_TYPES

    if type in EXTRAS:
        return f"pip install 'astore[{EXTRAS[type]}]'"
    if type in POOL_TYPES:
        return "astore has none for it: install its plugin, if there is one"
    return f"it is none of libvirt's pool types: {_misspelt(type)}"


def without_plugin(type: str) -> str:
    """Return why there is no backend for a pool type, with advice."""
    from astore.xml.known_types import POOL_TYPES

    if type in POOL_TYPES:
        return explain(UnknownBackendError(f"no backend for pool type {type!r} is installed", type=type))
    return f"{type!r} is none of libvirt's pool types, and no plugin for it is installed: {_misspelt(type)}"


def _misspelt(type: str) -> str:
    from astore.cli.similar import closest
    from astore.xml.known_types import EXTRAS, POOL_TYPES

    alike = closest(type, ("dir", *EXTRAS), cutoff=0.6) or closest(type, POOL_TYPES, cutoff=0.6)
    return f"did you mean {alike!r}?" if alike else "is it misspelt?"


REFRESH_FIRST = "refresh it first"
"""The words of an error on a volume that differs from what the last refresh found."""


def why_unread(file: str, error: OSError) -> str:
    """Return why a file, or standard input (`-`), cannot be read."""
    if file == "-" and error.errno == EBADF:
        return "it is closed, or has the commands of `astore shell`: name a file instead"
    return error.strerror or str(error)


def _hint(error: BaseException) -> str:
    if notes := getattr(error, "__notes__", None):
        return str(notes[0])
    command = next((one for one in (error, error.__cause__) if isinstance(one, CommandError)), None)
    if command is not None and command.returncode is None and "is not installed" in str(command):
        return "install it"
    if command is not None and os.path.basename(command.argv[0]).startswith("mount") and os.geteuid() != 0:
        return "mounting takes root"
    if isinstance(error, StorageError) and error.errno in (ENOSPC, EDQUOT):
        return "make room there, and try again"
    if isinstance(error, UnknownBackendError):
        return _plugin_of(error.type)
    if isinstance(error, StoreError) and error.errno in (EACCES, EPERM, EROFS, ENOTDIR):
        return "choose another state folder with --state-dir"
    if isinstance(error, PoolInaccessibleError) and error.pool and "build the pool" in error.message:
        pool = shell_word(error.pool)
        inactive = re.match(r"pool '.*': (?!start|build)[a-z-]+: ", error.message) is None
        first = "" if inactive else f"`astore pool stop {pool}`, then "
        return f"{first}`astore pool build {pool}`"
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in ("click", "rich", "shellingham"):
        return "pip install 'astore[cli]'"
    if isinstance(error, VolumeNotFoundError) and (home := re.match("pool '([^']*)' has no volume ", str(error))):
        pool = shell_word(home[1])
        return f"`astore vol list {pool}` shows its volumes"
    if isinstance(error, StorageError) and REFRESH_FIRST in error.message:
        return f"`astore pool refresh {shell_word(error.pool) if error.pool else 'POOL'}`"
    for kind, hint in _HINTS:
        if isinstance(error, kind):
            return hint
    if isinstance(error, AstoreError | CliError | OSError):
        return ""
    return "this is a fault of astore; --verbose shows where it happened"
