"""Names that come from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore import DefinitionError
from astore.names import (
    check_host,
    check_mount_option,
    check_path,
    check_pool_name,
    check_uuid,
    check_volume_name,
    normal_path,
)


@pytest.mark.parametrize("name", ["a", "a b", "größe", "x" * 250, ".hidden", "a-b", "a:b", "a%b", "..x"])
def test_good_names(name: str) -> None:
    """They are taken as they are."""
    assert check_pool_name(name) == check_volume_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/", "a\0b", "a\nb", "a\x7f", "-a", "--", "x" * 251, "\udcff", "ä" * 126]
)
def test_bad_pool_names(name: str) -> None:
    """They are refused in words that can be printed."""
    with pytest.raises(DefinitionError) as caught:
        check_pool_name(name)
    assert str(caught.value).isprintable()


GOOD_HOSTS = ["h", "host.example.org", "host.example.org.", "10.0.0.1", "a_b", "x-y", "fe80::1", "::1", "fe80::1%eth0"]
BAD_HOSTS = [
    "",
    "-oevil",
    "a b",
    "a/b",
    "a\n",
    "h;rm",
    "$(x)",
    "h`x`",
    "a" * 300,
    "fe80::zz",
    "::1%",
    "::1%a b",
    "[::1",
    "a-",
    "ä",
    "h\0",
]


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_good_hosts(host: str) -> None:
    """Names and addresses; brackets around an IPv6 address come off."""
    assert check_host(host) == host
    if ":" in host:
        assert check_host(f"[{host}]") == host


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_bad_hosts(host: str) -> None:
    """What a program might take for an option, or a shell for more, is refused."""
    with pytest.raises(DefinitionError):
        check_host(host)


@pytest.mark.parametrize("option", ["", "a,b", "a\nb", "-o", "a\0"])
def test_bad_mount_options(option: str) -> None:
    """One option each, and nothing that begins another."""
    with pytest.raises(DefinitionError):
        check_mount_option(option)


def test_good_mount_options() -> None:
    """With and without a value."""
    assert [check_mount_option(option) for option in ("ro", "vers=4.2")] == ["ro", "vers=4.2"]


PATHS = [
    ("/", "/"),
    ("//", "//"),
    ("///", "/"),
    ("/a//b/", "/a/b"),
    ("//a/", "//a"),
    ("///a", "/a"),
    ("x://a//b/", "x://a//b/"),
    ("a/", "a"),
]


@pytest.mark.parametrize(("path", "expected"), PATHS)
def test_paths_as_libvirt_writes_them(path: str, expected: str) -> None:
    """virFileSanitizePath's rules."""
    assert normal_path(path) == expected


@given(st.text("/ab.", max_size=12))
def test_normal_paths_stay(path: str) -> None:
    """What was made normal once does not change again."""
    assert normal_path(normal_path(path)) == normal_path(path)


@pytest.mark.parametrize("path", ["", "a", "/a/../b", "/..", "/a\nb", "/\0", "/" + "x" * 5000, "/\udcff"])
def test_bad_paths(path: str) -> None:
    """Relative ones, those that go up, and those with control characters."""
    with pytest.raises(DefinitionError):
        check_path(path)


def test_paths_that_need_not_be_absolute() -> None:
    """A Gluster mount's directory is written without a slash, too."""
    assert check_path("vol", absolute=False) == "vol"
    assert check_path("/a/..b/") == "/a/..b"


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("D50C93CB-9A11466F96D10F4FAFE977DF", True),
        (" d50c93cb9a11466f96d10f4fafe977df ", True),
        ("x", False),
        ("d50c93cb", False),
    ],
)
def test_uuids(text: str, good: bool) -> None:
    """Any case, with hyphens or without; written in one way."""
    if good:
        assert check_uuid(text) == "d50c93cb-9a11-466f-96d1-0f4fafe977df"
    else:
        with pytest.raises(DefinitionError):
            check_uuid(text)
