"""PipedProgram: a program that reads and writes while this process does."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import BinaryIO

from astore.commands.command import environment
from astore.commands.starter import STARTER, exit_code, request, send
from astore.errors import CommandError


class PipedProgram:
    """A program with pipes, started by the helper process as all are. Its methods block. Close it in the end.

    :param stdin: a descriptor for the program, which stays the caller's; None: a pipe.
    :ivar stdin: the pipe to write to, which its writer closes; None: the caller's descriptor is read.
    :ivar stdout: the pipe to read from.
    :raises CommandError: no program can be started. That one program cannot be is told by :meth:`wait`.
    """

    def __init__(self, *argv: str, stdin: int | None = None) -> None:
        self._argv = argv
        self.stdin: BinaryIO | None = None
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            # a file, so that the program never waits for its reader
            self._told = failed.enter_context(open(os.memfd_create("stderr"), "r+b", buffering=0))
            ours, other = os.pipe()
            self.stdout: BinaryIO = failed.enter_context(open(ours, "rb"))
            theirs.callback(os.close, other)
            if stdin is None:
                stdin, ours = os.pipe()
                theirs.callback(os.close, stdin)
                self.stdin = failed.enter_context(open(ours, "wb"))
            try:
                self._channel = failed.enter_context(STARTER.channel())
                send(self._channel, request(argv, environment({}), [0, 1, 2]), [stdin, other, self._told.fileno()])
            except (OSError, ValueError) as error:
                message = f"the program {argv[0]!r} cannot be run: {error}"
                raise CommandError(message, argv=argv, returncode=None, stderr="") from error
            failed.pop_all()

    def wait(self) -> tuple[int, str]:
        """Wait for the program's end; return its exit code and what it wrote to stderr.

        :raises CommandError: it cannot be run, or was lost.
        """
        answers = bytearray()
        with contextlib.suppress(ConnectionResetError):  # the starter died before the request was read
            while part := self._channel.recv(4096):
                answers += part
        code = exit_code(self._argv, answers)
        return code, os.pread(self._told.fileno(), 1 << 16, 0).decode("utf-8", "replace").strip()

    def kill(self) -> None:
        """Kill the program; do not wait for its end. Any thread may call it."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Kill the program, and close what is read from it. A thread that writes to ``stdin`` gets BrokenPipeError."""
        self.kill()
        for stream in (self.stdout, self._told, self._channel):
            stream.close()
