"""Wheels of this checkout, and environments that have them installed; without the internet."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of the distribution whose ``pyproject.toml`` is in ``source``, in a folder of its own in ``folder``."""
    target = folder / f"wheel-of-{source.name}"
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    subprocess.run(argv, cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


def make_environment(folder: Path, *wheels: Path) -> Path:
    """Make a virtual environment in ``folder`` with wheels, and what they depend on. Return its interpreter.

    All distributions of the environment of the tests are linked into it, except astore and its plugins.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if found.suffix != ".pth" and not found.name.startswith(("astore", "_editable")):
            (site / found.name).symlink_to(found)
    argv = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q"]
    subprocess.run([*argv, "--no-deps", "--no-index", "--disable-pip-version-check", *wheels], check=True)
    return folder / "bin" / "python"
