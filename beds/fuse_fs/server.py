"""The server of a drill's FUSE file system: ``main(FOLDER, SOURCE, TARGET[, "-o", OPTIONS])``.

It mounts, goes to the background as mount helpers' servers do, and ends when its connection ends. It runs on Debian's
Python, which has pyfuse3. FOLDER is the bed's: ``settings.json``, ``files``, the socket ``control``, and ``log``.
"""

from __future__ import annotations

import json
import os
import resource
import select
import socket
import sys
import threading
import traceback
from typing import Any

import pyfuse3
import trio

from beds.fuse_fs.files import Files
from beds.fuse_fs.rules import Rules

_MOST_CALLS = 100_000
"""The calls that may be held at once."""

_FUSE_OPTIONS = frozenset({"nodev", "nosuid", "noexec", "ro"})
"""The options of mount(8) that libfuse takes; the rest is for Gluster's client."""


def main(folder: str, source: str, target: str, *further: str) -> int:
    """Mount, and return 0 when a process in the background serves; 1 with the log on standard error."""
    options = {option for word in further for option in word.split(",")} & _FUSE_OPTIONS
    os.chdir(folder)
    ready, told = os.pipe()
    if os.fork() == 0:
        os.close(ready)
        try:
            _go_to_background()
            _serve(source, target, options, told)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(told)
    if os.read(ready, 1):
        return 0
    with open("log", errors="replace") as log:
        sys.stderr.write(log.read()[-2000:])
    return 1


def _go_to_background() -> None:
    os.setsid()
    os.umask(0)
    null, log = os.open("/dev/null", os.O_RDWR), os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number, fd in ((0, null), (1, log), (2, log)):
        os.dup2(fd, number)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # every known file is an open descriptor


def _serve(source: str, target: str, options: set[str], told: int) -> None:
    with open("settings.json") as file:
        settings = json.load(file)
    rules = Rules(settings)
    options |= {*pyfuse3.default_options, f"fsname={source}", "subtype=glusterfs", "allow_other"}
    pyfuse3.init(Files("files", rules, settings), target, options)
    threading.Thread(target=_end_with_connection, daemon=True).start()
    trio.run(_run, rules, told)


def _end_with_connection() -> None:
    """End the process when the file system is unmounted or aborted, whatever calls are being held."""
    fuse = next(int(fd) for fd in os.listdir("/proc/self/fd") if _is_fuse(fd))
    poll = select.poll()
    poll.register(fuse, 0)
    poll.poll()
    os._exit(0)


def _is_fuse(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "/dev/fuse"
    except OSError:
        return False


async def _run(rules: Rules, told: int) -> None:
    control = _listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rules.serve, trio.SocketListener(control))
        os.write(told, b"1")
        os.close(told)
        await pyfuse3.main(max_tasks=_MOST_CALLS)


def _listen() -> Any:
    """Return the listening socket, which takes the place of an earlier server's in one step."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind("control.new")
    control.listen()
    os.rename("control.new", "control")
    return trio.socket.from_stdlib_socket(control)
