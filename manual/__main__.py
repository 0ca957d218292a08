"""``python -m manual man FOLDER`` writes the man pages, ``python -m manual site FOLDER`` makes the site in FOLDER/html."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from manual.roff import write_man_pages

folder = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))


@click.group("manual")
def manual() -> None:
    """Make astore's documentation."""


@manual.command("man")
@folder
def man(folder: Path) -> None:
    """Write the man pages into FOLDER/man1."""
    for page in write_man_pages(folder):
        print(page)


@manual.command("site")
@folder
def site(folder: Path) -> None:
    """Make the site in FOLDER/html. It needs Sphinx."""
    from manual.site import build_site

    build_site(folder)
    print(f"{folder}/html/index.html")


if __name__ == "__main__":
    sys.exit(manual())
