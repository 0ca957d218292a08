"""What the backend makes of definitions, of names, and of libraries that are not there. No Ceph is needed."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import msgspec
import pytest

from astore.backend import DiskHost, abilities
from astore.errors import BackendLoadError, DefinitionError
from astore.images.nodes import read_node
from astore.model import Auth, Host, PoolDef, Source, VolumeInfo, VolumeType
from astore_rbd import librbd
from astore_rbd.backend import RbdBackend
from astore_rbd.cluster import settings_of

XML = """
<pool type='rbd'>
  <name>images</name>
  <source>
    <host name='one'/><host name='10.0.0.2' port='6790'/><host name='fd00::3' port='3300'/>
    <name>vm/tenant</name>
    <auth type='ceph' username='libvirt'><secret usage='client.libvirt'/></auth>
  </source>
  <rbd:config_opts xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'>
    <rbd:option name='client_mount_timeout' value='7'/>
    <rbd:option name='rbd_default_data_pool' value='cold'/>
  </rbd:config_opts>
</pool>
"""

AUTH = Auth("ceph", "libvirt", secret_usage="client.libvirt")


def definition(name: str = "vm", *hosts: Host, auth: Auth | None = None, **options: str) -> PoolDef:
    source = Source(hosts=hosts or (Host("h"),), name=name, auth=auth)
    return PoolDef(type="rbd", name="p", source=source, config_options=tuple(options.items()))


def record(name: str) -> VolumeInfo:
    path = f"vm/{name}"
    return VolumeInfo(name, VolumeType.NETWORK, path, path, 1, 1, 1, "raw", 0, 0, 0, 1, 0, 0, 0)


def test_libvirts_xml() -> None:
    """Monitors, namespace, user and options of libvirt's XML reach librados; options win over the deadlines of the core."""
    checked = RbdBackend().check(PoolDef.from_xml(XML))
    settings = settings_of(checked, "a key", 60.0)
    assert (settings.user, settings.pool, settings.namespace) == ("libvirt", "vm", "tenant")
    options = dict(settings.options)
    assert options["mon_host"] == "one,10.0.0.2:6790,[fd00::3]:3300"
    assert (options["client_mount_timeout"], options["rados_osd_op_timeout"], options["rados_mon_op_timeout"]) == (
        "7",
        "27",
        "27",
    )
    assert (options["key"], options["auth_supported"]) == ("a key", "cephx")
    assert options["rbd_default_data_pool"] == "cold"
    assert "a key" not in repr(settings)
    assert RbdBackend().check(checked) == checked
    assert PoolDef.from_xml(checked.to_xml()).source == checked.source


def test_without_authentication() -> None:
    """Without <auth> the cluster must ask for none."""
    settings = settings_of(RbdBackend().check(definition()), None, 60.0)
    assert settings.user is None
    assert dict(settings.options)["auth_supported"] == "none"
    assert "key" not in dict(settings.options)


@pytest.mark.parametrize(
    ("wrong", "element"),
    [
        (definition(""), "name"),
        (definition("vm/"), "name"),
        (definition("vm/a/b"), "name"),
        (definition("-vm"), "name"),
        (definition("vm@x"), "name"),
        (definition("vm", Host("two words")), "host"),
        (definition("vm", Host("h", 70000)), "host"),
        (definition("vm", Host("a,b")), "host"),
        (definition(auth=Auth("chap", "u", secret_usage="x")), "auth"),
        (definition(auth=Auth("ceph", "u v", secret_usage="x")), "auth"),
        (definition(auth=Auth("ceph", "u")), "secret"),
        (definition(mon_host="elsewhere"), "option"),
        (definition(key="secret"), "option"),
        (definition(keyring="/etc/ceph/admin.keyring"), "option"),
        (definition(**{"log file": "/etc/passwd"}), "option"),
        (definition(admin_socket="/run/x"), "option"),
        (definition(**{"a\nb": "x"}), "option"),
    ],
)
def test_refused(wrong: PoolDef, element: str) -> None:
    """What librados would not take, or would take for more than it says, is refused, with the element at fault."""
    with pytest.raises(DefinitionError) as caught:
        RbdBackend().check(wrong)
    assert caught.value.element == element


