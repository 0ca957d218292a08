"""A private Gluster: one to nine nodes on loopback addresses, with volumes, FUSE mounts and faults.

glusterd accepts neither ``localhost`` nor ``127.0.0.1`` as a brick's host, but any other address of 127.0.0.0/8. A
brick asks *its* host for its volume file at port 24007, so every node has an address of its own, and the whole bed a
network namespace of its own. Bricks need root: they write ``trusted.*`` attributes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from beds import BedUnavailable, fuse, processes
from beds.namespace import require_private_namespaces

_PROGRAMS = frozenset({"glusterd", "glusterfsd", "glusterfs", "gluster"})

UNCACHED = {
    f"performance.{name}": "off"
    for name in (
        "stat-prefetch",
        "quick-read",
        "io-cache",
        "read-ahead",
        "readdir-ahead",
        "open-behind",
        "write-behind",
    )
}
"""Volume options with which a client asks the brick each time."""


class GlusterCommandError(RuntimeError):
    """The ``gluster`` command failed; the message is its output."""


class _Node(NamedTuple):
    address: str
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "glusterd.socket"

    @property
    def log(self) -> Path:
        return self.folder / "log" / "glusterd.log"


class _Volume(NamedTuple):
    bricks: tuple[Path, ...]
    hosts: tuple[str, ...]


def _forget(pid_files: Iterable[Path]) -> None:
    """Remove the pid files of killed bricks: glusterd takes an unreaped zombie for a running brick."""
    for path in list(pid_files):
        path.unlink(missing_ok=True)


def missing() -> str | None:
    """Return why there can be no Gluster bed here; None if there can."""
    if os.geteuid() != 0:
        return "Gluster bricks need root"
    for program, package in (
        ("glusterd", "glusterfs-server"),
        ("gluster", "glusterfs-cli"),
        ("glusterfs", "glusterfs-client"),
    ):
        if shutil.which(program) is None:
            return f"there is no {program} (Debian package {package})"
    return None


class GlusterBed:
    """One to nine glusterds with their volumes. Use it as a context manager, or call :meth:`start` and :meth:`close`.

    :param folder: for all its files; created if it is missing. It must be on a file system with ``trusted.*``
        attributes (ext4, XFS, tmpfs). Afterwards only its ``log`` folders stay.
    :param nodes: how many glusterds; node *n* (from 1) has the address ``address_base`` + *n*.
    :raises BedUnavailable: (on start) not root, programs missing, or not in a private namespace.
    """

    def __init__(self, folder: str | os.PathLike[str], nodes: int = 1, address_base: str = "127.1.1.") -> None:
        self.folder = Path(folder).absolute()
        self._nodes = tuple(_Node(f"{address_base}{n}", self.folder / f"node{n}") for n in range(1, nodes + 1))
        self._daemons: dict[int, subprocess.Popen[bytes]] = {}
        self._volumes: dict[str, _Volume] = {}

    # ------------------------------------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the glusterds and join them in one trusted pool."""
        if why := missing():
            raise BedUnavailable(why)
        require_private_namespaces()
        try:
            for number in range(1, len(self._nodes) + 1):
                self.start_node(number)
            for node in self._nodes[1:]:
                self.gluster("peer", "probe", node.address)
            if len(self._nodes) > 1:
                processes.wait_until(self._all_connected, 30, "all nodes are connected", every=0.2)
        except BaseException:
            self.close()
            raise

    def _all_connected(self) -> bool:
        rows = [line.split() for line in self.gluster("pool", "list").splitlines()[1:]]
        return len(rows) == len(self._nodes) and all(row[-1] == "Connected" for row in rows)

    def close(self) -> None:
        """End every process of the bed, unmount, and remove everything except the logs. May be called twice."""
        for mounted in reversed(fuse.mounts(self.folder)):
            fuse.release(mounted.target)
        processes.end(self.pids, timeout=30)
        for daemon in self._daemons.values():
            daemon.wait(timeout=10)
        self._daemons.clear()
        self._volumes.clear()
        for node in self._nodes:
            for part in ("work", "run", "bricks"):
                shutil.rmtree(node.folder / part, ignore_errors=True)
        shutil.rmtree(self.folder / "mounts", ignore_errors=True)

    def pids(self) -> list[int]:
        """Return all running processes of the bed: glusterds, bricks, self-heal daemons, FUSE clients."""
        return processes.mentioning(self.folder, _PROGRAMS)

    @property
    def host(self) -> str:
        """The address of the first node: volfile server, and ``--remote-host``."""
        return self._nodes[0].address

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses of all nodes, started or not."""
        return tuple(node.address for node in self._nodes)

    # ----------------------------------------------------------------------------------------------- nodes

    def start_node(self, number: int = 1) -> None:
        """Start a node's glusterd (it starts the bricks of started volumes) and wait until it accepts commands."""
        node = self._nodes[number - 1]
        for part in ("work", "run", "log", "bricks"):
            (node.folder / part).mkdir(parents=True, exist_ok=True)
        settings = {
            "working-directory": node.folder / "work",
            "run-directory": node.folder / "run",
            "glusterd-sockfile": node.socket,
            "transport.socket.bind-address": node.address,
        }
        argv = ["glusterd", "-N", "-p", str(node.folder / "run" / "glusterd.pid"), "-l", str(node.log)]
        for key, value in settings.items():
            argv += ["--xlator-option", f"management.{key}={value}"]
        # PYTHON: glusterd runs the program that it names, and does not start without one
        environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        quiet = subprocess.DEVNULL
        daemon = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
        self._daemons[number] = daemon
        processes.wait_until(lambda: node.socket.is_socket() or daemon.poll() is not None, 30, "glusterd listens")
        processes.wait_until(lambda: self._takes_commands(number) or daemon.poll() is not None, 30, "it takes commands")
        self.gluster("pool", "list", node=number)

    def _takes_commands(self, number: int) -> bool:
        try:
            self.gluster("pool", "list", node=number)
        except GlusterCommandError:
            return False
        return True

    def kill_node(self, number: int) -> None:
        """Kill a node at once, like a power cut: its glusterd, bricks and helpers."""
        folder = self._nodes[number - 1].folder
        processes.end(lambda: processes.mentioning(folder, _PROGRAMS), timeout=30)
        if daemon := self._daemons.pop(number, None):
            daemon.wait(timeout=10)
        self._nodes[number - 1].socket.unlink(missing_ok=True)
        _forget((folder / "run").rglob("*.pid"))

    def gluster(self, *arguments: str, node: int = 1, timeout: float = 120) -> str:
        """Run the ``gluster`` command against a node; return its output.

        :raises GlusterCommandError: it returned non-zero.
        """
        chosen = self._nodes[node - 1]
        argv = [
            "gluster",
            "--mode=script",
            f"--glusterd-sock={chosen.socket}",
            f"--log-file={chosen.folder}/log/cli.log",
        ]
        done = subprocess.run(
            [*argv, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip()
            raise GlusterCommandError(f"gluster {' '.join(arguments)}: {said}")
        return done.stdout

    # --------------------------------------------------------------------------------------------- volumes

    def create_volume(
        self,
        name: str,
        replica: int = 1,
        bricks: int = 1,
        options: Mapping[str, str | int] | None = None,
        *,
        start: bool = True,
    ) -> None:
        """Create and start a volume: ``bricks`` × ``replica`` brick folders, spread over the nodes in turn.

        :param options: volume options, such as ``{"network.ping-timeout": 2}``.
        """
        nodes = [self._nodes[index % len(self._nodes)] for index in range(replica * bricks)]
        paths = tuple(node.folder / "bricks" / f"{name}.{index}" for index, node in enumerate(nodes))
        places = [f"{node.address}:{path}" for node, path in zip(nodes, paths, strict=True)]
        kind = ["replica", str(replica)] if replica > 1 else []
        self.gluster("volume", "create", name, *kind, *places, "force")
        self._volumes[name] = _Volume(paths, tuple(node.address for node in nodes))
        if options:
            self.set_option(name, options)
        if start:
            self.start_volume(name)

    def set_option(self, name: str, options: Mapping[str, str | int]) -> None:
        """Set volume options, all in one command."""
        words = [word for key, value in options.items() for word in (key, str(value))]
        self.gluster("volume", "set", name, *words)

    def start_volume(self, name: str, *, force: bool = False) -> None:
        """Start a volume; with ``force``, restart killed bricks of a started one."""
        self.gluster("volume", "start", name, *(["force"] if force else []))
        processes.wait_until(
            lambda: len(self.brick_pids(name)) == len(self._volumes[name].bricks), 30, f"{name} has started"
        )

    def stop_volume(self, name: str) -> None:
        """Stop a volume even if it is in use. (Its bricks are killed, since glusterd would wait a second for them.)"""
        self.kill_brick(name)
        self.gluster("volume", "stop", name, "force")

    def delete_volume(self, name: str) -> None:
        """Unmount, stop and delete a volume and its brick folders."""
        self.unmount(name)
        if "Status: Started" in self.gluster("volume", "info", name):
            self.stop_volume(name)
        self.gluster("volume", "delete", name)
        for path in self._volumes.pop(name).bricks:
            shutil.rmtree(path, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------- bricks

    def brick(self, name: str, index: int = 0) -> Path:
        """Return a brick's folder. Only look at it: files must be made through Gluster (see :meth:`mount`)."""
        return self._volumes[name].bricks[index]

    def brick_pids(self, name: str, index: int | None = None) -> list[int]:
        """Return the pids of a volume's brick processes, or of one of them."""
        paths = self._volumes[name].bricks
        wanted = {str(path) for path in (paths if index is None else paths[index : index + 1])}
        found = []
        for pid in processes.mentioning(self.folder, {"glusterfsd"}):
            argv = processes.arguments(pid)
            if "--brick-name" in argv and argv[argv.index("--brick-name") + 1] in wanted:
                found.append(pid)
        return found

    def kill_brick(self, name: str, index: int | None = None) -> None:
        """SIGKILL a volume's brick processes (or one): clients get ENOTCONN. Undone by ``start_volume(force=True)``."""
        pid_files = []
        for pid in self.brick_pids(name, index):
            argv = processes.arguments(pid)
            pid_files.append(Path(argv[argv.index("-p") + 1]))
        processes.end(lambda: self.brick_pids(name, index))
        _forget(pid_files)

    def revive(self, name: str) -> bool:
        """Start the bricks of a volume that have ended by themselves. :returns: whether there were any.

        Gluster 10.3's may: a killed client can have its brick end with SIGSEGV, in what it logs of that client.
        """
        if len(self.brick_pids(name)) == len(self._volumes[name].bricks):
            return False
        running = {str(pid) for pid in self.brick_pids(name)}
        for node in self._nodes:
            pid_files = (node.folder / "run" / "vols" / name).glob("*.pid")
            _forget(path for path in pid_files if path.read_text().strip() not in running)
        self.start_volume(name, force=True)
        return True

    def stop_brick(self, name: str, index: int | None = None) -> None:
        """SIGSTOP a volume's brick processes (or one): clients hang until ``network.ping-timeout``, 42 s by default."""
        pids = self.brick_pids(name, index)
        processes.send(pids, signal.SIGSTOP)
        processes.wait_until(lambda: all(processes.state(pid) == "T" for pid in pids), 5, "bricks are stopped")

    def continue_brick(self, name: str, index: int | None = None) -> None:
        """SIGCONT the bricks that :meth:`stop_brick` stopped."""
        processes.send(self.brick_pids(name, index), signal.SIGCONT)

    # ---------------------------------------------------------------------------------------------- mounts

    def mount(self, name: str, *, options: tuple[str, ...] = ()) -> Path:
        """Return the folder where the volume is mounted by FUSE; it is mounted on first use.

        :raises BedUnavailable: there is no /dev/fuse.
        """
        target = self.folder / "mounts" / name
        if not fuse.is_mounted(target):
            if not os.path.exists("/dev/fuse"):
                raise BedUnavailable("there is no /dev/fuse")
            log = self._nodes[0].folder / "log" / f"mount-{name}.log"
            fuse.mount_gluster(self.host, name, target, log, options=options)
        return target

    def unmount(self, name: str) -> None:
        """Undo :meth:`mount`, even of a frozen or broken client; an unmounted volume is no error."""
        target = self.folder / "mounts" / name
        fuse.release(target)
        if target.exists():
            target.rmdir()
