"""Where the files are that a header names, of which format they are, and what is against reading through them."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.images.fields import backing
from astore.images.paths import has_protocol, without_protocol
from astore.images.references import located
from astore.model import Reference, ReferenceKind

HERE = "/pool/images/a.qcow2"
GLUSTER = "gluster://host:24007/vol/dir/a.qcow2"
FILE = {"driver": "file", "filename": "/x"}
OTHER = {"driver": "file", "filename": "/y"}
DATA, EXTENT, PARENT = ReferenceKind.DATA, ReferenceKind.EXTENT, ReferenceKind.PARENT

FROM_HERE = "is named relative to the folder that QEMU is started in"
MALFORMED = "has a json: name that means nothing"
UNTOLD = "has a json: name that does not say where it is"
ANOTHER = "is one of several files that a json: name describes"


def node(**fields: object) -> str:
    return "json:" + json.dumps(fields)


def qcow2(**fields: object) -> str:
    return node(driver="qcow2", file=FILE, **fields)


def found(name: str, format: str | None = None, path: str = HERE) -> list[tuple[str | None, str | None, str | None]]:
    """Location, format and doubt of each file, given QEMU's word for the format."""
    return [(one.location, one.format, one.doubt) for one in located(backing(name, format), path)]


PLAIN = [
    ("base", None, HERE, ("/pool/images/base", None, None)),
    ("a/../base", "qcow2", HERE, ("/pool/images/a/../base", "qcow2", None)),
    (".//base", "parallels", HERE, ("/pool/images/base", "ploop", None)),
    ("base", "vpc", HERE, ("/pool/images/base", "vpc", None)),
    ("/base", "raw", GLUSTER, ("/base", "raw", None)),
    ("base 1", None, GLUSTER, ("gluster://host:24007/vol/dir/base%201", None, None)),
    (".", None, HERE, (None, None, "has a name that means nothing")),
    ("base", None, "/a://b/c", ("/a://b/base", None, None)),
    ("file:/base", None, HERE, ("/base", None, None)),
    ("file:base", None, HERE, (None, None, FROM_HERE)),
    ("file:a:b", None, HERE, (None, None, FROM_HERE)),
    ("host_device:/dev/sdb", "raw", HERE, ("/dev/sdb", "raw", None)),
    ("host_cdrom:/dev/sr0", None, HERE, ("/dev/sr0", None, None)),
    (node(driver="host_device", filename="/dev/sdb"), None, HERE, ("/dev/sdb", "raw", None)),
    ("nbd://h/x", "qcow2", HERE, ("nbd://h/x", "qcow2", None)),
    ("rbd:pool/image", None, HERE, ("rbd:pool/image", None, None)),
]


@pytest.mark.parametrize(("name", "format", "path", "expected"), PLAIN)
def test_plain_names_and_protocols(
    name: str, format: str | None, path: str, expected: tuple[str | None, str | None, str | None]
) -> None:
    """Names are put behind the image's folder as text, and protocols are QEMU's."""
    assert found(name, format, path) == [expected]


