"""The examples of the documentation, and of examples/, pass mypy; ``make types`` asks pyright as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT, write_examples


def mypy(*arguments: str | Path) -> None:
    """Run mypy; it must find nothing."""
    argv = [sys.executable, "-m", "mypy", "--cache-dir", ROOT / ".mypy_cache", "--no-error-summary", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_examples_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader who copies one into a checked program sees no error."""
    monkeypatch.setenv("MYPYPATH", f"{ROOT}:{ROOT}/examples/astore-zip")
    files = write_examples(tmp_path)
    assert len(files) > 8
    mypy("--config-file=", "--check-untyped-defs", *files)


def test_examples_and_cases() -> None:
    """examples/ and tests/typing_cases/, strictly."""
    examples = [one for one in sorted((ROOT / "examples").rglob("*.py")) if "tests" not in one.parts]
    mypy(*examples, *sorted((ROOT / "tests" / "typing_cases").glob("*.py")))
