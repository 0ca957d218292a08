"""The images."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from astore.images.blank import Template, qcow2_by_hand
from beds import BedUnavailable
from beds.images import _without_chance, make_images, template


def _info(path: Path) -> dict[str, object]:
    argv = ["qemu-img", "info", "--output=json", path]
    return dict(json.loads(subprocess.run(argv, capture_output=True, check=True).stdout))


@pytest.fixture
def without_qemu_img(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No qemu-img on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    template.cache_clear()
    yield
    template.cache_clear()


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["qcow2", "raw", "vmdk", "vdi", "qed", "vpc"])
def test_qemu_reads_what_was_written(tmp_path: Path, kind: str) -> None:
    """Every format is what it says, at its size."""
    (name,) = make_images(tmp_path, 1, formats=(kind,), size=1 << 30)
    info = _info(tmp_path / name)
    assert info["format"] == kind
    assert abs(int(str(info["virtual-size"])) - (1 << 30)) < 1 << 20  # VPC rounds to cylinders


@pytest.mark.qemu
def test_backed_images_name_the_first(tmp_path: Path) -> None:
    """Every n-th image has the first one as its backing file, with its format, and can be opened with it."""
    names = make_images(tmp_path, 9, backing_every=4)
    assert names[:2] == ("vm00000.qcow2", "vm00001.qcow2")
    backed = {name: _info(tmp_path / name).get("backing-filename") for name in names}
    assert {name: value for name, value in backed.items() if value} == {
        "vm00004.qcow2": "vm00000.qcow2",
        "vm00008.qcow2": "vm00000.qcow2",
    }
    assert _info(tmp_path / "vm00004.qcow2")["backing-filename-format"] == "qcow2"
    subprocess.run(["qemu-img", "compare", "-q", tmp_path / names[0], tmp_path / names[4]], check=True)


@pytest.mark.qemu
@pytest.mark.parametrize("backing", [None, "base.raw"])
def test_the_hand_made_qcow2_is_sound(tmp_path: Path, backing: str | None) -> None:
    """qemu-img finds nothing wrong with a qcow2 that it did not write."""
    Template((), 1 << 20).write(tmp_path / "base.raw")
    qcow2_by_hand(3 << 40, backing, "raw" if backing else None).write(tmp_path / "x.qcow2")
    info = _info(tmp_path / "x.qcow2")
    assert (info["virtual-size"], info.get("backing-filename")) == (3 << 40, backing)
    subprocess.run(["qemu-img", "check", "-q", tmp_path / "x.qcow2"], check=True)


@pytest.mark.usefixtures("without_qemu_img")
def test_without_qemu_img_there_still_is_qcow2_and_raw(tmp_path: Path) -> None:
    """The two common formats need no program; the others say which package they need."""
    names = make_images(tmp_path, 4, formats=("qcow2", "raw"), backing_every=2, size=1 << 20)
    magic, version = struct.unpack(">4sI", (tmp_path / names[2]).read_bytes()[:8])
    assert (magic, version) == (b"QFI\xfb", 3)
    assert names[0].encode() in (tmp_path / names[2]).read_bytes()[:1024]
    assert os.stat(tmp_path / names[1]).st_size == 1 << 20
    with pytest.raises(BedUnavailable, match="qemu-utils"):
        make_images(tmp_path, 1, prefix="other", formats=("vmdk",))


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "qed"])
def test_the_same_arguments_give_the_same_bytes(kind: str) -> None:
    """Nothing in an image is left to chance."""
    first = template(kind, 1 << 30)
    template.cache_clear()
    assert template(kind, 1 << 30) == first


def test_a_number_with_few_digits() -> None:
    """qemu-img writes the number that it draws for a VMDK image with as many digits as it has."""
    headers = {
        _without_chance(
            "vmdk", b"KDMV\nversion=1\nCID=%s\nparentCID=ffffffff\n".replace(b"%s", drawn).ljust(512, b"\0")
        )
        for drawn in (b"12345678", b"1234567", b"f")
    }
    assert {len(header) for header in headers} == {512}
    assert len(headers) == 1


@pytest.mark.qemu
def test_what_qemu_img_refuses_is_said() -> None:
    """An unknown format is an error with qemu-img's words."""
    with pytest.raises(RuntimeError, match="nosuchformat"):
        template("nosuchformat", 1 << 20)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A name that is taken is an error."""
    make_images(tmp_path, 1, formats=("raw",), size=512)
    with pytest.raises(FileExistsError):
        make_images(tmp_path, 1, formats=("raw",), size=512)


def test_images_are_sparse(image_folder: Path) -> None:
    """Twenty images of a gigabyte each take less than a few megabytes."""
    stats = [entry.stat() for entry in os.scandir(image_folder)]
    assert len(stats) == 20
    assert sum(found.st_blocks * 512 for found in stats) < 8 << 20
