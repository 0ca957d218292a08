"""The commands that look at pools, volumes and backends, in this process."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest

import astore as library
from astore.xml.known_types import POOL_TYPES

Make = Callable[..., Path]


# ------------------------------------------------------------------------------------------------------- pool list


def test_list_filters(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """Active pools by default; --all, --inactive, --persistent, --transient, --autostart and --type choose others."""
    make_pool("active")
    make_pool("sleeping", start=False)
    astore.good("pool", "autostart", "sleeping")
    astore.good("pool", "create", "--build", astore.definition("passing", tmp_path / "passing"))
    expected = {
        (): ["active", "passing"],
        ("--all",): ["active", "passing", "sleeping"],
        ("--inactive",): ["sleeping"],
        ("--all", "--persistent"): ["active", "sleeping"],
        ("--transient",): ["passing"],
        ("--all", "--persistent", "--transient"): ["active", "passing", "sleeping"],
        ("--all", "--autostart"): ["sleeping"],
        ("--no-autostart",): ["active", "passing"],
        ("--type", "dir"): ["active", "passing"],
        ("--type", "netfs,gluster"): [],
        ("--type", "netfs", "--type", "dir"): ["active", "passing"],
    }
    for flags, names in expected.items():
        assert astore.good("pool", "list", "--name", *flags).out.split() == names, flags
        listed = astore.good("pool", "list", "--json", *flags).shape(shapes.PoolList)
        assert [pool.name for pool in listed.pools] == names, flags


def test_list_for_people(astore: Any, make_pool: Make) -> None:
    """Plain columns where nobody looks at a terminal; --details has more of them."""
    make_pool("active")
    make_pool("sleeping", start=False)
    heading, first, second = astore.good("pool", "list", "--all").out.splitlines()
    assert heading.split() == ["Name", "Type", "State", "Autostart", "Volumes", "Capacity", "Used"]
    assert first.split()[:5] == ["active", "dir", "running", "no", "2"]
    assert second.split() == ["sleeping", "dir", "inactive", "no", "-", "-", "-"]
    heading, first, second = astore.good("pool", "list", "--all", "--details").out.splitlines()
    assert heading.split()[-1] == "Error"
    assert first.split()[4] == "yes"
    assert second.split()[5:] == ["-"] * 7
    pool = astore.good("pool", "list", "--json").shape(shapes.PoolList).pools[0]
    for name in ("pool list", "pool-list"):
        exact = astore.good(*name.split(), "--details", "--bytes").out.splitlines()
        assert str(pool.capacity) in next(line for line in exact if "active" in line).split(), exact
    assert str(pool.capacity) in astore.good("pool", "list", "--bytes").out.splitlines()[1].split()
    uuid, name = astore.good("pool", "list", "--name", "--uuid").out.split()
    assert (len(uuid), name) == (36, "active")


def test_list_of_a_pool_that_cannot_be_reached(astore: Any, make_pool: Make) -> None:
    """Its error says what may be typed: a pool that is active is stopped before it is built."""
    folder = make_pool("images")
    folder.rename(folder.with_name("elsewhere"))
    astore("pool", "refresh", "images")
    row = astore("pool", "list", "--details").out.splitlines()[1]
    assert row.endswith("`astore pool stop images`, then `astore pool build images`")


def test_a_damaged_definition_is_shown(astore: Any, make_pool: Make) -> None:
    """A file that cannot be read is a row of the list and a line on stderr; the other pools are served."""
    make_pool("good")
    damaged = astore.state_dir / "pools" / "broken.xml"
    damaged.write_text("<pool type='dir'><name>broken")
    for flags in ((), ("--all",), ("--all", "--details")):
        ran = astore("pool", "list", *flags)
        assert ran.code == 0
        assert ran.complaint.startswith(f"{damaged} is damaged: ")
        assert ran.complaint.endswith("repair it or remove it")
        assert ("broken" in ran.out) == bool(flags)
    (file,) = astore("pool", "list", "--json").shape(shapes.PoolList).damaged
    assert (file.name, file.path) == ("broken", str(damaged))
    assert damaged.read_text() == "<pool type='dir'><name>broken"


def test_a_pool_without_backend_is_listed_as_such(astore: Any, tmp_path: Path) -> None:
    """Its definition is kept; starting it says what to install."""
    xml = "<pool type='sheepdog'><name>blocks</name><source><host name='h'/><name>sheep</name></source></pool>"
    (tmp_path / "sheep.xml").write_text(xml)
    warning = astore("pool", "define", str(tmp_path / "sheep.xml"))
    assert warning.code == 0
    assert warning.complaint.startswith("pool 'blocks' cannot be started yet: no backend for pool type 'sheepdog' is ")
    assert warning.complaint.endswith(": astore has none for it: install its plugin, if there is one")
    assert "inactive (no backend)" in astore.good("pool", "list", "--all").out
    listed = astore.good("pool", "list", "--all", "--json").shape(shapes.PoolList).pools
    assert [pool.has_backend for pool in listed] == [False]
    ran = astore("pool", "start", "blocks")
    assert ran.code == 1
    assert ran.complaint.startswith("no backend for pool type 'sheepdog' is installed")


# ----------------------------------------------------------------------------------------------- one pool at a time


def test_info(astore: Any, make_pool: Make) -> None:
    """Sizes for people, in bytes with --bytes; an inactive pool has none."""
    folder = make_pool()
    out = astore.good("pool", "info", "images").out
    fields = dict(line.split(":", 1) for line in out.splitlines())
    assert fields["State"].strip() == "running"
    assert fields["Target"].strip() == str(folder)
    assert fields["Capacity"].strip().endswith("iB")
    assert fields["Volumes"].strip() == "2"
    in_bytes = astore.good("pool", "info", "images", "--bytes").out
    assert dict(line.split(":", 1) for line in in_bytes.splitlines())["Capacity"].strip().isdigit()
    astore.good("pool", "stop", "images")
    assert "Capacity" not in astore.good("pool", "info", "images").out


def test_an_inaccessible_pool_says_why(astore: Any, tmp_path: Path) -> None:
    """While a pool cannot be read, info of the same process shows the error. (Here: of a degraded one.)"""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "cut.qcow2").write_bytes(b"QFI\xfb\0\0\0\3")
    astore.good("pool", "define", astore.definition("images", folder))
    astore.good("pool", "start", "images")
    out = astore.good("pool", "info", "images").out
    assert "Error:" in out
    assert "cut.qcow2" in out


def test_dumpxml(astore: Any, make_pool: Make) -> None:
    """The XML is libvirt's and can be read again; --inactive leaves out the sizes."""
    folder = make_pool()
    xml = astore.good("pool", "dumpxml", "images").out
    assert library.PoolDef.from_xml(xml).target.path == str(folder)
    assert '<capacity unit="bytes">0<' in astore.good("pool", "dumpxml", "--inactive", "images").out
    assert astore.good("pool", "dumpxml", "images", "--json").shape(shapes.Xml).xml.strip() == xml.strip()


