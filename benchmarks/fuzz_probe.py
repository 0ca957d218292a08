"""Probe mutated headers and locate mutated names, a million by default: only ImageError may be raised.

``python -m benchmarks.fuzz_probe [COUNT] [SEED]`` prints the seed, so that a failure can be repeated. It also checks of
every header that

- bytes beyond HEADER_SIZE change nothing;
- the result for a header that is cut off does not change when bytes follow: nothing was read beyond its end;
- if the first page is enough by ``needs_full_header``, the whole header gives the same result;
- the result can be written: as UTF-8, and in XML;
- every named file has a location or a doubt;
- a header without references has no backing file;
- no header and no name takes more than SLOWEST seconds of CPU.
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
from astore.images.fields import backing
from astore.images.headers import without_references
from astore.images.references import located
from astore.model import ImageInfo, ReferenceKind
from astore_gluster.uri import parse_uri

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
VALID: dict[str, bytes] = {
    **importlib.import_module("image_heads").VALID,
    **importlib.import_module("images.more_heads").MORE,
}
FILES: dict[str, dict[int, bytes]] = {"vhdx": importlib.import_module("images.more_heads").VHDX}

FORMATS = frozenset(info.format for info in map(probe, VALID.values()) if info is not None)
SLOWEST = 0.25
BYTES = (0, 1, 2, 3, 4, 9, 16, 0x22, 0x2F, 0x3A, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS = (0, 1, 8, 9, 16, 21, 72, 104, 511, 512, 1023, 1024, 4095, 4096, 20_000, 33_279, 33_280, 33_281, 1 << 31)
LARGE = (2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 512)
INTEGERS = tuple(struct.Struct(kind) for kind in (">I", "<I", ">Q", "<Q"))
PATH, URL = "/pool/images/a.qcow2", "gluster://host/volume/images/a.qcow2"
TAIL = b'\0CD001"\nRW 9 FLAT parentFileNameHint="hidden"' * 4
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
    "json:{'driver':'qcow2','file':{'driver':'file','filename':'/base'},'backing':null}",
    'json:{"driver":"quorum","children":[{"driver":"file","filename":"/a"},{"file.filename":"/b"}]}',
    "blkverify:/a:/b",
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
    "'",
    "\\'",
    "blkdebug:",
    "file:",
    "backing.",
)


def mutated(rng: random.Random, heads: list[bytes]) -> bytes:
    """Change a few bytes or fields of a header, mostly in its first hundred bytes; perhaps cut it off or splice it."""
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


def check_vhdx(rng: random.Random) -> str:
    """Read the rest of a VHDX image, with some bytes of its tables changed."""
    pieces = {at: bytearray(piece) for at, piece in FILES["vhdx"].items()}
    for _ in range(rng.randrange(1, 5)):
        piece = rng.choice(list(pieces.values()))
        at = max(min(int(rng.expovariate(0.02)), len(piece) - 1), 0)
        if not piece:
            continue
        if rng.random() < 0.5:
            piece[at] = rng.choice(BYTES)
        else:
            piece[at : at + rng.choice((1, 4, len(piece)))] = b""

    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset < 1 << 63, offset
        assert 0 < length <= 1 << 16, length
        for at, piece in pieces.items():
            if at <= offset < at + len(piece):
                return bytes(piece[offset - at : offset - at + length])
        return b""

    try:
        info = probe(VALID["vhdx"], read)
    except ImageError:
        return "error"
    assert info is not None
    check_info(info)
    return info.format


def check_places(info: ImageInfo) -> None:
    for where in (PATH, URL):
        for found in located(info.references, where):
            assert found.location or found.doubt, found
            if found.location is not None:
                found.location.encode()
                assert "\0" not in found.location, found


def check_name(name: str, format: str | None = None) -> None:
    check_places(ImageInfo("qcow2", references=backing(name, format)))
    check_places(ImageInfo("qcow2", references=(*backing(name), *backing("x" + name))))
    parse_uri(name)


def is_open_ended(found: ImageInfo, head: bytes) -> bool:
    """Return whether the bytes after a header may belong to it: a text, a VHD's parent's name, LUKS2's JSON area."""
    if found.format == "vmdk" or head.startswith((b"#", b"KDMV", b"COWD")):  # a VDI may begin as VMDK
        return head.startswith(b"#") or 0 not in head[512:]
    return found.format == "luks" or any(one.kind is ReferenceKind.PARENT for one in found.references)


def check_head(head: bytes, padding: bytes) -> str:
    """Return the result for a header: a format, ``raw`` or ``error``. :raises AssertionError: a check failed."""
    found = outcome(head)
    needs_full_header(head)
    whole = (head + padding)[:HEADER_SIZE]
    told = outcome(whole)
    if isinstance(found, ImageInfo) and not is_open_ended(found, head):
        assert told == found, "what follows is seen"
    assert outcome(whole + TAIL) == told, "bytes beyond HEADER_SIZE are seen"
    first = whole[:FIRST_PAGE]
    if not needs_full_header(first):
        assert outcome(first) == told, "the first page gives another result than the whole header"
    if found is None:
        return "raw"
    if isinstance(found, str):
        return "error"
    check_info(found)
    bare = outcome(without_references(found.format, head))
    if found.format not in ("cow", "vpc") and not (found.format == "vdi" and found.references):
        assert isinstance(bare, ImageInfo), bare
        assert bare.backing is None, "a backing file is left"
        assert bare.capacity == found.capacity, "something else is changed"
    return found.format


def check_info(found: ImageInfo) -> None:
    for reference in found.references:
        assert reference.name or reference.doubt, "an empty name"
        assert reference.format != "", "an empty format"
        for text in (reference.name, reference.format or ""):
            assert not any(ord(c) < 32 and c not in "\t\n\r" for c in text), "a control character"
            text.encode()
        assert (reference.kind is not ReferenceKind.PARENT) or reference.doubt, "a parent without a doubt"
    check_places(found)
    assert found.capacity is None or 0 <= found.capacity < 1 << 63, found.capacity
    assert 0 <= found.before < 1 << 63, found.before


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
    """Check ``count`` headers, and a name for every tenth; return how often each result occurred."""
    rng = random.Random(seed)
    heads = [head[:2600] for name, head in VALID.items() if name != "iso"]
    iso = VALID["iso"]
    seen: Counter[str] = Counter()
    for index in range(count):
        began = time.thread_time()
        if index % 64 == 1:
            seen[check_vhdx(rng)] += 1
            continue
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
                check_name(case, rng.choice((None, "raw", "qcow2", "foo")))
                seen["name"] += 1
            else:
                seen[check_head(case, rng.choice(PADDING))] += 1
            assert time.thread_time() - began < SLOWEST, "it took too long"
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
