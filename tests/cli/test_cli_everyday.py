"""Scripts for virsh, the twenty everyday tasks among them: astore in virsh's place does and prints the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from beds.libvirt import LibvirtBed

SCRIPT = Path(__file__).with_name("everyday.sh")


def ran(text: str, folder: Path, environment: dict[str, str]) -> str:
    """What the script prints, with the folder's name and what is never the same left out."""
    folder.mkdir()
    (folder / "script").write_text(text)
    done = subprocess.run(
        ["bash", "-u", "script"],
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    out = done.stdout.replace(str(folder), "FOLDER")
    out = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", out)
    # of the file system, which others write to as well
    out = re.sub(r"(?m)^(Capacity|Allocation|Available): +\S+ [GT]iB$", r"\1: N", out)
    out = re.sub(r"(?m)^( \w+ +running .*?)  +\S+ [GT]iB.*$", r"\1", out)
    # the width of a table's line depends on the folder's name
    return re.sub(r"(?m)^-+$|(?<= Path) *$", "", out)


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Names, modes and bytes of the files of the pools; of images their virtual sizes and backing files' names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent != folder:
            data = path.read_bytes()
            if path.suffix == ".qcow2":
                said = subprocess.run(
                    ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=True
                ).stdout
                image = json.loads(said)
                kept = ("virtual-size", "backing-filename", "backing-filename-format")
                data = repr([image.get(key) for key in kept]).replace(str(folder), "FOLDER").encode()
            found[str(path.relative_to(folder))] = (path.stat().st_mode, data)
    return found


def with_both(script: Path, astore: Any, uri: str, folder: Path) -> tuple[str, str]:
    """What the script prints with virsh, in the folder ``one``, and with astore in its place, in ``two``."""
    text = script.read_text()
    with_virsh = ran(text, folder / "one", {**os.environ, "VIRSH_DEFAULT_CONNECT_URI": uri})
    programs = folder / "programs"
    programs.mkdir()
    program = programs / "astore"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m astore "$@"\n')
    program.chmod(0o755)
    # fifty processes: they must not compile the same modules again and again
    environment = astore.environment(PYTHONPYCACHEPREFIX=str(folder / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PATH"] = f"{programs}:{os.environ['PATH']}"
    with_astore = ran(text.replace("virsh", "astore"), folder / "two", environment)
    return with_virsh.replace("astore", "virsh"), with_astore.replace("astore", "virsh")


@pytest.mark.libvirt
@pytest.mark.qemu
@pytest.mark.root
def test_twenty_tasks(astore: Any, libvirt_bed: LibvirtBed, tmp_path: Path) -> None:
    """What is printed is the same, and what is on the disks."""
    assert len(re.findall(r"(?m)^task \d+:", SCRIPT.read_text())) == 20
    theirs, ours = with_both(SCRIPT, astore, libvirt_bed.uri, tmp_path)
    assert ours.splitlines() == theirs.splitlines()
    assert content(tmp_path / "two") == content(tmp_path / "one")
    images = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.qcow2")]
    assert images
    for image in images:
        both = [str(tmp_path / whose / image) for whose in ("one", "two")]
        subprocess.run(["qemu-img", "compare", "-U", *both], check=True, capture_output=True)


@pytest.mark.libvirt
@pytest.mark.root
def test_events(astore: Any, libvirt_bed: LibvirtBed, tmp_path: Path) -> None:
    """What is printed of what happens to pools is the same."""
    theirs, ours = with_both(SCRIPT.with_name("events.sh"), astore, libvirt_bed.uri, tmp_path)
    assert "was not told" not in theirs
    assert ours.splitlines() == theirs.splitlines()


@pytest.mark.libvirt
@pytest.mark.root
def test_secrets(astore: Any, libvirt_bed: LibvirtBed, tmp_path: Path) -> None:
    """What is printed of secrets is the same."""
    theirs, ours = with_both(SCRIPT.with_name("secrets.sh"), astore, libvirt_bed.secrets_uri, tmp_path)
    assert ours.splitlines() == theirs.splitlines()