def test_name_and_uuid(astore: Any, make_pool: Make) -> None:
    """pool-name and pool-uuid translate between the two."""
    make_pool()
    uuid = astore.good("pool-uuid", "images").out.strip()
    assert astore.good("pool-name", uuid).out == "images\n\n"
    assert astore.good("pool-name", uuid, "--json").shape(shapes.PoolIdentity).uuid == uuid
    assert astore("pool-name", "0" * 32).code == 3


# ---------------------------------------------------------------------------------------------------------- volumes


def test_vol_list(astore: Any, make_pool: Make) -> None:
    """Name, format, sizes and backing file; --details adds type, time and path; --name is for scripts."""
    folder = make_pool()
    heading, base, web = astore.good("vol", "list", "images").out.splitlines()
    assert heading.split()[:3] == ["Name", "Format", "Capacity"]
    assert base.split()[:4] == ["base.qcow2", "qcow2", "10.00", "GiB"]
    assert web.split()[-1] == "base.qcow2"
    assert astore.good("vol", "list", "images", "--details").out.splitlines()[1].endswith(str(folder / "base.qcow2"))
    assert astore.good("vol", "list", "images", "--bytes").out.splitlines()[1].split()[2] == str(10 << 30)
    assert str(10 << 30) in astore.good("vol-list", "images", "--details", "--bytes").out.split()
    assert astore.good("vol", "list", "images", "--name").out == "base.qcow2\nweb.qcow2\n"
    listed = astore.good("vol", "list", "images", "--json").shape(shapes.VolumeList)
    assert [volume.name for volume in listed.volumes] == ["base.qcow2", "web.qcow2"]
    assert listed.refreshed_at is not None


