"""What test_at_boot.py runs in a guest: systemd boots with the service that starts marked pools; writes down what was seen.

guest_boot.py RESULT.json

systemd is the first process of namespaces inside the guest. It has this machine's programs, the targets and the journal of
its units, the service, and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from astore.cli.app import run as astore_command
from beds import namespace

ROOT = Path(__file__).parents[1]
SERVICE = "astore-autostart.service"
UNITS = Path("/lib/systemd/system").resolve()
OWN_UNITS = Path("/etc/systemd/system")
STATE = Path("/var/lib/astore")
IMAGES, LATE = Path("/run/pools/images"), Path("/run/pools/late")
PROGRAM = Path("/run/astore")
MOUNT = Path("/run/mount.pid")
TURN, TRIES = Path("/run/turn"), Path("/run/tries")

TARGETS = (
    "sysinit",
    "basic",
    "multi-user",
    "network",
    "network-online",
    "local-fs",
    "swap",
    "slices",
    "sockets",
    "paths",
)
ENDS = ("timers", "shutdown", "umount", "final", "poweroff")
SERVICES = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")

AFTER = """\
[Unit]
Wants={service}
After={service}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
"""A service that needs the pools, as docs/at-boot.md has it."""

WRAPPED = """\
#!/bin/sh
[ -e {pid} ] || {{ setsid sleep infinity & echo $! >{pid}; }}
echo >{tries}
exec flock --no-fork {turn} {python} -m astore.cli "$@"
"""
"""The command. It leaves a process in the service's control group, as the mount of a FUSE file system does; see ``Turns``."""


def run(*argv: str) -> str:
    """Run a program; return its output. :raises RuntimeError: it failed."""
    code, said = attempt(*argv)
    if code:
        raise RuntimeError(f"{argv}: {code}: {said}")
    return said


def attempt(*argv: str) -> tuple[int, str]:
    """Run a program; return its exit code and what it wrote."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def astore(*arguments: str) -> str:
    """Run the command in this process, on root's state folder; return its output. :raises RuntimeError: it failed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = astore_command(arguments)
    if code:
        raise RuntimeError(f"{arguments}: {code}: {out.getvalue()}")
    return out.getvalue()


