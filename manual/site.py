"""The site: its pages are gathered in one folder, and Sphinx makes HTML of them.

The folder has the same paths as the repository, so that the links of README and docs/ work in it as they do on GitHub.
"""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from manual.command_pages import command_pages
from manual.pictures import ROOT, demo_terminal, draw_floors
from manual.reference import reference_pages
from manual.site_check import problems_of

CONTENTS = {
    "Begin": ("docs/start", "docs/pools", "docs/concepts", "docs/volumes"),
    "Tasks": (
        "docs/backup",
        "docs/moving",
        "docs/sharing",
        "docs/from-virsh",
        "docs/porting-from-libvirt",
        "docs/from-proxmox",
        "docs/at-boot",
        "docs/fleet",
    ),
    "Pool types": ("plugins/*/README",),
    "In depth": ("docs/freshness", "docs/secrets", "docs/cli", "docs/differences-from-libvirt", "docs/benchmarks"),
    "The command": ("commands/astore", "commands/*", "docs/cli-json"),
    "The library": ("reference/manager", "reference/pools", "reference/*"),
    "For developers": ("docs/writing-a-backend", "docs/architecture", "examples/*/README", "docs/*", "[A-Z]*"),
}
"""The pages of each part of the contents, in order. A pattern stands for the pages that no line before it has."""

PICTURES = {"floors": draw_floors, "demo": demo_terminal}
"""A line ``<!-- picture: NAME: its description -->`` of a page is where the site has this picture."""

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"] + "/blob/main/"
"""How README names the other pages, since it is also read where they are not."""

_LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"^<!-- picture: ([\w-]+): (.+) -->$", re.MULTILINE)


def build_site(folder: Path) -> None:
    """Make the site in ``folder/html``.

    :raises SystemExit: there were warnings, or links that lead nowhere.
    """
    from sphinx.cmd.build import build_main

    source = folder / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(folder / "html", ignore_errors=True)
    gather(source)
    settings = str(Path(__file__).parent)
    arguments = ["-q", "-E", "-W", "--keep-going", "-b", "html", "-c", settings, "-d", str(folder / "doctrees")]
    if code := build_main([*arguments, str(source), str(folder / "html")]):
        raise SystemExit(code)
    if problems := list(problems_of(folder / "html")):
        raise SystemExit("\n".join(problems))


def gather(folder: Path) -> None:
    """Write all pages and pictures, and the files that pages link to, into a folder."""
    for page in written_pages():
        _write(folder / page, with_pictures(page, with_folders(page, (ROOT / page).read_text())))
        for linked in linked_files(page):
            (folder / linked).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / linked, folder / linked)
    for name, draw in PICTURES.items():
        _write(folder / "pictures" / f"{name}.svg", draw())
    for name, text in command_pages().items():
        _write(folder / "commands" / f"{name}.md", text)
    for name, text in reference_pages().items():
        _write(folder / "reference" / f"{name}.md", text)
    _write(folder / "index.md", index(folder))


def written_pages() -> list[str]:
    """Return the pages that people write, as paths from the root of the repository."""
    found = [*ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/README.md")]
    return [*sorted(str(one.relative_to(ROOT)) for one in found), "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]


def linked_files(page: str) -> Iterator[str]:
    """Yield the files that a page links to and that are no pages, as paths from the root of the repository."""
    pages = {*written_pages(), "README.md"}
    for target in _LINK.findall(_FENCE.sub("", (ROOT / page).read_text())):
        file = (ROOT / page).parent.joinpath(target).resolve()
        if "://" not in target and file.is_file() and str(file.relative_to(ROOT)) not in pages:
            yield str(file.relative_to(ROOT))


def with_folders(page: str, text: str) -> str:
    """Return a page's text with links to the README of a folder where it links to the folder, as on GitHub."""

    def link(found: re.Match[str]) -> str:
        folder = (ROOT / page).parent / found[1]
        return f"]({found[1].rstrip('/')}/README.md)" if (folder / "README.md").is_file() else found[0]

    return _LINK.sub(link, text)


def with_pictures(page: str, text: str) -> str:
    """Return a page's text with pictures where its comments ask for them. :raises KeyError: there is no such picture."""
    up = "../" * page.count("/")

    def image(found: re.Match[str]) -> str:
        name, description = found.groups()
        if name not in PICTURES:
            raise KeyError(f"{page}: there is no picture {name}")
        return f"![{description}]({up}pictures/{name}.svg)"

    return _PICTURE.sub(image, text)


def index(folder: Path) -> str:
    """Return the first page: README, with the contents at its end."""
    rest = {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.md")}
    parts = [(ROOT / "README.md").read_text().replace(f"]: {REPOSITORY}", "]: ")]
    for title, patterns in CONTENTS.items():
        parts += ["```{toctree}", ":hidden:", f":caption: {title}", ""]
        for pattern in patterns:
            wanted = re.compile(pattern.replace("*", "[^/]+"))
            found = sorted(page for page in rest if wanted.fullmatch(page))
            rest.difference_update(found)
            parts += found
        parts += ["```", ""]
    return "\n".join(parts)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
