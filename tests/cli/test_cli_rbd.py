"""The command on a real Ceph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import json_page as shapes
import pytest

from tests.rbd.clients import OtherClient

if TYPE_CHECKING:
    from beds.ceph import CephBed

pytestmark = pytest.mark.ceph

POOL = """<pool type='rbd'><name>images</name><source><host name='{host}' port='{port}'/><name>{where}</name>
<auth type='ceph' username='admin'><secret usage='client.admin'/></auth></source></pool>"""


def test_who_has_it_open(astore: Any, ceph: CephBed, ceph_pool: str) -> None:
    """`vol info` says which other clients have an image open; virsh's text has no such line."""
    where = f"{ceph_pool}/command"
    ceph.rbd("namespace", "create", where)
    definition = astore.folder / "images.xml"
    definition.write_text(POOL.format(host=ceph.host, port=ceph.port, where=where))
    assert astore.process("secret", "set", "ceph", "client.admin", stdin=ceph.key.encode()).code == 0
    astore.good("pool", "define", str(definition))
    astore.good("pool", "start", "images")
    astore.good("vol", "create", "images", "disk", "1M")
    assert "Open elsewhere" not in astore.good("vol", "info", "disk").out
    assert astore.good("vol", "info", "disk", "--json").shape(shapes.Volume).users == ()
    other = OtherClient(ceph, where)
    try:
        with other.open("disk", write=True).closing():
            (line,) = [one for one in astore.good("vol", "info", "disk").out.splitlines() if "Open elsewhere" in one]
            assert f"client {other.cluster.client} at " in line
            (user,) = astore.good("vol", "info", "disk", "--json").shape(shapes.Volume).users
            assert user in line
            assert "client" not in astore.good("vol-info", "disk", "--pool", "images").out
    finally:
        other.close()
    astore.good("vol", "delete", "disk")
    astore.good("pool", "stop", "images")
