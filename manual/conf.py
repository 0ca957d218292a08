"""Settings of Sphinx. ``python -m manual site`` calls it with this folder."""

from __future__ import annotations

import re
from typing import Any

import astore

project = "astore"
author = copyright = "the astore authors"
version = release = astore.__version__
root_doc = "index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4
html_theme = "furo"
html_title = f"astore {astore.__version__}"
html_copy_source = False
html_show_sphinx = False
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True
autodoc_preserve_defaults = True
python_display_short_literal_types = True

_FIELD = re.compile(r"(?<=\S) (?=:(?:param|returns|raises|ivar)\b[^:]*:)")


def _fields_on_their_own_lines(
    app: object, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Split ``Do it. :param x: this. :returns: that.``, which reStructuredText reads as one paragraph."""
    found: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        first, *fields = _FIELD.split(line)
        if found and found[-1].strip() and not found[-1].lstrip().startswith(":") and first.lstrip().startswith(":"):
            found.append("")
        found.append(first)
        if fields and not first.lstrip().startswith(":"):
            found.append("")
        found.extend(indent + field for field in fields)
    lines[:] = found


def _types_are_the_builtin(app: object, doctree: Any) -> None:
    """Keep Sphinx from taking ``type[...]`` in a signature for one of the many attributes of that name."""
    from docutils.nodes import Text
    from sphinx.addnodes import pending_xref

    for node in list(doctree.findall(pending_xref)):
        if node.get("reftarget") == "type" and node.get("reftype") == "class":
            node.replace_self(Text("type"))


def setup(app: Any) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("doctree-read", _types_are_the_builtin)
    app.connect("autodoc-process-docstring", _fields_on_their_own_lines)
