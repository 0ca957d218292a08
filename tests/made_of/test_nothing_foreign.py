"""Whatever headers say, nothing is opened but what belongs to the pool: all work on hostile images, under strace(1).

Looking where a name leads opens no content: it is allowed by stat(2), readlink(2) and O_PATH. So are the files of Python and
of the system, and a listing reads the header of what a link in the pool's folder leads to, as libvirt does. All else that is
opened, changed, run or connected to has to be the pool's, astore's temporary files, or its state.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made_of.conftest import ALL
from made_of.places import MIB, Place, json_name

from astore.model import VolumeDef

pytestmark = [pytest.mark.qemu, pytest.mark.strace]

PROGRAM = Path(__file__).with_name("work_program.py")
SECRET = b"SECRET " * 1000

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys", sys.prefix, sys.base_prefix)
DEVICES = {"/dev/null", "/dev/urandom", "/dev/random", "/dev/zero"}
PROGRAMS = {"qemu-img", Path(sys.executable).name, Path(os.path.realpath(sys.executable)).name}
ALWAYS_REFUSED = {"upload", "grow uploaded", "clone uploaded", "overlay of vmdk"}
"""Work on a header with a data file, that was uploaded; and an overlay for which QEMU opens what it is over."""
CHANGES = {
    *(
        "unlink",
        "unlinkat",
        "rename",
        "renameat",
        "renameat2",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "mkdir",
        "mkdirat",
    ),
    *(
        "rmdir",
        "mknod",
        "mknodat",
        "chmod",
        "fchmodat",
        "chown",
        "lchown",
        "fchownat",
        "truncate",
        "setxattr",
        "lsetxattr",
    ),
    *("removexattr", "lremovexattr", "utime", "utimensat", "mount", "umount2", "chroot", "swapon", "creat"),
}
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)(?:<((?:[^>\\]|\\.|->)*)>)?( .*)?$")
_NAMED = re.compile(r'(?:(?:AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, )?"((?:[^"\\]|\\.)*)"')
_LIBGFAPI = re.compile(r"/tmp/(gfapi\.volfile|tmp)\.\w{6}")
"""What Gluster's library makes for itself."""


class Watched:
    """What a trace says.

    :ivar opened: paths of what was opened, or tried. :ivar changed: of entries that were made, removed or changed.
    :ivar connected: addresses. :ivar run: programs.
    """

    def __init__(self, trace: str) -> None:
        self.opened: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self.connected: Counter[str] = Counter()
        self.run: Counter[str] = Counter()
        self._unfinished: dict[str, str] = {}
        for line in trace.splitlines():
            self._line(line)

    def _line(self, line: str) -> None:
        pid, _, text = line.partition(" ")
        text = text.strip()
        if text.endswith("<unfinished ...>"):
            self._unfinished[pid] = text.removesuffix("<unfinished ...>").rstrip()
            return
        if text.startswith("<... "):
            text = self._unfinished.pop(pid, "") + text.partition("resumed>")[2]
        call = _CALL.match(text)
        if call is None:
            return
        name, arguments, result, path, _ = call.groups()
        if name in ("open", "openat", "openat2", "creat"):
            if "O_PATH" not in arguments:
                self.opened[unescaped(path) if path else self._named(arguments)] += 1
        elif name == "connect":
            self.connected[arguments.partition("{")[2].partition("}")[0]] += 1
        elif name in ("execve", "execveat"):
            if result == "0":
                self.run[self._named(arguments)] += 1
        elif name in CHANGES and result == "0":
            for one in self._all_named(arguments):
                self.changed[one] += 1

    def _named(self, arguments: str) -> str:
        return next(iter(self._all_named(arguments)), arguments)

    def _all_named(self, arguments: str) -> list[str]:
        return [os.path.join(unescaped(folder) or "/", unescaped(text)) for folder, text in _NAMED.findall(arguments)]


def unescaped(text: str) -> str:
    """A string of strace's."""
    return (
        text.encode("latin-1", "replace").decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
    )


