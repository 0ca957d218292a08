"""Probe mutated headers, a million by default: nothing but ImageError may come out.

``python -m benchmarks.fuzz_probe [COUNT] [SEED]``; it prints the seed, so that what it finds can be found again.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

from astore.images import HEADER_SIZE, ImageError, needs_full_header, probe
from astore.images.backing import resolve_backing

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from image_heads import VALID

VALUES = (0, 1, 2, 3, 4, 9, 16, 0x7F, 0x80, 0xFE, 0xFF)


def mutated(rng: random.Random, heads: list[bytes]) -> bytes:
    """A header with a few bytes changed, most of them in its first hundred, perhaps cut off or made longer."""
    head = bytearray(rng.choice(heads))
    for _ in range(rng.randrange(1, 8)):
        at = min(int(rng.expovariate(0.02)), len(head) - 1)
        head[at] = rng.choice(VALUES) if rng.random() < 0.6 else rng.randrange(256)
    dice = rng.random()
    if dice < 0.2:
        del head[rng.randrange(len(head)) :]
    elif dice < 0.25:
        head.extend(b"\xff" * (HEADER_SIZE - len(head)))
    return bytes(head)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    heads = [head[:2600] for head in VALID.values()]
    seen: Counter[str] = Counter()
    began = time.perf_counter()
    for index in range(count):
        head = mutated(rng, heads)
        needs_full_header(head)
        try:
            info = probe(head)
            seen["raw" if info is None else info.format] += 1
            if info is not None and info.backing is not None:
                resolve_backing(info.backing, "/pool/image")
            if len(head) >= HEADER_SIZE:
                assert probe(head + b"\0CD001" * 100) == info
        except ImageError:
            seen["ImageError"] += 1
        except BaseException:
            print(f"seed {seed}, header {index}: {head[:128].hex()}", file=sys.stderr)
            raise
    seconds = time.perf_counter() - began
    print(
        f"seed {seed}: {count:,} headers in {seconds:.1f} s; " + ", ".join(f"{k} {n:,}" for k, n in seen.most_common())
    )


if __name__ == "__main__":
    main()
