"""What backing names mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.images import ImageError
from astore.images.backing import GlusterLocation, parse_gluster_uri, resolve_backing

HERE = "/pool/images/a.qcow2"
GLUSTER = "gluster://host:24007/vol/dir/a%20b.qcow2"


def node(**fields: object) -> str:
    return "json:" + json.dumps(fields)


RESOLVED = [
    ("base.qcow2", HERE, "/pool/images/base.qcow2"),
    ("../base.qcow2", HERE, "/pool/base.qcow2"),
    ("./x/base", HERE, "/pool/images/x/base"),
    ("/abs/base", HERE, "/abs/base"),
    ("dir:with/colon", HERE, "dir:with/colon"),
    ("dir/with:colon", HERE, "/pool/images/dir/with:colon"),
    ("", HERE, None),
    ("nbd://host/export", HERE, "nbd://host/export"),
    ("rbd:pool/image", HERE, "rbd:pool/image"),
    ("file:base", HERE, "/pool/images/base"),
    ("file:/abs", HERE, "/abs"),
    ("file:///abs/x", HERE, "/abs/x"),
    ("base b.qcow2", GLUSTER, "gluster://host:24007/vol/dir/base%20b.qcow2"),
    ("../base", GLUSTER, "gluster://host:24007/vol/base"),
    ("../../../../etc/x", GLUSTER, "gluster://host:24007/etc/x"),
    (node(driver="qcow2", file={"driver": "file", "filename": "/x"}), HERE, "/x"),
    (node(**{"file.driver": "file", "file.filename": "x"}), HERE, "/pool/images/x"),
    (node(**{"file": {"driver": "qcow2"}, "file.file.filename": "x"}), HERE, "/pool/images/x"),
    (node(driver="host_device", filename="/dev/sdb"), HERE, "/dev/sdb"),
    (node(filename="x"), HERE, "/pool/images/x"),
    (node(filename="json:{}"), HERE, None),
    (node(driver="raw", offset=512, size=1024, file={"driver": "file", "filename": "/x"}), HERE, "/x"),
    (
        node(driver="gluster", volume="v", path="p/a b", server=[{"type": "tcp", "host": "h", "port": "24007"}]),
        HERE,
        "gluster://h:24007/v/p/a%20b",
    ),
    (
        node(driver="gluster", volume="v", path="/p", server=[{"type": "unix", "path": "/run/s"}]),
        HERE,
        "gluster+unix:///v/p?socket=/run/s",
    ),
    (
        node(**{"driver": "gluster", "volume": "v", "path": "p", "server.0.type": "tcp", "server.0.host": "fe80::1"}),
        HERE,
        "gluster://[fe80::1]/v/p",
    ),
    (node(driver="gluster", volume="v"), HERE, None),
    (node(driver="nbd", server={"type": "inet", "host": "h", "port": 10809}, export="e"), HERE, "nbd://h:10809/e"),
    (node(driver="nbd", host="h", port="1"), HERE, "nbd://h:1/"),
    (node(driver="nbd", server={"type": "unix", "path": "/s"}), HERE, "nbd+unix:///?socket=/s"),
    (node(driver="rbd", pool="p", image="i", snapshot="s"), HERE, "rbd:p/i@s"),
    (node(driver="rbd", pool="p"), HERE, None),
    (node(driver="iscsi", portal="h:3260", target="iqn.x", lun=2), HERE, "iscsi://h:3260/iqn.x/2"),
    (node(driver="iscsi"), HERE, None),
    (node(driver="https", url="https://h/x"), HERE, "https://h/x"),
    (node(driver="tftp", filename="tftp://h/x"), HERE, "tftp://h/x"),
    (node(driver="ssh", server={"host": "h", "port": 22}, path="/x y", user="u"), HERE, "ssh://u@h:22/x%20y"),
    (node(driver="ssh", host="h"), HERE, None),
    (node(driver="sheepdog", vdi="v"), HERE, "sheepdog:v"),
    (node(driver="sheepdog"), HERE, None),
    (node(driver="nfs", server={"host": "h"}, path="/e/x"), HERE, "nfs://h/e/x"),
    (node(driver="nfs"), HERE, None),
    (node(driver="nvme", device="0000:01:00.0", namespace=1), HERE, "nvme://0000:01:00.0/1"),
    (node(driver="nvme"), HERE, None),
    (node(driver="null-co"), HERE, None),
    (node(driver=True), HERE, None),
    (node(driver="qcow2", **{"file": {"driver": "file"}, "file.filename": "/x"}), HERE, "/x"),
    ("json:" + '{"file.driver": "file", "file": {"filename": "/y"}}', HERE, "/y"),
]


@pytest.mark.parametrize(("name", "path", "expected"), RESOLVED)
def test_names_are_resolved(name: str, path: str, expected: str | None) -> None:
    """Relative names from the image's own folder; protocols and QEMU's json: as what they mean."""
    assert resolve_backing(name, path) == expected


DEEP = node(**{"file." * 40 + "driver": "file"})
REFUSED = ["json:", "json:x", "json:[]", "json:" + "[" * 100_000, "x" * 70_000, DEEP, node(**{"a": 1, "a.b": 2})]


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: name[:20])
def test_nonsense_is_refused(name: str) -> None:
    """Malformed, nested too deep or too long is an ImageError."""
    with pytest.raises(ImageError):
        resolve_backing(name, HERE)


def test_nested_objects_too_deep() -> None:
    """Depth is bounded for nested objects as for dotted keys."""
    value: object = {"driver": "file"}
    for _ in range(50):
        value = {"file": value}
    with pytest.raises(ImageError, match="too deep"):
        resolve_backing("json:" + json.dumps(value), HERE)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["file", "driver", "filename", "server", "0", "host", "path", "volume", "file.driver", "url"]
                ),
                inner | st.sampled_from(["gluster", "nbd", "ssh", "nfs", "rbd", "file"]),
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json(value: object) -> None:
    """Whatever the json: is, a name, None or ImageError comes out."""
    try:
        found = resolve_backing("json:" + json.dumps(value), HERE)
    except ImageError:
        return
    assert found is None or isinstance(found, str)


URIS = [
    ("gluster://h/v/p/a", GlusterLocation("v", "p/a", "tcp", "h", None, None)),
    ("gluster+tcp://h:24007/v/a%20b", GlusterLocation("v", "a b", "tcp", "h", 24007, None)),
    ("gluster+rdma://[fe80::1]:1/v/a", GlusterLocation("v", "a", "rdma", "fe80::1", 1, None)),
    ("gluster+unix:///v/a?socket=/run/x", GlusterLocation("v", "a", "unix", None, None, "/run/x")),
]


@pytest.mark.parametrize(("uri", "expected"), URIS)
def test_gluster_uris(uri: str, expected: GlusterLocation) -> None:
    """Host, port, volume, path and socket are told apart."""
    assert parse_gluster_uri(uri) == expected


@pytest.mark.parametrize(
    "uri",
    ["nfs://h/v/p", "gluster+ib://h/v/p", "gluster://h/v", "gluster://h", "gluster://h:x/v/p", "gluster://[h/v/p",
     "gluster+unix:///v/p", "gluster://h/v/p?socket=/x"],
)  # fmt: skip
def test_what_is_no_gluster_uri(uri: str) -> None:
    """Others are refused."""
    with pytest.raises(ImageError):
        parse_gluster_uri(uri)
