"""The bed of a drill's FUSE file system: starts and ends its servers, and tells them what goes wrong."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from beds import BedUnavailable, fuse, namespace, processes

CALLS = frozenset(
    {"lookup", "getattr", "setattr", "getxattr", "statfs", "opendir", "readdir", "fsyncdir", "releasedir", "unlink"}
    | {"rmdir", "mkdir", "symlink", "readlink", "link", "rename", "create", "open", "read", "write", "flush", "fsync"}
    | {"release"}
)
"""The calls that a rule may concern. ``readdir`` is met by each entry of a listing."""

ENDLESS = 1 << 40
"""So many generated entries that a listing never ends."""

PYTHON = "/usr/bin/python3"
"""Debian's Python, which has python3-pyfuse3."""

_HELPER = os.path.realpath("/sbin/mount.glusterfs")
_WITHIN = 20.0
_numbers = itertools.count(1)


def missing() -> str | None:
    """Return why there can be no such file system here; None if there can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if not any(Path("/usr/lib/python3/dist-packages").glob("pyfuse3.*.so")):
        return "there is no pyfuse3 for Debian's Python (Debian package python3-pyfuse3)"
    return None


class Rule:
    """What becomes of some calls, until :meth:`remove`; a context manager that removes it."""

    def __init__(self, bed: FuseFs, number: int) -> None:
        self._bed = bed
        self._number = number

    def wait(self, count: int = 1, *, timeout: float = _WITHIN) -> None:
        """Wait until this rule is holding ``count`` calls at once. Blocks.

        :raises TimeoutError: not in ``timeout`` seconds. LookupError: the rule was removed, or no server runs.
        """
        held = self._bed.tell({"do": "wait", "id": self._number, "count": count}, timeout=timeout)
        if held is None or held < count:
            raise LookupError("no server holds calls: it does not run, or the rule was removed")

    def remove(self) -> None:
        """Let the calls that it holds go on, and forget the rule. May be called twice.

        :raises TimeoutError: the server is stopped: thaw it first.
        """
        self._bed.forget(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class FuseFs:
    """A file system that shows ``folder/files`` and generated files. See the package for what a drill does with it.

    It has one server at a time; the rules hold for the next one too. Beds that are lent to netfs are closed in the
    opposite order of lending.

    :ivar files: the folder that is shown; what a test changes here, it changes behind the mount.
    :param folder: the bed's own folder, which is made.
    :param entries: how many generated files the root has: ``disk0000000.img`` and so on.
    :param size: their size in bytes.
    :param head: their first bytes; the rest is zeros.
    :param cache: seconds for which the kernel may remember names and attributes.
    :param writeback: let the kernel accept writes before the server does.
    :raises BedUnavailable: this machine or this user cannot have it.
    """

    host = "fuse.test"

    def __init__(
        self,
        folder: Path,
        *,
        entries: int = 0,
        size: int = 1 << 20,
        head: bytes = b"",
        cache: float = 0.0,
        writeback: bool = False,
    ) -> None:
        if (why := missing()) is not None:
            raise BedUnavailable(why)
        folder.mkdir(parents=True)
        self.files = folder / "files"
        self.files.mkdir()
        self.directory = f"drill{next(_numbers)}"
        self._folder = folder.absolute()
        self._lent = False
        self._rules: dict[int, dict[str, Any]] = {}
        self._settings: dict[str, Any] = {
            "entries": entries,
            "size": size,
            "head": head.hex(),
            "cache": cache,
            "writeback": writeback,
            "room": None,
        }
        self._save()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def source(self) -> str:
        """The mount's source, ``HOST:DIR``."""
        return f"{self.host}:{self.directory}"

    def close(self) -> None:
        """End the server, whatever it holds, and unmount. May be called twice."""
        if self._lent:
            self._lent = False
            namespace.unmount(_HELPER, lazy=True)
        processes.end(self._servers)
        for mount in fuse.mounts():
            if mount.source in self._sources():
                fuse.release(mount.target)

    def _servers(self) -> list[int]:
        found = processes.mentioning(self._folder, {os.path.basename(PYTHON)})
        command = self._server()
        return [pid for pid in found if list(processes.arguments(pid)[: len(command)]) == command]

    def _sources(self) -> tuple[str, ...]:
        """Return the spellings of the source that netfs takes for the same."""
        return self.source, f"{self.host}:/{self.directory}"

    # ------------------------------------------------------------------------------------------- mounting

    def mount(self, target: Path | None = None) -> Path:
        """Start a server, and return the folder on which it is mounted: ``target``, or one in the bed's folder.

        :raises RuntimeError: it cannot be mounted; the message has the end of the server's log.
        """
        where = self._folder / "mount" if target is None else target
        where.mkdir(parents=True, exist_ok=True)
        argv = [*self._server(), self.source, os.fspath(where)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"mounting {where} failed: {done.stderr}")
        return where

    def lend_to_netfs(self) -> Self:
        """Make ``mount -t glusterfs fs.host:fs.directory TARGET`` mount this file system, until the bed is closed.

        The real ``mount.glusterfs`` is covered in this mount namespace, and mounts every other source as before.

        :raises BedUnavailable: no private namespaces, or no glusterfs-client.
        """
        namespace.require_private_namespaces()
        if not os.path.exists(_HELPER):
            raise BedUnavailable("there is no mount.glusterfs to cover (Debian package glusterfs-client)")
        real, helper = self._folder / "mount.glusterfs", self._folder / "helper"
        shutil.copy(_HELPER, real)
        sources = "|".join(map(shlex.quote, self._sources()))
        serve = shlex.join(self._server())
        helper.write_text(
            f'#!/bin/sh\ncase "$1" in\n{sources}) exec {serve} "$@" ;;\nesac\nexec {shlex.quote(str(real))} "$@"\n'
        )
        helper.chmod(0o755)
        namespace.bind(helper, _HELPER)
        self._lent = True
        return self

    def _server(self) -> list[str]:
        program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from beds.fuse_fs.server import main; "
        program += "sys.exit(main(*sys.argv[1:]))"
        root = Path(__file__).parent.parent.parent
        return [PYTHON, "-B", "-I", "-c", program, str(root), str(self._folder)]

    # ------------------------------------------------------------------------------------------- what goes wrong

    def delay(self, call: str, seconds: float, *, names: str = "*", first: int = 1) -> Rule:
        """Delay each such call by ``seconds``; as for :meth:`fail`."""
        return self._add(call, names, first, seconds, 0)

    def hold(self, call: str, *, names: str = "*", first: int = 1) -> Rule:
        """Hold each such call until the rule is removed; as for :meth:`fail`."""
        return self._add(call, names, first, None, 0)

    def fail(self, call: str, number: int, *, names: str = "*", first: int = 1) -> Rule:
        """Fail each such call with an error. An older rule for a call acts before a newer one.

        :param call: one of ``CALLS``.
        :param number: the errno.
        :param names: a pattern for the file's name, as in fnmatch(3).
        :param first: the first call that fails, by its number among those to which the pattern applies.
        :raises ValueError: there is no such call.
        """
        return self._add(call, names, first, 0.0, number)

    def room(self, size: int | None) -> None:
        """Let ``size`` more bytes be written and then fail writes with ENOSPC; None: no limit. statvfs(2) shows it."""
        self._settings["room"] = size
        self._save()
        self.tell({"do": "room", "bytes": size})

    def calls(self) -> Counter[str]:
        """Return how often each call has reached the server that runs; empty if none runs."""
        return Counter(self.tell({"do": "calls"}) or {})

    def _add(self, call: str, names: str, first: int, delay: float | None, number: int) -> Rule:
        if call not in CALLS:
            raise ValueError(f"there is no call {call!r}")
        rule_id = next(_numbers)
        rule = {"id": rule_id, "call": call, "names": names, "first": first, "delay": delay, "errno": number}
        self._rules[rule_id] = rule
        self._save()
        self.tell({"do": "add", "rule": rule})
        return Rule(self, rule_id)

    def forget(self, number: int) -> None:
        """Remove a rule by its number; :meth:`Rule.remove` does."""
        if self._rules.pop(number, None) is not None:
            self._save()
            self.tell({"do": "remove", "id": number})

    def _save(self) -> None:
        new = self._folder / "settings.new"
        new.write_text(json.dumps({**self._settings, "rules": list(self._rules.values())}))
        new.rename(self._folder / "settings.json")

    def tell(self, command: dict[str, Any], *, timeout: float = _WITHIN) -> Any:
        """Send the server a command, and return its answer; None if no server runs.

        :raises TimeoutError: it does not answer in ``timeout`` seconds.
        """
        folder = os.open(self._folder, os.O_PATH)
        try:
            with socket.socket(socket.AF_UNIX) as control:
                control.settimeout(timeout)
                control.connect(f"/proc/self/fd/{folder}/control")  # a socket's path has 107 bytes at most
                control.sendall(json.dumps(command).encode() + b"\n")
                with control.makefile("rb") as answers:
                    line = answers.readline()
                return json.loads(line) if line else None
        except (FileNotFoundError, ConnectionError):
            return None
        finally:
            os.close(folder)
