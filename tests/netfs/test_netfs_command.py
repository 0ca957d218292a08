"""The mount command: libvirt's arguments, and what never becomes an argument."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.errors import DefinitionError
from astore.model import Host, PoolDef, Source, Target
from astore_netfs import NetfsBackend, mount_argv, umount_argv

ALWAYS = "nodev,nosuid,noexec"
Make = Callable[..., PoolDef]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nfs", ["mount", "-o", ALWAYS, "-t", "nfs", "server:/export", "/mnt/pool"]),
        ("auto", ["mount", "-o", ALWAYS, "server:/export", "/mnt/pool"]),
        (None, ["mount", "-o", ALWAYS, "server:/export", "/mnt/pool"]),
        (
            "glusterfs",
            ["mount", "-o", f"{ALWAYS},direct-io-mode=1", "-t", "glusterfs", "server:/export", "/mnt/pool"],
        ),
    ],
)
def test_arguments_are_libvirts(netfs_definition: Make, kind: str | None, expected: list[str]) -> None:
    """Each format's command is the one that libvirt runs."""
    assert mount_argv(netfs_definition(kind)) == expected


def test_cifs_arguments(netfs_definition: Make) -> None:
    """CIFS is mounted as a guest, from a UNC name."""
    definition = netfs_definition("cifs", directory="share")
    assert mount_argv(definition) == ["mount", "-o", f"{ALWAYS},guest", "-t", "cifs", "//server/share", "/mnt/pool"]


def test_slash_before_a_share(netfs_definition: Make) -> None:
    """mount.cifs takes ``//server//share`` for a share without a name: a slash before it is left out."""
    assert mount_argv(netfs_definition("cifs", directory="/share/sub"))[-2] == "//server/share/sub"


@pytest.mark.parametrize("kind", ["nfs", "auto"])
def test_version_goes_before_options(netfs_definition: Make, kind: str) -> None:
    """The protocol version becomes nfsvers, and the definition's options follow in their order."""
    definition = netfs_definition(kind, version="4.2", options=("sync", "lookupcache=none"))
    assert mount_argv(definition)[2] == f"{ALWAYS},nfsvers=4.2,sync,lookupcache=none"


def test_options_follow_the_formats_own(netfs_definition: Make) -> None:
    """direct-io-mode and guest come before what the definition asks for."""
    assert mount_argv(netfs_definition("glusterfs", options=("acl",)))[2] == f"{ALWAYS},direct-io-mode=1,acl"
    assert mount_argv(netfs_definition("cifs", options=("ro",)))[2] == f"{ALWAYS},guest,ro"


@pytest.mark.parametrize("kind", ["nfs", "auto"])
@pytest.mark.parametrize("host", ["2001:db8::7", "[2001:db8::7]"])
def test_ipv6_is_bracketed_for_nfs(netfs_definition: Make, kind: str, host: str) -> None:
    """An IPv6 host is bracketed where a colon would divide it, as it should have been all along."""
    assert mount_argv(netfs_definition(kind, host))[-2] == "[2001:db8::7]:/export"


def test_ipv6_is_bare_where_the_helper_wants_it_so(netfs_definition: Make) -> None:
    """mount.glusterfs and mount.cifs take no brackets."""
    assert mount_argv(netfs_definition("glusterfs", "[2001:db8::7]"))[-2] == "2001:db8::7:/export"
    assert mount_argv(netfs_definition("cifs", "2001:db8::7", "share"))[-2] == "//2001:db8::7/share"


def test_more_hosts_back_glusterfs_up(netfs_definition: Make) -> None:
    """All hosts of a glusterfs source serve; an IPv6 one is bracketed in the colon-separated list."""
    definition = netfs_definition("glusterfs", ("a", "b", "fd00::1"), options=("acl",))
    options = f"{ALWAYS},direct-io-mode=1,acl,backup-volfile-servers=b:[fd00::1]"
    assert mount_argv(definition) == ["mount", "-o", options, "-t", "glusterfs", "a:/export", "/mnt/pool"]


@pytest.mark.parametrize("kind", ["nfs", "auto", "cifs"])
def test_one_host_only(netfs_definition: Make, kind: str) -> None:
    """A format that cannot use a second host refuses it."""
    with pytest.raises(DefinitionError, match="exactly one host"):
        mount_argv(netfs_definition(kind, ("a", "b")))


