"""The three sides of a comparison: astore in this process, libvirt by virsh, and the C limit."""

from __future__ import annotations

import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import astore
from beds.libvirt import LibvirtBed, missing

_PYTHON = "/usr/bin/python3"
"""The Python that Debian's python3-libvirt is for."""


def compiled(source: str, folder: Path) -> Path | str:
    """Compile a C file beside this one; return the program, or why that failed."""
    if shutil.which("cc") is None or shutil.which("pkg-config") is None:
        return "no C compiler or pkg-config"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "glusterfs-api"], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        return "no libglusterfs-dev"
    path = Path(__file__).with_name(source)
    program = folder / path.stem
    done = subprocess.run(
        ["cc", "-O2", str(path), "-o", str(program), *shlex.split(flags.stdout), "-lpthread"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr if done.returncode else program


class Limit:
    """The C program beside this file, which lists and reads without any overhead."""

    def __init__(self, folder: Path) -> None:
        program = compiled("gfapi_limit.c", folder)
        self._program = folder if isinstance(program, str) else program
        self.why = program if isinstance(program, str) else None

    def run(self, host: str, volume: str, directory: str, mode: str, *, rounds: int = 1, threads: int = 8) -> float:
        """Return the seconds of a good round: the median of ``rounds`` in one process, without the first of several."""
        done = subprocess.run(
            [str(self._program), host, volume, directory, mode, str(threads), str(rounds)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = [float(found) for found in re.findall(r"total=([0-9.]+)", done.stdout)]
        return statistics.median(seconds[1:] or seconds)


class Libvirt:
    """A private libvirtd, called through virsh; virsh's own start does not count (it times its commands itself)."""

    def __init__(self, folder: Path) -> None:
        self.why = missing()
        self._bed = LibvirtBed(folder)
        if self.why is None:
            self._bed.start()

    def close(self) -> None:
        if self.why is None:
            self._bed.close()

    @property
    def uri(self) -> str:
        """What virsh is told to connect to."""
        return self._bed.uri

    def start(self, xml: str, name: str) -> None:
        self._bed.define(xml)
        self._bed.virsh("pool-start", name)

    def refresh(self, name: str) -> float:
        """Return the seconds of one pool-refresh."""
        said = self._bed.virsh("-t", "pool-refresh", name)
        found = re.search(r"\(Time: ([0-9.]+) ms\)", said)
        assert found is not None, said
        return float(found[1]) / 1000

    def refresh_each(self, names: Sequence[str]) -> float:
        """Return the seconds until all are refreshed, one virsh for each pool."""
        with ThreadPoolExecutor(len(names)) as threads:
            began = time.perf_counter()
            list(threads.map(self.refresh, names))
            return time.perf_counter() - began

    def refresh_all(self, names: Sequence[str], connections: str = "one") -> float | None:
        """Return the seconds until all are refreshed, one thread for each pool; None without libvirt's bindings.

        :param connections: ``one`` for all threads, as in one program, or ``many``.
        """
        program = Path(__file__).with_name("libvirt_refresh.py")
        done = subprocess.run(
            [_PYTHON, str(program), self._bed.uri, connections, *names], capture_output=True, text=True, check=False
        )
        if done.returncode and "ModuleNotFoundError" not in done.stderr:
            raise RuntimeError(done.stderr)
        return float(done.stdout) if done.returncode == 0 else None

    def create_volumes(self, pool: str, count: int) -> float:
        """Return the seconds to create so many raw volumes of 10 GiB, 16 at a time, without virsh's own start."""

        def create(numbers: Sequence[int]) -> None:
            # one virsh for each sixteenth, with its commands in sequence, like 16 users
            for first in range(0, len(numbers), 20):
                words = [
                    f"vol-create-as {pool} n{number}.raw 10G --allocation 0" for number in numbers[first : first + 20]
                ]
                self._bed.virsh(";".join(words))

        shares = [range(start, count, 16) for start in range(16)]
        with ThreadPoolExecutor(16) as threads:
            began = time.perf_counter()
            list(threads.map(create, shares))
            return time.perf_counter() - began

    def stop(self, name: str) -> None:
        self._bed.virsh("pool-destroy", name)
        self._bed.virsh("pool-undefine", name)


async def first_refresh(pool: astore.Pool) -> float:
    """Return the seconds of the first refresh of a new pool."""
    if pool.active:
        await pool.stop()
    await pool.start(refresh=False)
    began = time.perf_counter()
    await pool.refresh()
    return time.perf_counter() - began


async def unchanged_refresh(pool: astore.Pool) -> float:
    """Return the seconds of a refresh that finds nothing changed."""
    began = time.perf_counter()
    outcome = await pool.refresh()
    seconds = time.perf_counter() - began
    assert not outcome.added and not outcome.changed and not outcome.removed, outcome
    return seconds


def settle(pool_count: Callable[[], bool] | None = None) -> None:
    """Wait until a refresh no longer takes the latest writes for unsettled."""
    time.sleep(1.5)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
