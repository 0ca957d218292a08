"""Hosts as network namespaces on one bridge, with links that can be cut: both ways, or in one direction.

All of it is in this process's own network namespace (:mod:`beds.namespace`); the program ``ip`` makes and removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

from beds import BedUnavailable
from beds.namespace import require_private_namespaces, unmount

SUBNET = "10.91.0"
"""The first three parts of all addresses; the process that makes the network has ``.1``."""

NOBODY = "02:a5:ff:ff:ff:ff"
"""A hardware address that no host has: what is sent there is lost."""


def missing() -> str | None:
    """Return why there can be no such network here; None if there can."""
    absent = [name for name in ("ip", "nsenter") if _path(name) is None]
    if absent:
        return f"there is no {', '.join(absent)} (Debian packages iproute2 util-linux)"
    try:
        require_private_namespaces()
    except BedUnavailable as error:
        return str(error)
    return None


class NetworkHost:
    """A host: a namespace with one link to the bridge.

    :ivar address: of its link. :ivar prefix: the words to put before a command that is to run on it.
    """

    def __init__(self, network: HostNetwork, number: int, name: str) -> None:
        self.name = f"{network.name}-{name}"
        self.address = f"{SUBNET}.{number}"
        self.hardware = f"02:a5:00:00:00:{number:02x}"
        self.link = f"{network.name}{number}"
        self.prefix = (_path("nsenter") or "nsenter", f"--net=/run/netns/{self.name}")
        self._network = network

    def make(self) -> None:
        """Make the namespace and its link."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self.link, "master", self._network.name, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")
        _ip("-n", self.name, "link", "set", "eth0", "address", self.hardware, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")

    def remove(self) -> None:
        """Remove the link and the namespace."""
        _ip("link", "del", self.link)  # with its namespace it would go later
        _ip("netns", "del", self.name)

    def cut(self) -> None:
        """Take the link down: nothing arrives, and nothing that it sends does."""
        _ip("link", "set", self.link, "down")

    def mute(self) -> None:
        """Lose what it sends. What others send arrives."""
        for address in self._network.addresses():
            if address != self.address:
                _lose("-n", self.name, address=address, device="eth0")

    def deafen(self) -> None:
        """Lose what others send to it. What it sends arrives."""
        _lose(address=self.address, device=self._network.name)
        for host in self._network.hosts:
            if host is not self:
                _lose("-n", host.name, address=self.address, device="eth0")

    def mend(self) -> None:
        """Undo :meth:`cut`, :meth:`mute` and :meth:`deafen`."""
        _ip("link", "set", self.link, "up")
        for address in self._network.addresses():
            _find("-n", self.name, address=address, device="eth0")
        _find(address=self.address, device=self._network.name)
        for host in self._network.hosts:
            _find("-n", host.name, address=self.address, device="eth0")


class HostNetwork:
    """A bridge and the hosts on it. Use it as a context manager.

    :param name: of the bridge, and the beginning of all other names; 8 letters at most.
    :raises BedUnavailable: (on entering) a program or a private namespace is missing.
    """

    def __init__(self, name: str = "fleet") -> None:
        self.name = name
        self.hosts: list[NetworkHost] = []

    def __enter__(self) -> Self:
        if why := missing():
            raise BedUnavailable(why)
        _ip("link", "add", self.name, "type", "bridge")
        try:
            _ip("addr", "add", f"{SUBNET}.1/24", "dev", self.name)
            _ip("link", "set", self.name, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove all. Processes on the hosts must have ended."""
        for host in self.hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.remove()
        self.hosts.clear()
        _ip("link", "del", self.name)
        with contextlib.suppress(OSError):  # what "ip netns add" has mounted
            unmount("/run/netns", lazy=True)

    def addresses(self) -> list[str]:
        """Return the addresses of this process and of all hosts."""
        return [f"{SUBNET}.1", *(host.address for host in self.hosts)]

    def host(self, name: str) -> NetworkHost:
        """Make a host."""
        made = NetworkHost(self, len(self.hosts) + 2, name)
        self.hosts.append(made)
        made.make()
        return made


def _path(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def _ip(*words: str) -> None:
    subprocess.run([_path("ip") or "ip", *words], check=True, stdout=subprocess.DEVNULL)


def _lose(*where: str, address: str, device: str) -> None:
    """Have packets to an address go to nobody."""
    _ip(*where, "neigh", "replace", address, "lladdr", NOBODY, "dev", device, "nud", "permanent")


def _find(*where: str, address: str, device: str) -> None:
    """Have an address looked for anew."""
    words = [_path("ip") or "ip", *where, "neigh", "del", address, "dev", device]
    subprocess.run(words, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # it may be unknown
