"""A pool of images on a private Ceph cluster, whose objects are in memory."""

from __future__ import annotations

import contextlib
import importlib.util

from astore.cli.demo_storage import IMAGE_SIZE, DemoStorage
from astore.cli.progress import Ticker
from astore.errors import reason
from astore.model import Host, PoolDef, Source
from beds import ceph

POOL = "ceph-images"


def make_ceph_pool(storage: DemoStorage) -> str | None:
    """Start a private Ceph with one pool of images, the last of them a clone of the first.

    :returns: why there is none; a failed attempt leaves nothing behind.
    """
    if importlib.util.find_spec("astore_rbd") is None:
        return "its plugin is not installed: pip install 'astore[rbd]'"
    if why := ceph.missing():
        return why
    with Ticker() as ticker, contextlib.ExitStack() as own:
        ticker.begin("starting a private Ceph", storage.images)
        try:
            bed = own.enter_context(ceph.CephBed(storage.folder / "ceph", keys=False))
            bed.create_pool(POOL)
            for number in range(storage.images - 1):
                bed.rbd("create", "--size", f"{IMAGE_SIZE}B", f"{POOL}/vm{number:05}")
                ticker.step()
            snapshot = f"{POOL}/vm00000@golden"
            for action in (("snap", "create", "--no-progress"), ("snap", "protect")):
                bed.rbd(*action, snapshot)
            bed.rbd("clone", snapshot, f"{POOL}/clone")
            ticker.step()
        except (RuntimeError, OSError) as error:
            return reason(error).rstrip(".")
        storage.stack.push(own.pop_all())
    source = Source(hosts=(Host(bed.host, bed.port),), name=POOL)
    storage.definitions.append(PoolDef(type="rbd", name=POOL, source=source))
    storage.output.line(f"A private Ceph with {storage.images} images, one of them a clone of another")
    return None
