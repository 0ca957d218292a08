"""Which backends are installed, without importlib.metadata, which takes several times as long to import as Python to start."""

from __future__ import annotations

import os
import sys


def installed_types(group: str) -> frozenset[str]:
    """The names of a group of entry points, as ``importlib.metadata.entry_points`` finds them. Blocks: it reads files.

    A distribution counts once, where it stands first on ``sys.path``. Where distributions may be elsewhere than in folders,
    importlib.metadata is asked.
    """
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if len(finders) > 1 or any(os.path.isfile(entry) for entry in sys.path):
        from importlib.metadata import entry_points

        return frozenset(found.name for found in entry_points(group=group))
    names: set[str] = set()
    known: set[str] = set()
    for entry in sys.path:
        try:
            found = os.listdir(entry or ".")
        except OSError:
            continue
        for folder in found:
            if not folder.endswith((".dist-info", ".egg-info")):
                continue
            distribution = folder.rpartition(".")[0].partition("-")[0].lower().replace(".", "_")
            if distribution not in known:
                known.add(distribution)
                names.update(_names_in(os.path.join(entry, folder, "entry_points.txt"), f"[{group}]"))
    return frozenset(names)


def _names_in(path: str, heading: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError):  # there are none, or they cannot be read: the others count
        return []
    names: list[str] = []
    inside = False
    for line in map(str.strip, text.splitlines() if heading in text else ()):
        if line.startswith("["):
            inside = line == heading
        elif inside and line and not line.startswith("#"):
            names.append(line.partition("=")[0].strip())
    return names
