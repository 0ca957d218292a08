"""Real servers on one machine, for tests, demonstrations and benchmarks: private, on loopback, and temporary.

Each bed has its own folder, addresses and processes, and ends the processes it started by their pids. It never touches
a glusterd, a libvirtd or a mount of the machine's owner. The code blocks: start beds before the event loop or from a
worker thread.

* :mod:`~beds.namespace`: this process in a network and mount namespace of its own
* :mod:`~beds.gluster`: Gluster, one node or several
* :mod:`~beds.iscsi`: an iSCSI target, with LUNs in files
* :mod:`~beds.libvirt`: a libvirtd to compare with
* :mod:`~beds.images`: disk images by the ten thousand
* :mod:`~beds.fuse`: freeze, kill or abort the client of a FUSE mount
* :mod:`~beds.fuse_fs`: a FUSE file system that delays, holds and fails calls, and lists as many files as wanted
"""

from __future__ import annotations


class BedUnavailable(RuntimeError):
    """This machine or this user cannot have the bed; the message says why, and what would help."""
