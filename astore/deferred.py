"""The names of a package, imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, which costs as much to import as Python to start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def lazily(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package that hands on names of its modules.

    A name is looked for in one module after the other, so whoever asks for a record does not import what works on it:
    list first what the later modules import anyway.

    :param package: its ``__name__``. :param names: what it hands on. :param modules: where they are, relative to it.
    """
    public = frozenset(names)
    shown = {module.partition(".")[0] for module in modules}

    def find(name: str) -> object:
        from importlib import import_module

        if name in public:
            for module in modules:
                there = vars(import_module(f"{package}.{module}"))
                if name in there:
                    setattr(sys.modules[package], name, there[name])
                    return there[name]
        elif name in shown:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return find, listing
