"""Pools from options, editing them, waiting for their events, and what is said of those that are odd."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import json_page as shapes
import pytest
from core_fakes import PATIENCE

from astore.model import Device, DiscoveredSource, Host, Source
from astore.xml.documents import DiscoveredSources

Make = Callable[..., Path]


def test_pools_from_options(astore: Any, tmp_path: Path) -> None:
    """define-as and create-as make what they print; a dash is no value; what belongs together must come together."""
    target = ("--target", str(tmp_path / "a"))
    xml = astore.good("-q", "pool-define-as", "a", "dir", "-", *target, "--print-xml").out
    assert (
        xml == f"<pool type='dir'>\n  <name>a</name>\n  <target>\n    <path>{tmp_path}/a</path>\n  </target>\n</pool>\n"
    )
    assert astore.good("pool", "list", "--all", "--name").out == ""
    assert astore.good("pool", "define-as", "a", "dir", *target).out == "pool 'a' defined\n"
    assert astore.good("pool", "create-as", "b", "dir", "--target", str(tmp_path / "b"), "--build").out
    assert astore.good("pool", "list", "--transient", "--name").out == "b\n"
    for options, why in (
        (("--auth-type", "chap"), "--auth-username"),
        (("--adapter-wwnn", "1"), "--adapter-wwpn"),
        (("--auth-type", "chap", "--auth-username", "u"), "say which secret"),
        (("--secret-uuid", "1", "--secret-usage", "u"), "say one of them"),
    ):
        ran = astore("pool", "define-as", "c", "iscsi", *options)
        assert ran.code == 2
        assert why in ran.complaint
    ran = astore("pool", "create-as", "b", "dir", *target, "--overwrite")
    assert (ran.code, "never overwrites" in ran.complaint) == (2, True)


@pytest.mark.libvirt
@pytest.mark.parametrize(
    "words",
    [
        "net netfs --source-host h --source-path /x --source-format nfs --target /mnt/x --source-protocol-ver 4",
        "is iscsi --source-host h --source-dev i --auth-type chap --auth-username u --secret-usage s --target /dev/disk",
        "id iscsi-direct --source-host h --source-dev i --source-initiator j",
        "sc scsi --adapter-wwnn 20000000c9831b4b --adapter-wwpn 10000000c9831b4b --adapter-parent scsi_host3 --target /d",
        "sc scsi --adapter-name scsi_host3 --target /dev/disk",
        "rb rbd --source-host h --source-name p --auth-type ceph --auth-username u --secret-uuid 1-2",
        "lv logical --source-dev /dev/sda --source-name vg --target /dev/vg --source-format lvm2",
    ],
)
def test_documents_from_options_are_virshs(astore: Any, libvirt_bed: Any, words: str) -> None:
    """To the letter."""
    arguments = ("pool-define-as", *words.split(), "--print-xml")
    assert astore.good("-q", *arguments).out == libvirt_bed.virsh(*arguments)


def test_a_type_that_nobody_knows_is_warned_of(astore: Any, tmp_path: Path) -> None:
    """The pool is defined, and stderr says what is odd."""
    ran = astore("pool", "define-as", "a", "dirr", "--target", str(tmp_path))
    assert (ran.code, ran.out) == (0, "pool 'a' defined\n")
    assert "'dirr' is none of libvirt's pool types" in ran.complaint


def test_validated_definitions(astore: Any, tmp_path: Path) -> None:
    """--validate asks libvirt's schema, which the reader alone does not."""
    file = tmp_path / "a.xml"
    text = f"<pool type='dir'><name>a</name><target><path>{tmp_path}</path></target><odd/></pool>"
    file.write_text(text)
    ran = astore("pool", "define", "--validate", str(file))
    assert ran.code == 1
    assert "schema does not allow it" in ran.complaint
    astore.good("pool", "define", str(file))
    file.write_text(text.replace("<odd/>", ""))
    astore.good("pool", "define", "--validate", str(file))
    astore.good("pool", "start", "a")
    text = "<volume><name>v</name><capacity>1024</capacity><target/><odd/></volume>"
    for command, more in (("vol-create", ()), ("vol-create-from", ("w",))):
        file.write_text(text)
        ran = astore(command, "a", str(file), *more, "--validate")
        assert (ran.code, "schema does not allow it" in ran.complaint) == (1, True)
        file.write_text(text.replace("<odd/>", ""))
        astore.good(command, "a", str(file), *more, "--validate")
        if not more:
            astore.good("vol", "rename", "a/v", "w")


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a shell command the editor; the file is its $1."""

    def use(text: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", str(script))

    return use


def test_editing_a_pool(astore: Any, make_pool: Make, editor: Callable[[str], None], tmp_path: Path) -> None:
    """What is saved is defined; what is not changed, wrong or another pool's is not."""
    folder = make_pool("images")
    editor("true")
    assert astore.good("pool", "edit", "images").out == "pool 'images' is unchanged\n"
    assert "not changed" in astore.good("pool-edit", "images").out
    editor(f'sed -i s,{folder},{tmp_path}/new, "$1"; stat -c %a "$1" >{tmp_path}/mode')
    assert "defined anew" in astore.good("pool", "edit", "images").out
    assert f"{tmp_path}/new" in astore.good("pool", "dumpxml", "--inactive", "images").out
    assert str(folder) in astore.good("pool", "dumpxml", "images").out
    assert (tmp_path / "mode").read_text() == "600\n"
    before = astore.good("pool", "dumpxml", "--inactive", "images").out
    for command, why in (
        ('echo "<pool" >"$1"', "your text is in "),
        ('sed -i s,images,isos, "$1"', "cannot be changed"),
        ("exit 3", "failed with exit code 3"),
    ):
        editor(command)
        ran = astore("pool", "edit", "images")
        assert ran.code == 1
        assert why in ran.complaint
        assert astore.good("pool", "dumpxml", "--inactive", "images").out == before
        _, found, rest = ran.complaint.partition("your text is in ")
        if found:
            Path(rest).unlink()


