"""The example of a block backend, examples/blocks/memory.py, which is on nobody's path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

EXAMPLE = Path(__file__).parent.parent / "examples" / "blocks" / "memory.py"


def _example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("astore_memory_blocks", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


memory: Any = _example()


def less(pool: Any, *calls: str) -> Any:
    """The pool, without some of its calls."""
    kept = {name: value for name, value in vars(memory.MemoryPool).items() if name not in calls}
    made = object.__new__(type("Less", (memory.BlockPool,), kept))
    vars(made).update(vars(pool))
    return made
