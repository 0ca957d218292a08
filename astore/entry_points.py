"""Find the installed backends without importlib.metadata.

Importing importlib.metadata takes several times as long as starting Python.
"""

from __future__ import annotations

import os
import sys

ENTRY_POINT_GROUP = "astore.backends"
"""Distributions announce a backend here: the entry point's name is the pool type, its object a Backend class."""


def installed_types(group: str) -> frozenset[str]:
    """Return the names of a group of entry points, as ``importlib.metadata.entry_points`` does. Blocks: it reads files.

    If a distribution is on ``sys.path`` twice, the first one counts. importlib.metadata is used if ``sys.path`` has
    eggs, archives or ``sys.meta_path`` has further finders of distributions.
    """
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_distributions")]
    if len(finders) > 1 or any(entry.endswith(".egg") or os.path.isfile(entry) for entry in sys.path):
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
    except (OSError, ValueError):  # no entry points, or an unreadable file: skip this distribution
        return []
    names: list[str] = []
    inside = False
    for line in map(str.strip, text.splitlines() if heading in text else ()):
        if line.startswith("["):
            inside = line == heading
        elif inside and line and not line.startswith("#"):
            names.append(line.partition("=")[0].strip())
    return names