def test_volumes_are_looked_for_where_nothing_is_known_yet(astore: Any, make_pool: Make) -> None:
    """A pool whose cached snapshot is lost is refreshed first."""
    make_pool()
    (astore.state_dir / "run" / "images.snapshot").unlink()
    assert astore.good("vol", "list", "images", "--name").out == "base.qcow2\nweb.qcow2\n"


def test_vol_info(astore: Any, make_pool: Make) -> None:
    """A volume is found by name in a pool, by path, or by a name that one pool has."""
    folder = make_pool()
    path = str(folder / "web.qcow2")
    for arguments in (("web.qcow2", "--pool", "images"), (path,), ("web.qcow2",), (path, "--pool", "images")):
        found = astore.good("vol", "info", *arguments, "--json").shape(shapes.Volume)
        assert (found.pool, found.name, found.path) == ("images", "web.qcow2", path)
        assert (found.format, found.capacity, found.backing) == ("qcow2", 10 << 30, "base.qcow2")
        assert abs(found.mtime - time.time()) < 3600
    out = astore.good("vol", "info", "web.qcow2").out
    assert "Backing path:" in out
    fields = dict(line.split(":", 1) for line in out.splitlines())
    assert (fields["Capacity"].strip(), fields["Backing format"].strip()) == ("10.00 GiB", "qcow2")
    assert f" {10 << 30}\n" in astore.good("vol", "info", "web.qcow2", "--bytes").out


def test_volumes_that_are_not_there(astore: Any, make_pool: Make) -> None:
    """Returns 3 and says where to look for it."""
    folder = make_pool()
    for arguments in (("no.raw",), ("no.raw", "--pool", "images"), (str(folder / "no.raw"), "--pool", "images")):
        ran = astore("vol", "info", *arguments)
        assert ran.code == 3
        assert "`astore vol list " in ran.complaint


def test_a_name_that_several_pools_have(astore: Any, make_pool: Make) -> None:
    """Which one is meant must be said, and the error says how."""
    make_pool("a")
    make_pool("b")
    ran = astore("vol", "path", "web.qcow2")
    assert ran.code == 2
    assert ran.complaint == "several pools have a volume 'web.qcow2' (a, b): say --pool a"


def test_vol_path_and_dumpxml(astore: Any, make_pool: Make) -> None:
    """path prints the path alone; dumpxml prints libvirt's document."""
    folder = make_pool()
    assert astore.good("vol", "path", "web.qcow2", "--pool", "images").out == f"{folder}/web.qcow2\n"
    found = astore.good("vol", "path", "web.qcow2", "--json").shape(shapes.VolumePath)
    assert found.key == f"{folder}/web.qcow2"
    xml = astore.good("vol", "dumpxml", "web.qcow2").out
    assert library.VolumeDef.from_xml(xml).capacity == 10 << 30
    assert astore.good("vol", "dumpxml", "web.qcow2", "--json").shape(shapes.Xml).xml.strip() == xml.strip()


# --------------------------------------------------------------------------------------- backends and what they can do


def test_backend_list(astore: Any, make_pool: Make) -> None:
    """Every backend with its state, its distribution and what it can do."""
    make_pool()
    backends = {item.type: item for item in astore.good("backend", "list", "--json").shape(shapes.Backends).backends}
    assert (backends["dir"].status, backends["dir"].distribution, backends["dir"].pools) == ("ready", "astore", 1)
    assert "build" in backends["dir"].abilities
    assert astore.good("backend", "list").out.splitlines()[1].split()[:3] == ["dir", "ready", "astore"]