def test_no_hosts() -> None:
    """A pool needs a monitor, as in libvirt."""
    with pytest.raises(DefinitionError, match="monitor"):
        RbdBackend().check(PoolDef(type="rbd", name="p", source=Source(name="vm")))


def test_an_option_that_is_allowed() -> None:
    """An option that names a file is taken if the definition allows it."""
    allowed = msgspec.structs.replace(definition(log_file="/tmp/x"), allowed_options=("log_file",))
    assert RbdBackend().check(allowed) == allowed


def test_same_source() -> None:
    """The order of the monitors makes no other source; the namespace does."""
    key = RbdBackend().source_key
    assert key(definition("vm", Host("a"), Host("b"))) == key(definition("vm", Host("b"), Host("a")))
    assert key(definition("vm")) != key(definition("vm/ns"))


def test_names_for_libvirt_and_qemu() -> None:
    """Disks and nodes have pool, namespace, image, all monitors and the user, and never the key."""
    backend, pool = RbdBackend(), RbdBackend().check(PoolDef.from_xml(XML))
    source = backend.disk_source(pool, record("disk 1"))
    assert (source.protocol, source.name) == ("rbd", "vm/tenant/disk 1")
    assert source.hosts == (DiskHost("one"), DiskHost("10.0.0.2", 6790), DiskHost("fd00::3", 3300))
    assert source.auth == msgspec.structs.replace(AUTH, secret_type="ceph")
    node = backend.blockdev(pool, record("disk 1"))
    assert (node["driver"], node["pool"], node["namespace"], node["image"]) == ("rbd", "vm", "tenant", "disk 1")
    assert node["server"][2] == {"host": "fd00::3", "port": "3300"}
    assert (node["user"], node["auth-client-required"]) == ("libvirt", ["cephx"])


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("rbd:vm/tenant/disk", "disk"),
        ("rbd:vm/tenant/disk@snap", "disk"),
        ("rbd:vm/tenant/disk:id=libvirt:conf=/etc/ceph/ceph.conf", "disk"),
        (r"rbd:vm/tenant/a\:b\@c\\d", "a:b@c\\d"),
        (r"rbd:vm/tenant/disk:mon_host=one\:6789\;10.0.0.9", "disk"),
        (r"rbd:vm/tenant/disk:mon_host=[fd00\:\:3]\:3300", "disk"),
        (r"rbd:vm/tenant/disk:mon_host=elsewhere\:6789", None),
        ("rbd:vm/disk", None),
        ("rbd:other/tenant/disk", None),
        ("rbd:vm/tenant/", None),
        ("rbd:", None),
        ("vm/tenant/disk", "disk"),
        ("vm/tenant/", None),
        ("gluster://h/vm/tenant/disk", None),
    ],
)
def test_names_in_headers(location: str, name: str | None) -> None:
    """The image that a header's name for it means is found, however it is escaped, and no other one."""
    pool = RbdBackend().check(PoolDef.from_xml(XML))
    assert RbdBackend().volume_named(pool, location) == name


def test_the_core_spells_it_the_same_way() -> None:
    """A name in JSON, which the core turns into a text, leads to the volume, too."""
    pool = RbdBackend().check(PoolDef.from_xml(XML))
    text = '{"driver": "rbd", "pool": "vm", "namespace": "tenant", "image": "a:b/c@d"}'
    (found,) = read_node(text, None)
    assert found.location is not None
    assert RbdBackend().volume_named(pool, found.location) == "a:b/c@d"


def test_abilities() -> None:
    """The backend names volumes."""
    assert abilities(RbdBackend()) == ("name-volumes",)


def test_no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ceph's libraries the error says what to install."""

    def missing(name: str, *_: object) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(librbd.load, "_library", None)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendLoadError, match="librados2 and librbd1"):
        RbdBackend().require()


def test_old_libraries() -> None:
    """Libraries that lack a function are too old; the error says how old, and what is needed."""

    class Old:
        pass

    with pytest.raises(BackendLoadError, match=r"Ceph [0-9.]+ has: 14\.2 or later is needed"):
        librbd.Librbd(Old(), Old())  # type: ignore[arg-type]


def test_importing_it_loads_no_library() -> None:
    """The plugin's modules can be imported where Ceph is not installed."""
    code = "import astore_rbd.backend, sys; maps = open('/proc/self/maps').read(); sys.exit('librados' in maps)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
