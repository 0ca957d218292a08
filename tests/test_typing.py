"""Users' type checkers, mypy and pyright, find no error in the documentation's examples, and know what astore exports.

pyright and the node that it needs are wheels of the environment of the tests. It sees what users do: installed wheels.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT, write_examples
from installed import build_wheel, make_environment

CASES = ROOT / "tests" / "typing_cases"
PLUGINS = sorted(one.name for one in (ROOT / "plugins").iterdir() if (one / "pyproject.toml").exists())
LEAST_KNOWN = 0.98
"""The part of a package's public names whose types are known."""


def mypy(*arguments: str | Path) -> None:
    """Run mypy; it must find nothing."""
    argv = [sys.executable, "-m", "mypy", "--cache-dir", ROOT / ".mypy_cache", "--no-error-summary", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder ``bin`` of an environment into which the wheels of astore and of its plugins are installed."""
    folder = tmp_path_factory.mktemp("typing")
    sources = [ROOT, *(ROOT / "plugins" / name for name in PLUGINS)]
    return make_environment(folder / "venv", *(build_wheel(source, folder) for source in sources)).parent


def pyright(programs: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    """Run pyright in a folder, for the environment of ``programs``; return its report."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYRIGHT_", "PYTHONPATH"))},
        "PATH": f"{programs}:{os.environ['PATH']}",  # with --verifytypes it heeds no --pythonpath
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",  # else it asks the package index for a newer version
    }
    argv = [sys.executable, "-m", "pyright", "--outputjson", *arguments]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who copies one into a program checked by mypy sees no error."""
    monkeypatch.setenv("MYPYPATH", f"{ROOT}:{ROOT}/examples/astore-zip")
    files = write_examples(tmp_path)
    assert len(files) > 8
    mypy("--config-file=", "--check-untyped-defs", *files)


def test_examples_and_cases() -> None:
    """mypy, strictly, finds nothing in examples/ and tests/typing_cases/."""
    examples = [one for one in sorted((ROOT / "examples").rglob("*.py")) if "tests" not in one.parts]
    mypy(*examples, *sorted(CASES.glob("*.py")))


def test_pyright_and_the_examples(programs: Path, tmp_path: Path) -> None:
    """pyright finds nothing in the pages' examples, examples/ and tests/typing_cases/, and does find a misspelled name."""
    skipped = shutil.ignore_patterns("with_libvirt.py", "tests", "__pycache__")  # libvirt's bindings have no types
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=skipped)
    shutil.copytree(CASES, tmp_path / "typing_cases", ignore=skipped)
    shutil.copytree(ROOT / "examples" / "astore-zip" / "astore_zip", tmp_path / "astore_zip", ignore=skipped)
    write_examples(tmp_path)
    (tmp_path / "wrong.py").write_text("from astore import Managr\n")
    report = pyright(programs, tmp_path)
    found = [(Path(one["file"]).name, one.get("rule"), one["message"]) for one in report["generalDiagnostics"]]
    assert found == [("wrong.py", "reportAttributeAccessIssue", '"Managr" is unknown import symbol')]
    assert report["summary"]["filesAnalyzed"] == len(list(tmp_path.rglob("*.py")))


@pytest.mark.parametrize("package", ["astore", *(f"astore_{name}" for name in PLUGINS)])
def test_types_of_public_names(package: str, programs: Path, tmp_path: Path) -> None:
    """pyright knows the types of nearly all names that an installed package exports."""
    found = pyright(programs, tmp_path, "--ignoreexternal", "--verifytypes", package)["typeCompleteness"]
    assert Path(found["packageRootDirectory"]).is_relative_to(programs.parent)
    unknown = [one["name"] for one in found["symbols"] if one["isExported"] and not one["isTypeKnown"]]
    assert found["completenessScore"] >= LEAST_KNOWN, unknown
