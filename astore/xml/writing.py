"""Write XML."""

from __future__ import annotations

from lxml import etree

from astore.model import Permissions
from astore.xml.reading import Element, safe


def add(parent: Element, tag: str, text: object | None = None, /, **attributes: object | None) -> Element:
    """Append an element; attributes that are None are omitted, and bools become ``yes`` and ``no``."""
    element = etree.SubElement(parent, tag)
    for name, value in attributes.items():
        if value is not None:
            word = value if not isinstance(value, bool) else "yes" if value else "no"
            element.set(name, safe(str(word)))
    if text is not None:
        element.text = safe(str(text))
    return element


def add_given(parent: Element, tag: str, text: object | None = None, /, **attributes: object | None) -> None:
    """Append an element, unless its text and all its attributes are None."""
    if text is not None or any(value is not None for value in attributes.values()):
        add(parent, tag, text, **attributes)


def add_permissions(parent: Element, permissions: Permissions | None) -> None:
    """Append ``<permissions>``, unless they are empty."""
    if permissions is None or permissions == Permissions():
        return
    element = add(parent, "permissions")
    if permissions.mode is not None:
        add(element, "mode", f"0{permissions.mode:o}")
    add_given(element, "owner", permissions.owner)
    add_given(element, "group", permissions.group)
    add_given(element, "label", permissions.label)


def render(element: Element) -> str:
    """Write the document, indented by two blanks, with a newline at its end."""
    etree.indent(element, "  ")
    return str(etree.tostring(element, encoding="unicode")) + "\n"
