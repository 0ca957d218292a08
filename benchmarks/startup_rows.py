"""The rows on how soon astore is there: the processor time of whole processes, beside that of a bare interpreter."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.row import Row

if TYPE_CHECKING:
    from benchmarks.bench import Bench

POOLS = 100
VOLUMES = 100
TURNS = 15


async def startup_rows(bench: Bench) -> list[Row]:
    """``import astore``, ``astore pool list`` of many active pools, and ``astore vol list`` of one; all sides in turn.

    The modules are compiled, as pip leaves them, also where the environment forbids Python to write bytecode.
    """
    for index in range(POOLS):
        folder = bench.folder / "listed" / f"p{index}"
        folder.mkdir(parents=True)
        pool = await bench.manager.define(_definition(index, str(folder)))
        await pool.start()
    for index in range(VOLUMES):
        (bench.folder / "listed" / "p0" / f"v{index}").touch()
    await bench.manager.pool("listed0").refresh()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(bench.folder / "bytecode")
    state = str(bench.manager.state_dir)
    sides = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import astore"],
        "list": [sys.executable, "-m", "astore", "--state-dir", state, "pool", "list"],
        "volumes": [sys.executable, "-m", "astore", "--state-dir", state, "vol", "list", "listed0"],
    }
    libvirt = bench.libvirt()
    if libvirt is not None:
        folder = bench.folder / "listed-by-libvirt"
        folder.mkdir()
        for index in range(POOLS):
            (folder / f"p{index}").mkdir()
            libvirt.start(_definition(index, str(folder / f"p{index}")), f"listed{index}")
        for index in range(VOLUMES):
            (folder / "p0" / f"v{index}").touch()
        libvirt.refresh("listed0")
        sides["virsh"] = ["virsh", "-q", "-c", libvirt.uri, "pool-list"]
        sides["virsh volumes"] = ["virsh", "-q", "-c", libvirt.uri, "vol-list", "listed0"]
    took = await asyncio.to_thread(_in_turn, sides, environment)
    if libvirt is not None:
        for index in range(POOLS):
            libvirt.stop(f"listed{index}")
    bench.notes.append(
        f"of `import astore`, `astore pool list` and `astore vol list` the processor time of whole processes is told, {TURNS} "
        "of each; their limit is a bare interpreter (`python -c pass`), libvirt's side `virsh pool-list` or `vol-list` without "
        "what libvirtd does for it."
    )
    bare = took["bare"]
    return [
        Row(
            "import astore", None, bare, took["import"], "≤ 4 × bare", took["import"] / bare, took["import"] <= 4 * bare
        ),
        Row(
            f"astore pool list, {POOLS} pools",
            took.get("virsh"),
            bare,
            took["list"],
            "≤ 10 × bare",
            took["list"] / bare,
            took["list"] <= 10 * bare,
        ),
        Row(
            f"astore vol list, {VOLUMES} volumes",
            took.get("virsh volumes"),
            bare,
            took["volumes"],
            "≤ 10 × bare",
            took["volumes"] / bare,
            took["volumes"] <= 10 * bare,
        ),
    ]


def _definition(index: int, folder: str) -> str:
    return f"<pool type='dir'><name>listed{index}</name><target><path>{folder}</path></target></pool>"


def _in_turn(sides: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> dict[str, float]:
    """The median of each side's processor seconds."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(TURNS + 1):
        for name, argv in sides.items():
            seconds = _processor_seconds(argv, environment)
            if turn:  # the first one compiles
                took[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def _processor_seconds(argv: Sequence[str], environment: Mapping[str, str]) -> float:
    """What a process takes of the processor, user and system. :raises RuntimeError: it failed."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawnp(argv[0], argv, environment, file_actions=silent)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(argv)}: {os.waitstatus_to_exitcode(status)}")
    return used.ru_utime + used.ru_stime