def test_umount_is_plain(netfs_definition: Make) -> None:
    """Stopping is umount without any flag that would take a mount from its users."""
    assert umount_argv(netfs_definition()) == ["umount", "/mnt/pool"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "-oevil"},
        {"host": "--bind"},
        {"host": "a b"},
        {"host": "a\nb"},
        {"host": "a,b"},
        {"host": ""},
        {"host": ()},
        {"host": "server:/other"},
        {"host": "LABEL=root"},
        {"directory": None},
        {"directory": ""},
        {"directory": "/a\nb"},
        {"directory": "/a\0b"},
        {"target": None},
        {"target": "relative"},
        {"target": "-tmpfs"},
        {"target": "/mnt/../etc"},
        {"target": "/mnt/a\nb"},
        {"options": ("ro,suid",)},
        {"options": ("ro\nsuid",)},
        {"options": ("",)},
        {"options": ("-t",)},
        {"options": ("bind",)},
        {"options": ("remount",)},
        {"options": ("move=x",)},
        {"kind": "cifs", "directory": "share\\..\\other"},
        {"version": "4,suid"},
        {"version": "4\n"},
        {"version": ""},
        {"kind": "ocfs2"},
        {"kind": "glusterfs", "version": "3"},
        {"kind": "cifs", "version": "3"},
        {"kind": "glusterfs", "target": "/mnt/a --log-file=/etc/passwd"},
        {"kind": "glusterfs", "directory": "vol --volfile=/tmp/evil"},
        {"kind": "glusterfs", "directory": "vol:other"},
        {"kind": "glusterfs", "options": ("log-level=DEBUG --dump-fuse=/etc/passwd",)},
        {"kind": "glusterfs", "options": ("log-file=/*",)},
        {"kind": "glusterfs", "host": ("a", "b:c=d")},
    ],
    ids=repr,
)
def test_hostile_input_is_refused(netfs_definition: Make, wrong: dict[str, object]) -> None:
    """What could become an option, a second argument or another path is refused by check and by mount_argv."""
    definition = netfs_definition(**wrong)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError):
        mount_argv(definition)
    with pytest.raises(DefinitionError):
        NetfsBackend().check(definition)


@given(
    kind=st.sampled_from(["auto", "nfs", "glusterfs", "cifs"]),
    host=st.text(max_size=12),
    directory=st.text(min_size=1, max_size=12),
    target=st.text(max_size=12).map(lambda text: "/" + text),
    option=st.text(max_size=12),
)
def test_no_input_adds_an_argument(kind: str, host: str, directory: str, target: str, option: str) -> None:
    """Whatever strangers write, the command has its own options, one source and one target, or there is no command."""
    definition = PoolDef(
        type="netfs",
        name="pool",
        source=Source(hosts=(Host(host),), directory=directory, format=kind),
        target=Target(path=target),
        mount_options=(option,),
    )
    try:
        argv = mount_argv(definition)
    except DefinitionError:
        return
    assert argv[:2] == ["mount", "-o"]
    assert argv[3:-2] == ([] if kind == "auto" else ["-t", kind])
    assert not argv[-2].startswith("-")
    assert argv[-1].startswith("/")
    assert argv[2].startswith(ALWAYS)
    assert not any(ord(character) < 32 for word in argv for character in word)


def test_check_fills_in_the_format(netfs_definition: Make) -> None:
    """A source without a format is of the format auto, and paths are written as libvirt writes them."""
    checked = NetfsBackend().check(netfs_definition(None, target="/mnt//pool/"))
    assert (checked.source.format, checked.target.path) == ("auto", "/mnt/pool")


def test_source_key_is_directory_and_host(netfs_definition: Make) -> None:
    """Two definitions of one directory of one host are the same storage, whatever their targets and options."""
    key = NetfsBackend().source_key
    mine = key(netfs_definition())
    assert mine == key(netfs_definition("auto", target="/elsewhere", options=("ro",)))
    assert mine != key(netfs_definition(directory="/other"))
    assert mine != key(netfs_definition(host="other"))
    assert key(netfs_definition("glusterfs", ("a", "b"))) == key(netfs_definition("glusterfs", ("b", "a")))
