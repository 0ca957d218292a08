"""A private iSCSI target: one tgtd on loopback, with targets, LUNs in files, CHAP accounts and faults.

tgtd runs in user space. Its control socket is in the bed's folder, so that it meets no tgtd of the machine's owner.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from beds import BedUnavailable, processes

ADDRESS = "127.0.0.1"

_serial = itertools.count(1)


class TgtError(RuntimeError):
    """``tgtadm`` failed; the message is its output."""


def missing() -> str | None:
    """Return why there can be no iSCSI bed here; None if there can."""
    if os.geteuid() != 0:
        return "tgtd needs root"
    for program in ("tgtd", "tgtadm"):
        if shutil.which(program) is None:
            return f"there is no {program} (Debian package tgt)"
    return None


class Target:
    """A target of a bed, with the controller as its LUN 0. Make it with :meth:`IscsiBed.new_target`.

    :ivar iqn: its name. :ivar number: tgtd's number for it.
    """

    def __init__(self, bed: IscsiBed, number: int, iqn: str) -> None:
        self.bed = bed
        self.number = number
        self.iqn = iqn

    def add_lun(
        self, lun: int, backing: Path | int, *, thin: bool = False, readonly: bool = False, block: int = 512
    ) -> Path:
        """Add a LUN with an identity that no other has; return its file.

        :param backing: the file; or a size in bytes, for a new file without data. :param thin: it can unmap, and tells holes.
        :param block: the bytes of a block.
        """
        if isinstance(backing, int):
            path = self.bed.folder / "luns" / f"{next(_serial)}.img"
            with path.open("wb") as file:
                file.truncate(backing)
        else:
            path = backing
        self._tgtadm("logicalunit", "new", "--lun", str(lun), "--backing-store", str(path), "--blocksize", str(block))
        serial = next(_serial)
        settings = {"scsi_id": f"bed-{serial}", "scsi_sn": f"bed-{serial}"}
        if thin:
            settings["thin_provisioning"] = "1"
        if readonly:
            settings["readonly"] = "1"
        self.update_lun(lun, **settings)
        return path

    def update_lun(self, lun: int, **settings: str) -> None:
        """Change parameters of a LUN, such as ``online`` or ``removable``."""
        params = ",".join(f"{name}={value}" for name, value in settings.items())
        self._tgtadm("logicalunit", "update", "--lun", str(lun), "--params", params)

    def remove_lun(self, lun: int) -> None:
        """Remove a LUN; its file stays."""
        self._tgtadm("logicalunit", "delete", "--lun", str(lun))

    def require_chap(self, user: str, password: str) -> None:
        """Let only initiators log in that know this password, of 12 to 16 bytes."""
        self.bed.tgtadm("account", "new", "--user", user, "--password", password)
        self._tgtadm("account", "bind", "--user", user)

    def open(self) -> None:
        """Let every initiator log in (subject to CHAP)."""
        self._tgtadm("target", "bind", "--initiator-address", "ALL")

    def shut(self) -> None:
        """Let nobody log in, and drop all connections."""
        self._tgtadm("target", "unbind", "--initiator-address", "ALL")
        self.drop_connections()

    def drop_connections(self) -> None:
        """Drop all connections of initiators."""
        for session, connection in self.connections():
            self._tgtadm("conn", "delete", "--sid", session, "--cid", connection)

    def connections(self) -> list[tuple[str, str]]:
        """Return the session and connection numbers of the initiators that are logged in."""
        told = self._tgtadm("conn", "show")
        return re.findall(r"Session: (\d+)\s+Connection: (\d+)", told)

    def delete(self) -> None:
        """Delete the target, whoever uses it."""
        self._tgtadm("target", "delete", "--force")

    def _tgtadm(self, mode: str, operation: str, *arguments: str) -> str:
        return self.bed.tgtadm(mode, operation, "--tid", str(self.number), *arguments)


class IscsiBed:
    """One tgtd with its targets. Use it as a context manager, or call :meth:`start` and :meth:`close`.

    :param folder: for its files; created if it is missing. Afterwards only its log stays. Its path must be short, since
        a socket's may have at most 107 bytes (unix(7)).
    :param portals: how many ports it listens on. :param address: of which address of this machine.
    :raises BedUnavailable: (on start) not root, or programs missing.
    """

    def __init__(self, folder: str | os.PathLike[str], portals: int = 1, address: str = ADDRESS) -> None:
        self.folder = Path(folder).absolute()
        self.address = address
        self.ports = _free_ports(address, portals)
        self._numbers = itertools.count(1)
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The first port."""
        return self.ports[0]

    @property
    def pid(self) -> int:
        """The process number of tgtd."""
        assert self._daemon is not None, "it is not started"
        return self._daemon.pid

    def start(self) -> None:
        """Start tgtd without any target, and wait until it answers."""
        if why := missing():
            raise BedUnavailable(why)
        (self.folder / "luns").mkdir(parents=True, exist_ok=True)
        address = f"[{self.address}]" if ":" in self.address else self.address
        portals = ",".join(f"portal={address}:{port}" for port in self.ports)
        with (self.folder / "tgtd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["tgtd", "-f", "-t", "4", "--iscsi", portals],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            processes.wait_until(self._answers, 20, "tgtd answers")
        except BaseException:
            self.close()
            raise

    def new_target(self, iqn: str | None = None, *, open: bool = True) -> Target:
        """Make a target. :param open: let every initiator log in."""
        number = next(self._numbers)
        target = Target(self, number, iqn or f"iqn.2026-01.test.bed:{next(_serial)}")
        self.tgtadm("target", "new", "--tid", str(number), "--targetname", target.iqn)
        if open:
            target.open()
        return target

    def tgtadm(self, mode: str, operation: str, *arguments: str) -> str:
        """Run tgtadm; return its output. :raises TgtError: it failed."""
        done = subprocess.run(
            ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", operation, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise TgtError(f"tgtadm {mode} {operation} {' '.join(arguments)}: {(done.stderr + done.stdout).strip()}")
        return done.stdout

    def freeze(self) -> None:
        """Stop the process: it answers nothing, and its connections stay."""
        processes.send([self.pid], signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        processes.send([self.pid], signal.SIGCONT)

    def kill(self) -> None:
        """Kill tgtd: it forgets its targets. May be called twice; :meth:`start` starts another on the same ports."""
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            daemon.kill()
            daemon.wait(timeout=20)
        self._numbers = itertools.count(1)

    def pids(self) -> Sequence[int]:
        """Return its processes."""
        return [] if self._daemon is None else [self._daemon.pid]

    def close(self) -> None:
        """End tgtd, and remove everything but its log. May be called twice."""
        self.kill()
        shutil.rmtree(self.folder / "luns", ignore_errors=True)
        for path in self.folder.glob(f"{self._socket.name}*"):  # tgtd appends the port of its control channel
            path.unlink()

    @property
    def _socket(self) -> Path:
        return self.folder / "control"

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "TGT_IPC_SOCKET": str(self._socket), "LC_ALL": "C"}

    def _answers(self) -> bool:
        assert self._daemon is not None
        if self._daemon.poll() is not None:
            raise BedUnavailable(f"tgtd ended: see {self.folder / 'tgtd.log'}")
        try:
            self.tgtadm("sys", "show")
        except TgtError:
            return False
        return True


def _free_ports(address: str, count: int) -> tuple[int, ...]:
    """Return ports of an address on which nobody listens."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((address, 0))
        return tuple(one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()
