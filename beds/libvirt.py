"""A private libvirtd with only its storage and its secret driver: an oracle to compare with, and a rival to race.

libvirt 9's paths are compiled in, except the folder of its sockets; its state, definitions and caches go to empty file
systems that only the private namespace sees. It starts in well under a second, because it loads no other driver.
"""

from __future__ import annotations

import glob
import html
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from beds import BedUnavailable, fuse, processes
from beds.namespace import cover, require_private_namespaces, uncover

COVERED_FOLDERS = ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/etc/libvirt", "/var/log/libvirt")
"""The folders whose paths are compiled into libvirtd."""

_DRIVERS = tuple(
    f"/usr/{folder}/libvirt/connection-driver/libvirt_driver_{driver}.so"
    for driver in ("storage", "secret")
    for folder in ("lib/*", "lib64", "lib")
)


class VirshError(RuntimeError):
    """``virsh`` returned non-zero; the message is its output."""


def missing() -> str | None:
    """Return why there can be no libvirt bed here; None if there can."""
    if os.geteuid() != 0:
        return "a system libvirtd needs root"
    for program, package in (("libvirtd", "libvirt-daemon"), ("virsh", "libvirt-clients")):
        if shutil.which(program) is None:
            return f"there is no {program} (Debian package {package})"
    return None


class LibvirtBed:
    """One private libvirtd at a time. Use it as a context manager, or call :meth:`start` and :meth:`close`.

    :param folder: for its configuration, sockets and log; created if it is missing. Its path must be short, since a
        socket's may have at most 107 bytes (unix(7)).
    :raises BedUnavailable: (on start) not root, programs missing, or not in a private namespace.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).absolute()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._covered: list[str] = []
        self._mounted_before: frozenset[str] = frozenset()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def socket(self) -> Path:
        """The read-write socket."""
        return self.folder / "sockets" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """The connection URI, for virsh and for the bindings."""
        return f"storage+unix:///system?socket={self.socket}"

    @property
    def secrets_uri(self) -> str:
        """The connection URI of its secrets."""
        return f"secret+unix:///system?socket={self.socket}"

    def start(self) -> None:
        """Start libvirtd and wait until it answers."""
        if why := missing():
            raise BedUnavailable(why)
        require_private_namespaces()
        try:
            self._mounted_before = frozenset(mount.target for mount in fuse.mounts())
            self._covered = [folder for folder in COVERED_FOLDERS if cover(folder)]
            self._daemon = self._launch()
            daemon = self._daemon
            processes.wait_until(lambda: self.socket.is_socket() or daemon.poll() is not None, 30, "libvirtd listens")
            self.virsh("pool-list", "--all")
        except BaseException:
            self.close()
            raise

    def _launch(self) -> subprocess.Popen[bytes]:
        drivers = self.folder / "drivers"
        for folder in (self.socket.parent, drivers):
            folder.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        for path in (path for pattern in _DRIVERS for path in glob.glob(pattern)):
            link = drivers / Path(path).name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
            environment["LIBVIRT_DRIVER_DIR"] = str(drivers)
        configuration = self.folder / "libvirtd.conf"
        configuration.write_text(
            f'unix_sock_dir = "{self.socket.parent}"\n'
            'auth_unix_rw = "none"\nauth_unix_ro = "none"\nmdns_adv = 0\n'
            "keepalive_interval = -1\n"  # otherwise it drops a client after 30 s without a call
            f'log_level = 3\nlog_outputs = "3:file:{self.log}"\n'
        )
        return subprocess.Popen(
            ["libvirtd", "--config", str(configuration), "--pid-file", str(self.folder / "libvirtd.pid")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def log(self) -> Path:
        """The log file: warnings and errors."""
        return self.folder / "libvirtd.log"

    def virsh(self, *arguments: str, timeout: float = 300) -> str:
        """Run virsh against it; return its output. libvirt refreshes a gluster pool in 10 s or more.

        :raises VirshError: it returned non-zero.
        """
        done = subprocess.run(
            ["virsh", "-q", "-c", self.uri, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode != 0:
            raise VirshError(f"virsh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def define(self, xml: str) -> None:
        """Define a pool from XML with ``pool-define``. :raises VirshError: it was refused."""
        path = self.folder / "define.xml"
        path.write_text(xml)
        self.virsh("pool-define", str(path))

    def pids(self) -> list[int]:
        """Return its processes."""
        return processes.mentioning(self.folder, {"libvirtd"})

    def close(self) -> None:
        """End libvirtd, and unmount what its pools had mounted. May be called twice."""
        processes.end(self.pids, grace=5.0, timeout=20)
        if self._daemon is not None:
            self._daemon.wait(timeout=10)
            self._daemon = None
        state = Path("/run/libvirt/storage")
        for target in _targets(state) if self._covered else ():
            if target not in self._mounted_before and fuse.is_mounted(target):
                fuse.release(target)
        for folder in reversed(self._covered):
            uncover(folder)
        self._covered = []
        for part in (self.socket.parent, self.folder / "drivers"):
            shutil.rmtree(part, ignore_errors=True)


def _targets(state: Path) -> list[str]:
    """Return the target paths of the pools that were active, from libvirtd's run-time state files."""
    targets = []
    for path in state.glob("*.xml") if state.is_dir() else ():
        _, found, rest = path.read_text().partition("<path>")
        while found:
            text, _, rest = rest.partition("</path>")
            targets.append(html.unescape(text))
            _, found, rest = rest.partition("<path>")
    return targets