def test_editing_what_another_changes_meanwhile(
    astore: Any, make_pool: Make, editor: Callable[[str], None], tmp_path: Path
) -> None:
    """The other's change stays, and so does the text."""
    make_pool("images", start=False)
    other = astore.definition("images", tmp_path / "other")
    argv = " ".join(astore.argv("pool", "define", other))
    editor(f'{argv} >/dev/null; sed -i s,images-folder,mine, "$1"')
    ran = astore("pool", "edit", "images")
    assert ran.code == 1
    assert "another process changed pool 'images' meanwhile" in ran.complaint
    assert f"{tmp_path}/other" in astore.good("pool", "dumpxml", "images").out
    text = Path(ran.complaint.partition("your text is in ")[2])
    assert f"{tmp_path}/mine" in text.read_text()
    text.unlink()


def test_a_mistake_is_offered_again(
    astore: Any, make_pool: Make, editor: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, with the text as it was left."""
    make_pool("images", start=False)
    asked: list[str] = []
    monkeypatch.setattr("astore.cli.pool_edit.again", lambda problem: not asked.append(problem))
    editor('if grep -q broken "$1"; then sed -i s,broken,path,g "$1"; else sed -i s,path,broken,g "$1"; fi')
    assert astore.good("pool", "edit", "images").out == "pool 'images' is unchanged\n"
    assert len(asked) == 1


@pytest.mark.parametrize("answer", ["\n", "n\n", "\x04"])
def test_the_question_on_a_terminal(
    astore: Any, make_pool: Make, editor: Callable[[str], None], tmp_path: Path, answer: str
) -> None:
    """The mistake is told; Return edits it again, and a no or Ctrl-D says where the text is."""
    make_pool("images", start=False)
    editor(
        f'if [ -e {tmp_path}/mended ]; then cp {tmp_path}/mended "$1"; '
        f'else sed s,images-folder,other, "$1" >{tmp_path}/mended; echo "<pool" >"$1"; fi'
    )
    with astore.terminal("pool", "edit", "images", TMPDIR=str(tmp_path)) as terminal:
        terminal.pass_by("edit it again? [Y/n] ")
        terminal.type(answer)
        terminal.pass_by("pool 'images' is defined anew" if answer == "\n" else "your text is in ")
        assert terminal.process.wait(PATIENCE) == (0 if answer == "\n" else 1)
    assert ("/other" in astore.good("pool", "dumpxml", "images").out) is (answer == "\n")


def test_waiting_for_events(astore: Any, make_pool: Make) -> None:
    """One line for each event of the type, from this and other processes."""
    make_pool("images")
    assert astore.good("pool", "event", "--list").out == "lifecycle\nrefresh\n"
    assert astore("pool", "event").code == 2
    with astore.running("pool-event", "--event", "lifecycle", "--loop", "--timestamp", "--timeout", "150") as process:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(line.decode() for line in process.stdout))
        reader.start()
        while not lines and reader.is_alive():  # it may not have begun to look yet
            astore.good("pool", "stop", "images")
            astore.good("pool", "start", "images")
            reader.join(timeout=1.0)
        process.terminate()
        reader.join()
    assert ": event 'lifecycle' for storage pool images: St" in lines[0]
    ran = astore("pool", "event", "--event", "refresh", "--timeout", "0.2")
    assert (ran.code, ran.out) == (1, "event loop timed out\nevents received: 0\n")
    with astore.running("pool-event", "--event", "refresh", "--pool", "images", "--timeout", "150") as process:
        reader = threading.Thread(target=lambda: lines.extend(line.decode() for line in process.stdout))
        del lines[:]
        reader.start()
        while not lines and reader.is_alive():
            astore.good("pool", "refresh", "images")
            reader.join(timeout=1.0)
        reader.join()
    assert lines[:2] == ["event 'refresh' for storage pool images\n", "events received: 1\n"]


def test_a_transient_pool_without_its_folder(astore: Any, tmp_path: Path) -> None:
    """The advice can be followed: there is no pool that could be built."""
    arguments = ("pool", "create-as", "t", "dir", "--target", str(tmp_path / "missing"))
    assert "`--build` does" in astore(*arguments).complaint
    assert astore.good(*arguments, "--build").code == 0


def test_verbs_without_their_noun(astore: Any) -> None:
    """What is a verb of pools is suggested as one."""
    assert "did you mean `pool discover`?" in astore("discover").complaint


def test_one_fault_is_told_once(astore: Any, make_pool: Make) -> None:
    """Whatever number of names was given, and without an empty table."""
    make_pool("images")
    ran = astore("vol", "delete", "a", "b", "--pool", "nosuch")
    assert ran.err.count("nosuch") == astore("vol", "delete", "a", "--pool", "nosuch").err.count("nosuch")
    assert astore("vol", "check", "images/nosuch").out == ""
    assert "is not a valid number" in astore("pool", "list", "--timeout", "abc").complaint


def test_options_that_make_no_pool(astore: Any) -> None:
    """The error has no line of a document that the user has not written."""
    ran = astore("pool", "define-as", "images", "dir")
    assert ran.code == 1
    assert ran.complaint.startswith("a dir pool needs a target path: `--help` names the options")


def test_a_list_of_an_inaccessible_pool_says_so(astore: Any, make_pool: Make) -> None:
    """On stderr: since when, and how old it is. The advice can be followed."""
    folder = make_pool("images")
    kept = folder.with_name("kept")
    folder.rename(kept)
    ran = astore("pool", "refresh", "images")
    assert ran.complaint.endswith("`astore pool stop images`, then `astore pool build images`")
    ran = astore("vol", "create", "images", "a", "1M")
    assert "`astore pool stop images`, then" in ran.complaint
    assert astore("pool", "start", "images").complaint.endswith("`astore pool refresh images` tries again")
    ran = astore("vol", "list", "images")
    assert ran.code == 0
    assert "web.qcow2" in ran.out
    assert ran.complaint.startswith("pool 'images' is inaccessible since 20")
    listed = astore("pool", "list")
    assert (listed.code, listed.err) == (0, ran.err)
    assert ", what is shown is of 20" in listed.complaint
    assert astore("pool", "list", "--inactive").err == ""
    kept.rename(folder)


def test_connecting(astore: Any) -> None:
    """virsh's --connect is taken for this machine only."""
    astore.good("-c", "qemu:///system", "pool-list")
    assert astore("--connect", "qemu+ssh://host/system", "pool-list").code == 2


def test_a_discovered_source_is_defined(astore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only one, or the one that --source names."""
    found = [Source(hosts=(Host("nas"),), directory=f"/exports/{name}", format="nfs") for name in ("a", "b")]

    async def discover(*_: object, **__: object) -> DiscoveredSources:
        return DiscoveredSources(DiscoveredSource("netfs", one) for one in found)

    monkeypatch.setattr("astore.manager.Manager.discover", discover)
    command = ("pool", "discover", "netfs", "nas", "--define", "share", "--target", "/mnt/share")
    ran = astore(*command)
    assert (ran.code, ran.complaint) == (2, "say which one to define with --source: /exports/a, /exports/b")
    assert astore.good(*command, "--source", "/exports/b").out == "pool 'share' defined\n"
    shown = astore.good("pool", "dumpxml", "share", "--xpath", "//dir/@path | //target/path/text()").out
    assert shown == ' path="/exports/b"\n/mnt/share\n'
    target = "iqn.2026-01.test:disks"
    found[:] = [Source(hosts=(Host("san"),), devices=(Device(target),), initiator="iqn.2026-01.test:me")]
    assert target in astore.good("pool", "discover", "iscsi-direct", "san").out
    listed = astore.good("pool", "discover", "iscsi-direct", "san", "--json").shape(shapes.Sources)
    assert (listed.sources[0].devices, listed.sources[0].initiator) == ((target,), "iqn.2026-01.test:me")
    asked = ("pool", "discover", "iscsi-direct", "san", "--initiator", "iqn.2026-01.test:me", "--define", "luns")
    assert astore.good(*asked, "--source", target).out == "pool 'luns' defined\n"
    found.clear()
    assert astore(*command).code == 3
    assert astore("pool", "discover", "netfs", "nas", "--target", "/x").code == 2
    found[:] = [Source(hosts=(Host("san"),), devices=(Device(target),))]
    ran = astore("pool", "discover", "iscsi-direct", "san", "--define", "other")
    assert ran.complaint == (
        "an iscsi-direct pool needs an initiator: `--help` names the options, such as --target and --initiator"
    )
