"""Probe mutated headers and resolve mutated names, a million by default: nothing but ImageError may come out.

``python -m benchmarks.fuzz_probe [COUNT] [SEED]``; it prints the seed, so that what it finds can be found again. Of every
header it also checks that

- bytes beyond HEADER_SIZE change nothing;
- what a header says that is cut off does not change when something follows: nothing was read beyond its end;
- where ``needs_full_header`` says that the first page tells, the whole header tells the same;
- what is told can be written down: as UTF-8, and by XML's rules.
"""

from __future__ import annotations

import importlib
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path

from astore.images import FIRST_PAGE, HEADER_SIZE, ImageError, needs_full_header, probe
from astore.images.backing import parse_gluster_uri, resolve_backing
from astore.model import ImageInfo

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
VALID: dict[str, bytes] = importlib.import_module("image_heads").VALID

FORMATS = frozenset({"qcow", "qcow2", "qed", "vmdk", "vdi", "vpc", "ploop", "cow", "iso", "luks"})
BYTES = (0, 1, 2, 3, 4, 9, 16, 0x22, 0x2F, 0x3A, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS = (0, 1, 8, 9, 16, 21, 72, 104, 511, 512, 1023, 1024, 4095, 4096, 20_000, 33_279, 33_280, 33_281, 1 << 31)
LARGE = (2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 512)
INTEGERS = tuple(struct.Struct(kind) for kind in (">I", "<I", ">Q", "<Q"))
PATH, URL = "/pool/images/a.qcow2", "gluster://host/volume/images/a.qcow2"
TAIL = b'\0CD001"\nRW 9 FLAT parentFileNameHint="hidden"' * 4
TEXT = b"# Disk DescriptorFile"
PADDING = tuple(
    piece * (HEADER_SIZE // len(piece) + 1)
    for piece in (b"\0", b"\0", b"\n", b"\xff", b'\nparentFileNameHint="hidden"\nRW 9 FLAT')
)
NAMES = (
    "../base.qcow2",
    "file:///pool/base",
    "nbd://host/export",
    "gluster+tcp://host:24007/volume/dir/base",
    "gluster+unix:///volume/base?socket=/run/glusterd.socket",
    'json:{"driver":"qcow2","file":{"driver":"file","filename":"/base"}}',
    'json:{"file.driver":"gluster","file.volume":"v","file.path":"p","file.server.0.type":"tcp","file.server.0.host":"h"}',
    'json:{"driver":"raw","offset":512,"size":1024,"file":{"driver":"nbd","server":{"type":"unix","path":"/s"}}}',
    'json:{"driver":"rbd","pool":"p","namespace":"n","image":"i","snapshot":"s"}',
    'json:{"driver":"ssh","path":"/x","user":"u","host":"h","port":"22"}',
    'json:{"driver":"iscsi","portal":"h:3260","target":"iqn.x","lun":1}',
    'json:{"driver":"https","url":"https://h/x"}',
)
PIECES = (
    "\\ud800",
    "\\u0000",
    "\0",
    '"',
    "{",
    "}",
    "[",
    ":",
    "/",
    "..",
    ".",
    "%ff",
    "%00",
    "1e999",
    "null",
    "\U0001f40e",
    "json:",
)


def mutated(rng: random.Random, heads: list[bytes]) -> bytes:
    """A header with a few bytes or fields changed, most of them in its first hundred bytes, perhaps cut off or spliced."""
    head = bytearray(rng.choice(heads))
    for _ in range(rng.randrange(1, 6)):
        at = min(int(rng.expovariate(0.02)), len(head) - 1)
        dice = rng.random()
        if dice < 0.3:
            head[at] = rng.choice(BYTES)
        elif dice < 0.5:
            head[at] = rng.randrange(256)
        elif dice < 0.9:
            packer = rng.choice(INTEGERS)
            number = rng.choice(NUMBERS if rng.random() < 0.8 else LARGE) & (1 << packer.size * 8) - 1
            at -= at % 4
            if at + packer.size <= len(head):
                packer.pack_into(head, at, number)
        else:
            other = rng.choice(heads)
            head[at : at + 16] = other[at : at + 16] or b"\0"
    dice = rng.random()
    if dice < 0.15:
        del head[rng.randrange(len(head)) :]
    elif dice < 0.2:
        head.extend(rng.choice((b"\xff", b"\0\0\0\1", b"\n", b"a")) * 8192)
    return bytes(head)


def outcome(head: bytes) -> ImageInfo | str | None:
    try:
        return probe(head)
    except ImageError as error:
        return f"error: {error}"


def check_name(name: str) -> None:
    for where in (PATH, URL):
        try:
            found = resolve_backing(name, where)
            if found is not None:
                found.encode()
                assert "\0" not in found, found
        except ImageError:
            pass
    if name.startswith("gluster"):
        try:
            parse_gluster_uri(name)
        except ImageError:
            pass


def check_head(head: bytes, padding: bytes) -> str:
    """What came out of a header: a format, ``raw`` or ``error``. :raises AssertionError: it is not what it should be."""
    found = outcome(head)
    needs_full_header(head)
    whole = (head + padding)[:HEADER_SIZE]
    told = outcome(whole)
    if isinstance(found, ImageInfo) and not head.startswith(TEXT):
        assert told == found, "what follows is seen"
    assert outcome(whole + TAIL) == told, "bytes beyond HEADER_SIZE are seen"
    first = whole[:FIRST_PAGE]
    if not needs_full_header(first):
        assert outcome(first) == told, "the first page does not tell what the whole header does"
    if found is None:
        return "raw"
    if isinstance(found, str):
        return "error"
    for text in (found.backing, found.backing_format, found.data_file):
        if text is not None:
            assert text, "an empty name"
            assert not any(ord(c) < 32 and c not in "\t\n\r" for c in text), "a control character"
            text.encode()
    if found.backing is not None:
        check_name(found.backing)
    assert found.capacity is None or 0 <= found.capacity < 1 << 63, found.capacity
    return found.format


def mutated_name(rng: random.Random) -> str:
    name = list(rng.choice(NAMES))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(name) + 1)
        dice = rng.random()
        if dice < 0.4:
            name[at : at + rng.randrange(4)] = []
        elif dice < 0.8:
            name[at:at] = rng.choice(PIECES)
        else:
            name[at:at] = rng.choice(NAMES)
    return "".join(name)


def run(count: int, seed: int) -> Counter[str]:
    """Check ``count`` headers, and a name for every tenth; returns how many came out as what."""
    rng = random.Random(seed)
    heads = [head[:2600] for name, head in VALID.items() if name != "iso"]
    iso = VALID["iso"]
    seen: Counter[str] = Counter()
    for index in range(count):
        if index % 64 == 0:
            head = bytearray(iso)
            head[rng.choice((*range(80), *range(32_760, 32_776)))] = rng.choice(BYTES)
            case: bytes | str = bytes(head)
        elif index % 10 == 0:
            case = mutated_name(rng)
        else:
            case = mutated(rng, heads)
        try:
            if isinstance(case, str):
                check_name(case)
                seen["name"] += 1
            else:
                seen[check_head(case, rng.choice(PADDING))] += 1
        except BaseException:
            shown = repr(case) if isinstance(case, str) else case[:160].hex()
            print(f"seed {seed}, case {index}: {shown}", file=sys.stderr)
            raise
    return seen


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    began = time.perf_counter()
    seen = run(count, seed)
    seconds = time.perf_counter() - began
    print(f"{count:,} cases in {seconds:.1f} s, {count / seconds:,.0f} a second")
    print(", ".join(f"{what} {number:,}" for what, number in seen.most_common()))
    if count >= 10_000 and (missing := FORMATS - set(seen)):
        sys.exit(f"never seen: {', '.join(sorted(missing))}")


if __name__ == "__main__":
    main()