class Turns:
    """The tries of the service's command. Each says that it begins, and works while nobody holds its turn."""

    def __init__(self) -> None:
        os.mkfifo(TRIES)
        self._tries = os.open(TRIES, os.O_RDWR)

    def wait(self) -> None:
        """Wait until one more try has begun."""
        os.read(self._tries, 1)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep tries from working meanwhile: they work before, or after."""
        with TURN.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


# ----------------------------------------------------------------------------------------------------- before the boot


def install() -> None:
    """Lay out the units: as the package does, but for the path of the command, and enabled as docs/at-boot.md says."""
    chosen = [*(f"{name}.target" for name in (*TARGETS, *ENDS)), *SERVICES, "systemd-poweroff.service"]
    texts = {name: (UNITS / name).read_text() for name in chosen}
    namespace.cover(str(UNITS))
    namespace.cover(str(OWN_UNITS))
    for name, text in texts.items():
        (UNITS / name).write_text(text)
    unit = (ROOT / "debian" / f"astore.{SERVICE}").read_text()
    assert unit.count("/usr/bin/astore") == 1
    (UNITS / SERVICE).write_text(unit.replace("/usr/bin/astore", str(PROGRAM)))
    (UNITS / "needs-pools.service").write_text(AFTER.format(service=SERVICE))
    for target, wanted in {"sysinit": SERVICES[0], "multi-user": "needs-pools.service"}.items():
        (UNITS / f"{target}.target.wants").mkdir()
        (UNITS / f"{target}.target.wants" / wanted).symlink_to(UNITS / wanted)
    (OWN_UNITS / "default.target").symlink_to(UNITS / "multi-user.target")
    PROGRAM.write_text(WRAPPED.format(pid=MOUNT, turn=TURN, tries=TRIES, python=sys.executable))
    PROGRAM.chmod(0o755)
    run("systemctl", "--root=/", "enable", SERVICE)


def define() -> None:
    """Two marked pools; one of them has no folder yet."""
    namespace.cover(str(STATE))
    IMAGES.mkdir(parents=True)
    for folder in (IMAGES, LATE):
        astore("pool", "define-as", folder.name, "dir", "--target", str(folder))
        astore("pool", "autostart", folder.name)


# ------------------------------------------------------------------------------------------------------------- systemd


class Machine:
    """A booted systemd. ``status``: what it said when all jobs of the boot were done."""

    def __init__(self, first: int, status: str) -> None:
        self.first = first
        self.status = status
        self.prefix = ("nsenter", f"--target={first}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

    def run(self, *argv: str) -> str:
        """Run a program in the machine."""
        return run(*self.prefix, *argv)

    def service(self, name: str = SERVICE) -> dict[str, str]:
        """What systemd says of a service."""
        names = "ActiveState,SubState,Result,NRestarts,ExecMainStatus,ControlGroup"
        return dict(line.split("=", 1) for line in self.run("systemctl", "show", "-p", names, name).splitlines())

    def pools(self) -> dict[str, str]:
        """The states of all pools, as the command lists them."""
        return {pool["name"]: pool["state"] for pool in json.loads(astore("pool", "list", "--all", "--json"))["pools"]}

    def journal(self) -> list[dict[str, Any]]:
        """The entries about the service, from the first on."""
        self.run("journalctl", "--sync")
        said = self.run("journalctl", "--unit", SERVICE, "--output=json")
        return [json.loads(line) for line in said.splitlines()]


@contextlib.contextmanager
def booted() -> Iterator[Machine]:
    """Boot; wait until systemd says that all jobs of the boot are done. Powered off in the end."""
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind("/run/notices")
    environment = {"PATH": os.environ["PATH"], "container": "astore-test", "NOTIFY_SOCKET": "/run/notices"}
    environment |= {"SYSTEMD_GENERATOR_PATH": "/nonexistent", "SYSTEMD_LOG_TARGET": "journal-or-kmsg"}
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
    argv = ["unshare", "--fork", "--kill-child", "--mount-proc", *namespaces, str(UNITS.parent / "systemd")]
    outer = subprocess.Popen([*argv, "--system", "--show-status=no"], env=environment)
    ended = os.pidfd_open(outer.pid)
    try:
        status = ""
        while "READY=1" not in status:
            if ended in select.select([notices, ended], [], [])[0]:
                raise RuntimeError(f"systemd ended with {outer.wait()}")
            status = notices.recv(65536).decode()
        (first,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        yield Machine(int(first), status)
        run("nsenter", f"--target={first}", "--mount", "--pid", "systemctl", "poweroff")
        outer.wait()
    finally:
        outer.kill()
        outer.wait()
        os.close(ended)
        notices.close()


# ------------------------------------------------------------------------------------------------------- what is tried


def look(machine: Machine) -> dict[str, Any]:
    """The service, the one that needs it, the pools, and the process that the command has left."""
    mount = MOUNT.read_text().strip()
    return {
        "service": machine.service(),
        "needs": machine.service("needs-pools.service")["ActiveState"],
        "pools": machine.pools(),
        "mount": machine.run("cat", f"/proc/{mount}/cgroup").strip(),
        "status": attempt(*machine.prefix, "systemctl", "status", "--no-pager", "--full", SERVICE)[1],
    }


def make_ready(machine: Machine, turns: Turns) -> subprocess.Popen[bytes]:
    """Let the next try find all that it needs; return a caller who waits for its end."""
    astore("pool", "stop", "images")
    LATE.mkdir()
    turns.wait()
    return subprocess.Popen([*machine.prefix, "systemctl", "start", SERVICE], stdin=subprocess.DEVNULL)


def main(result: Path) -> None:
    """Boot; make ready what the service waits for, and wait for its next try; stop the service."""
    install()
    define()
    turns = Turns()
    seen: dict[str, Any] = {}
    with booted() as machine:
        turns.wait()
        with turns.held():
            seen["boot"], seen["first"] = machine.status, look(machine)
            waiting = make_ready(machine, turns)
        seen["waited"] = waiting.wait()
        seen["retried"], seen["journal"] = look(machine), machine.journal()
        machine.run("systemctl", "stop", SERVICE)
        seen["stopped"] = look(machine)
    result.write_text(json.dumps(seen))


main(Path(sys.argv[1]))