DOUBTED = [
    ("ubuntu:22.04.qcow2", None, "is named with 'ubuntu:', which QEMU takes for a protocol and does not know"),
    ("qcow2:/x", None, "is named with 'qcow2:', which QEMU takes for a protocol and does not know"),
    ("base", "foo", "is said to be of the format 'foo', which QEMU does not have"),
    ("base", "vhd", "is said to be of the format 'vhd', which QEMU does not have"),
    ("base", "ploop", "is said to be of the format 'ploop', which QEMU does not have"),
    ("base", "file", "is said to be of the format 'file', which QEMU does not have"),
    ("blkdebug::/x", None, "is read through QEMU's driver 'blkdebug'"),
    ("fat:/x", None, "is read through QEMU's driver 'vvfat'"),
    ("json:{", None, MALFORMED),
    (node(driver="qcow2", file={"filename": "x"}), None, FROM_HERE),
    (node(driver="qcow2", file="a-node"), None, "is described by the name of a node, which QEMU alone knows"),
    (node(filename="/x"), None, "is described by neither a driver nor a file"),
    (node(driver={"a": 1}, file=FILE), None, "is described with an invalid driver"),
    (node(file={"driver": None, "filename": "/x"}), None, "is described with an invalid driver"),
    (qcow2(), "raw", "is said to be raw, and described as qcow2"),
    (node(**FILE), "qcow2", "is said to be qcow2, and described as what QEMU's driver 'file' reads"),
    (node(driver="raw", file={"driver": "qcow2", "file": FILE}), None, "is described as an image inside another"),
    (node(driver="throttle", file=FILE), None, "is read through QEMU's driver 'throttle'"),
    (
        node(driver="qcow2", file={"driver": "blkdebug", "image": FILE}),
        None,
        "is read through QEMU's driver 'blkdebug'",
    ),
    (node(driver="null-co"), None, "is read through QEMU's driver 'null-co'"),
    (node(driver="nbd"), None, UNTOLD),
    (node(driver="https", url="http://h/x"), None, UNTOLD),
    (qcow2(backing=None), None, "is given with 'backing': null"),
    (qcow2(**{"lazy-refcounts": True}), None, "is given with 'lazy-refcounts'"),
    (qcow2(encrypt={"format": "luks", "key-secret": "s"}), None, "is given with 'encrypt'"),
    (node(driver="raw", file=FILE, offset=512), None, "is given with 'offset'"),
    (node(driver="raw", file=FILE, size="512"), None, "is given with 'size'"),
    (node(**{"driver": "raw", "file": FILE, "cache.direct": True}), None, "is given with 'cache'"),
    (node(driver="qcow2", file={**FILE, "x": 1}), None, "is given with 'x'"),
    (node(driver="qcow2", file={"driver": "raw", "offset": 1, "file": FILE}), None, "is given with 'offset'"),
    (node(driver="nbd", server={"type": "unix", "path": "/s", "x": 1}), None, "is given with 'x'"),
    (node(driver="rbd", pool="p", image="i", conf="/etc/x"), None, "is given with 'conf'"),
    (node(driver="gluster", filename="gluster://h/v/p"), None, "is given with 'filename'"),
    (node(driver="raw", filename="/x"), None, "is given with 'filename'"),
    (node(driver="sheepdog", vdi="v"), None, "is described with QEMU's driver 'sheepdog', which is gone"),
    (
        'json:{"file.filename":"/x","file":{"driver":"file","filename":"/x"}}',
        None,
        "is described with 'filename' twice",
    ),
]


@pytest.mark.parametrize(("name", "format", "doubt"), DOUBTED)
def test_doubts(name: str, format: str | None, doubt: str) -> None:
    """Whatever is more than a place and a format is told in words, whether or not the place is known."""
    assert found(name, format)[0][2] == doubt


DEVICES_ONLY = "is read through QEMU's driver 'host_device', which opens devices only"
NO_DEVICES = "is read through QEMU's driver 'file', which opens no devices"
AS_FOLDER = "has a name that ends like a folder's"
DOUBTED += [
    (node(driver="host_device", filename="/x"), None, DEVICES_ONLY),
    ("host_device:/x", None, DEVICES_ONLY),
    ("host_device:/dev/shm/x", None, DEVICES_ONLY),
    ("host_device:/dev/../x", None, DEVICES_ONLY),
    ("host_cdrom:/devices/x", None, DEVICES_ONLY.replace("device'", "cdrom'")),
    (node(driver="file", filename="/dev/sdb"), None, NO_DEVICES),
    ("file:/dev/sdb", None, NO_DEVICES),
    *((name, None, AS_FOLDER) for name in ("base/", "base/.", "/x//", "/x/./.", "file:/x/", "host_device:/dev/sdb/")),
    (node(driver="file", filename="/x/"), None, AS_FOLDER),
    (qcow2(**{"node-name": "n", "file.node-name": "n"}), None, "is described with two nodes of the same name"),
]


