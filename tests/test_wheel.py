"""The wheel: what is in it, and what an installed astore can do without this repository."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from installed import build_wheel, make_environment

ROOT = Path(__file__).parent.parent
FOR_DEVELOPERS = ("beds", "benchmarks", "demo", "examples", "manual", "plugins", "tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the wheel and, from the environment of the tests, what it depends on."""
    return make_environment(tmp_path_factory.mktemp("environment") / "venv", wheel)


def run(argv: list[str | Path], folder: Path) -> str:
    """Run a program in a folder, with nothing of this repository in reach. It must succeed."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "XDG_"))}
    environment = {**known, "HOME": str(folder), "TMPDIR": str(folder), "COLUMNS": "200"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_wheel_has_the_package_alone(wheel: Path) -> None:
    """Every file of the package, and nothing that is for developers of astore only."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"astore", "astore-0.1.0.dist-info"}
    listed = subprocess.run(["git", "ls-files", "astore"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:  # else this is no clone, but what somebody copied
        assert {name for name in names if name.startswith("astore/")} >= set(listed.stdout.split())


def test_nothing_for_developers_can_be_imported(python: Path, tmp_path: Path) -> None:
    """Every module of the installed package can be imported, without what is not in the wheel."""
    code = (
        "import importlib, pkgutil, sys, astore, astore.testing\n"
        "names = [one.name for one in pkgutil.walk_packages(astore.__path__, 'astore.') if '__main__' not in one.name]\n"
        "for name in names: importlib.import_module(name)\n"
        f"assert not set({FOR_DEVELOPERS!r}) & set(sys.modules)\n"
        "print(astore.__file__)"
    )
    where = Path(run([python, "-W", "error", "-c", code], tmp_path).strip())
    assert where.is_relative_to(python.parent.parent)


def test_demo_of_an_installed_astore(python: Path, tmp_path: Path) -> None:
    """It shows pools of folders, and leaves nothing."""
    astore = python.with_name("astore")
    out = run([astore, "demo", "--pools", "2", "--images", "5"], tmp_path)
    assert "2 pools with 10 volumes refreshed in" in out
    assert "+new.qcow2  ~vm00001.raw  -vm00004.raw" in out
    assert "Gluster" not in out
    assert os.listdir(tmp_path) == []


def test_kinds_of_pools_of_an_installed_astore(python: Path, tmp_path: Path) -> None:
    """The wheel brings the backend ``dir``, by its entry point."""
    out = run([python.with_name("astore"), "backend", "list"], tmp_path)
    assert out.splitlines()[1].split()[0] == "dir"
