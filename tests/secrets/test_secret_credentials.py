"""The credentials of a systemd service."""

from __future__ import annotations

from pathlib import Path

import pytest

from astore import DefinitionError, SecretName, StoreError
from astore.secrets import SystemdCredentials, credential_name

UUID = "0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's folder."""
    made = tmp_path / "credentials"
    made.mkdir(mode=0o500)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(made))
    return made


def put(folder: Path, name: str, text: bytes, mode: int = 0o400) -> None:
    """Give the service a credential."""
    folder.chmod(0o700)
    (folder / name).write_bytes(text)
    (folder / name).chmod(mode)
    folder.chmod(0o500)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        (SecretName("ceph", UUID), f"astore.{UUID}"),
        (SecretName("ceph", usage="client.admin"), "astore.ceph.client.admin"),
        (SecretName("iscsi", usage="iqn.2013-07.com.example:a b"), "astore.iscsi.iqn.2013-07.com.example=3Aa=20b"),
        (SecretName("cifs", usage="../../etc/x"), "astore.cifs...=2F..=2Fetc=2Fx"),
        (SecretName("cifs", usage="a=3A"), "astore.cifs.a=3D3A"),
        (SecretName("cifs", usage="ä\0\udc80"), "astore.cifs.=C3=A4=00=ED=B2=80"),
    ],
)
def test_names(folder: Path, name: SecretName, file: str) -> None:
    """Every usage has a name of its own, which systemd accepts and which leads nowhere else."""
    assert credential_name(name) == file
    assert SystemdCredentials().value(name) is None
    put(folder, file, b"c2VzYW1l\n")
    assert SystemdCredentials().value(name) == (b"sesame" if name.type == "ceph" else b"c2VzYW1l")


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Without the variable, without the folder, and with a name that no file can have."""
    name = SecretName("iscsi", usage="x")
    assert SystemdCredentials(tmp_path / "absent").value(name) is None
    assert SystemdCredentials().value(SecretName("iscsi", usage=":" * 100)) is None
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert SystemdCredentials().value(name) is None


def test_who_may_read(folder: Path) -> None:
    """The mask of an access control list stands where the group's permissions do; others may read nothing."""
    name = SecretName("iscsi", usage="x")
    put(folder, "astore.iscsi.x", b"sesame", 0o440)
    folder.chmod(0o550)
    assert SystemdCredentials().value(name) == b"sesame"
    put(folder, "astore.iscsi.x", b"sesame", 0o444)
    with pytest.raises(StoreError, match="not hidden from other users"):
        SystemdCredentials().value(name)
    put(folder, "astore.iscsi.x", b"sesame")
    folder.chmod(0o555)
    with pytest.raises(StoreError, match="not hidden from other users"):
        SystemdCredentials().value(name)


def test_no_base64(folder: Path) -> None:
    """A key of Ceph's is told as no key, and not shown."""
    put(folder, "astore.ceph.x", b"sesame!")
    with pytest.raises(DefinitionError, match="no base64") as caught:
        SystemdCredentials().value(SecretName("ceph", usage="x"))
    assert "sesame" not in str(caught.value)
