"""What backing names mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images.qemu_images import where

from astore.images import ImageError

HERE = "/pool/images/a.qcow2"
GLUSTER = "gluster://host:24007/vol/dir/a%20b.qcow2"
UNIX = "gluster+unix:///vol/dir/a?socket=/run/s"


def node(**fields: object) -> str:
    return "json:" + json.dumps(fields)


PLAIN = [
    ("base.qcow2", HERE, "/pool/images/base.qcow2"),
    ("größe 1.qcow2", HERE, "/pool/images/größe 1.qcow2"),
    ("./x//base", HERE, "/pool/images/x/base"),
    ("../base.qcow2", HERE, "/pool/images/../base.qcow2"),
    ("x/../base", HERE, "/pool/images/x/../base"),
    ("/abs/base", HERE, "/abs/base"),
    ("/abs/base", GLUSTER, "/abs/base"),
    ("//abs/./base", HERE, "/abs/base"),
    ("dir/with:colon", HERE, "/pool/images/dir/with:colon"),
    ("./with:colon", HERE, "/pool/images/with:colon"),
    ("base", "/a", "/base"),
    ("", HERE, None),
    (".", HERE, None),
    ("/", HERE, None),
    ("base b+c.qcow2", GLUSTER, "gluster://host:24007/vol/dir/base%20b+c.qcow2"),
    ("100%?#.img", GLUSTER, "gluster://host:24007/vol/dir/100%25%3F%23.img"),
    ("../base", GLUSTER, "gluster://host:24007/vol/dir/../base"),
    ("base", UNIX, "gluster+unix:///vol/dir/base?socket=/run/s"),
]

PROTOCOLS = [
    ("nbd://host/export", HERE, "nbd://host/export"),
    ("rbd:pool/image", HERE, "rbd:pool/image"),
    # QEMU does not know such a protocol
    ("dir:with/colon", HERE, None),
    ("ubuntu:22.04.qcow2", HERE, None),
    ("host_device:/dev/sdb", HERE, "/dev/sdb"),
    ("gluster://h/v/p", GLUSTER, "gluster://h/v/p"),
    # QEMU looks it up in the directory that it was started in
    ("file:base", HERE, None),
    ("file:/abs", HERE, "/abs"),
    ("file:///abs/x", HERE, "/abs/x"),
    # QEMU knows no hosts here: it would open /host/x
    ("file://host/x", HERE, "/host/x"),
    ("file:", HERE, None),
]

FILES = [
    (node(driver="qcow2", file={"driver": "file", "filename": "/x"}), HERE, "/x"),
    (node(**{"driver": "qcow2", "file.driver": "file", "file.filename": "/x"}), HERE, "/x"),
    (node(**{"file": {"driver": "qcow2"}, "file.file.filename": "/x"}), HERE, "/x"),
    (node(**{"file.file.filename": "/x", "file": {"driver": "qcow2"}}), HERE, "/x"),
    (node(file={"file.driver": "file", "file.filename": "/x"}), HERE, "/x"),
    (node(driver="raw", offset=512, size=1024, file={"driver": "file", "filename": "/x"}), HERE, "/x"),
    (node(driver="host_device", filename="/dev/sdb"), HERE, "/dev/sdb"),
    (node(driver="file", filename="/with:colon/x"), HERE, "/with:colon/x"),
    (node(driver="file", filename="/a\x1bb"), HERE, "file:///a%1Bb"),
    (node(filename="/x"), HERE, "/x"),
    (node(filename="file:/x"), HERE, None),
    (node(filename="nbd://h/x"), HERE, None),
    # QEMU looks these up in the directory that it was started in
    (node(driver="file", filename="x"), HERE, None),
    (node(driver="file", filename="nbd://h/x"), HERE, None),
    (node(filename="x"), HERE, None),
    (node(filename="file:x"), HERE, None),
    # a file of this name, with the colons
    (node(file={"filename": "nbd://h/x"}), HERE, None),
    (node(filename="json:{}"), HERE, None),
    (node(driver="file"), HERE, None),
    (node(driver="qcow2", file="a-node"), HERE, None),
    (node(driver="null-co"), HERE, None),
    (node(driver=True), HERE, None),
    (node(), HERE, None),
]

INET = {"type": "inet", "host": "h", "port": "24007"}
NETWORK = [
    (node(driver="gluster", volume="v", path="p/a b", server=[INET]), "gluster://h:24007/v/p/a%20b"),
    (
        node(driver="gluster", volume="v", path="/p", server=[{"type": "unix", "path": "/run/s"}]),
        "gluster+unix:///v/p?socket=/run/s",
    ),
    (
        node(driver="gluster", volume="v", path="p", server=[{"type": "unix", "socket": "/run/s"}, INET]),
        "gluster+unix:///v/p?socket=/run/s",
    ),
    (
        node(**{"driver": "gluster", "volume": "v", "path": "p", "server.0.type": "tcp", "server.0.host": "fe80::1"}),
        "gluster://[fe80::1]/v/p",
    ),
    (node(driver="gluster", filename="gluster://h/v/p"), "gluster://h/v/p"),
    (node(driver="gluster", volume="v"), None),
    (node(driver="gluster", volume="v", path="p", server=[]), None),
    (node(driver="gluster", volume="v", path="p", server=7), None),
    (node(driver="gluster", volume="v", path="p", server=["h"]), None),
    (node(driver="gluster", volume="v", path="p", server=[{"type": "unix"}]), None),
    (node(driver="nbd", server={"type": "inet", "host": "h", "port": 10809}, export="e"), "nbd://h:10809/e"),
    (node(driver="nbd", server={"type": "unix", "path": "/s"}), "nbd+unix:///?socket=/s"),
    (node(driver="nbd", host="h", port="1"), "nbd://h:1/"),
    (node(driver="nbd", path="/s", export="e x"), "nbd+unix:///e%20x?socket=/s"),
    (node(driver="nbd"), None),
    (node(driver="rbd", pool="p", image="i", snapshot="s"), "rbd:p/i@s"),
    (node(driver="rbd", pool="p", namespace="n", image="a:b"), "rbd:p/n/a\\:b"),
    (node(driver="rbd", filename="rbd:p/i"), "rbd:p/i"),
    (node(driver="rbd", pool="p"), None),
    (node(driver="iscsi", transport="tcp", portal="h:3260", target="iqn.x:y", lun=2), "iscsi://h:3260/iqn.x:y/2"),
    (node(driver="iscsi", portal="h", target="iqn.x"), "iscsi://h/iqn.x/0"),
    (node(driver="iscsi"), None),
    (node(driver="http", url="http://h/x"), "http://h/x"),
    (node(driver="https", url="https://h/x?y", sslverify=False), "https://h/x?y"),
    (node(driver="ftp", filename="ftp://h/x"), "ftp://h/x"),
    (node(driver="ftps", url="ftps://h/x"), "ftps://h/x"),
    (node(driver="tftp", url="tftp://h/x"), "tftp://h/x"),
    (node(driver="http"), None),
    (node(driver="ssh", server={"host": "h", "port": 22}, path="/x y", user="u"), "ssh://u@h:22/x%20y"),
    (node(driver="ssh", host="h", path="x"), "ssh://h/x"),
    (node(driver="ssh", host="h"), None),
    (node(driver="ssh", path="/x"), None),
    (node(driver="sheepdog", vdi="v"), "sheepdog:v"),
    (node(driver="sheepdog", vdi="v", server={"type": "inet", "host": "h", "port": "7000"}), "sheepdog://h:7000/v"),
    (node(driver="sheepdog"), None),
    (node(driver="nfs", server={"type": "inet", "host": "h"}, path="/e/x"), "nfs://h/e/x"),
    (node(driver="nfs", path="/e/x"), None),
    (node(driver="nfs"), None),
    (node(driver="nvme", device="0000:01:00.0", namespace=1), "nvme://0000:01:00.0/1"),
    (node(driver="nvme"), None),
]


@pytest.mark.parametrize(("name", "path", "expected"), PLAIN)
def test_plain_names(name: str, path: str, expected: str | None) -> None:
    """Relative to the image's own folder; tidied up, but never beyond what the file system could contradict."""
    assert where(name, path) == expected


