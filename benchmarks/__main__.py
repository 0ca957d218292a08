"""Print the table of how fast refreshes are: ``python -m benchmarks [--quick] [--rows …] [--write FILE]``.

Needs root (a private Gluster, FUSE, a private libvirtd). The sides of a pair run in turn; times are medians. The ratio
counts: a noisy machine slows down both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from beds.namespace import enter_private_namespaces
from benchmarks.row import Row, seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rows",
        default="all",
        help="comma-separated: dir,gluster,many,netfs,loop,memory,volumes,creating,neighbours,scale,startup,fresh,iscsi,rbd,"
        "fleet",
    )
    parser.add_argument("--pairs", type=int, default=5, help="how many times each pair is run")
    parser.add_argument("--mebibytes", type=int, default=4096, help="of the volumes that are moved")
    parser.add_argument("--no-libvirt", action="store_true", help="leave libvirt out (its Gluster rows take minutes)")
    parser.add_argument("--write", type=Path, help="write the table into this file as well")
    parser.add_argument("--folder", type=Path, help="where to put images and bricks (ext4 or XFS)")
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("make bench: needs root, for a private Gluster, FUSE mounts and a private libvirtd", file=sys.stderr)
        return 1
    enter_private_namespaces()
    from benchmarks.bench import Bench  # only now: importing it may start threads
    from benchmarks.rows import ROWS

    wanted = set(options.rows.split(","))
    chosen = {name: measure for name, measure in ROWS.items() if wanted == {"all"} or name in wanted}
    with tempfile.TemporaryDirectory(prefix="astore-bench-", dir=options.folder) as folder:
        bench = Bench(Path(folder), pairs=options.pairs, with_libvirt=not options.no_libvirt)
        bench.mebibytes = options.mebibytes
        try:
            rows = asyncio.run(bench.run(chosen))
        finally:
            bench.close()
    text = table(rows, bench.notes)
    print(text)
    if options.write:
        options.write.write_text(text)
    sys.stdout.flush()
    os._exit(0 if all(row.met for row in rows) else 1)  # without waiting for libgfapi's threads


def table(rows: list[Row], notes: list[str]) -> str:
    """Return the Markdown page."""
    lines = [
        "# How fast",
        "",
        "`make bench` measures, and `python -m benchmarks --write docs/benchmarks.md` writes this page. The sides of each",
        "line were measured in turn in one run. Times are medians. Compare the ratios rather than the times.",
        "",
        f"Machine: {machine()}. {time.strftime('%Y-%m-%d')}.",
        "",
        "| work | libvirt | limit in C | astore | bar | reached | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.work} | {seconds(row.libvirt)} | {seconds(row.limit)} | {row.amount} "
            f"| {row.bar} | {f'{row.ratio:.3g}' if row.measured else '–'} | {row.verdict} |"
        )
    lines += ["", *[f"- {note}" for note in notes], ""]
    return "\n".join(lines)


def machine() -> str:
    """Return the machine, in one line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, server and client on the same machine"
    )


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
