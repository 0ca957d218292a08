"""Lazy imports: a package's names are imported on first use (PEP 562)."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # instead of importing typing, which takes as long as starting Python
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def lazily(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the ``__getattr__`` and ``__dir__`` of a package that re-exports names of its modules.

    A lookup imports one module after the other until one has the name. List first the modules that the later ones
    import anyway.

    :param package: the package's ``__name__``. :param names: the names to re-export.
    :param modules: the modules to search, relative to the package.
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
