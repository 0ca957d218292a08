"""Steps drawn by lot for pools of type ``dir``: definitions, volumes, and what is asked of both sides."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any
from xml.sax.saxutils import escape

from differential.changes import NAMES, change
from differential.comparing import Comparing
from lxml import etree

TWINS = ("p0", "p1", "p2", "p3")
"""Pools that each side has in a folder of its own."""
SHARED = "shared"
"""A pool that both have on one folder, in which only others change anything."""

_FORMATS = (
    "raw",
    "raw",
    "raw",
    "qcow2",
    "qcow2",
    "qcow2",
    "vmdk",
    "vdi",
    "qed",
    "vpc",
    "qcow",
    "dir",
    "nonsense",
    None,
)
_SIZES = (0, 1, 512, 1_000, 65_536, 1 << 20, 3_000_000)
_IMAGE_SIZES = (1_024, 65_536, 1 << 20, 3_000_320)  # libvirt makes images of whole KiB
_NEW = ("v0", "v1", "v2", "v3", "v4", "v5", *NAMES[:12])
_BACKING = re.compile('<path>([^<]+)</path><format type="(raw|qcow2|qed)">')
_OF_A_COPY = re.compile("<capacity>.*?</capacity>|<allocation>.*?</allocation>|<backingStore>.*</backingStore>")

_LIFE = ("define", "create", "build", "start", "refresh", "stop", "delete", "undefine", "autostart")
_WORK = ("new_volume", "new_volume", "clone", "resize", "wipe", "delete_volume", "upload", "download")


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-00000000000{number}"


def _pool_document(random: Random, name: str, shared: Path, active: str | None) -> str:
    """A definition of this pool; ``active`` is the target that it has while it is active."""
    path = f"@/{name}"
    uuid = _uuid((*TWINS, SHARED).index(name))
    if name == SHARED:
        path = str(shared)
    elif active is not None:  # in astore a pool's next source is taken at once, in libvirt when it is started again
        path = active
    elif random.random() < 0.25:
        path = random.choice(
            (f"@/{random.choice(TWINS)}", f"@/deep/er/{name}", f"@//{name}/", f"@/{name}.other", "@/p0/sub")
        )
    if random.random() < 0.1:
        uuid = _uuid(random.randrange(6))
    mode, owner = random.choice((None, None, "0755", "0700", "0711")), random.choice((-1, 0, 1234))
    target = f"<path>{path}</path>"
    if mode is not None and name != SHARED:
        target += f"<permissions><mode>{mode}</mode><owner>{owner}</owner><group>{owner}</group></permissions>"
    extra = random.choice(("", "", "<refresh><volume allocation='default'/></refresh>"))
    if name == SHARED:  # which is never built
        extra += random.choice(("", "<features><cow state='no'/></features>"))
    return f"<pool type='dir'><name>{name}</name><uuid>{uuid}</uuid>{extra}<target>{target}</target></pool>"


def _volume_document(random: Random, name: str, backings: list[tuple[str, str]]) -> str:
    """A volume to make."""
    kind = random.choice(_FORMATS)
    capacity = random.choice(_SIZES if kind in ("raw", "dir", None) else _IMAGE_SIZES)
    parts = [f"<name>{escape(name)}</name>"]
    if random.random() < 0.95:
        parts.append(f"<capacity>{capacity}</capacity>")
    if random.random() < 0.6:
        parts.append(f"<allocation>{random.choice((0, 0, capacity // 2, capacity))}</allocation>")
    target = "" if kind is None else f"<format type='{kind}'/>"
    if kind == "dir" or random.random() < 0.4:  # by default libvirt makes a folder that nobody may enter
        owner = random.choice(("", "<owner>1234</owner><group>1234</group>"))
        target += f"<permissions><mode>0{random.choice((600, 640, 400))}</mode>{owner}</permissions>"
    if kind == "qcow2":  # which has another compat by default
        target += random.choice(("<compat>0.10</compat>", "<compat>1.1</compat>"))
        target += random.choice(("", "<clusterSize unit='B'>4096</clusterSize>"))
        target += random.choice(("", "", "<features><lazy_refcounts/></features>"))
    parts.append(f"<target>{target}</target>")
    if backings and kind in ("qcow2", "qed", "raw") and random.random() < 0.3:
        path, form = random.choice(backings)
        parts.append(f"<backingStore><path>{path}</path><format type='{form}'/></backingStore>")
    return f"<volume>{''.join(parts)}</volume>"


def _resizing(random: Random, document: str) -> tuple[int, list[str]]:
    """A new size and flags. (libvirt refuses to cut off what is allocated, astore does not, if it is to shrink.)"""
    flags = [flag for flag in ("delta", "shrink") if random.random() < 0.3]
    capacity = random.choice(_IMAGE_SIZES)
    held, taken = (_size(document, what) for what in ("capacity", "allocation"))
    if "shrink" in flags and ("delta" in flags or capacity < taken):
        flags.remove("shrink")
    if (
        held <= (held if "delta" in flags else 0) + capacity < taken
    ):  # as of an image whose tables are larger than it is
        capacity = 16 << 20
    return capacity, flags


def _size(document: str, what: str) -> int:
    found = re.search(f'<{what} unit="bytes">([0-9]+)<', document)
    return int(found[1]) if found else 0


async def step(to: Comparing, random: Random, shared: Path) -> None:
    """One step on one pool, and what there is to see of it compared."""
    pool = random.choice((*TWINS, SHARED))
    told = to.known.get(pool)
    active = told is not None and told["active"]
    kind = random.choices(("life", "folder", "look up", "volume"), (5, 4, 1, 7) if active else (9, 1, 1, 1))[0]
    if kind == "folder" or (kind == "volume" and pool == SHARED):
        what, happen = change(random)
        to.note(f"# {pool}: {what}")
        for folder in [shared] if pool == SHARED else [to.libvirt.root / pool, to.astore.root / pool]:
            happen(folder)
    elif kind == "life":
        await _live(to, random, pool, shared)
    elif kind == "look up":
        name = random.choice(list(told["volumes"]) if told and told["volumes"] else ["absent"])
        looked = (
            ("by_uuid", _uuid(random.randrange(6))),
            ("by_target", random.choice((f"@/{pool}", f"@/{pool}/", f"@/{pool}.other", "@"))),
            ("by_path", f"@/{pool}/{name}"),
            ("by_key", f"@/{pool}/{name}"),
            ("list", [*TWINS, SHARED]),
        )
        await to.both(*random.choice(looked))
    else:
        await _work(to, random, pool)
    await to.look(pool)


async def _live(to: Comparing, random: Random, pool: str, shared: Path) -> None:
    """Something that is done to a pool as a whole; what is likely to work, mostly."""
    told = to.known.get(pool)
    if told is None:
        likely = (8, 5, 1, 1, 1, 1, 1, 1, 1)
    elif told["active"]:
        likely = (3, 1, 2, 2, 6, 2, 1, 1, 2)
    else:
        likely = (
            3,
            0,
            4,
            9,
            1,
            1,
            2,
            2,
            1,
        )  # libvirt takes a transient start of what is defined for another definition
    operation = random.choices(_LIFE, likely)[0]
    if pool == SHARED and operation in ("build", "delete"):
        operation = "start"
    build = random.random() < 0.3 and pool != SHARED
    if not to.builds_alike(pool):
        build = False
        operation = "start" if operation == "build" else operation
    path = etree.fromstring(told["xml"]).findtext("target/path") if told and told["active"] else None
    document = _pool_document(random, pool, shared, path)
    arguments: dict[str, tuple[Any, ...]] = {
        "define": (document,),
        "create": (document, build or (pool != SHARED and told is None)),
        "start": (pool, build),
        "autostart": (pool, random.random() < 0.6),
    }
    await to.both(operation, *arguments.get(operation, (pool,)))


async def _work(to: Comparing, random: Random, pool: str) -> None:
    """Work on a volume, and the files of both sides compared. Wiped volumes and new images are made alike afterwards."""
    told = to.known.get(pool)
    documents: dict[str, str] = told["volumes"] if told else {}
    files = [name for name, text in documents.items() if text.startswith('<volume type="file"')]
    volume = random.choice(files) if files and random.random() < 0.95 else "absent"
    backings = [
        found.groups() for text in documents.values() if "<backing" not in text and (found := _BACKING.search(text))
    ]
    new = random.choice(_NEW)
    document = _volume_document(random, new, backings)
    operation = random.choice(_WORK)
    if (
        # libvirt writes through what is there, if it is no volume
        (operation in ("new_volume", "clone") and new not in documents and to.in_the_way(pool, new))
        or (operation == "resize" and "<backing" in documents.get(volume, ""))  # it has qemu-img open the backing file
        or (
            operation in ("upload", "download") and not to.alike(pool, volume)
        )  # an image has what was drawn by lot for it
    ):
        operation = "wipe"
    data, offset = random.randbytes(random.choice((0, 10, 4_096))), random.choice((0, 0, 100, 5_000))
    if operation == "upload" and offset == 100 and to.is_image(pool, volume):  # test_an_upload_into_a_header
        operation = "wipe"
    choices: dict[str, tuple[Any, ...]] = {
        "new_volume": (pool, document, False),
        "clone": (
            pool,
            _OF_A_COPY.sub("", document).replace("'dir'", "'raw'"),
            pool,
            volume,
        ),  # libvirt ignores the rest
        "resize": (pool, volume, *_resizing(random, documents.get(volume, ""))),
        "wipe": (pool, volume, "zero"),
        "delete_volume": (pool, volume),
        "upload": (pool, volume, data, offset, random.choice((0, len(data)))),
        "download": (pool, volume, offset, random.choice((0, 10, 4_096))),
    }
    done = await to.both(operation, *choices[operation])
    if done.code is None and operation == "wipe":
        to.level_wiped(documents[volume])
    elif done.code is None and operation in ("new_volume", "clone", "resize"):
        to.level_image(documents[volume] if operation == "resize" else done.value, copied=operation == "clone")
    to.look_at_files()
