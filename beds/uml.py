"""Run a Linux kernel as an ordinary process, for file systems that the machine's kernel does not have.

User-mode Linux (Debian's package ``user-mode-linux``) boots with this machine's file system as its root, read-only,
runs one program and ends. Its network, mounts and processes are its own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from beds import BedUnavailable, processes

_KERNEL = "linux.uml"
_MODULES = Path("/usr/lib/uml/modules")
_PTRACE = Path(__file__).with_name("uml_ptrace.c")
_ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# The usual daemons write to /run and /var/lib/nfs; everything else is this machine's, and read-only.
_INIT = """\
#!/bin/sh
export PATH={path} HOME=/run LC_ALL=C TMPDIR=/run/tmp
cd /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/tmp
[ ! -d /var/lib/nfs ] || mount -t tmpfs -o mode=755 tmpfs /var/lib/nfs
mkdir /run/host
mount -t hostfs -o {folder} none /run/host
echo {folder}/modprobe >/proc/sys/kernel/modprobe
for module in {modules}; do {folder}/modprobe "$module"; done
ip link set lo up
{program} >/run/host/output 2>&1 </dev/null
echo $? >/run/host/code
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class GuestError(RuntimeError):
    """The guest or its program failed; the message has their output."""


def missing() -> str | None:
    """Return why there can be no guest here; None if there can."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_ADMIN_PATH}"
    for program, package in (
        (_KERNEL, "user-mode-linux"),
        ("depmod", "kmod"),
        ("ip", "iproute2"),
        ("cc", "gcc"),
    ):
        if shutil.which(program, path=path) is None:
            return f"there is no {program} (Debian package {package})"
    return None


def run_in_guest(
    argv: Sequence[str], folder: Path, *, modules: Sequence[str] = (), memory: str = "1536M", timeout: float = 120
) -> str:
    """Boot a guest, run a program in it as root, and wait until the guest has powered off.

    The program finds ``folder`` at ``/run/host`` (the only place of this machine that it can write to) and may write
    below ``/run``.

    :param argv: the program; paths are this machine's. :param folder: an empty one; its path has no blanks.
    :param modules: kernel modules to load first; those that the kernel requests by itself may be omitted.
    :returns: the program's stdout and stderr.
    :raises BedUnavailable: see :func:`missing`.
    :raises GuestError: it did not end in ``timeout`` seconds (and was killed), or not with 0.
    """
    if why := missing():
        raise BedUnavailable(why)
    path = f"{os.environ.get('PATH', os.defpath)}:{_ADMIN_PATH}"
    _link_modules(folder, path)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", folder / "ptrace.so", _PTRACE], check=True, timeout=60)
    init = folder / "init"
    init.write_text(
        _INIT.format(path=path, folder=folder, modules=" ".join(modules), program=shlex.join(argv)), encoding="utf-8"
    )
    init.chmod(0o755)
    console = folder / "console"
    ended = _boot(init, console, memory, timeout, path)
    output = _text(folder / "output")
    code = _text(folder / "code").strip()
    if not ended or code != "0":
        how = f"its program ended with {code or 'nothing'}" if ended else f"it did not end in {timeout:g} s"
        raise GuestError(f"the guest failed: {how}\n--- console\n{_text(console)}\n--- program\n{output}")
    return output


def _link_modules(folder: Path, path: str) -> None:
    """Make ``folder`` a root for modprobe, which finds the kernel's modules by an index; Debian ships none."""
    modprobe = folder / "modprobe"
    modprobe.write_text(f'#!/bin/sh\nPATH={path} exec modprobe -d {folder} "$@"\n', encoding="utf-8")
    modprobe.chmod(0o755)
    for version in _MODULES.iterdir():
        place = folder / "lib" / "modules" / version.name
        place.mkdir(parents=True)
        for part in version.iterdir():
            (place / part.name).symlink_to(part)
        subprocess.run(["depmod", "-b", folder, version.name], check=True, env={**os.environ, "PATH": path}, timeout=60)


def _boot(init: Path, console: Path, memory: str, timeout: float, path: str) -> bool:
    """Run the kernel; return whether it ended by itself."""
    argv = [_KERNEL, f"mem={memory}", "rootfstype=hostfs", "ro", f"init={init}", "con0=fd:0,fd:1", "con=null", "quiet"]
    # a killed kernel leaves a socket in its home folder
    with console.open("wb") as output, tempfile.TemporaryDirectory(prefix="astore-uml-") as home:
        kernel = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "HOME": home, "LD_PRELOAD": str(init.parent / "ptrace.so")},
            start_new_session=True,
        )
        try:
            kernel.wait(timeout)
            return True
        except subprocess.TimeoutExpired:
            return False
        finally:
            # the guest's processes are processes here, with the kernel's arguments
            processes.end(lambda: processes.mentioning(init.parent, {_KERNEL}), timeout=30)
            kernel.wait()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
