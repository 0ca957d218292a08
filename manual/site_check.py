"""What Sphinx does not check of a site: that all links lead to something, and that nothing comes from the network."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link": "href", "script": "src", "img": "src", "object": "data", "iframe": "src", "source": "src"}
"""The attribute by which an element loads something, without anybody following a link."""


class _Page(HTMLParser):
    """The anchors and links of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value is not None}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif LOADED.get(tag) in values:
            self.loaded.append(values[LOADED[tag]])


def problems_of(folder: Path) -> Iterator[str]:
    """Yield a line for each link that leads nowhere, and for each thing that is loaded from the network."""
    pages = {file: _Page(file.read_text()) for file in folder.rglob("*.html")}
    for file, page in pages.items():
        where = file.relative_to(folder)
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    yield f"{where}: {address} is loaded from the network"
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                yield f"{where}: {address} leads nowhere"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{where}: {address} names no heading"
    for file in folder.rglob("*.css"):
        if "url(http" in file.read_text() or "url(//" in file.read_text():
            yield f"{file.relative_to(folder)}: loads something from the network"
