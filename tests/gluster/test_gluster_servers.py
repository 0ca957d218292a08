"""Hosts: which are accepted, which answer, and what URLs come of them. No Gluster is needed."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaks import descriptors, new_descriptors

from astore.errors import DefinitionError
from astore.model import Host
from astore_gluster.servers import (
    DEFAULT_PORT,
    Server,
    ask,
    check_server,
    is_volume_name,
    quote_path,
    servers_of,
    url_parts,
)


def test_servers_of_hosts() -> None:
    """Ports get their default, a path is a socket, and what is named twice is asked once, in the order given."""
    hosts = [Host("b"), Host("a", 24010), Host("b", 24007), Host("/run/d.socket"), Host("fe80::1")]
    assert servers_of(hosts) == (
        Server("tcp", "b", DEFAULT_PORT),
        Server("tcp", "a", 24010),
        Server("unix", "/run/d.socket", 0),
        Server("tcp", "fe80::1", DEFAULT_PORT),
    )
    assert servers_of([]) == ()


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (Server("tcp", "h", 24007), "h"),
        (Server("tcp", "h", 1), "h:1"),
        (Server("tcp", "::1", 24007), "::1"),
        (Server("tcp", "::1", 1), "[::1]:1"),
        (Server("unix", "/run/d.socket", 0), "/run/d.socket"),
    ],
)
def test_a_server_in_words(server: Server, said: str) -> None:
    """As people write it: brackets only where they are needed, the port only where it is another."""
    assert str(server) == said


@pytest.mark.parametrize(
    ("host", "directory", "before", "after"),
    [
        (Host("h"), "/", "gluster://h/vol/", ""),
        (Host("h"), "/a/b", "gluster://h/vol/a/b/", ""),
        (Host("h", 24007), "/a/", "gluster://h:24007/vol/a/", ""),
        (Host("h", 1), "/", "gluster://h:1/vol/", ""),
        (Host("2001:db8::1"), "/", "gluster://[2001:db8::1]/vol/", ""),
        (Host("2001:db8::1", 99), "/d", "gluster://[2001:db8::1]:99/vol/d/", ""),
        (Host("h"), "/a b/%/ü#?", "gluster://h/vol/a%20b/%25/%C3%BC%23%3F/", ""),
        (Host("/run/d.socket"), "/d", "gluster+unix:///vol/d/", "?socket=/run/d.socket"),
        (Host("/run/a b?.socket"), "/", "gluster+unix:///vol/", "?socket=/run/a%20b%3F.socket"),
    ],
)
def test_urls(host: Host, directory: str, before: str, after: str) -> None:
    """libvirt's form; no port where none was given, IPv6 in brackets, over a socket QEMU's form."""
    assert url_parts(host, "vol", directory) == (before, after)


def test_what_is_escaped() -> None:
    """What xmlSaveUri leaves alone stays, everything else is a percent escape of its bytes."""
    plain = "aZ09/;@&=+$,-_.!~*'()"
    assert quote_path(plain) == plain
    assert quote_path(' "%#?:<>[]\\^`{|}\x7f') == "%20%22%25%23%3F%3A%3C%3E%5B%5D%5C%5E%60%7B%7C%7D%7F"
    assert quote_path(os.fsdecode(b"caf\xe9")) == "caf%E9"
    assert quote_path("é") == "%C3%A9"


@given(st.binary(min_size=1, max_size=60), st.binary(min_size=1, max_size=60))
def test_different_names_have_different_urls(one: bytes, two: bytes) -> None:
    """Escaping loses nothing, whatever bytes a name is made of."""
    quoted = [quote_path(os.fsdecode(name)) for name in (one, two)]
    assert (quoted[0] == quoted[1]) == (one == two)
    assert all(text.isascii() and text.isprintable() and " " not in text for text in quoted)


@pytest.mark.parametrize(
    "name", ["h", "a.b-c_d", "10.0.0.1", "::1", "fe80::1%eth0", "xn--bcher-kva.example", "/run/glusterd.socket", "9"]
)
def test_good_hosts(name: str) -> None:
    """Names, addresses, and paths of sockets."""
    check_server(Host(name))


BAD_HOSTS = [
    Host(""),
    Host("-oevil"),
    Host("--remote-host"),
    Host(".hidden"),
    Host("a b"),
    Host("a\n"),
    Host("a\0b"),
    Host("a,b"),
    Host("a/b"),
    Host("a;b"),
    Host("user@host"),
    Host("[::1]"),
    Host("bücher.example"),
    Host("h", 0),
    Host("h", -1),
    Host("h", 65536),
    Host("/run/../etc/socket"),
    Host("/run/a\nb"),
    Host("/run/\ud800"),
    Host("/" + "x" * 107),
    Host("/run/socket", 24007),
]


@pytest.mark.parametrize("host", BAD_HOSTS, ids=repr)
def test_bad_hosts(host: Host) -> None:
    """What could be an option, several hosts, a URL's other parts, or no port, is refused by naming the element."""
    with pytest.raises(DefinitionError) as caught:
        check_server(host)
    assert caught.value.element == "host"
    assert str(caught.value).isprintable()


