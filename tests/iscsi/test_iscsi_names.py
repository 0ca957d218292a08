"""Definitions of iscsi-direct pools, and the names of their volumes: for libvirt, for QEMU, and in headers of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from astore.backend import DiskSource
from astore.errors import DefinitionError
from astore.model import Auth, Device, Host, PoolDef, Source, VolumeInfo, VolumeType
from astore.pools.disk import add_network_source
from astore_iscsi.backend import IscsiBackend
from astore_iscsi.naming import PREFIX, key_of, lun_named
from astore_iscsi.portals import Portal, parse_portal, portals_of

IQN = "iqn.2026-01.test.bed:1"
INITIATOR = "iqn.2026-01.test.astore:tests"
BACKEND = IscsiBackend()


def definition(**changes: object) -> PoolDef:
    """A definition that is right but for these changes."""
    given: dict[str, object] = {"hosts": (Host("san.example.org"),), "devices": (Device(IQN),), "initiator": INITIATOR}
    return PoolDef("iscsi-direct", "luns", source=Source(**{**given, **changes}))  # type: ignore[arg-type]


def volume(lun: int) -> VolumeInfo:
    """The record of a volume."""
    key = key_of(Portal("san.example.org", 3260), IQN, f"{PREFIX}{lun}")
    sizes = dict.fromkeys(("capacity", "allocation", "physical", "uid", "gid"), 0)
    times = dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns"), 0)
    return VolumeInfo(
        name=f"{PREFIX}{lun}",
        type=VolumeType.NETWORK,
        key=key,
        path=key,
        format="raw",
        mode=0,
        inode=1,
        **sizes,
        **times,
    )


@pytest.mark.parametrize(
    ("changes", "element"),
    [
        ({"hosts": ()}, "host"),
        ({"hosts": (Host("-x"),)}, "host"),
        ({"hosts": (Host("a b"),)}, "host"),
        ({"hosts": (Host("h", 70000),)}, "host"),
        ({"devices": ()}, "device"),
        ({"devices": (Device(IQN), Device(IQN))}, "device"),
        ({"devices": (Device("/dev/sda"),)}, "device"),
        ({"devices": (Device("iqn.2026-01.test:" + "x" * 300),)}, "device"),
        ({"devices": (Device("iqn.2026-01.test:x/1"),)}, "device"),
        ({"initiator": None}, "initiator"),
        ({"initiator": "me"}, "initiator"),
        ({"auth": Auth("ceph", "me", secret_usage="x")}, "auth"),
    ],
)
def test_refused(changes: dict[str, object], element: str) -> None:
    """A definition that no target can be reached by is refused, with the element at fault."""
    with pytest.raises(DefinitionError) as caught:
        BACKEND.check(definition(**changes))
    assert caught.value.element == element


def test_checked() -> None:
    """Names are compared in lower case; the order of portals does not make another source, the initiator does."""
    checked = BACKEND.check(definition(devices=(Device(IQN.upper()),), hosts=(Host("[2001:db8::1]", 3261), Host("b"))))
    assert checked.source.devices[0].path == IQN
    assert [str(portal) for portal in portals_of(checked.source.hosts)] == ["[2001:db8::1]:3261", "b:3260"]
    turned = BACKEND.check(definition(hosts=(Host("B"), Host("2001:db8::1", 3261))))
    assert BACKEND.source_key(checked) == BACKEND.source_key(turned)
    assert BACKEND.source_key(turned) != BACKEND.source_key(
        BACKEND.check(definition(hosts=turned.source.hosts, initiator=INITIATOR + "2"))
    )
    for name in ("eui.02004567a425678d", "naa.52004567ba64678d", "naa.62004567ba64678d0123456789abcdef"):
        BACKEND.check(definition(devices=(Device(name),)))


def test_libvirts_names() -> None:
    """Volumes have libvirt's names; others are none."""
    assert [lun_named(f"unit:0:0:{text}") for text in ("0", "1", "65535", "65536", "01", "", "-1", "x")] == [
        *(0, 1, 65535, None, None, None, None, None)
    ]
    assert volume(7).key == f"ip-san.example.org:3260-iscsi-{IQN}-lun-7"


def test_described() -> None:
    """A domain's disk has the first portal, the login and the initiator; QEMU's node has no password."""
    checked = BACKEND.check(definition(hosts=(Host("a"), Host("b")), auth=Auth("chap", "me", secret_usage="luns")))
    source = BACKEND.disk_source(checked, volume(3))
    assert isinstance(source, DiskSource)
    disk = etree.Element("disk")
    add_network_source(disk, source)
    assert etree.tostring(disk).decode() == (
        f'<disk><source protocol="iscsi" name="{IQN}/3"><host name="a" port="3260"/><auth username="me">'
        f'<secret type="iscsi" usage="luns"/></auth><initiator><iqn name="{INITIATOR}"/></initiator></source></disk>'
    )
    assert BACKEND.blockdev(checked, volume(3)) == {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": "a:3260",
        "target": IQN,
        "lun": 3,
        "initiator-name": INITIATOR,
    }


@pytest.mark.parametrize(
    "location",
    [
        f"iscsi://san.example.org/{IQN}/7",
        f"iscsi://san.example.org:3260/{IQN}/7",
        f"iscsi://SAN.example.org/{IQN.upper()}/007",
        f"iscsi://me%25secret@san.example.org/{IQN}/7",
        f"iscsi://san%2Eexample.org/{IQN.replace(':', '%3A')}/7",
        f"iscsi://[2001:db8::1]:3261/{IQN}/7",
        f"ip-san.example.org:3260-iscsi-{IQN}-lun-7",
        f"ip-[2001:db8::1]:3261-iscsi-{IQN}-lun-7",
    ],
)
def test_recognized(location: str) -> None:
    """A volume is found by every name that QEMU or libvirt has for it."""
    checked = BACKEND.check(definition(hosts=(Host("san.example.org"), Host("2001:db8::1", 3261))))
    assert BACKEND.volume_named(checked, location) == "unit:0:0:7"


@pytest.mark.parametrize(
    "location",
    [
        f"iscsi://other.example.org/{IQN}/7",
        f"iscsi://san.example.org:3261/{IQN}/7",
        f"iscsi://san.example.org/{IQN}2/7",
        f"iscsi://san.example.org/{IQN}/65536",
        f"iscsi://san.example.org/{IQN}/7/8",
        f"iscsi://san.example.org/{IQN}/7#x",
        f"iscsi://san.example.org/{IQN}",
        f"gluster://san.example.org/{IQN}/7",
        f"iscsi://a@b@san.example.org/{IQN}/7",
        "/dev/sda",
        "",
    ],
)
def test_not_recognized(location: str) -> None:
    """Everything else means no volume of the pool."""
    assert BACKEND.volume_named(BACKEND.check(definition()), location) is None


@given(st.text(max_size=80) | st.from_regex(r"(iscsi://|ip-)[ -~]{0,60}", fullmatch=True))
def test_hostile_locations(text: str) -> None:
    """Whatever a header says, there is an answer."""
    found = BACKEND.volume_named(BACKEND.check(definition()), text)
    assert found is None or lun_named(found) is not None


@given(st.text(max_size=80))
def test_hostile_portals(text: str) -> None:
    """Whatever a target says about its portals, it is a portal or none, and a portal can be read again."""
    found = parse_portal(text)
    assert found is None or parse_portal(str(found)) == found
