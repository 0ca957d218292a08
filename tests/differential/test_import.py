"""A libvirt's pools of all fourteen types, taken over: each is then in astore what it was in libvirt."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from differential.oracle import LibvirtRefusedError, Oracle
from lxml import etree

from astore.cli.app import run
from astore.xml.known_types import POOL_TYPES
from beds import processes
from beds.libvirt import LibvirtBed

pytestmark = pytest.mark.libvirt

FOLDER = Path("/etc/libvirt/storage")
"""The private libvirtd's own: the bed has covered the machine's."""
COUNT = 100
INACTIVE = 1  # VIR_STORAGE_XML_INACTIVE

PLAN = [(kind, turn) for turn in range(COUNT) for kind in POOL_TYPES if kind != "mpath" or turn == 0][:COUNT]
"""Types in turns, with the number of the turn; a machine has one mpath pool."""
SECRET = "<secret usage='{name}'/>"
PERMISSIONS = (
    "",
    "<permissions><mode>0755</mode><owner>-1</owner><group>-1</group></permissions>",
    "<permissions><mode>0700</mode><owner>107</owner><group>64055</group><label>virt_image_t</label></permissions>",
)
PCI = "<address domain='0x0000' bus='0x{bus:02x}' slot='0x1f' function='0x2'/>"
FS = " xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"
RBD = " xmlns:rbd='http://libvirt.org/schemas/storagepool/rbd/1.0'"


def document(number: int) -> str:
    """The definition of pool ``number``: of the plan's type, and with what such a pool may have, in turns."""
    kind, turn = PLAN[number]
    name = f"{kind}{number}" if turn % 3 else f"Größe {number} &amp; {kind}"
    target = f"<target><path>/srv//{kind}/{number}/</path>{PERMISSIONS[turn % 3]}</target>"
    host = f"<host name='host{number}.example'{' port=' + chr(39) + '3260' + chr(39) if turn % 2 else ''}/>"
    two = host + ("<host name='2001:db8::1'/>" if turn % 2 and kind in ("gluster", "rbd", "sheepdog") else "")
    chap = f"<auth type='chap' username='me'>{SECRET.format(name=kind)}</auth>" if turn % 2 else ""
    ceph = f"<auth type='ceph' username='me'>{SECRET.format(name=kind)}</auth>" if turn % 2 else ""
    iqn = f"<device path='iqn.2013-06.com.example:pool{number}'/>"
    vendor = "<vendor name='Acme'/><product name='model 1'/>" if turn % 2 else ""
    source, extra, space = "", "", ""
    if kind == "dir":
        extra = "<features><cow state='no'/></features>" if turn % 2 else ""
    elif kind == "fs":
        formats = ("auto", "ext4", "xfs", "vfat")
        source = f"<device path='/dev/disk/{number}'/><format type='{formats[turn % 4]}'/>{vendor}"
        space = FS if turn % 2 else ""
        extra = "<fs:mount_opts><fs:option name='sync'/><fs:option name='noatime'/></fs:mount_opts>" if space else ""
    elif kind == "netfs":
        formats = ("auto", "nfs", "glusterfs", "cifs")
        version = "<protocol ver='4.2'/>" if turn % 4 == 1 else ""
        source = f"{host.replace(' port=' + chr(39) + '3260' + chr(39), '')}<dir path='/export/{number}'/>"
        source += f"<format type='{formats[turn % 4]}'/>{version}"
        space = FS if turn % 2 else ""
        extra = "<fs:mount_opts><fs:option name='soft'/></fs:mount_opts>" if space else ""
    elif kind == "logical":
        source = f"<device path='/dev/sd{number}'/><device path='/dev/se{number}'/><name>group{number}</name>"
    elif kind == "disk":
        separator = (" part_separator='yes'", " part_separator='no'", "")[turn % 3]
        source = f"<device path='/dev/vd{number}'{separator}/><format type='{('gpt', 'dos')[turn % 2]}'/>"
    elif kind == "iscsi":
        initiator = "<initiator><iqn name='iqn.2013-06.com.example:me'/></initiator>" if turn % 2 else ""
        source = f"{host}{iqn}{initiator}{chap}{vendor}"
    elif kind == "iscsi-direct":
        source = f"{host}{iqn}<initiator><iqn name='iqn.2013-06.com.example:me'/></initiator>{chap}"
    elif kind == "scsi":
        source = (
            f"<adapter type='scsi_host' name='scsi_host{number}'/>",
            "<adapter type='fc_host' wwnn='200000001b32a9da' wwpn='210000001b32a9d" + f"{number % 16:x}'/>",
            f"<adapter type='scsi_host'><parentaddr unique_id='2'>{PCI.format(bus=number)}</parentaddr></adapter>",
        )[turn % 3]
    elif kind == "rbd":
        source = f"{two}<name>pool{number}</name>{ceph}"
        space = RBD if turn % 2 else ""
        extra = "<refresh><volume allocation='capacity'/></refresh>" if turn % 2 == 0 else ""
        extra += "<rbd:config_opts><rbd:option name='a_b' value='1'/></rbd:config_opts>" if space else ""
    elif kind == "sheepdog":
        source = f"{host}<name>dog{number}</name>"
    elif kind == "gluster":
        source = f"{two}<dir path='/images/{number}'/><name>volume{number}</name>"
    elif kind in ("zfs", "vstorage"):
        source = f"<name>{kind}{number}</name>"
    return f"<pool type='{kind}'{space}><name>{name}</name><source>{source}</source>{target}{extra}</pool>"


