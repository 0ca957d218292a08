"""A private Ceph cluster on loopback: one monitor, one OSD whose objects are in memory, and a manager if it is asked for.

Unless told otherwise, it demands cephx of its clients: :attr:`CephBed.key` is the key of ``client.admin``. Nothing of the
machine's own Ceph is read: every program gets this bed's configuration file.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from beds import BedUnavailable, processes

_PROGRAMS = frozenset({"ceph-mon", "ceph-osd", "ceph-mgr"})

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = {monitors}
auth_cluster_required = {authentication}
auth_service_required = {authentication}
auth_client_required = {authentication}
keyring = {folder}/keyring
ms_bind_ipv4 = {ipv4}
ms_bind_ipv6 = {ipv6}
public_addr = {host}
cluster_addr = {host}
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_data_avail_warn = 2
osd_objectstore = memstore
memstore_device_bytes = {room}
osd_client_watch_timeout = 15
mgr_stats_period = 1
mgr_tick_period = 1
mon_mgr_digest_period = 1
mon_mgr_beacon_grace = 600
mgr_initial_modules =
mgr_disabled_modules = {modules}
paxos_propose_interval = 0.1
osd_pool_default_pg_autoscale_mode = off
log_file = {folder}/log/$name.log
admin_socket = {folder}/run/$name.asok
run_dir = {folder}/run
crash_dir = {folder}/crash
pid_file = {folder}/run/$name.pid
mon_data = {folder}/mon
osd_data = {folder}/osd
mgr_data = {folder}/mgr
{more}
"""


class CephCommandError(RuntimeError):
    """A command of Ceph returned non-zero; the message is its output."""


def missing() -> str | None:
    """Return why there can be no Ceph bed here; None if there can."""
    programs = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "ceph-mgr": "ceph-mgr", "rbd": "ceph-common"}
    for program, package in programs.items():
        if shutil.which(program) is None:
            return f"there is no {program} (Debian package {package})"
    return None


def _free_ports(host: str, count: int) -> list[int]:
    """Return TCP ports of an address that nothing listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _modules() -> list[str]:
    """Return the manager's modules, none of which a bed needs: without them it starts in half the time."""
    folder = Path("/usr/share/ceph/mgr")
    return sorted(one.name for one in folder.iterdir() if one.is_dir()) if folder.is_dir() else []


def _new_key() -> str:
    """Return a new cephx key, as CryptoKey of Ceph's auth/Crypto.h encodes it: type 1 (AES), the time, 16 bytes."""
    return base64.b64encode(struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)).decode()


