"""Sources of an upload beside plain files: compressed files, and https."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import IO, TYPE_CHECKING, Any

from astore.cancellation import shielded
from astore.cli.exits import CliError
from astore.cli.local_files import PIECE, in_thread, pieces_of, size_to_read
from astore.commands import PipedProgram
from astore.errors import CommandError, reason

if TYPE_CHECKING:
    from http.client import HTTPResponse

PROGRAMS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2"}
"""The program that unpacks a file, by the end of its name, in whatever case."""

ANSWER_SECONDS = 60.0
"""Seconds that a server may take to answer, or to send more."""


class UploadSource:
    """The content that an upload writes.

    :param file: a path, ``-`` for standard input, or an ``https://`` URL. :param unpack: unpack what is compressed by its name.
    :raises CliError: it is another URL.
    """

    def __init__(self, file: str, *, unpack: bool) -> None:
        self.file = file
        self._remote = _is_https(file)
        name = file.partition("?")[0].partition("#")[0] if self._remote else file
        self._program = PROGRAMS.get(os.path.splitext(name)[1].lower()) if unpack else None

    async def size(self) -> int | None:
        """Return how many bytes it has, or None if that is not known before they were read."""
        return None if self._remote or self._program else await size_to_read(self.file)

    def pieces(self, size: int | None) -> str | AsyncGenerator[bytes, None]:
        """Return what :meth:`astore.Volume.upload` takes: a path, of whose file it skips the holes, or the bytes.

        :param size: what :meth:`size` said.
        """
        if self._remote or self._program:
            return self._streamed()
        return pieces_of(self.file) if self.file == "-" or size is None else self.file

    async def _streamed(self) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a server or a program. :raises CliError: it failed."""
        stream = await in_thread(_request, self.file) if self._remote else None
        try:
            if self._program is None:
                assert stream is not None
                while piece := await in_thread(_read, self.file, stream):
                    yield piece
                return
            unpacking = await in_thread(_Unpacking, self.file, self._program, stream)
            try:
                while piece := await in_thread(unpacking.read):
                    yield piece
                await in_thread(unpacking.finish)
            finally:
                await shielded(in_thread(unpacking.end))
        finally:
            if stream is not None:
                await shielded(in_thread(stream.close))


def _is_https(file: str) -> bool:
    """Return whether a name is an https URL. :raises CliError: it is one that cannot be read."""
    found = re.match(r"([a-z][a-z0-9+.-]*)://", file, re.IGNORECASE)
    if found is None:
        return False
    shown, scheme = _without_user(file), found[1].lower()
    if scheme == "file":
        raise CliError(f"{shown}: give the file's path instead of a URL")
    if scheme == "http":
        raise CliError(f"{shown}: what comes by http may have been changed on its way: use https, or {_CURL}")
    if scheme != "https":
        raise CliError(f"{shown}: only https is read: {_CURL}")
    if shown != file:
        raise CliError(f"{shown}: astore sends no user and password: {_CURL}")
    return True


_CURL = "`curl URL | astore vol upload VOLUME -`"


def _without_user(url: str) -> str:
    """Return a URL without its user and password."""
    scheme, _, rest = url.partition("://")
    server = re.split("[/?#]", rest, maxsplit=1)[0]
    path = rest[len(server) :]
    _, colon, port = server.rpartition(":")
    if colon and not port.isdigit() and not server.startswith("[") and "@" in path:  # a slash in a password
        server, path = path.rpartition("@")[2], ""
    return f"{scheme}://{server.rpartition('@')[2]}{path}"


def _request(url: str) -> HTTPResponse:
    """Open a URL. :raises CliError: the server does not answer, or does not have it."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, HTTPSHandler, ProxyHandler, build_opener

    class OnlyHttps(HTTPRedirectHandler):
        """Follow redirections to https only."""

        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if not newurl.lower().startswith("https://"):
                fp.close()
                raise URLError(f"it redirects to {_without_user(newurl)}, which is not https")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    try:
        opener = build_opener(ProxyHandler(), HTTPSHandler(), OnlyHttps())
        found: HTTPResponse = opener.open(url, timeout=ANSWER_SECONDS)
        return found
    except HTTPError as error:
        error.close()
        raise CliError(f"{url}: the server says {error.code} {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "reason", error)
        raise CliError(f"{url}: {reason(why) if isinstance(why, OSError) else why}") from error


def _read(file: str, stream: HTTPResponse) -> bytes:
    """Read the next bytes of a server's answer. :raises CliError: it broke off."""
    from http.client import HTTPException

    try:
        piece = stream.read(PIECE)
    except (OSError, HTTPException) as error:
        raise CliError(f"{file}: it broke off: {error}") from error
    if not piece and stream.length:
        raise CliError(f"{file}: it broke off: {stream.length} bytes are missing")
    return piece


class _Unpacking:
    """A program that unpacks a file, or what a server sends.

    :param stream: what the server sends; None: the file.
    """

    def __init__(self, file: str, program: str, stream: HTTPResponse | None) -> None:
        self._file = file
        self._problem: CliError | None = None
        self._feeding: threading.Thread | None = None
        with _told_of(file), contextlib.ExitStack() as stack:
            given = None if stream is not None else stack.enter_context(_opened(file)).fileno()
            self._program = PipedProgram(program, "-dc", stdin=given)
        if stream is not None:
            self._feeding = threading.Thread(target=self._feed, args=(stream,), name="astore-unpack", daemon=True)
            self._feeding.start()

    def _feed(self, stream: HTTPResponse) -> None:
        assert self._program.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError), self._program.stdin as stdin, stream:
                while piece := _read(self._file, stream):
                    stdin.write(piece)
        except CliError as error:
            self._problem = error

    def read(self) -> bytes:
        """Return the next bytes; none at the end."""
        return self._program.stdout.read(PIECE)

    def finish(self) -> None:
        """Wait for the program, after its last byte. :raises CliError: it, or the server, failed."""
        with _told_of(self._file):
            code, said = self._program.wait()
        if self._feeding is not None:
            self._feeding.join()
        if self._problem is not None:
            raise self._problem
        if code:
            why = " ".join(said.split()) or f"it cannot be unpacked: exit code {code}"
            raise CliError(f"{self._file}: {why}: --no-unpack writes it as it is")

    def end(self) -> None:
        """End the program, and close its pipes."""
        self._program.close()


@contextlib.contextmanager
def _told_of(file: str) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise CliError(f"{file}: it cannot be unpacked: {error}: install it") from error


@contextlib.contextmanager
def _opened(file: str) -> Iterator[IO[bytes]]:
    try:
        with open(file, "rb") as stream:
            yield stream
    except OSError as error:
        raise CliError(f"{file}: {error.strerror}") from error
