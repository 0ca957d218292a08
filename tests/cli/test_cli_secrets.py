"""``astore secret``: values come from files, standard input or a prompt, and are shown nowhere."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import json_page
import pytest

from astore import SecretName
from astore.secrets import SecretFiles

UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"
XML = f"<secret><uuid>{UUID}</uuid><usage type='iscsi'><target>x</target></usage></secret>"


@pytest.fixture
def kept(astore: Any) -> SecretFiles:
    """What the command keeps."""
    return SecretFiles(astore.state_dir)


def test_set_list_remove(astore: Any, kept: SecretFiles, tmp_path: Path) -> None:
    """By type and name."""
    file = tmp_path / "password"
    file.write_bytes(b"sesame\n")
    ran = astore.good("secret", "set", "cifs", "files", "--file", str(file))
    assert ran.out == "secret cifs 'files' is set\n"
    assert kept.value(SecretName("cifs", usage="files")) == b"sesame"
    uuid = kept.by_usage("cifs", "files").uuid
    assert astore.good("secret", "list").out.splitlines()[1].split() == [uuid, "cifs", "files", "kept"]
    listed = astore.good("secret", "list", "--json").shape(json_page.SecretList)
    assert [(one.usage, one.has_value) for one in listed.secrets] == [("files", True)]
    removed = astore.good("secret", "remove", "cifs", "files", "--json").shape(json_page.Secret)
    assert removed.uuid == uuid and removed.has_value is False
    assert kept.all() == ((), ())
    gone = astore("secret", "remove", "cifs", "files")
    assert gone.code == 3 and "`astore secret list`" in gone.complaint


def test_by_virshs_names(astore: Any, kept: SecretFiles, tmp_path: Path) -> None:
    """With its options and its base64."""
    (tmp_path / "secret.xml").write_text(XML)
    (tmp_path / "value").write_bytes(b"c2VzYW1l\n")
    assert astore.good("secret-define", str(tmp_path / "secret.xml")).out == f"Secret {UUID} created\n\n"
    assert astore.good("-q", "secret-list").out.split() == [UUID, "iscsi", "x"]
    astore.good("secret-set-value", UUID, "--file", str(tmp_path / "value"))
    assert kept.value(SecretName("iscsi", UUID)) == b"sesame"
    astore.good("secret-set-value", UUID, "--file", str(tmp_path / "value"), "--plain", "--json").shape(
        json_page.Secret
    )
    assert kept.value(SecretName("iscsi", UUID)) == b"c2VzYW1l\n"
    document = astore.good("secret-dumpxml", UUID).out
    assert document.startswith("<secret ephemeral='no' private='no'>") and "c2V" not in document
    assert astore.good("secret", "define", str(tmp_path / "secret.xml"), "--json").shape(json_page.Secret).uuid == UUID
    assert kept.value(SecretName("iscsi", UUID)) == b"c2VzYW1l\n"
    assert astore.good("secret-undefine", UUID).out == f"Secret {UUID} deleted\n\n"
    assert astore("secret-dumpxml", UUID).code == 3


def test_standard_input(astore: Any, kept: SecretFiles) -> None:
    """It is read if there is no --file; a key of Ceph's is base64."""
    ran = astore.process("secret", "set", "ceph", "client.admin", stdin=b"c2VzYW1l\n")
    assert (ran.code, ran.err) == (0, "")
    assert kept.value(SecretName("ceph", usage="client.admin")) == b"sesame"
    ran = astore.process("secret-define", "-", stdin=XML.encode())
    assert (ran.code, ran.err) == (0, "")
    ran = astore.process("secret-set-value", UUID, "--plain", "--file", "-", stdin=b"line\n")
    assert (ran.code, ran.err) == (0, "")
    assert kept.value(SecretName("iscsi", UUID)) == b"line\n"


@pytest.mark.parametrize(
    "arguments", [("set", "iscsi", "x"), ("set-value", UUID, "--interactive"), ("set-value", UUID)]
)
def test_a_prompt(astore: Any, kept: SecretFiles, arguments: tuple[str, ...]) -> None:
    """On a terminal the value is asked for, without an echo, and is no base64."""
    kept.define(XML)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        astore.argv("secret", *arguments),
        env=astore.environment(),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while b": " not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, b"sesame\n")
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end was closed
                break
            shown += part
    finally:
        os.close(ours)
        assert process.wait(timeout=200) == 0
    assert b"Value of the" in shown and b"sesame" not in shown
    assert kept.value(SecretName("iscsi", usage="x")) == b"sesame"


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (("set", "ceph", "x", "sesame"), "too many arguments. Other users can see arguments", 2),
        (("set-value", UUID, "sesame"), "too many arguments", 2),
        (("set-value", UUID, "--base64", "sesame"), "No such option", 2),
        (("set-value", UUID, "--interactive"), "needs a terminal", 2),
        (("set", "ceph", "x"), "no base64", 1),
        (("set-value", UUID), "no base64", 1),
        (("set", "ceph", "x", "--file", "/absent"), "/absent cannot be read", 1),
        (("set", "nonsense", "x"), "nonsense", 2),
        (("set-value", "x"), "is no UUID", 1),
    ],
)
def test_refused(astore: Any, kept: SecretFiles, arguments: tuple[str, ...], words: str, code: int) -> None:
    """In one line that does not show the value, from wherever it came; with --verbose as well."""
    kept.define(XML)
    for more in ((), ("--json",)):
        ran = astore.process("secret", *arguments, *more, stdin=b"sesame!\n")
        assert ran.code == code and words in ran.complaint and "sesame" not in ran.err + ran.out
    assert "sesame" not in astore.process("--verbose", "secret", *arguments, stdin=b"sesame!\n").err
    assert not [one for one in kept.all()[0] if one.has_value]


def test_one_that_is_damaged(astore: Any, kept: SecretFiles) -> None:
    """The others are listed, and stderr has what to do about it."""
    kept.set("cifs", "files", b"sesame")
    (kept.folder / f"{UUID}.json").write_bytes(b"sesame")
    (kept.folder / f"{UUID}.json").chmod(0o600)
    ran = astore("secret", "list")
    assert ran.code == 0 and "is damaged: remove it" in ran.complaint and "sesame" not in ran.out + ran.err
    assert "files" in ran.out