class CephBed:
    """A Ceph cluster. Use it as a context manager, or call :meth:`start` and :meth:`close`.

    :param folder: for all its files; created if it is missing. Afterwards only its ``log`` folder stays.
    :param room: the bytes that the OSD can hold. :param manager: start a manager; without one, sizes are 0.
    :param keys: clients need one. :param host: the address of all daemons. :param more: further lines of the configuration.
    :raises BedUnavailable: (on start) programs are missing.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        room: int = 4 << 30,
        manager: bool = True,
        keys: bool = True,
        host: str = "127.0.0.1",
        more: str = "",
    ) -> None:
        self.folder = Path(folder).absolute()
        self.key = _new_key()
        self.host = host
        self._room = room
        self._manager = manager
        self._authentication = "cephx" if keys else "none"
        self._more = more
        self._fsid = str(uuid.uuid4())
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def configuration(self) -> Path:
        """The cluster's ``ceph.conf``."""
        return self.folder / "ceph.conf"

    def start(self) -> None:
        """Start the daemons and wait until a pool can be made."""
        if why := missing():
            raise BedUnavailable(why)
        try:
            self._write_files()
            self._make_monitor()
            self.start_daemon("mon")
            self._make_osd()
            self.start_daemon("osd")
            if self._manager:
                (self.folder / "mgr").mkdir()
                self.start_daemon("mgr")
        except BaseException:
            self.close()
            raise

    def _write_files(self) -> None:
        for part in ("mon", "osd", "log", "run", "crash"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.port, old = _free_ports(self.host, 2)
        address = f"[{self.host}]" if ":" in self.host else self.host
        monitors = f"[v2:{address}:{self.port},v1:{address}:{old}]"
        self._monitors = monitors
        caps = {"mon": "allow *", "osd": "allow *", "mgr": "allow *"}
        sections = {"mon.": caps, "client.admin": caps, "mgr.x": caps, "osd.0": caps}
        lines = []
        for name, allowed in sections.items():
            lines.append(f"[{name}]\n\tkey = {self.key}")
            lines += [f'\tcaps {service} = "{what}"' for service, what in allowed.items()]
        keyring = self.folder / "keyring"
        keyring.touch(mode=0o600)
        keyring.write_text("\n".join(lines) + "\n")
        self.configuration.write_text(
            _CONFIGURATION.format(
                fsid=self._fsid,
                monitors=monitors,
                folder=self.folder,
                host=self.host,
                ipv4=str(":" not in self.host).lower(),
                ipv6=str(":" in self.host).lower(),
                authentication=self._authentication,
                modules=",".join(_modules()),
                room=self._room,
                more=self._more,
            )
        )

    def _make_monitor(self) -> None:
        map = self.folder / "monmap"
        self.run(
            "monmaptool",
            "--create",
            "--clobber",
            "--fsid",
            self._fsid,
            "--addv",
            "a",
            self._monitors,
            str(map),
            plain=True,
        )
        keyring = str(self.folder / "keyring")
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", str(map), "--keyring", keyring)

    def _make_osd(self) -> None:
        identity = str(uuid.uuid4())
        self.ceph("osd", "new", identity, "0")
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)

    # ---------------------------------------------------------------------------------------------------- daemons

    def start_daemon(self, kind: str) -> None:
        """Start ``mon``, ``osd`` or ``mgr``, which was not started or was killed."""
        name = {"mon": "a", "osd": "0", "mgr": "x"}[kind]
        quiet = subprocess.DEVNULL
        argv = [f"ceph-{kind}", "-c", str(self.configuration), "-i", name, "-f"]
        log = (self.folder / "log" / f"{kind}.out").open("ab")
        with log:
            self._daemons[kind] = subprocess.Popen(argv, stdin=quiet, stdout=log, stderr=log, env=self._environment())

    def pause(self, kind: str) -> None:
        """Stop a daemon as SIGSTOP does: it keeps its connections, and answers nothing. Blocks until it is so."""
        daemon = self._daemons[kind]
        daemon.send_signal(signal.SIGSTOP)
        processes.wait_until(lambda: processes.stopped(daemon.pid), 60, f"the {kind} is stopped")

    def resume(self, kind: str) -> None:
        """Let a paused daemon go on."""
        self._daemons[kind].send_signal(signal.SIGCONT)

    def kill(self, kind: str) -> None:
        """Kill a daemon at once."""
        daemon = self._daemons.pop(kind)
        daemon.kill()
        daemon.wait(timeout=30)

    def pids(self) -> list[int]:
        """Return its processes."""
        return processes.mentioning(self.folder, _PROGRAMS)

    def close(self) -> None:
        """End every process, and remove everything except the logs. May be called twice."""
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait(timeout=30)
        self._daemons.clear()
        processes.end(self.pids, timeout=30)
        for part in ("mon", "osd", "mgr", "run", "crash"):
            shutil.rmtree(self.folder / part, ignore_errors=True)

    # --------------------------------------------------------------------------------------------------- commands

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CEPH_CONF": str(self.configuration), "CEPH_ARGS": ""}

    def run(self, *argv: str, timeout: float = 60, plain: bool = False) -> str:
        """Run a program of Ceph with this cluster's configuration; return its output.

        :param plain: the program takes no ``-c``. :raises CephCommandError: it returned non-zero.
        """
        return self.run_bytes(*argv, timeout=timeout, plain=plain).decode()

    def run_bytes(self, *argv: str, timeout: float = 60, plain: bool = False) -> bytes:
        """Do what :meth:`run` does, and return the output as bytes."""
        command = [argv[0], *([] if plain else ["-c", str(self.configuration)]), *argv[1:]]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            env=self._environment(),
        )
        if done.returncode != 0:
            raise CephCommandError(
                f"{' '.join(argv)}: {(done.stdout + done.stderr).decode(errors='replace').strip()[-2000:]}"
            )
        return done.stdout

    def ceph(self, *arguments: str) -> str:
        """Run ``ceph``; return its output."""
        return self.run("ceph", *arguments)

    def rbd(self, *arguments: str) -> str:
        """Run ``rbd``; return its output."""
        return self.run("rbd", *arguments)

    def create_pool(self, name: str) -> None:
        """Create a pool for images, and wait until it takes one, and until the cluster knows its own size."""
        self.ceph("osd", "pool", "create", name, "8")
        self.run("rbd", "pool", "init", name)
        if self._manager:
            processes.wait_until(self._knows_its_size, 60, "the manager tells sizes", every=0.2)

    def _knows_its_size(self) -> bool:
        total: int = json.loads(self.ceph("df", "--format=json"))["stats"]["total_bytes"]
        return total > 0
