"""What is mounted where, by the kernel's text."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.model import PoolDef
from astore.mounts import mount_id, parse
from astore_netfs import Mount, find_mount, is_expected, mounts
from astore_netfs.mounting.mountinfo import locate
from beds import fuse, namespace

ROOT = Mount(1, 0, 254, 0, "/", "/", "rw", "ext4", "/dev/vda")

word = st.binary(min_size=1, max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"-")))
path = word.map(lambda text: "/" + text)
number = st.integers(0, 2**31)
mount = st.builds(Mount, number, number, number, number, path, path, word, word, word, word)


def written(mount: Mount, optional: bytes = b"") -> bytes:
    """A mountinfo line, escaped as the kernel escapes (fs/proc_namespace.c)."""

    def escaped(text: str) -> bytes:
        return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in os.fsencode(text))

    fields = [b"%d %d %d:%d" % mount[:4], escaped(mount.root), escaped(mount.target), escaped(mount.options)]
    return b" ".join(
        [*fields, *optional.split(), b"-", escaped(mount.fstype), escaped(mount.source), escaped(mount.fs_options)]
    )


@given(st.lists(mount), st.sampled_from([b"", b"shared:1", b"shared:7 master:2 unbindable"]))
def test_what_the_kernel_writes_is_read_back(table: list[Mount], optional: bytes) -> None:
    """Any names, however odd, and any number of optional fields survive."""
    text = b"\n".join(written(mount, optional) for mount in table) + b"\n"
    assert parse(text) == table


@given(st.binary())
def test_no_text_is_too_odd(text: bytes) -> None:
    """Parsing never raises, and finding never hangs, whatever the text."""
    find_mount("/a/b", parse(text))


@given(st.lists(mount, max_size=8), path)
def test_finding_ends_with_a_mount_of_that_path(table: list[Mount], target: str) -> None:
    """Ids that repeat or point in circles do no harm, and what is found is mounted at the path asked for."""
    found = find_mount(target, table)
    assert found is None or found in table


def test_escapes() -> None:
    """A real line with a blank, a tab, a newline and a backslash in its names, and with optional fields."""
    text = rb"36 1 0:45 / /mnt/a\040b\011c\012d\134e rw shared:1 master:2 - fuse.glusterfs h:/v\040w rw,user_id=0"
    (found,) = parse(text)
    assert found == Mount(36, 1, 0, 45, "/", "/mnt/a b\tc\nd\\e", "rw", "fuse.glusterfs", "h:/v w", "rw,user_id=0")


def test_topmost_of_several() -> None:
    """Of mounts on one path the one on top is found, in whatever order they are listed."""
    lower = Mount(2, 1, 0, 40, "/", "/mnt/x", "rw", "tmpfs", "lower")
    upper = Mount(3, 2, 0, 41, "/", "/mnt/x", "rw", "tmpfs", "upper")
    assert find_mount("/mnt/x", [ROOT, lower, upper]) == upper
    assert find_mount("/mnt/x", [upper, lower, ROOT]) == upper


def test_covered_mount_is_not_seen() -> None:
    """A mount that a later one further up hides is not what its path leads to."""
    hidden = Mount(2, 1, 0, 40, "/", "/mnt/x", "rw", "tmpfs", "hidden")
    cover = Mount(3, 1, 0, 41, "/", "/mnt", "rw", "tmpfs", "cover")
    assert find_mount("/mnt/x", [ROOT, hidden]) == hidden
    assert find_mount("/mnt/x", [ROOT, hidden, cover]) is None
    on_cover = Mount(4, 3, 0, 42, "/", "/mnt/x", "rw", "tmpfs", "seen")
    assert find_mount("/mnt/x", [ROOT, hidden, cover, on_cover]) == on_cover


def test_only_right_there() -> None:
    """A mount above or below a path is none at it."""
    mount = Mount(2, 1, 0, 40, "/", "/mnt/x", "rw", "tmpfs", "t")
    assert find_mount("/mnt/x/y", [ROOT, mount]) is None
    assert find_mount("/mnt", [ROOT, mount]) is None
    assert find_mount("/mnt/x", [mount]) == mount  # as in a chroot, whose root is no mount


@pytest.mark.root
def test_real_mounts(tmp_path: Path, stand_in: Callable[[str, Path], None]) -> None:
    """A folder with an awkward name is found where it is mounted, through a symbolic link as well."""
    folder = tmp_path / "a b\t\\c\nd #"
    stand_in("server:/dir with blank", folder)
    found = find_mount(str(folder))
    assert found is not None
    assert (found.fstype, found.source) == ("tmpfs", "server:/dir with blank")
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert locate(str(link)) == (str(folder), found)
    deep = tmp_path / "deep"
    deep.symlink_to(tmp_path)
    assert locate(str(deep / folder.name)) == (str(folder), found)
    fd = os.open(folder, os.O_RDONLY)
    try:
        assert mount_id(fd) == found.id
        assert mount_id(fd) in {mount.id for mount in mounts()}
    finally:
        os.close(fd)


@pytest.mark.root
def test_nothing_mounted(tmp_path: Path) -> None:
    """A folder on which nothing is mounted has no mount, and a path that does not exist neither."""
    assert find_mount(str(tmp_path)) is None
    assert locate(str(tmp_path)) == (str(tmp_path), None)
    assert locate(str(tmp_path / "no" / "such")) == (str(tmp_path / "no" / "such"), None)


@pytest.mark.root
def test_bind_of_a_part_shows_its_root(tmp_path: Path, stand_in: Callable[[str, Path], None]) -> None:
    """What is bound from inside another mount has that mount's source but not its root."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    stand_in("server:/dir", whole)
    (whole / "inner").mkdir()
    part.mkdir()
    namespace.bind(whole / "inner", part)
    try:
        found = find_mount(str(part))
        assert found is not None
        assert (found.source, found.root) == ("server:/dir", "/inner")
    finally:
        fuse.release(part)


