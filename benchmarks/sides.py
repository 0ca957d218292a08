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
    """The program made of a C file beside this one, or why that was not possible."""
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
    """The C program beside this file, which lists and reads with nothing in the way."""

    def __init__(self, folder: Path) -> None:
        program = compiled("gfapi_limit.c", folder)
        self._program = folder if isinstance(program, str) else program
        self.why = program if isinstance(program, str) else None

    def run(self, host: str, volume: str, directory: str, mode: str, *, rounds: int = 1, threads: int = 8) -> float:
        """Seconds of the best-placed round: the median of ``rounds`` in one process, its first left out if there are more."""
        done = subprocess.run(
            [str(self._program), host, volume, directory, mode, str(threads), str(rounds)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds = [float(found) for found in re.findall(r"total=([0-9.]+)", done.stdout)]
        return statistics.median(seconds[1:] or seconds)


class Libvirt:
    """A private libvirtd, asked by virsh; virsh's own start is not counted (it times its commands itself)."""

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
        """Seconds of one pool-refresh."""
        said = self._bed.virsh("-t", "pool-refresh", name)
        found = re.search(r"\(Time: ([0-9.]+) ms\)", said)
        assert found is not None, said
        return float(found[1]) / 1000

    def refresh_each(self, names: Sequence[str]) -> float:
        """Seconds until all are refreshed, one virsh a pool."""
        with ThreadPoolExecutor(len(names)) as threads:
            began = time.perf_counter()
            list(threads.map(self.refresh, names))
            return time.perf_counter() - began

    def refresh_all(self, names: Sequence[str], connections: str = "one") -> float | None:
        """Seconds until all are refreshed, one thread a pool; None: there are no bindings.

        :param connections: ``one`` for all threads, as a program has it, or ``many``.
        """
        program = Path(__file__).with_name("libvirt_refresh.py")
        done = subprocess.run(
            [_PYTHON, str(program), self._bed.uri, connections, *names], capture_output=True, text=True, check=False
        )
        if done.returncode and "ModuleNotFoundError" not in done.stderr:
            raise RuntimeError(done.stderr)
        return float(done.stdout) if done.returncode == 0 else None

    def create_volumes(self, pool: str, count: int) -> float:
        """Seconds to create so many raw volumes of 10 GiB, 16 at a time; virsh's own start is not counted."""

        def create(numbers: Sequence[int]) -> None:
            # one virsh for each sixteenth: its commands come one after the other, as those of 16 users would
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
    """Seconds of the first refresh of a pool just started."""
    if pool.active:
        await pool.stop()
    await pool.start(refresh=False)
    began = time.perf_counter()
    await pool.refresh()
    return time.perf_counter() - began


async def unchanged_refresh(pool: astore.Pool) -> float:
    """Seconds of a refresh that finds nothing changed."""
    began = time.perf_counter()
    outcome = await pool.refresh()
    seconds = time.perf_counter() - began
    assert not outcome.added and not outcome.changed and not outcome.removed, outcome
    return seconds


def settle(pool_count: Callable[[], bool] | None = None) -> None:
    """Let what was written become older than what a refresh takes for unsettled."""
    time.sleep(1.5)


def say(*words: object) -> None:
    print(*words, file=sys.stderr, flush=True)
