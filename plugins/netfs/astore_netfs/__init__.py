"""astore-netfs: pools of the type ``netfs``, on NFS, glusterfs (FUSE) and CIFS mounts that it makes and monitors."""

from __future__ import annotations

from astore.mounts import Mount, mounts
from astore_netfs.backend import NetfsBackend
from astore_netfs.mounting.command import mount_argv, umount_argv
from astore_netfs.mounting.mount import is_expected
from astore_netfs.mounting.mountinfo import find_mount

__all__ = ["Mount", "NetfsBackend", "find_mount", "is_expected", "mount_argv", "mounts", "umount_argv"]
