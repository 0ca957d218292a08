"""A terminal, on which a program runs as before a person."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

PATIENCE = 200.0
"""Seconds after which a test that waits for something has failed."""

AGAIN = 5.0
"""Seconds after which a key that was overlooked is pressed again."""


class Terminal:
    """A program on a terminal of its own. ``seen`` is all that it has written."""

    def __init__(
        self, argv: list[str], environment: dict[str, str], columns: int = 120, kind: str = "xterm-256color"
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, columns, 0, 0))
        self.settings = termios.tcgetattr(theirs)
        self.seen = b""
        environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": kind},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._theirs = theirs

    def until(self, *texts: str) -> None:
        """Read until all of these texts have come."""
        deadline = time.monotonic() + PATIENCE
        while not all(text.encode() in self.seen for text in texts):
            assert time.monotonic() < deadline, self.seen
            self._read()

    def pass_by(self, text: str, meanwhile: str = "") -> None:
        """Read up to this text, and forget all of it. :param meanwhile: typed again and again until it comes."""
        deadline, again = time.monotonic() + PATIENCE, time.monotonic() + AGAIN
        while text.encode() not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if not self._read() and meanwhile and time.monotonic() > again:
                self.type(meanwhile)
                again = time.monotonic() + AGAIN
        self.seen = self.seen.partition(text.encode())[2]

    def type(self, keys: str) -> None:
        """Type something."""
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        """Type Ctrl-C and read until it has ended; return its exit code."""
        self.type("\x03")
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._read()
        while self._read():
            pass
        assert termios.tcgetattr(self._theirs) == self.settings
        return self.process.returncode

    def _read(self) -> bool:
        readable, _, _ = select.select([self._ours], [], [], 0.1)
        if readable:
            self.seen += os.read(self._ours, 1 << 16)
        return bool(readable)

    def close(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)