def at(fstype: str, source: str, root: str = "/") -> Mount:
    return Mount(9, 1, 0, 45, root, "/mnt/pool", "rw", fstype, source)


@pytest.mark.parametrize(
    ("kind", "host", "directory", "mount"),
    [
        ("nfs", "server", "/export", at("nfs", "server:/export")),
        ("nfs", "server", "/export", at("nfs4", "server:/export")),
        ("nfs", "server", "/export", at("nfs4", "server:/export/")),
        ("nfs", "server", "/", at("nfs4", "server:/")),
        ("nfs", "fd00::1", "/export", at("nfs", "[fd00::1]:/export")),
        ("auto", "server", "/export", at("nfs4", "server:/export")),
        ("glusterfs", "server", "vol", at("fuse.glusterfs", "server:/vol")),
        ("glusterfs", "server", "/vol", at("fuse.glusterfs", "server:vol")),
        ("glusterfs", ("a", "b"), "vol", at("fuse.glusterfs", "b:/vol")),
        ("glusterfs", "fd00::1", "vol", at("fuse.glusterfs", "fd00::1:vol")),
        ("glusterfs", "server", "vol/sub", at("fuse.glusterfs", "server:vol/sub")),
        ("cifs", "server", "share", at("cifs", "//server/share")),
        ("cifs", "server", "share", at("smb3", "//server/share")),
        ("cifs", "server", "share/sub", at("cifs", "//server/share/sub", "/sub")),
    ],
)
def test_expected(
    netfs_definition: Callable[..., PoolDef], kind: str, host: str | tuple[str, ...], directory: str, mount: Mount
) -> None:
    """The pool's own mount is known, however the helpers spell its source."""
    assert is_expected(mount, netfs_definition(kind, host, directory))


@pytest.mark.parametrize(
    ("kind", "directory", "mount"),
    [
        ("nfs", "/export", at("nfs", "server:/export2")),
        ("nfs", "/export", at("nfs", "server:/")),
        ("nfs", "/export", at("nfs", "other:/export")),
        ("nfs", "/export", at("tmpfs", "server:/export")),
        ("nfs", "/export", at("fuse.glusterfs", "server:/export")),
        ("nfs", "/export", at("fuse.sshfs", "server:/export")),
        ("nfs", "/", at("nfs", "server:/export")),
        ("auto", "/export", at("fuse.sshfs", "server:/export")),
        ("glusterfs", "vol", at("fuse.glusterfs", "server:/vol/sub")),
        ("glusterfs", "vol", at("fuse.glusterfs", "server:/vol", "/sub")),
        ("glusterfs", "vol", at("fuse", "server:/vol")),
        ("cifs", "share", at("cifs", "//server/share", "/other")),
        ("cifs", "share", at("cifs", "server:share")),
        ("cifs", "share/a/b", at("cifs", "//server/share/a/b", "/b")),
    ],
)
def test_not_expected(netfs_definition: Callable[..., PoolDef], kind: str, directory: str, mount: Mount) -> None:
    """Another directory, host, file system or part of it is not the pool's mount."""
    assert not is_expected(mount, netfs_definition(kind, "server", directory))


@pytest.mark.root
def test_links_are_followed_up_to_a_mount(tmp_path: Path, stand_in: Callable[[str, Path], None]) -> None:
    """Relative links, links to links and ``..`` lead to the mount; what is a mount is not looked at any more."""
    folder = tmp_path / "a" / "pool"
    folder.parent.mkdir()
    stand_in("server:/dir", folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "up").symlink_to("../a/./pool")
    (tmp_path / "again").symlink_to("b//up")
    found = find_mount(str(folder))
    assert found is not None
    assert locate(str(tmp_path / "again")) == (str(folder), found)
    assert locate(str(tmp_path / "again" / "below")) == (str(folder / "below"), None)


def test_link_that_leads_to_itself(tmp_path: Path) -> None:
    """Following links ends, and finds nothing."""
    (tmp_path / "loop").symlink_to("loop")
    assert locate(str(tmp_path / "loop")) == (str(tmp_path / "loop"), None)
