"""The helper process that starts programs. It runs as a script, with the standard library alone; see starter.py.

A control socket brings one channel (a stream socket) for each program, and nothing else: no descriptor of a storage ever
reaches this process, so that it never waits for one. It forks for each channel; the child reads the request from the
channel, with the descriptors that the program inherits, and becomes the program. On the channel the child tells why it
could not, and this process that the program started and how it ended. If the other side shuts the channel down or ends,
the program is killed, with all its process group. A program is killed too when this process dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import marshal
import os
import resource
import select
import signal
import socket
import struct
import sys

PROGRAM, SPARE = b"p", b"s"
"""What to do with the socket that a control message brings: start a program, or serve it in another process."""

STARTED, FAILED, ENDED = b"s", b"f", b"e"
"""What an answer on the channel tells: the program's process id, an errno (it could not be started), or its wait status."""

ANSWER = struct.Struct("=ci")
LENGTH = struct.Struct("=Q")

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals to all processes of a service: the parent ends its programs itself, and this process ends with the parent."""

MAX_DESCRIPTORS = 250
"""How many descriptors one message can carry (SCM_MAX_FD is 253)."""

PR_SET_PDEATHSIG = 1


class Starter:
    """Serves one control socket."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.poll: select.epoll = select.epoll()
        self.poll.register(control, select.EPOLLIN)
        woken, waker = socket.socketpair()
        waker.setblocking(False)
        self.woken: socket.socket = woken
        self.waker: socket.socket = waker
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        self.poll.register(self.woken, select.EPOLLIN)
        self.channels: dict[int, tuple[socket.socket, int]] = {}  # the channel and the program of a descriptor

    def serve(self) -> None:
        """Serve until the control socket is closed and all programs have ended."""
        serving = True
        while serving or self.channels:
            ready = {fd for fd, _ in self.poll.poll()}
            for fd in ready & self.channels.keys():  # the other side has shut it down, or is gone
                self.poll.unregister(fd)
                kill(self.channels[fd][1])
            # after that, because these close and open channels, whose numbers are used again
            if self.woken.fileno() in ready:
                self.woken.recv(4096)
                self.reap()
            if self.control.fileno() in ready and not self.accept():
                self.poll.unregister(self.control)
                serving = False

    def accept(self) -> bool:
        """Handle one control message; return False at its end."""
        message, descriptors, _, _ = socket.recv_fds(self.control, 1, 1)
        if not message:
            return False
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            other = socket.socket(fileno=descriptors[0])
            if message == SPARE:
                self.fork_spare(other)
            else:
                self.start(other)
        return True

    def fork_spare(self, control: socket.socket) -> None:
        """Serve another control socket in a process of its own."""
        with contextlib.suppress(OSError), control:
            if os.fork() == 0:
                try:
                    self.close()
                    Starter(control).serve()
                finally:
                    os._exit(0)

    def start(self, channel: socket.socket) -> None:
        """Start the program whose request comes by the channel."""
        try:
            parent = os.getpid()
            pid = os.fork()
        except OSError as error:
            tell(channel, FAILED, error.errno or 0)
            channel.close()
            return
        if pid == 0:
            become_program(channel, parent)
        tell(channel, STARTED, pid)
        self.channels[channel.fileno()] = channel, pid
        # not EPOLLIN: the child reads the request from the same socket
        self.poll.register(channel, select.EPOLLRDHUP)

    def reap(self) -> None:
        """Tell the ends of programs."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for fd, (channel, pid) in list(self.channels.items()):
                    if pid == ended[0]:
                        del self.channels[fd]
                        tell(channel, ENDED, ended[1])
                        # a child that hangs before its exec has copies of it: they must not keep it open, or in the epoll
                        with contextlib.suppress(OSError):
                            self.poll.unregister(fd)
                        with contextlib.suppress(OSError):
                            channel.shutdown(socket.SHUT_RDWR)
                        channel.close()

    def close(self) -> None:
        """Close what this process has open, in a fork of it."""
        self.control.close()
        self.poll.close()
        self.woken.close()
        self.waker.close()
        for channel, _ in self.channels.values():
            channel.close()


def become_program(channel: socket.socket, parent: int) -> None:
    """Read the request and become the program. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(127)
        argv, environment, limits, targets, descriptors = received(channel)
        answers = channel
        try:
            # out of the way of the targets; all copies but the targets are closed by exec
            answers = socket.socket(fileno=moved(channel.fileno(), targets))
            copies = [moved(fd, targets) for fd in descriptors]
            for copy, target in zip(copies, targets, strict=True):
                os.dup2(copy, target)
            for kind, value in limits:
                _, hard = resource.getrlimit(kind)
                value = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (value, value))
            for name in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, *IGNORED):  # Python ignores or handles them
                signal.signal(name, signal.SIG_DFL)
            os.execvpe(argv[0], argv, environment)  # noqa: S606  no shell is meant
        except OSError as error:
            tell(answers, FAILED, error.errno or 0)
    finally:
        os._exit(127)


def received(
    channel: socket.socket,
) -> tuple[list[bytes], dict[bytes, bytes], list[tuple[int, int]], list[int], list[int]]:
    """Read a request: arguments, environment, limits, the descriptors' numbers in the program, the descriptors."""
    head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, MAX_DESCRIPTORS)
    for fd in descriptors:
        os.set_inheritable(fd, False)
    head += exactly(channel, LENGTH.size - len(head))
    argv, environment, limits, targets = marshal.loads(exactly(channel, *LENGTH.unpack(head)))  # noqa: S302  from this program alone
    return argv, environment, limits, targets, descriptors


def moved(fd: int, targets: list[int]) -> int:
    """Return a copy of a descriptor, closed by exec, whose number is none of ``targets``.

    :raises OSError: no number is left.
    """
    number = 3
    while True:
        number = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, number)
        if number not in targets:
            return number
        number += 1


def exactly(channel: socket.socket, size: int) -> bytes:
    """Read so many bytes. :raises EOFError: the other side is gone."""
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def tell(channel: socket.socket, kind: bytes, number: int) -> None:
    """Answer on a channel."""
    with contextlib.suppress(OSError):
        channel.send(ANSWER.pack(kind, number), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def kill(pid: int) -> None:
    """Kill a program that was not reaped yet, and its group: mount(8) runs helper programs."""
    for send in (os.kill, os.killpg):  # it may not have a group of its own yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, signal.SIGKILL)


def main() -> None:
    """Serve the sockets whose numbers are the arguments, the second in a process of its own."""
    first, second = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    for control in (first, second):
        control.set_inheritable(False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the application may block signals
    for name in IGNORED:
        signal.signal(name, signal.SIG_IGN)
    os.chdir("/")  # no mount stays busy because of this process
    signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that the wakeup descriptor is told
    starter = Starter(first)
    starter.fork_spare(second)
    starter.serve()


if __name__ == "__main__":
    main()
