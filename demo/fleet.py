"""``python -m demo.fleet``: three hosts and a NATS server on this machine. One host is killed; its pools go on elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from astore_fleet import Fleet
from beds.nats import NatsBed

HOSTS = ("one", "two", "three")
LEASE = 3.0
POOLS = 6
FILES = 3


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


@contextlib.asynccontextmanager
async def hosts(url: str) -> AsyncIterator[dict[str, Process]]:
    """Start the hosts, as ``astore fleet agent`` does; end them afterwards."""
    running: dict[str, Process] = {}
    try:
        for host in HOSTS:
            argv = ["--url", url, "--name", "demo", "--host", host, "agent", "--lease", str(LEASE)]
            environment = os.environ | {"ASTORE_STATE_DIR": ""}
            running[host] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "astore", "fleet", *argv, stdout=PIPE, env=environment
            )
        for process in running.values():
            assert process.stdout is not None
            await process.stdout.readline()
        yield running
    finally:
        for process in running.values():
            if process.returncode is None:
                process.kill()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true, two minutes at most."""
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def all_run(fleet: Fleet, without: str = "") -> bool:
    """Return whether all pools run, on other hosts than that one, and all of their files are known."""
    return all(
        (one.reachable, one.state, one.volumes) == (True, "running", FILES) and one.owner != without
        for one in fleet.pools()
    )


def show(fleet: Fleet) -> None:
    """Print the pools as they were last seen."""
    for pool in fleet.pools():
        say(f"   {pool.name:10} {pool.owner or '-':8} {pool.state:12} {pool.volumes} volumes")


async def main(folder: Path) -> None:
    with NatsBed(folder / "nats") as bed:
        say(f"A NATS server on {bed.url}, and the hosts {', '.join(HOSTS)}: `astore fleet agent`.")
        async with await Fleet.connect(bed.url, "demo", host="client") as fleet, hosts(bed.url) as running:
            for number in range(POOLS):
                path = folder / f"shared{number}"
                path.mkdir()
                for file in range(FILES):
                    (path / f"{file}.img").write_bytes(b"x" * 4096)
                xml = f"<pool type='dir'><name>shared{number}</name><target><path>{path}</path></target></pool>"
                await fleet.define(xml, hosts=HOSTS)
            await until(lambda: all_run(fleet))
            say(f"{POOLS} pools were defined that may run on each; a client sees them without asking a host:")
            show(fleet)
            victim = next(one.owner for one in fleet.pools() if one.owner is not None)
            report = await fleet.refresh_all()
            say(f"All refreshed, each on its host: {report.seconds:.2f} s, {len(report.failed)} failed.")
            say(f"Host {victim} is killed (-9) …")
            running[victim].kill()
            began = time.monotonic()
            await until(lambda: all_run(fleet, without=victim))
            await fleet.refresh_all()
            await until(lambda: all_run(fleet, without=victim))
            say(f"… and {time.monotonic() - began:.1f} s later (its lease lasted {LEASE:g} s) others have its pools:")
            show(fleet)
            await fleet.pool("shared0").create_volume("<volume><name>new</name><capacity>65536</capacity></volume>")
            await until(lambda: fleet.pool("shared0").info.volumes == FILES + 1)
            found = await fleet.find(name="new")
            say(f"A volume made on its host: {found.info.path}, found in the last snapshot of {found.pool}.")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="astore-demo-") as temporary:
        asyncio.run(main(Path(temporary)))
