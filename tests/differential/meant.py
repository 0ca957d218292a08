"""What differs between libvirt and astore on purpose, by name: docs/differences-from-libvirt.md has the reasons."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from differential.operations import Outcome, figureless

_CODES = {
    "new_volume": {(1, 67), (27, 3), (27, 90), (90, 1), (90, 55)},
    "clone": {(1, 67), (38, 1), (38, 67), (90, 1), (90, 55)},
    "resize": {(1, 8), (38, 1), (38, 84)},
}
"""Work on volumes that both refuse, each for what it sees first: astore's code and libvirt's."""

SEEN = {"the folder's permissions are not the definition's"}
_BELOW = "(?=</backingStore>)"


def _without(pattern: str, by: str = "") -> Callable[[str], str]:
    compiled = re.compile(pattern)
    return lambda text: compiled.sub(by, text)


_DEFINITIONS: dict[str, Callable[[str], str]] = {
    "the folder's permissions are not the definition's": _without("<permissions>.*?</permissions>"),
}
_VOLUMES: dict[str, Callable[[str], str]] = {
    "no time of birth": _without("<btime>0</btime>"),
    "a backing file on Gluster has its whole name": _without(
        '^(<volume type="network">.*)<backingStore>.*</backingStore>', r"\1"
    ),
    "Gluster volumes have cluster sizes": _without(
        "(?<=</timestamps>)(<compat>.*?</compat>)?<clusterSize.*?</clusterSize>", r"\1"
    ),
    "a folder in the place of a backing file": _without(
        f"(<backingStore>((?!<permissions>).)*)<permissions>.*{_BELOW}", r"\1"
    ),
    "the format of a backing file that is nowhere, or that nobody said": _without(
        f'(<path>[^<]*</path>)<format type="[a-z0-9]+"></format>{_BELOW}', r"\1"
    ),
}
"""What may be left out of the documents of both, one after the other, where they differ."""

_CAPACITY = _without('<capacity unit="bytes">[0-9]+</capacity>')
_FORMAT = _without('<capacity unit="bytes">[0-9]+</capacity>|<format type="[a-z]+"></format>')
_NOUGHT = '<capacity unit="bytes">0</capacity>'
_CONTROLS = re.compile("[\t\n\r\x7f]")


def level(ours: dict[str, Any], theirs: dict[str, Any]) -> set[str]:
    """Take out of both sides' words on a pool what is meant to differ. :returns: the names of what was met."""
    met: set[str] = set()
    for key in ("inactive xml",) if ours["active"] else ("xml", "inactive xml"):
        _leave_out(ours, theirs, key, {"a definition has no figures": figureless} | _DEFINITIONS, met)
    damaged = ours.pop("damaged")
    mine, other = ours["volumes"], theirs["volumes"]
    for name in other.keys() - mine.keys():
        if name in damaged:
            met.add("an image that is cut off within its header is an error of its own")
            del other[name]
        elif _CONTROLS.search(name):
            met.add("names with tabs, line ends and DEL are left out")
            del other[name]
    for name in mine.keys() & other.keys():
        if other[name].startswith("<refused") and not mine[name].startswith("<refused"):
            met.add("volumes that libvirt cannot describe")
            del mine[name], other[name]
            continue
        rules = dict(_VOLUMES)
        if _NOUGHT in mine[name]:
            rules["an image may have a capacity of nought"] = _CAPACITY
        if '<format type="qed">' in other[name] and '<format type="raw">' in mine[name]:
            rules["QED is a word before it is an image"] = _FORMAT
        _leave_out(mine, other, name, rules, met)
    return met


def _leave_out(
    ours: dict[str, str], theirs: dict[str, str], key: str, rules: dict[str, Callable[[str], str]], met: set[str]
) -> None:
    for name, without in rules.items():
        mine, other = without(ours[key]), without(theirs[key])
        if ours[key] != theirs[key] and (mine, other) != (ours[key], theirs[key]):
            met.add(name)
            ours[key], theirs[key] = mine, other


def outcome(operation: str, ours: Outcome, theirs: Outcome) -> str | None:
    """The name of the difference between what came of a step on each side, if it is one that is meant to be."""
    if (ours.code, theirs.code) in _CODES.get(operation, ()):
        return "work on a volume that both refuse, each for what it sees first"
    if (operation, ours.code, theirs.code) == ("start", 38, 1):
        return "a folder to mount on is looked for before the mount command is run"
    return None