@pytest.mark.parametrize(("name", "path", "expected"), PROTOCOLS)
def test_protocols(name: str, path: str, expected: str | None) -> None:
    """A name with a colon before its first slash stays as it is, if QEMU knows the protocol and it is none of files."""
    assert where(name, path) == expected


@pytest.mark.parametrize(("name", "path", "expected"), FILES)
def test_json_of_files(name: str, path: str, expected: str | None) -> None:
    """QEMU's json:, nested and flat, down to the file; relative names in it are relative to what nobody knows."""
    assert where(name, path) == expected


@pytest.mark.parametrize(("name", "expected"), NETWORK)
def test_json_of_the_network(name: str, expected: str | None) -> None:
    """Every network driver is the URL that QEMU would take for it, or None if it says too little."""
    assert where(name, HERE) == expected


MEANINGLESS = [
    "json:",
    "json:x",
    "json:[]",
    "json:7",
    "json:" + "9" * 5000,
    "json:" + "[" * 100_000,
    "json:" + '{"a":' * 200 + "[" * 200,
    "json:" + '{"a":' * 100,
    'json:{"driver":"file","driver":"nbd"}',
    "json:{'driver':'file','filename':'/x",
    'json:{"driver":"file","filename":"/x"} {}',
    'json:{"driver":"file","filename":"/x","size":NaN}',
    node(**{"file." * 40 + "driver": "file"}),
    node(driver="file", filename="/a\0b"),
    node(driver="nfs", server={"host": "h"}, path="\ud800"),
    node(driver="https", url="http://h/x"),
    node(driver="tftp", url="/etc/passwd"),
]


@pytest.mark.parametrize("name", MEANINGLESS, ids=lambda name: repr(name[:20]))
def test_a_json_that_means_nothing(name: str) -> None:
    """A malformed json:, one that contradicts itself or one that is nested too deep leads nowhere, and raises nothing."""
    assert where(name[:65_536], HERE) is None


def test_nested_objects_too_deep() -> None:
    """Depth is bounded for nested objects as for dotted keys."""
    value: object = {"driver": "file", "filename": "/x"}
    for _ in range(30):
        value = {"file": value}
    assert where("json:" + json.dumps(value), HERE) == "/x"
    for _ in range(20):
        value = {"file": value}
    assert where("json:" + json.dumps(value), HERE) is None


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.sampled_from([HERE, GLUSTER, UNIX]))
def test_any_name(name: str, path: str) -> None:
    """Whatever the name is, a name that can be written down, None or ImageError comes out."""
    for start in ("", "/", "file:", "json:{", "gluster://"):
        try:
            found = where(start + name, path)
        except ImageError:
            continue
        assert found is None or found.encode()