@given(st.text(max_size=20))
def test_hosts_are_accepted_or_refused(name: str) -> None:
    """Whatever stands in the XML, there is an answer; and what is accepted is no option and one word."""
    try:
        check_server(Host(name))
    except DefinitionError:
        return
    assert not name.startswith("-")
    assert name.isprintable()
    assert name.startswith("/") or not set(name) & set(" /,@[]?#")


def test_names_of_volumes() -> None:
    """Letters of any kind, but no slash, no option, nothing that does not print, and 254 bytes."""
    assert all(map(is_volume_name, ("v", "a-b_c", "ü" * 127, "x" * 254, "a b")))
    assert not any(map(is_volume_name, ("", "-v", "a/b", "a\n", "a\0", "\ud800", "x" * 255, "ü" * 128)))


# --------------------------------------------------------------------------------------------------- who answers


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[Server]:
    """Somebody who takes connections, and says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen()
        yield Server("tcp", host, listener.getsockname()[1])


@contextlib.contextmanager
def refusing() -> Iterator[Server]:
    """A port that is bound, and at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield Server("tcp", "127.0.0.1", bound.getsockname()[1])


@contextlib.contextmanager
def swallowing() -> Iterator[Server]:
    """A port that neither takes nor refuses connections: its backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield Server("tcp", "127.0.0.1", listener.getsockname()[1])


def test_who_answers_comes_first() -> None:
    """Then who has not answered yet, and last who refused; nobody is waited for once somebody has answered."""
    with listening() as up, refusing() as down, swallowing() as silent:
        answers = ask([down, silent, up], 600)
        assert answers[0] == up
        assert set(answers) == {up, down, silent}
        assert ask([up, down], 600)[0] == up


def test_nobody_answers() -> None:
    """Each server's reason is told, in the order they were given; silence takes the timeout and no longer."""
    with refusing() as down, swallowing() as silent:
        unknown = Server("tcp", "no-such-host.invalid", 24007)
        missing = Server("unix", "/nonexistent/socket", 0)
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError) as caught:
            ask([down, silent, unknown, missing], 2.5)  # the others have to be known by then
        assert time.monotonic() - began > 2.4
        refused, slow, nowhere, absent = caught.value.strerror.split("; ")
        assert f"{down}: {os.strerror(errno.ECONNREFUSED)}" in refused
        assert slow == f"{silent}: no answer within 2.5 s"
        assert f"{unknown}: unknown host" in nowhere
        assert f"{missing}: {os.strerror(errno.ENOENT)}" in absent
        with pytest.raises(ConnectionRefusedError):
            ask([down, unknown], 600)  # all have failed: there is nothing to wait for


def test_nobody_to_ask() -> None:
    """No servers, no answers."""
    with pytest.raises(OSError) as caught:
        ask([], 1)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("host", ["x" * 70 + ".example", "a..b", "\ud800"])
def test_hosts_that_are_no_names(host: str) -> None:
    """A name that cannot even be asked for is an unknown host."""
    with pytest.raises(OSError, match="unknown host") as caught:
        ask([Server("tcp", host, 1)], 5)
    assert caught.value.errno == errno.ENOTCONN


def test_unix_and_ipv6(tmp_path: Path) -> None:
    """A socket in the file system and one on IPv6 answer like any other."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        server = Server("unix", str(path), 0)
        assert ask([server], 5) == (server,)
    if socket.has_ipv6:
        with contextlib.suppress(OSError), listening("::1") as up:
            assert ask([up], 5) == (up,)


def test_a_host_of_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses of a host are tried; those of families that this machine lacks are passed over."""
    with listening() as up, refusing() as down:
        found = [
            (12345, socket.SOCK_STREAM, 6, "", ("x", 1)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (down.host, down.port)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (up.host, up.port)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        server = Server("tcp", "several", 1)
        assert ask([server], 10) == (server,)
        del found[1:]
        with pytest.raises(OSError) as caught:
            ask([server], 10)
        assert caught.value.errno == errno.EAFNOSUPPORT
        found[:] = [(socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/nonexistent/socket")]
        with pytest.raises(FileNotFoundError):
            ask([server], 10)


def test_asking_leaves_nothing() -> None:
    """No descriptor is left, whatever came of it; many threads may ask at once."""
    with listening() as up, refusing() as down, swallowing() as silent:
        ask([up, down, silent], 5)
        before = descriptors()
        threads = [threading.Thread(target=ask, args=([down, silent, up], 5)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with contextlib.suppress(OSError):
            ask([silent, down], 0.1)
        assert not new_descriptors(before)
