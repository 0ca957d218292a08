"""The commands and settings of docs/ that need more than a folder: another machine, a storage server, systemd."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from doc_blocks import PAGES, ROOT, Block, blocks, commands, run

from astore import SecretName
from astore.secrets import credential_name

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

SSH = """#!/bin/sh
# Called as ssh HOST COMMAND: the host is another state folder of this machine.
[ "$1" = new.example.org ] || exit 255
shift
ASTORE_STATE_DIR=$OTHER_STATE_DIR exec sh -c "$*"
"""


def block(page: str, begin: str) -> Block:
    """Return the block of a page of docs/ that begins with a text."""
    (found,) = [one for one in blocks(ROOT / "docs" / page) if one.text.startswith(begin)]
    return found


def bash(command: str, folder: Path, **more: str) -> str:
    """Run a command as tests/test_documentation.py does; return its output."""
    return run(["bash", "-euo", "pipefail", "-c", command], folder, command, **more)


def test_a_volume_goes_to_another_machine(tmp_path: Path) -> None:
    """docs/moving.md: a volume goes through ssh from a pool of this machine into one of the other."""
    programs, other = tmp_path / "programs", str(tmp_path / "other")
    programs.mkdir()
    (programs / "ssh").write_text(SSH)
    (programs / "ssh").chmod(0o755)
    for option, folder in (("", "here"), (f"--state-dir {other}", "there")):
        (tmp_path / folder).mkdir()
        definition = f"<pool type='dir'><name>images</name><target><path>{tmp_path / folder}</path></target></pool>"
        (tmp_path / "images.xml").write_text(definition)
        bash(f"astore {option} pool define images.xml && astore {option} pool start images", tmp_path)
    bash("astore vol create images disk.raw 64M && printf hello | astore vol upload disk.raw -", tmp_path)
    for command in commands(block("moving.md", "$ ssh ").text):
        bash(f"PATH={programs}:$PATH; {command}", tmp_path, OTHER_STATE_DIR=other)
    assert (tmp_path / "there" / "disk.raw").read_bytes() == b"hello" + bytes((64 << 20) - 5)


@pytest.mark.root
@pytest.mark.gluster
def test_a_server_is_asked_for_its_sources(
    gluster: GlusterBed, volume_factory: Callable[..., str], tmp_path: Path
) -> None:
    """docs/pools.md: both commands find the volume of a Gluster server, whose address stands for the page's names."""
    volume = volume_factory()
    asked = commands(block("pools.md", "$ astore pool discover ").text)
    assert len(asked) == 2
    for command in asked:
        assert volume in bash(re.sub(r"\w+\.example\.org", gluster.host, command), tmp_path).split()


def verify(text: str, folder: Path) -> str:
    """Return what systemd says against a service with these settings."""
    (folder / "page.service").write_text(f"{text}ExecStart=/bin/true\n")
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(folder / "page.service")]
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.mark.systemd
def test_settings_of_services(tmp_path: Path) -> None:
    """systemd takes the settings of the pages, and says which it does not take."""
    settings = [one for page in PAGES for one in blocks(page) if one.kind == "ini"]
    assert len(settings) >= 2
    for one in settings:
        assert one.text.startswith("[Service]\n")
        assert verify(one.text, tmp_path) == ""
    for wrong in ("Usr=astore", "LoadCredential=a/b:/etc/chap", "StateDirectoryMode=0790"):
        assert "page.service:2: " in verify(f"[Service]\n{wrong}\n", tmp_path)


def test_names_of_credentials() -> None:
    """docs/secrets.md: the service's credentials have the names under which astore looks for them."""
    named = re.findall(r"^\w+=([^:\n]+)", block("secrets.md", "[Service]").text, re.MULTILINE)
    wanted = [SecretName("ceph", usage="client.admin"), SecretName("iscsi", usage="iqn.2013-07.com.example:images")]
    assert named == [credential_name(name) for name in wanted]


@pytest.mark.systemd
def test_commands_on_the_service() -> None:
    """docs/at-boot.md: its commands are systemd's, and name the service of the package. None is run: systemd does not."""
    lines = block("at-boot.md", "# systemctl ").text.splitlines()
    for program, *words in (line.removeprefix("# ").partition("   ")[0].split() for line in lines):
        assert words.pop() == "astore-autostart"
        told = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
        assert [word for word in words if not re.search(rf"^ +{re.escape(word)}\b", told, re.MULTILINE)] == []
    assert len(lines) == 4
    assert (ROOT / "debian" / "astore.astore-autostart.service").is_file()