def test_a_backend_that_cannot_be_loaded(astore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin whose import raises is named with its error; the others are ready."""
    info = tmp_path / "site" / "astore_bad-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: astore-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[astore.backends]\nbad = astore_bad_plugin:Backend\n")
    (tmp_path / "site" / "astore_bad_plugin.py").write_text("raise RuntimeError('no good')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    backends = {item.type: item for item in astore.good("backend", "list", "--json").shape(shapes.Backends).backends}
    assert backends["bad"].status == "failed"
    assert "no good" in (backends["bad"].error or "")
    assert backends["dir"].status == "ready"
    assert "no good" in astore.good("backend", "list").out
    (tmp_path / "bad.xml").write_text("<pool type='bad'><name>x</name></pool>")
    astore.good("pool", "define", str(tmp_path / "bad.xml"))
    ran = astore("pool", "start", "x")
    assert (ran.code, ran.complaint.endswith("`astore backend list` shows the state of all backends")) == (1, True)


def test_capabilities(astore: Any) -> None:
    """Every pool type that libvirt knows, and which can be used; virsh's name for it prints libvirt's document."""
    found = astore.good("pool", "capabilities", "--json").shape(shapes.Capabilities).types
    assert {item.type for item in found} >= set(POOL_TYPES)
    assert next(item for item in found if item.type == "dir").volume_formats[0] == "raw"
    assert astore.good("pool", "capabilities").out.splitlines()[1].split()[:2] == ["dir", "yes"]
    xml = astore.good("pool", "capabilities", "--xml").out
    assert xml.startswith("<storagepoolCapabilities>")
    assert astore.good("-q", "pool-capabilities").out == xml.replace('"', "'")
    assert astore.good("pool", "capabilities", "--xml", "--json").shape(shapes.Xml).xml.startswith("<storage")


def test_discovery_that_cannot_be(astore: Any) -> None:
    """A type that cannot be discovered, an unknown type, and a host that is none."""
    ran = astore("pool", "discover", "dir")
    assert (ran.code, "do not support 'discover'" in ran.complaint) == (1, True)
    assert astore("pool", "discover", "nonsense").code == 1
    ran = astore("pool", "discover", "gluster")
    assert (ran.code, ran.complaint) == (2, "say which host to ask: `astore pool discover gluster HOST`")
    ran = astore("pool", "discover", "netfs", "-oevil")
    assert ran.code != 0
    assert astore("pool", "discover", "netfs", "--", "-oevil").code == 1
    assert astore("find-storage-pool-sources-as", "dir").code == 1


@pytest.mark.gluster
def test_discovery(astore: Any, gluster: Any, new_volume: str, tmp_path: Path) -> None:
    """The volumes of a Gluster, as a table, as JSON and as libvirt's document."""
    found = astore.good("pool", "discover", "gluster", gluster.host, "--json").shape(shapes.Sources)
    assert new_volume in {source.name for source in found.sources}
    assert {host.name for source in found.sources for host in source.hosts} == {gluster.host}
    table = astore.good("pool", "discover", "gluster", gluster.host).out
    assert table.splitlines()[0].split() == ["Host", "Name", "Directory", "Format"]
    xml = astore.good("find-storage-pool-sources-as", "gluster", gluster.host).out
    assert f"<name>{new_volume}</name>" in xml
    spec = tmp_path / "spec.xml"
    spec.write_text(f"<source><host name='{gluster.host}'/></source>")
    assert astore.good("pool", "discover", "gluster", "--spec", str(spec), "--json").shape(shapes.Sources) == found
    assert astore.good("find-storage-pool-sources", "gluster", str(spec)).out == xml
    ran = astore("pool", "discover", "gluster", gluster.host, "--timeout", "0.001")
    assert (ran.code, "not done within 0.001 s" in ran.complaint) == (124, True)


def test_discovery_that_finds_nothing(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is no failure; a list without rows is empty in JSON and a sentence for people."""

    async def nothing(*_: object, **__: object) -> list[Any]:
        return []

    monkeypatch.setattr("astore.manager.Manager.discover", nothing)
    assert astore.good("pool", "discover", "gluster", "host").out == "nothing found for pools of type 'gluster'\n"
    assert astore.good("pool", "discover", "gluster", "host", "--json").shape(shapes.Sources).sources == ()


def test_lists_without_rows(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, a sentence says what to do; programs get the headings."""
    astore.state_dir.mkdir(mode=0o700)
    assert astore.good("pool", "list").out.split()[0] == "Name"
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        assert astore.good("pool", "list").out.startswith("no pools yet: `astore pool define FILE`")
        patch.setattr(sys.stdout, "isatty", lambda: False)
        folder = make_pool()
        for entry in folder.iterdir():
            entry.unlink()
        patch.setattr(sys.stdout, "isatty", lambda: True)
        inactive = astore.good("pool", "list", "--inactive").out
        assert inactive == "no inactive pools: `astore pool list --all` shows all there are (1)\n"
        assert astore.good("pool", "list", "--type", "netfs").out.startswith("no such pools: ")
        astore.good("pool", "refresh", "images")
        empty = astore.good("vol", "list", "images").out
        assert empty == (
            "pool 'images' has no volumes: `astore vol create images NAME 10G` makes one, "
            "`astore pool refresh images` looks for new ones\n"
        )
        astore.good("pool", "stop", "images")
        assert astore.good("pool", "list").out.startswith("no active pools: ")


def test_volumes_as_they_are_now(astore: Any, make_pool: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """info and dumpxml look at the volume itself, found by a path in whatever way that is typed."""
    folder = make_pool()
    monkeypatch.chdir(folder)
    path = folder / "a.raw"
    path.write_bytes(b"")
    astore.good("pool", "refresh", "images")
    os.truncate(path, 3 << 20)
    for name in ("a.raw", "./a.raw", f"../{folder.name}/a.raw", f"{folder}/../{folder.name}/a.raw"):
        assert json.loads(astore.good("vol", "info", name, "--json").out)["capacity"] == 3 << 20
    os.truncate(path, 5 << 20)
    assert "<capacity unit='bytes'>5242880<" in astore.good("vol", "dumpxml", "a.raw").out.replace('"', "'")
    path.write_bytes(b"QFI\xfb\0\0\0\3")
    ran = astore("vol", "info", "a.raw")
    assert (ran.code, ran.out) == (1, "")
    assert "volume 'a.raw' of pool 'images': " in ran.err
    path.unlink()
    assert astore("vol", "info", "web.qcow2").code == 0
    assert astore("vol", "info", "a.raw").code == 3


def test_volumes_that_no_refresh_has_seen(astore: Any, make_pool: Make, tmp_path: Path) -> None:
    """They are looked for when they are named: in one pool, in all of them, or by a path; other pools may fail."""
    folder = make_pool("images")
    make_pool("other")
    broken = make_pool("broken")
    shutil.rmtree(broken)
    for number in range(4):
        (folder / f"new{number}.raw").touch()
    assert astore.good("vol", "path", "new0.raw", "--pool", "images").out == f"{folder}/new0.raw\n"
    assert astore.good("vol", "path", "new1.raw").out == f"{folder}/new1.raw\n"
    assert astore.good("vol", "path", str(folder / "new2.raw")).out == f"{folder}/new2.raw\n"
    astore.good("vol", "delete", "new3.raw")
    assert not (folder / "new3.raw").exists()
    ran = astore("vol", "path", "nothing")
    assert (ran.code, ran.out) == (3, "")
    assert ran.complaint.startswith("no active pool has a volume 'nothing'; no answer from broken: ")
    ran = astore("vol", "path", str(folder / "nothing"))
    assert (ran.code, ran.complaint.startswith(f"no active pool has a volume '{folder}/nothing': ")) == (3, True)
    (tmp_path / "other-folder" / "new0.raw").touch()
    (tmp_path / "other-folder" / "twice.raw").touch()
    (folder / "twice.raw").touch()
    ran = astore("vol", "path", "twice.raw")
    assert (ran.code, "several pools have a volume 'twice.raw' (images, other)" in ran.complaint) == (2, True)