NOT_DOUBTED = [
    (qcow2(), None, "qcow2"),
    (qcow2(), "qcow2", "qcow2"),
    (node(driver="parallels", file=FILE), None, "ploop"),
    (qcow2(**{"node-name": "n", "read-only": True, "discard": "unmap"}), None, "qcow2"),
    (node(**{"driver": "qcow2", "file.driver": "file", "file.filename": "/x"}), None, "qcow2"),
    (node(file=FILE), None, None),
    (node(file={"filename": "/x"}), "raw", "raw"),
    (node(**FILE), None, "raw"),
    (node(driver="qcow2", file={"driver": "raw", "file": FILE}), None, "qcow2"),
    ("json:{'driver':'qcow2','file':{'driver':'file','filename':'/x'}}", None, "qcow2"),
    ('json: {"driver":"qcow2","file":{"driver":"file","filename":"\\u002fx"}} ', None, "qcow2"),
]


@pytest.mark.parametrize(("name", "format", "told"), NOT_DOUBTED)
def test_what_is_not_doubted(name: str, format: str | None, told: str | None) -> None:
    """A format over a file is neither more nor less than the file's name, however it is spelled."""
    assert found(name, format) == [("/x", told, None)]


SEVERAL = [
    (qcow2(backing={"driver": "raw", "file": OTHER}), [("/x", "qcow2"), ("/y", "raw")]),
    (node(**{"driver": "qcow2", "file": FILE, "backing.file.filename": "/y"}), [("/x", "qcow2"), ("/y", None)]),
    (qcow2(**{"data-file": OTHER}), [("/x", "qcow2"), ("/y", "raw")]),
    (node(driver="blkverify", raw=FILE, test={"driver": "qcow2", "file": OTHER}), [("/y", None), ("/x", "raw")]),
    (node(driver="quorum", children=[FILE, OTHER]), [("/y", None), ("/x", "raw")]),
    (node(**{"driver": "quorum", "children.0": FILE, "children.1": OTHER}), [("/y", None), ("/x", "raw")]),
    (node(driver="blkdebug", image={"driver": "nbd", "host": "h"}), [("nbd://h/", None)]),
    (node(driver="raw", filename="/y", file=FILE), [("/x", "raw"), ("/y", None)]),
    ('json:{"file.filename":"/x","file":{"filename":"/y"}}', [("/x", None), ("/y", None)]),
    ('json:{"file.filename":"/x","file":{"filename":{"filename":"/y"}}}', [("/x", None), ("/y", None)]),
    ("blkverify:/x:/y", [("/x", None), ("/y", None)]),
]


@pytest.mark.parametrize(("name", "expected"), SEVERAL)
def test_several_files(name: str, expected: list[tuple[str, str | None]]) -> None:
    """Every file at the bottom is told, so that it can be protected, and each has a doubt."""
    those = found(name)
    assert [one[:2] for one in those] == expected
    assert all(one[2] for one in those)


DATA_FILES = [
    ("/data", "/data", None),
    ("data", None, FROM_HERE),
    ("./d:ata", None, FROM_HERE),
    ("file:/data", "/data", "has a name with a protocol, which one QEMU reads and another does not"),
    ("nbd://h/x", "nbd://h/x", "has a name with a protocol, which one QEMU reads and another does not"),
    (node(**FILE), "/x", "has a name with a protocol, which one QEMU reads and another does not"),
]


@pytest.mark.parametrize(("name", "location", "doubt"), DATA_FILES)
def test_data_files(name: str, location: str | None, doubt: str | None) -> None:
    """An external data file is opened as it is named, from wherever QEMU is."""
    reference = Reference(DATA, name, "raw")
    assert located((reference,), HERE) == (msgspec.structs.replace(reference, location=location, doubt=doubt),)


EXTENTS = [
    ("a-s001.vmdk", HERE, "/pool/images/a-s001.vmdk", None),
    ("/other/a", HERE, "/other/a", None),
    ("nbd://h/x", HERE, "/pool/images/nbd:/h/x", None),
    ("json:{}", HERE, "/pool/images/json:{}", None),
    ("a", GLUSTER, "gluster://host:24007/vol/dir/a", None),
    ("a%20b", GLUSTER, "gluster://host:24007/vol/dir/a%2520b", "has a name that QEMU would read as a part of a URL"),
]


