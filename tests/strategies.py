"""Hypothesis strategies for definitions."""

from __future__ import annotations

import string
import uuid

from hypothesis import strategies as st

from astore.model import (
    Adapter,
    Auth,
    Device,
    FreeExtent,
    Host,
    PciAddress,
    Permissions,
    PoolDef,
    Source,
    Target,
)
from astore.xml.known_types import POOL_TYPES
from astore.xml.pool_source import FORMATS

LETTERS = string.ascii_letters + string.digits
words = st.text(LETTERS + "._-", min_size=1, max_size=12).filter(lambda text: text[0] not in "-.")
names = st.text(LETTERS + " ._+&<>'\"äß漢", min_size=1, max_size=20).filter(
    lambda n: n.strip() and n not in (".", "..")
)
paths = st.lists(words, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
uuids = st.integers(0, (1 << 128) - 1).map(lambda number: str(uuid.UUID(int=number)))
hosts = st.builds(Host, st.text(LETTERS, max_size=9).map("h{}.example".format), st.none() | st.integers(1, 65_535))
ids = st.none() | st.integers(0, (1 << 32) - 2)
permissions = st.builds(Permissions, st.none() | st.integers(0, 0o777), ids, ids, st.none() | words).filter(
    lambda said: said != Permissions()
)
devices = st.builds(
    Device,
    paths,
    st.none() | st.booleans(),
    st.lists(st.builds(FreeExtent, st.integers(0, 1 << 40), st.integers(0, 1 << 40)), max_size=2).map(tuple),
)
auths = st.builds(Auth, st.sampled_from(["chap", "ceph"]), words, uuids, st.none(), st.none()) | st.builds(
    Auth, st.sampled_from(["chap", "ceph"]), words, st.none(), words, st.none()
)
wwns = st.integers(0, (1 << 64) - 1).map(lambda number: f"{number:016x}")
addresses = st.builds(PciAddress, st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7))
adapters = (
    st.builds(Adapter, st.just("scsi_host"), words)
    | st.builds(Adapter, st.just("scsi_host"), parent_address=addresses, unique_id=st.integers(1, 100))
    | st.builds(
        Adapter,
        st.just("fc_host"),
        wwnn=wwns,
        wwpn=wwns,
        managed=st.none() | st.booleans(),
        parent=st.none() | st.integers(0, 99).map("scsi_host{}".format),
    )
)


@st.composite
def pool_definitions(draw: st.DrawFn, types: tuple[str, ...] = POOL_TYPES) -> PoolDef:
    """A definition that libvirt accepts, of any of its types."""
    type_ = draw(st.sampled_from(types))
    name = draw(names)
    formats = FORMATS.get(type_)
    format_ = draw(st.sampled_from(formats)) if formats else None
    named = type_ in ("logical", "rbd", "sheepdog", "gluster", "zfs", "vstorage")
    source_name = draw(words) if named else None
    host_count = {"netfs": 1, "gluster": 3, "rbd": 3, "iscsi": 1, "iscsi-direct": 1, "sheepdog": 1}.get(type_, 0)
    device_count = {"fs": 1, "disk": 1, "iscsi": 1, "iscsi-direct": 1, "logical": 2, "zfs": 2}.get(type_, 0)
    device = devices if type_ == "disk" else paths.map(Device)
    source = Source(
        hosts=tuple(draw(st.lists(hosts, min_size=min(host_count, 1), max_size=host_count))),
        devices=tuple(
            draw(
                st.lists(
                    device, min_size=int(type_ not in ("logical", "zfs") and device_count > 0), max_size=device_count
                )
            )
        ),
        directory=draw(paths) if type_ in ("netfs", "gluster") else None,
        adapter=draw(adapters) if type_ == "scsi" else None,
        name=source_name,
        initiator="iqn.2013-06.com.example:" + draw(words) if type_ in ("iscsi", "iscsi-direct") else None,
        format=format_,
        auth=draw(st.none() | auths) if type_ in ("iscsi", "iscsi-direct", "rbd") else None,
        protocol_version=draw(st.none() | st.sampled_from(["3", "4", "4.2"]))
        if format_ in ("nfs", "auto") and type_ == "netfs"
        else None,
        vendor=draw(st.none() | words),
        product=draw(st.none() | words),
    )
    path: str | None = draw(paths)
    if type_ in ("gluster", "rbd", "sheepdog", "iscsi-direct"):
        path = None
    elif type_ == "logical":
        path = f"/dev/{source_name}"
    elif type_ == "zfs":
        path = f"/dev/zvol/{source_name}"
    return PoolDef(
        type=type_,
        name=name,
        uuid=draw(st.none() | uuids),
        source=source,
        target=Target(path, draw(st.none() | permissions) if path else None),
        features_cow=draw(st.none() | st.booleans()) if type_ in ("fs", "dir") else None,
        refresh_allocation=draw(st.none() | st.sampled_from(["default", "capacity"])),
        mount_options=tuple(draw(st.lists(words, max_size=3))) if type_ in ("fs", "netfs") else (),
        config_options=tuple(draw(st.lists(st.tuples(words, words), max_size=3))) if type_ == "rbd" else (),
    )
