"""The pages of the site about the library, which Sphinx fills from docstrings."""

from __future__ import annotations

from collections.abc import Iterator

import astore

PAGES = {
    "manager": ("The Manager", ("astore.manager",)),
    "pools": ("Pools and volumes", ("astore.pools", "astore.volume_io")),
    "records": ("Records", ("astore.model",)),
    "events": ("Events", ("astore.events", "astore.event_bus")),
    "errors": ("Errors", ("astore.errors",)),
    "registry": ("The registry of backends", ("astore.registry",)),
}
"""The title of each page, and the packages whose public names it describes."""

MODULES = {
    "contract": ("The contract with a backend", ("astore.backend", "astore.trees.tree", "astore.trees.writable")),
    "block-contract": ("The contract with a block pool", ("astore.blocks.contract",)),
    "stores": ("Stores", ("astore.store.contract", "astore.store.memory")),
    "secrets": ("Secrets", ("astore.secrets",)),
}
"""Pages about whole modules, for those who write backends and stores."""


def reference_pages() -> dict[str, str]:
    """Return the Markdown of each page by its name."""
    pages = {name: "\n".join(_names(title, packages)) for name, (title, packages) in PAGES.items()}
    pages |= {name: "\n".join(_modules(title, modules)) for name, (title, modules) in MODULES.items()}
    return pages


def names_of(packages: tuple[str, ...]) -> list[str]:
    """Return astore's public names that are defined in these packages, in the order of the alphabet."""
    return [name for name in astore.__all__ if _home(name).startswith(packages)]


def _home(name: str) -> str:
    """Return the module that defines a public name. One without a class is a number of the contract with backends."""
    return str(getattr(getattr(astore, name), "__module__", "astore.backend"))


def _names(title: str, packages: tuple[str, ...]) -> Iterator[str]:
    yield f"# {title}"
    yield ""
    for name in names_of(packages):
        found = getattr(astore, name)
        kind = "class" if isinstance(found, type) else "function" if callable(found) else "data"
        yield f"## {name}"
        yield ""
        yield from _directive(f"auto{kind}:: astore.{name}")


def _modules(title: str, modules: tuple[str, ...]) -> Iterator[str]:
    yield f"# {title}"
    yield ""
    for module in modules:
        yield f"## {module}"
        yield ""
        yield from _directive(f"automodule:: {module}")


def _directive(directive: str) -> Iterator[str]:
    """Give a directive of Sphinx, which is reStructuredText as docstrings are."""
    yield "```{eval-rst}"
    yield f".. {directive}"
    yield "```"
    yield ""
