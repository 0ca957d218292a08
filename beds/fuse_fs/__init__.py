"""A FUSE file system for fault drills: a test delays, holds and fails its calls, fills it, and stops or kills it.

A :class:`FuseFs` shows the folder ``files`` as it is (it passes calls through), and beside it as many generated files
as wanted, which exist nowhere. Its server is a process of its own. A drill says which calls go wrong::

    with FuseFs(tmp_path / "bed") as fs:
        target = fs.mount()  # or a netfs pool mounts it, see below
        with fs.hold("read", names="*.qcow2") as gate:
            reading = start_a_thread_that_reads()
            gate.wait()  # returns when a read is being held: order, no sleep
            ...  # the drill
        fs.delay("readdir", 0.01)  # each entry of a listing takes 10 ms
        fs.fail("fsync", errno.EIO, first=3)  # from the third fsync on
        fs.room(10 << 20)  # ENOSPC after 10 MiB

Calls have FUSE's names (``CALLS``). A name is that of the file, without its folder; the root's is ``.``. stat(2) is a
``lookup`` of the name and often a ``getattr``; a listing is an ``opendir`` and a ``readdir`` for each entry. The kernel
answers repeated calls itself for ``cache`` seconds, by default not at all. An event loop must not wait: use
``asyncio.to_thread(gate.wait)``.

* A listing that never ends: ``FuseFs(folder, entries=ENDLESS)``. A million entries: ``entries=1_000_000``; their sizes
  and times never change, and a file of the same name in ``files`` takes an entry's place.
* Written and not synced: with ``writeback=True`` the kernel accepts writes, and reports errors of the server when the
  file is synced or closed. (Without it, ``fs.fail("fsync", errno.EIO)`` fails the sync of data that did arrive.)
* The server stopped, thawed, killed, or its connection aborted: ``beds.fuse.freeze(target)``, ``thaw``, ``kill``,
  ``abort``. Rules outlive it: the next mount's server has them from its first call on.

**As a netfs pool.** netfs runs ``mount -t glusterfs HOST:DIR TARGET``, mount(8) runs ``mount.glusterfs``, and
:meth:`FuseFs.lend_to_netfs` covers that program, in the private mount namespace of the tests: it starts the bed's server
for the bed's source, and the real program for any other. The pool's definition has the format ``glusterfs``, the host
``fs.host`` and the directory ``fs.directory``; mountinfo shows ``fuse.glusterfs`` and the source, so the pool mounts,
proves, renews, cuts and unmounts as it does on Gluster. A *dir* pool on the path from :meth:`FuseFs.mount` works too.

The server runs on Debian's Python with python3-pyfuse3 (libfuse 3). It has no fallocate, copy_file_range, SEEK_HOLE,
O_TMPFILE or extended attributes, as NFS 3 has none.
"""

from __future__ import annotations

from beds.fuse_fs.bed import CALLS, ENDLESS, FuseFs, Rule, missing

__all__ = ["CALLS", "ENDLESS", "FuseFs", "Rule", "missing"]
