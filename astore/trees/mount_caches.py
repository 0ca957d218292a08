"""What a folder on a network mount does not tell, and how old the answers of its client's caches may be.

The kernel tells of what this machine does with a mount, and of nothing that other clients do. A client answers from its
caches for a while: how long is in the mount's options.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from astore.mounts import Mount, mount_id, mounts
from astore.places import is_remote

_COHERENT = frozenset({"ceph", "gfs2", "lustre", "ocfs2"})
"""File systems whose clients hold locks or leases on what they cache: an answer is never old."""

_GLUSTER_TIMEOUT = re.compile(r"--(attribute|entry)-timeout[= ]([0-9.]+)")


class _Age(NamedTuple):
    """How old the answers of a client may be.

    :ivar seconds: at most. :ivar options: the mount options that limit it to a second.
    """

    seconds: float
    options: str


def not_told(folder: int) -> tuple[str, float]:
    """Return why the kernel does not tell all changes of a folder ("" if it does), and how old a listing may be, in seconds.

    Blocks; may ask the folder's own server.

    :param folder: a descriptor of it.
    """
    number = mount_id(folder)
    mount = next((one for one in mounts() if one.id == number), None)
    if mount is None:
        return "its mount was detached", 0.0
    if not is_remote(mount.fstype):
        return "", 0.0
    reason = f"on {mount.fstype} the kernel tells only what this machine changes"
    if mount.fstype in _COHERENT:
        return reason, 0.0
    age_of = _AGES.get(mount.fstype)
    if age_of is None:
        return f"{reason}; how long its client keeps old answers is not known, and not counted", 0.0
    age = age_of(mount, folder)
    if age.seconds > 1:
        reason += (
            f", whose client keeps old answers for {age.seconds:g} s: the mount options {age.options} make that 1 s"
        )
    return reason, age.seconds


def _nfs(mount: Mount, _folder: int) -> _Age:
    """nfs(5). A listing shows new names at once, unless with ``nocto``; sizes and times are as old as attributes may be.

    The option ``lookupcache`` has no part in it: names come from a listing, and not from the cache of looked up ones.
    """
    said = _options(mount)
    # the kernel shows what differs from the default, noac as four times 0, and actimeo as four times its value or once
    both = said.get("actimeo")
    return _Age(max(_number(said.get(name, both), 60.0) for name in ("acregmax", "acdirmax")), "actimeo=1")


def _cifs(mount: Mount, _folder: int) -> _Age:
    """mount.cifs(8). What an oplock or lease covers is not old; ``cache`` is about what files contain, which probing reads."""
    said = _options(mount)
    both = said.get("actimeo")
    return _Age(max(_number(said.get(name, both), 1.0) for name in ("acregmax", "acdirmax")), "actimeo=1")


def _gluster(mount: Mount, folder: int) -> _Age:
    """mount.glusterfs(8). The kernel does not show the client's options: the client itself does, in ``.meta``.

    The kernel's cache is filled from the client's (performance.md-cache-timeout), so their times add up.
    """
    timeouts = {"attribute": 1.0, "entry": 1.0}
    for name, value in _GLUSTER_TIMEOUT.findall(_client_says(mount, folder, "cmdline")):
        timeouts[name] = _number(value, 1.0)
    volume = mount.source.partition(":")[2].strip("/").partition("/")[0]
    options = f"graphs/active/{volume}-md-cache/options"
    own = _number(_client_says(mount, folder, f"{options}/md-cache-timeout"), 1.0)
    if _client_says(mount, folder, f"{options}/cache-invalidation").strip() in ("on", "true", "yes", "enable", "1"):
        own = min(own, 1.0)  # the servers tell the client what is old
    return _Age(max(timeouts.values()) + own, "attribute-timeout=0 and entry-timeout=0")


def _client_says(mount: Mount, folder: int, path: str) -> str:
    """Return the text of a file of the glusterfs client's folder ``.meta``, which is at the root of its volume; "": none."""
    inside = os.path.relpath(os.readlink(f"/proc/self/fd/{folder}"), mount.target)
    above = "" if inside == "." else "../" * len(inside.split("/"))
    with contextlib.suppress(OSError):
        fd = os.open(f"{above}.meta/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    return ""


def _options(mount: Mount) -> Mapping[str, str]:
    return {name: value for name, _, value in (option.partition("=") for option in mount.fs_options.split(","))}


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text or "")
    except ValueError:
        return otherwise


_AGES: Mapping[str, Callable[[Mount, int], _Age]] = {
    "nfs": _nfs,
    "nfs4": _nfs,
    "cifs": _cifs,
    "smb3": _cifs,
    "fuse.glusterfs": _gluster,
}
