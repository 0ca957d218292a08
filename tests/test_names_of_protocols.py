"""The core names no storage: what one protocol means stands in its plugin."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from astore.xml.known_types import EXTRAS

ROOT = Path(__file__).parent.parent

PROTOCOLS = re.compile(r"gluster|netfs|gfapi|rbd|ceph|iscsi", re.IGNORECASE)

MAY_NAME = {
    "astore/xml/": "the grammar of libvirt's documents, whose elements depend on the pool's type",
    "astore/images/protocols.py": "the grammar of QEMU's nodes, as headers have them",
    "astore/images/references.py": "the protocols that QEMU knows in the name of a backing file",
    "astore/places.py": "the kernel's file system types on which calls may hang",
    "astore/mounts.py": "an example of such a type",
    "astore/trees/mount_caches.py": "the same types, whose clients answer from caches",
    "astore/cli/examples.py": "the examples in the help of the command",
    "astore/cli/pool_as.py": "examples of types and formats in the help",
    "astore/cli/demo": "the demonstration, on servers of its own",
}
"""Files, by the beginnings of their paths, that have a reason to name a protocol."""


BLOCK_PROTOCOLS = re.compile(r"rbd|ceph|iscsi", re.IGNORECASE)

MAY_NAME_BLOCKS = ("astore/xml/", "astore/images/", "astore/places.py", "astore/trees/mount_caches.py")
"""The grammars of libvirt and QEMU, and the kernel's file systems."""


def _naming(words: re.Pattern[str] = PROTOCOLS) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "astore").rglob("*.py") if words.search(path.read_text())
    }


def test_core_names_no_block_storage() -> None:
    """Help, examples, records and secrets name none either."""
    assert sorted(path for path in _naming(BLOCK_PROTOCOLS) if not path.startswith(MAY_NAME_BLOCKS)) == []


def test_core_names_no_protocol() -> None:
    """No module of the core has the name of a protocol or a plugin in it, in code or words, but for those listed."""
    assert sorted(path for path in _naming() if not path.startswith(tuple(MAY_NAME))) == []


def test_list_is_not_longer_than_needed() -> None:
    """Each exception is still one."""
    naming = _naming()
    assert [start for start in MAY_NAME if not any(path.startswith(start) for path in naming)] == []


def test_hint_knows_the_extras() -> None:
    """The command tells how to install a backend for just those types that are extras of astore's distribution."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, needs in extras.items() if needs == [f"astore-{name}>=0.1,<0.2"]} - {"fleet"} == set(
        EXTRAS.values()
    )