@pytest.mark.parametrize(("name", "path", "location", "doubt"), EXTENTS)
def test_extents(name: str, path: str, location: str, doubt: str | None) -> None:
    """An extent's name is never a protocol's."""
    (reference,) = located((Reference(EXTENT, name, "raw"),), path)
    assert (reference.location, reference.doubt, reference.kind, reference.name) == (location, doubt, EXTENT, name)


@pytest.mark.parametrize(
    ("name", "location"),
    [("p.vhd", "/pool/images/p.vhd"), (".\\p.vhd", "/pool/images/p.vhd"), ("C:\\vm\\p.vhd", None), ("(none)", None)],
)
def test_parents(name: str, location: str | None) -> None:
    """A parent's name is looked for beside the image, to protect it; its doubt stays."""
    (reference,) = located((Reference(PARENT, name, "vpc", doubt="is not read"),), HERE)
    assert (reference.location, reference.doubt) == (location, "is not read")


def test_nothing_is_raised() -> None:
    """A name that is too long or has control characters leads nowhere."""
    for name in ("x" * 70_000, "a\0b", "a\x1b", "\ud800"):
        for kind in ReferenceKind:
            (reference,) = located((Reference(kind, name, doubt=None),), HERE)
            assert (reference.location, reference.doubt) == (None, "has a name that means nothing")
    assert located((), HERE) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ubuntu:22.04.qcow2", "./ubuntu:22.04.qcow2"), ("a", "a"), (":", "./:"), ("json:{}", "./json:{}")],
)
def test_names_without_a_protocol(name: str, expected: str) -> None:
    """A volume's name is spelled so that QEMU sees a file of this folder."""
    assert without_protocol(name) == expected
    assert not has_protocol(expected)
    assert found(expected) == [(f"/pool/images/{name}", None, None)]


SLOW = [
    "json:" + "{'" * 30_000,
    "json:'" + "\\'" * 30_000,
    'json:"' + '\\"' * 30_000,
    "json:{" + ",".join(f'"{i}.a.b.c.d.e.f":{i}' for i in range(2500)) + "}",
    "json:{" + ",".join(f'"{"a." * 30}{i}":0' for i in range(900)) + "}",
    "json:" + '{"a":' * 200 + "1" + "}" * 200,
    "json:" + json.dumps({"children": [{"driver": "file", "filename": f"/{i}"} for i in range(250)]}),
    "json:{" + '"file.filename":"/x",' * 3000,
    "blkverify:" + ":" * 60_000,
    "a" * 60_000 + "/",
    "/" * 60_000,
    "." * 60_000,
]


@pytest.mark.parametrize("name", SLOW, ids=lambda name: repr(name[:20]))
def test_no_name_takes_long(name: str) -> None:
    """The longest names made to be slow take no more than in proportion: what were quadratic would take minutes."""
    began = time.thread_time()
    located(backing(name[:65_536]), HERE)
    assert time.thread_time() - began < 10


KEYS = [
    *("file", "driver", "filename", "server", "children", "image", "backing", "0", "host", "path", "volume", "url"),
    *("file.filename", "file.driver", "file.server.0.host"),
]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=8)
)
VALUES = [
    *("qcow2", "raw", "file", "nbd", "quorum", "blkdebug", "gluster", "ssh", "nfs", "rbd", "https", "iscsi"),
    *("sheepdog", "nvme", "/x", "/y", "h"),
]


@given(
    st.recursive(
        st.sampled_from(VALUES) | SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
        max_leaves=20,
    ),
    st.sampled_from([None, "raw", "qcow2", "foo"]),
)
def test_any_json(value: object, format: str | None) -> None:
    """Whatever a json: describes, each file has a location or a doubt, and each but the first a doubt."""
    those = found("json:" + json.dumps(value), format)
    assert all(location or doubt for location, _, doubt in those)
    assert all(doubt for _, _, doubt in those[1:])
    for location, _, _ in those:
        assert location is None or location.encode()
