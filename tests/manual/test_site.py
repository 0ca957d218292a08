"""The site's pages and pictures, without Sphinx: `make docs` makes HTML of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import astore
from manual import pictures, site
from manual.reference import MODULES, PAGES, names_of
from manual.site_check import problems_of

SVG = "{http://www.w3.org/2000/svg}"


def texts(picture: str) -> list[str]:
    """The texts of a picture, which is well-formed."""
    found = ElementTree.fromstring(picture).iter(f"{SVG}text")
    return ["".join(one.itertext()).replace("\N{NO-BREAK SPACE}", " ").strip() for one in found]


def test_the_drawing_shows_every_room_once() -> None:
    """The rooms of import-linter's contract are in the drawing."""
    rooms = [room for floor in pictures.floors() for room in floor]
    assert len(rooms) > 20
    assert sorted(texts(pictures.draw_floors())) == sorted([*rooms, "imports run down"])


def test_the_terminal_shows_what_a_program_printed() -> None:
    """The picture has the program's last words, colours, nothing that was overwritten, and asks no server for anything."""
    program = r"print('\x1b[32mgreen\x1b[0m'); print('50 %\r\x1b[2K100 %', flush=True)"
    picture = pictures.draw_terminal([sys.executable, "-c", program], "a title")
    shown = texts(picture)
    assert [one for one in shown if one] == ["a title", "green", "100 %"]
    assert "url(http" not in picture
    assert "@font-face" not in picture


def test_a_program_that_fails_makes_no_picture() -> None:
    """The error has its exit code and what it wrote."""
    with pytest.raises(RuntimeError, match="ended with 3:\noh no"):
        pictures.draw_terminal([sys.executable, "-c", "print('oh no'); raise SystemExit(3)"], "")


def test_every_public_name_is_in_the_reference() -> None:
    """Each name of astore is on a page, or in the module that a page is about."""
    named = {name for _, packages in PAGES.values() for name in names_of(packages)}
    named |= {name for _, modules in MODULES.values() for name in names_of(modules)}
    assert sorted(set(astore.__all__) - named) == []


def test_pages_ask_for_pictures_that_there_are() -> None:
    """Each picture is on a page; a page that names another one is an error."""
    asked = {
        name
        for page in ["README.md", *site.written_pages()]
        for name in re.findall(r"<!-- picture: ([\w-]+): ", (pictures.ROOT / page).read_text())
    }
    assert asked == set(site.PICTURES)
    assert site.with_pictures("docs/a.md", "a\n<!-- picture: floors: Floors -->\nb") == (
        "a\n![Floors](../pictures/floors.svg)\nb"
    )
    with pytest.raises(KeyError, match=r"docs/a\.md: there is no picture cellar"):
        site.with_pictures("docs/a.md", "<!-- picture: cellar: A cellar -->")


def test_links_to_folders_lead_to_their_readme() -> None:
    """GitHub shows a folder's README below its files; the site has that page only."""
    text = "[a](../examples/astore-zip), [b](../plugins/netfs/), [c](../examples), [d](concepts.md#files)"
    assert site.with_folders("docs/x.md", text) == (
        "[a](../examples/astore-zip/README.md), [b](../plugins/netfs/README.md), [c](../examples), [d](concepts.md#files)"
    )


def test_the_contents_list_each_page_once(tmp_path: Path) -> None:
    """Every page that is gathered is in the contents, and each pattern of the contents stands for some."""
    monkey = {name: lambda: "<svg/>" for name in site.PICTURES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "PICTURES", monkey)
        site.gather(tmp_path)
    listed = [line for block in re.findall(r"```\{toctree\}\n(.*?)```", (tmp_path / "index.md").read_text(), re.DOTALL)
              for line in block.splitlines() if line and not line.startswith(":")]  # fmt: skip
    pages = {str(file.relative_to(tmp_path).with_suffix("")) for file in tmp_path.rglob("*.md")} - {"index"}
    assert sorted(listed) == sorted(pages)
    assert (tmp_path / "examples" / "blocks" / "memory.py").is_file()


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    """Files and headings that are missing, and what is loaded from the network, are told; links to other sites are not."""
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#there">1</a><a href="#top">2</a><a href="https://example.org/x">3</a>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><img src="data:,"><a href="a.html">4</a>')
    assert list(problems_of(tmp_path)) == []
    (tmp_path / "c.html").write_text(
        '<a href="d.html">1</a><a href="a.html#middle">2</a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "d.css").write_text("body { background: url(https://example.org/x.png) }")
    assert sorted(problems_of(tmp_path)) == [
        "c.html: a.html#middle names no heading",
        "c.html: d.html leads nowhere",
        "c.html: https://example.org/x.js is loaded from the network",
        "d.css: loads something from the network",
    ]
