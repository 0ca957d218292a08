"""Secrets in a state folder: what is kept, what is refused, and several processes at once."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from astore import DefinitionError, LibvirtCode, SecretDef, SecretName, SecretNotFoundError, StoreError
from astore.model import SecretValue
from astore.secrets import LARGEST_VALUE, SecretFiles, value_from_base64, value_from_text
from astore.xml import secret_to_xml

VALUE = b"s3cr\0t \xff Pass\nword"
UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
OTHER = "1b81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
XML = f"<secret><uuid>{UUID}</uuid><usage type='ceph'><name>client.admin</name></usage></secret>"


@pytest.fixture
def files(tmp_path: Path) -> SecretFiles:
    """The secrets of a new state folder."""
    return SecretFiles(tmp_path / "state")


def shown_to_all(files: SecretFiles) -> str:
    """All that is ever shown of the secrets."""
    known, damaged = files.all()
    documents = [secret_to_xml(one.definition) for one in known]
    return f"{known}{damaged}{documents}{msgspec.json.encode(known)!r}{vars(files)}"


def test_defined_and_set(files: SecretFiles) -> None:
    """A definition has no value until one is set; it is found by its uuid in any notation and by its usage."""
    definition = files.define(XML)
    by_uuid, by_usage = SecretName("ceph", UUID), SecretName("ceph", usage="client.admin")
    assert files.value(by_uuid) is None and files.value(by_usage) is None
    files.set_value(UUID.upper(), VALUE)
    for name in (by_uuid, by_usage):
        found = files.value(name)
        assert found == VALUE and isinstance(found, SecretValue)
        assert repr(found) == str(found) == f"{found}" == "SecretValue(***)"
    assert files.value(SecretName("iscsi", usage="client.admin")) is None
    assert files.value(SecretName("ceph", OTHER)) is None
    assert files.definition(UUID) == files.by_usage("ceph", "client.admin") == definition
    assert "s3cr" not in shown_to_all(files)
    files.undefine(UUID)
    assert files.value(by_uuid) is None
    assert files.all() == ((), ())


def test_nothing_yet(files: SecretFiles) -> None:
    """Reading creates no folder; what is missing is named, with the next command."""
    assert files.value(SecretName("ceph", UUID)) is None and files.value(SecretName("ceph", usage="x")) is None
    assert files.all() == ((), ())
    for call in (files.definition, files.undefine, lambda uuid: files.set_value(uuid, VALUE)):
        with pytest.raises(SecretNotFoundError, match=f"no secret {UUID}: `astore secret list`") as caught:
            call(UUID)
        assert caught.value.libvirt_code is LibvirtCode.NO_SECRET
    with pytest.raises(SecretNotFoundError, match="no secret of usage iscsi 'x'"):
        files.by_usage("iscsi", "x")
    with pytest.raises(DefinitionError, match="is no UUID"):
        files.definition("../lock")


def test_redefined(files: SecretFiles) -> None:
    """The value stays; a uuid keeps its usage, and a usage its uuid, as in libvirt."""
    files.define(XML)
    files.set_value(UUID, VALUE)
    described = XML.replace("<usage", "<description>new</description><usage")
    assert files.define(described).description == "new"
    assert files.value(SecretName("ceph", UUID)) == VALUE
    for other in (
        XML.replace(UUID, OTHER),
        XML.replace("client.admin", "other"),
        XML.replace(f"<uuid>{UUID}</uuid>", ""),
    ):
        with pytest.raises(DefinitionError, match=f"{UUID} is defined already for usage ceph 'client.admin'") as caught:
            files.define(other)
        assert caught.value.libvirt_code is LibvirtCode.INTERNAL_ERROR
    none = files.define("<secret/>")
    assert none.uuid is not None and files.define(SecretDef()).uuid != none.uuid


def test_another_usage(files: SecretFiles) -> None:
    """A uuid whose secret is for something else is refused, unless it is for nothing in particular."""
    files.define(XML)
    files.set_value(UUID, VALUE)
    with pytest.raises(SecretNotFoundError, match=f"{UUID} is of usage ceph, not iscsi") as caught:
        files.value(SecretName("iscsi", UUID))
    assert caught.value.libvirt_code is LibvirtCode.INVALID_SECRET
    files.define(f"<secret><uuid>{OTHER}</uuid></secret>")
    files.set_value(OTHER, VALUE)
    assert files.value(SecretName("iscsi", OTHER)) == VALUE


def test_set_by_usage(files: SecretFiles) -> None:
    """The first time defines it, later ones replace the value."""
    first = files.set("cifs", "files", b"one")
    assert files.set("cifs", "files", b"two") == first
    assert files.value(SecretName("cifs", usage="files")) == files.value(SecretName("cifs", first.uuid)) == b"two"
    assert len(files.all()[0]) == 1 and first.private


@pytest.mark.parametrize(
    "usage",
    [
        "../../escaped",
        "/etc/passwd",
        "..",
        "-rf",
        "a/b",
        "iqn.2013-07.com.example:x y",
        "x" * 5000,
        "quote'\"&<>",
        "ä漢",
    ],
)
def test_hostile_names(files: SecretFiles, usage: str, tmp_path: Path) -> None:
    """A name of a use is no part of a path."""
    files.set("iscsi", usage, VALUE)
    assert files.value(SecretName("iscsi", usage=usage)) == VALUE
    (kept,) = files.folder.iterdir()
    assert kept.name == f"{files.by_usage('iscsi', usage).uuid}.json"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("usage", ["", "a\0b", "a\x1bb", "a\udc80"])
def test_names_that_are_refused(files: SecretFiles, usage: str) -> None:
    """XML cannot hold them."""
    with pytest.raises(DefinitionError):
        files.set("iscsi", usage, VALUE)
    with pytest.raises(DefinitionError, match="is none of"):
        files.set("nonsense", "x", VALUE)
    with pytest.raises(DefinitionError, match="set by its uuid"):
        files.set("none", "x", VALUE)
    assert not files.folder.exists()


def test_ephemeral(files: SecretFiles) -> None:
    """No process of astore's stays, so such a secret cannot be kept."""
    with pytest.raises(DefinitionError, match="ephemeral"):
        files.define("<secret ephemeral='yes'/>")


