"""NFS and CIFS servers in a guest of :mod:`beds.uml`; for programs that run inside it, where nobody else is."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

EXPORT = Path("/run/export")
SHARE = Path("/run/share")

_SMB = """\
[global]
    server role = standalone server
    map to guest = bad user
    guest account = root
    interfaces = lo
    bind interfaces only = yes
    smb ports = 445
    disable netbios = yes
    load printers = no
    private dir = /run/samba/private
    lock directory = /run/samba/lock
    state directory = /run/samba/state
    cache directory = /run/samba/cache
    pid directory = /run/samba
    ncalrpc dir = /run/samba/ncalrpc
    log file = /run/samba/log
[share]
    path = /run/share
    guest ok = yes
    read only = no
[private]
    path = /run/share
    guest ok = no
    valid users = root
    read only = no
"""

PASSWORD = "0pen%Sesame =x"  # noqa: S105
"""Root's, for the share ``private``."""


def run(*argv: str) -> None:
    """Run a program. :raises RuntimeError: it failed; with what it said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.returncode}: {done.stdout}{done.stderr}")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Poll. :raises TimeoutError: it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


def kernel_log() -> str:
    """The last that the kernel has said."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, timeout=200, check=False).stdout[-3000:]


def listens(port: int) -> bool:
    """Whether somebody listens on a TCP port, without connecting to it."""
    rows = [*Path("/proc/net/tcp").read_text().splitlines()[1:], *Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    return any(row.split()[3] == "0A" and int(row.split()[1].rpartition(":")[2], 16) == port for row in rows)


def serve_nfs() -> None:
    """Export ``EXPORT`` by NFS 3 and 4."""
    for folder in ("v4recovery", "sm", "sm.bak", "rpc_pipefs"):
        (Path("/var/lib/nfs") / folder).mkdir()
    for file in ("etab", "rmtab", "state"):
        (Path("/var/lib/nfs") / file).touch()
    make_export()
    run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    run("rpcbind", "-w")
    wait_until(lambda: listens(111), "rpcbind listens")
    run("exportfs", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=0", f"*:{EXPORT}")
    run("rpc.mountd")
    wake_nfs()


def make_export() -> None:
    """The exported folder, with three entries."""
    EXPORT.mkdir()
    (EXPORT / "a.raw").write_bytes(b"a" * 5000)
    (EXPORT / "b.raw").write_bytes(b"b" * 700)
    (EXPORT / "sub").mkdir()


def hang_nfs() -> None:
    """From now on nobody serves: hard mounts hang."""
    run("rpc.nfsd", "0")
    wait_until(lambda: not listens(2049), "nfsd has ended")


def wake_nfs() -> None:
    """Serve (again)."""
    run("rpc.nfsd", "2")
    wait_until(lambda: listens(2049), "nfsd listens")
    # there is nobody who had anything open or locked before: without the 90 s in which they would have it back
    for ending in (Path("/proc/fs/nfsd/v4_end_grace"), Path("/proc/fs/lockd/nlm_end_grace")):
        wait_until(functools.partial(_no_grace, ending), "the end of the time of grace")


def _no_grace(ending: Path) -> bool:
    """Whether a time of grace has ended, by its file; ends it if not."""
    try:
        ending.write_text("Y")
    except OSError as error:
        if error.errno != errno.EBUSY:  # nfsd is being started, or the time has ended by itself
            raise
    return ending.read_text().startswith("Y")


def has_cifs() -> bool:
    """Whether Debian's samba and cifs-utils are installed."""
    return shutil.which("smbd") is not None and shutil.which("mount.cifs") is not None


def serve_cifs() -> None:
    """Share ``SHARE`` with guests, and, as ``private``, with root."""
    SHARE.mkdir(mode=0o777)
    (SHARE / "c.raw").write_bytes(b"c" * 600)
    (SHARE / "inner").mkdir()
    (SHARE / "inner" / "d.raw").touch()
    for folder in ("", "private", "lock", "state", "cache", "ncalrpc"):
        os.makedirs(f"/run/samba/{folder}", exist_ok=True)
    Path("/run/samba/smb.conf").write_text(_SMB)
    subprocess.run(
        ["smbpasswd", "-c", "/run/samba/smb.conf", "-s", "-a", "root"],
        input=f"{PASSWORD}\n{PASSWORD}\n",
        text=True,
        capture_output=True,
        check=True,
    )
    server = subprocess.Popen(
        ["smbd", "-F", "--no-process-group", "--configfile=/run/samba/smb.conf", "--log-basename=/run/samba"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: listens(445) or server.poll() is not None, "smbd listens")