async def hostile_images(place: Place, port: int) -> None:
    """Images that name files outside, servers, a FIFO and devices, in all ways; and links and a FIFO in the folder."""
    outside, http = place.elsewhere / "outside", f"http://127.0.0.1:{port}/x"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET.ljust(MIB, b"\0"))
    os.mkfifo(outside / "fifo")
    await place.qemu_img("create", "-q", "-f", "qcow2", outside / "secret.qcow2", "1M")
    await place.qemu_img("create", "-q", "-f", "vmdk", outside / "parent.vmdk", "1M")
    secret = str(outside / "secret")
    file = {"driver": "file", "filename": secret}
    names = {
        "raw": secret,
        "fifo": str(outside / "fifo"),
        "file": f"file:{secret}",
        "dots": f"../../../../../../../../../..{secret}",
        "device": "/dev/full",
        "host-device": "host_device:/dev/full",
        "nbd": f"nbd://127.0.0.1:{port}/x",
        "nbd-old": f"nbd:127.0.0.1:{port}:exportname=x",
        "nbd-unix": f"nbd+unix:///x?socket={outside}/socket",
        "http": http,
        "ssh": f"ssh://127.0.0.1:{port}/x",
        "gluster": f"gluster://127.0.0.1:{port}/v/x",
        "iscsi": f"iscsi://127.0.0.1:{port}/iqn.x/0",
        "rbd": f"rbd:pool/image:mon_host=127.0.0.1\\:{port}",
        "blkdebug": f"blkdebug:{outside}/rules:{secret}",
        "fat": f"fat:{outside}",
        "json": json_name(file),
        "json-format": json_name({"driver": "raw", "file": file}),
        "json-dotted": json_name({"driver": "raw", "file.driver": "file", "file.filename": secret}),
        "json-offset": json_name({"driver": "raw", "offset": 512, "file": file}),
        "json-nbd": json_name({"driver": "nbd", "host": "127.0.0.1", "port": str(port)}),
        "json-through": json_name({"driver": "copy-on-read", "file": {"driver": "raw", "file": file}}),
        "json-backed": json_name({"driver": "qcow2", "file": place.node("inside.qcow2"), "backing": file}),
        "json-data": json_name({"driver": "qcow2", "file": place.node("inside.qcow2"), "data-file": file}),
    }
    await place.image("inside.qcow2", "1M")
    for name, backing in names.items():
        await place.overlay(f"b-{name}.qcow2", backing, "qcow2" if name in ("json-backed", "json-data") else "raw")
    await place.overlay("b-qcow2.qcow2", str(outside / "secret.qcow2"), "qcow2")
    await place.overlay("over-b-raw.qcow2", "b-raw.qcow2", "qcow2", "2M")
    await place.image("-u", "-b", secret, "-F", "raw", "b.qed", "1M", format="qed")
    await place.image("-u", "-b", secret, "-F", "raw", "b.qcow", "1M", format="qcow")
    await place.image("-o", f"data_file={outside}/data", "data.qcow2", "1M")
    await place.image("-o", f"data_file={outside}/rawdata,data_file_raw=on", "rawdata.qcow2", "1M")
    await place.qemu_img("create", "-q", "-f", "vmdk", "-b", outside / "parent.vmdk", "-F", "vmdk", "child.vmdk")
    await place.qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", outside / "flat.vmdk", "1M")
    text = (outside / "flat.vmdk").read_text().replace('"flat-flat.vmdk"', f'"{outside}/flat-flat.vmdk"')
    await asyncio.to_thread((place.folder / "flat.vmdk").write_text, text)
    for name, target in (("to-secret", secret), ("to-fifo", f"{outside}/fifo")):
        (place.folder / name).symlink_to(target)
    os.mkfifo(place.folder / "fifo")
    header = await place.bytes_of("data.qcow2")
    for name, image in (("made-raw", header), ("made-raw-2", await place.bytes_of("b-raw.qcow2"))):
        await place.pool.create_volume(VolumeDef(name, capacity=MIB))
        await asyncio.to_thread(_overwrite, place.folder / name, image)
    await asyncio.to_thread((place.elsewhere / "hostile").write_bytes, header)