OPTIONS = re.compile("<([a-z]+:config_opts)>.*</\\1>")


class Made(NamedTuple):
    """libvirt's pools: what it writes of each, by name, and which of them it starts automatically."""

    written: dict[str, str]
    autostarted: frozenset[str]


@pytest.fixture
def pools(libvirt_bed: LibvirtBed, oracle: Oracle) -> Iterator[Made]:
    """A hundred pools of libvirt's.

    Debian's libvirt has no backend for some types, and then does not define them; but it reads them from its folder when it
    starts or is told to read that again, as they are when the package with the backend was removed.
    """
    before = oracle.ask("pools")
    with contextlib.ExitStack() as made:
        made.callback(
            lambda: [oracle.ask("pool_call", name, "undefine") for name in set(oracle.ask("pools")) - set(before)]
        )
        for number in range(COUNT):
            text = document(number)
            name = str(etree.fromstring(text).findtext("name"))
            try:
                if number % 10:
                    oracle.ask("define", text)
                else:
                    libvirt_bed.define(text)
            except (LibvirtRefusedError, RuntimeError) as error:
                if "missing backend" not in str(error):
                    raise
                text = OPTIONS.sub("", text)  # a backend that is not there knows no namespace either
                uuid = f"<uuid>00000000-0000-4000-8000-{number:012x}</uuid><source>"
                (FOLDER / f"{name}.xml").write_text(text.replace("<source>", uuid, 1))
        (pid,) = libvirt_bed.pids()
        os.kill(pid, signal.SIGHUP)
        processes.wait_until(
            lambda: len(oracle.ask("pools")) == COUNT + len(before), 30, "libvirtd has read its folder"
        )
        names = sorted(set(oracle.ask("pools")) - set(before))
        marked = frozenset(names[::3])
        for name in marked:
            oracle.ask("pool_call", name, "setAutostart", 1)
        yield Made({name: oracle.ask("pool_call", name, "XMLDesc", INACTIVE) for name in names}, marked)


def plain(text: str) -> str:
    """A document in one form, whatever quotation marks, blanks between elements and order of attributes it has."""
    root = etree.fromstring(text, etree.XMLParser(remove_blank_text=True))
    for element in root.iter():
        element.text = (element.text or "").strip("\n ") or None  # <source>\n  </source>
    return str(etree.tostring(root, method="c14n").decode())


def test_a_hundred_pools(
    pools: Made, libvirt_bed: LibvirtBed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Imported, ``astore pool dumpxml`` of each is ``virsh pool-dumpxml --inactive``; marks too; again, nothing changes."""
    state = ("--state-dir", str(tmp_path / "state"))

    def astore(*arguments: str) -> str:
        capsys.readouterr()
        assert run([*arguments, *state]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    assert {etree.fromstring(text).get("type") for text in pools.written.values()} == set(POOL_TYPES)
    entries = json.loads(astore("pool", "import", str(FOLDER), "--json"))["entries"]
    assert {(entry["pool"], entry["action"]) for entry in entries} >= {(name, "imported") for name in pools.written}
    different = {}
    for name, text in pools.written.items():
        if (ours := plain(astore("pool", "dumpxml", name))) != (theirs := plain(text)):
            different[name] = f"{ours}\n{theirs}"
    assert different == {}, "\n".join(different.values())
    name = next(iter(pools.written))
    assert plain(libvirt_bed.virsh("pool-dumpxml", name, "--inactive")) == plain(astore("pool", "dumpxml", name))
    listed = json.loads(astore("pool", "list", "--all", "--json"))["pools"]
    assert {pool["name"] for pool in listed if pool["autostart"]} == pools.autostarted
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "astore.cli",
            "pool",
            "import",
            *state,
            "--json",
        ],  # the folder is the default
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    again = json.loads(done.stdout)
    assert again["folder"] == str(FOLDER)
    assert {entry["action"] for entry in again["entries"]} == {"unchanged"}
    assert [entry["autostart"] for entry in again["entries"] if entry["pool"] in pools.written] == [
        name in pools.autostarted for name in sorted(pools.written)
    ]