def test_values() -> None:
    """What a text means, and errors that do not show it."""
    assert value_from_text(b"pass word\r\n", "iscsi") == b"pass word"
    assert value_from_text(b"two\n\n", "cifs") == b"two\n"
    assert value_from_text(b"czNjcmV0\n", "ceph") == value_from_base64(b" czNj\ncmV0 ") == b"s3cret"
    for text, type_, match in (
        (b"s3cret!", "ceph", "no base64"),
        (b"s3cre", "ceph", "no base64"),
        (b"\n", "iscsi", "empty"),
        (b"", "ceph", "empty"),
        (b"s3cret" * LARGEST_VALUE, "iscsi", "longer than 65536 bytes"),
    ):
        with pytest.raises(DefinitionError, match=match) as caught:
            value_from_text(text, type_)
        assert "s3c" not in str(caught.value) and "s3c" not in repr(caught.value.__context__)


def test_modes(files: SecretFiles) -> None:
    """Whatever the umask is."""
    before = os.umask(0)
    try:
        files.set("ceph", "x", VALUE)
    finally:
        os.umask(before)
    (file,) = files.folder.iterdir()
    for path, mode in ((files.folder.parent, 0o700), (files.folder, 0o700), (file, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def _link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _replace(text: bytes) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.write_bytes(text)

    return act


SPOILED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "world-readable": ("file", lambda path: path.chmod(0o604), "not hidden from other users .*0604.*chmod go="),
    "group-readable": ("file", lambda path: path.chmod(0o640), "not hidden from other users"),
    "writable": ("file", lambda path: path.chmod(0o622), "may be written by other users"),
    "link": ("file", _link, "is a link"),
    "pipe": ("file", _fifo, "is no file"),
    "damaged": ("file", _replace(b'{"value": "s3cret", "definition": 1}'), "is damaged"),
    "no text": ("file", _replace(b"s3cret\xff\0"), "is damaged"),
    "another's": ("file", lambda path: path.write_text(path.read_text().replace(UUID, OTHER)), "is damaged"),
    "too large": ("file", _replace(b" " * (3 << 20)), "more than"),
    "open folder": ("folder", lambda path: path.chmod(0o755), "not hidden from other users"),
    "linked folder": ("folder", _link, "is a link or no folder"),
    "foreign state": ("state", lambda path: path.chmod(0o777), "may be written by other users"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_refused(files: SecretFiles, case: str) -> None:
    """In words that name the file and not its content, however the secret is asked for; nothing is changed."""
    files.define(XML)
    files.set_value(UUID, VALUE)
    where, spoil, match = SPOILED[case]
    spoil({"file": files.folder / f"{UUID}.json", "folder": files.folder, "state": files.folder.parent}[where])
    for call in (
        lambda: files.value(SecretName("ceph", UUID)),
        lambda: files.value(SecretName("ceph", usage="client.admin")),
        lambda: files.set_value(UUID, b"new"),
        lambda: files.set("ceph", "client.admin", b"new"),
        lambda: files.define(XML),
    ):
        with pytest.raises(StoreError, match=match) as caught:
            call()
        assert "s3c" not in f"{caught.value!r}{caught.value.__context__!r}"
    if where == "file":  # the others can be used
        assert not files.all()[0] and len(files.all()[1]) == 1
        files.set_value(files.define(f"<secret><uuid>{OTHER}</uuid></secret>").uuid or "", VALUE)
        assert files.value(SecretName("ceph", OTHER)) == VALUE


@pytest.mark.root
@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_foreign_users(files: SecretFiles, where: str) -> None:
    """Whoever owns a file can change it."""
    files.define(XML)
    files.set_value(UUID, VALUE)
    os.chown(files.folder / f"{UUID}.json" if where == "file" else files.folder, 4711, -1)
    with pytest.raises(StoreError, match="belongs to user 4711"):
        files.value(SecretName("ceph", UUID))


SETTER = """
import sys
from astore.secrets import SecretFiles
files = SecretFiles(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    files.set("ceph", "shared", sys.argv[2].encode() * 1000)
    files.set("ceph", f"own {sys.argv[2]}", sys.argv[2].encode())
"""


def setter(files: SecretFiles, letter: str, times: int) -> subprocess.Popen[str]:
    """Another process, which is ready to set secrets of that letter."""
    argv = [sys.executable, "-W", "error", "-c", SETTER, str(files.folder.parent), letter, str(times)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_processes_at_once(files: SecretFiles) -> None:
    """They define one secret of a usage, and readers see one whole value, whoever writes."""
    processes = [setter(files, letter, 15) for letter in "abc"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    seen = set()
    while any(process.poll() is None for process in processes):
        value = files.value(SecretName("ceph", usage="shared"))
        if value is not None:
            assert len(value) == 1000 and len(set(value)) == 1
            seen.add(value[:1])
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert seen <= {b"a", b"b", b"c"}
    known, damaged = files.all()
    assert [one.definition.usage for one in known] == ["own a", "own b", "own c", "shared"]
    assert damaged == () and len(list(files.folder.iterdir())) == 4


def test_killed_while_it_writes(files: SecretFiles) -> None:
    """The old value or the new one is there; the leftovers are no secrets, and go in time."""
    files.set("ceph", "shared", b"a" * 1000)
    for _ in range(3):
        process = setter(files, "b", 1_000_000)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        deadline = time.monotonic() + 200
        while files.value(SecretName("ceph", usage="own b")) is None:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.communicate()
        value = files.value(SecretName("ceph", usage="shared"))
        assert value in (b"a" * 1000, b"b" * 1000)
        files.undefine(files.by_usage("ceph", "own b").uuid or "")
    left = files.folder / ".0123456789abcdef.tmp"
    left.touch(mode=0o600)
    os.utime(left, (0, 0))
    known, damaged = files.all()
    assert [one.definition.usage for one in known] == ["shared"] and damaged == ()
    assert not left.exists()