def _overwrite(path: Path, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.write(data)


def outside_of(paths: Counter[str], allowed: list[str], *, library: bool) -> list[str]:
    """The paths that lie in none of these folders, nor are of Gluster's library."""
    found = []
    for path in paths:
        real = os.path.normpath(path.removesuffix("(deleted)").rstrip())
        inside = any(real == one or real.startswith(one.rstrip("/") + "/") for one in allowed)
        if not inside and not (library and _LIBGFAPI.fullmatch(real)):
            found.append(real)
    return found


def state_of(folder: Path) -> dict[str, Any]:
    """All that is below a folder."""
    found: dict[str, Any] = {}
    for one in folder.rglob("*"):
        st = one.lstat()
        content = one.read_bytes() if one.is_file() else b""
        found[str(one)] = (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, content)
    return found


@pytest.mark.parametrize("place", ALL, indirect=True)
@pytest.mark.timeout(600)
async def test_all_work(place: Place, tmp_path: Path, temporary: Path) -> None:
    """All work on hostile images opens, changes and connects to nothing outside, and leaves nothing behind."""
    trace, state = tmp_path / "trace", tmp_path / "worker-state"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        await hostile_images(place, listener.getsockname()[1])
        before = await asyncio.to_thread(state_of, tmp_path / "outside")
        await place.pool.refresh()
        environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        worker = await asyncio.create_subprocess_exec(
            *("strace", "-f", "--seccomp-bpf", "-qq", "-y", "-s", "8192", "-o", str(trace)),
            *("-e", "trace=%file,connect,execve,execveat", "-e", "signal=none"),
            *(sys.executable, str(PROGRAM), place.pool.to_xml(inactive=True), str(state), str(tmp_path / "hostile")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path / "outside",
            env=environment,
        )
        said, problems = await worker.communicate()
        assert worker.returncode == 0, problems.decode()
        with pytest.raises(BlockingIOError):
            listener.accept()
    watched = Watched(await asyncio.to_thread(trace.read_text, "latin-1"))
    lines = [line.split("\t") for line in said.decode().splitlines()]
    works = {work for work, *_ in lines}
    done = {work for work, became, *_ in lines if became == "done"}
    assert works - done == ALWAYS_REFUSED
    assert watched.opened, watched.run
    gluster = place.kind == "gluster"
    assert {Path(one).name for one in watched.run} <= PROGRAMS | ({"ldconfig"} if gluster else set())
    mine = [str(temporary), str(state), *([] if gluster else [os.path.realpath(place.where)])]
    sources = [str(Path(__file__).parents[2]), str(tmp_path / "hostile")]
    linked = [] if gluster else [str(tmp_path / "outside" / "secret")]
    allowed = [*mine, *sources, *linked, *SYSTEM, *DEVICES]
    assert outside_of(watched.opened, allowed, library=gluster) == []
    assert outside_of(watched.changed, [*mine, "/proc/self/fd"], library=gluster) == []
    assert [one for one in watched.connected if not allowed_address(one, place, temporary)] == []
    assert any(str(temporary) in one for one in watched.connected), "nothing was served to QEMU"
    assert await asyncio.to_thread(state_of, tmp_path / "outside") == before
    assert os.listdir(temporary) == []


def allowed_address(address: str, place: Place, temporary: Path) -> bool:
    """Whether it is a socket of astore's own, or of the pool's Gluster."""
    if address.startswith("sa_family=AF_UNIX"):
        path = next((text for _, text in _NAMED.findall(address)), "")
        system = ("/dev/log", "/var/run/nscd/socket") if place.kind == "gluster" else ()
        return path.startswith(f"{temporary}/") or path in system
    if place.kind == "gluster" and address.startswith("sa_family=AF_INET,"):
        return place.pool.definition.source.hosts[0].name in address
    return False
