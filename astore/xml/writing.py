"""Write XML."""

from __future__ import annotations

from lxml import etree

from astore.model import Permissions
from astore.xml.reading import Element, safe


def add(parent: Element, tag: str, text: object | None = None, /, **attributes: object | None) -> Element:
    """Append an element; attributes that are None are omitted."""
    element = etree.SubElement(parent, tag)
    for name, value in attributes.items():
        if value is not None:
            element.set(name, safe(str(value)))
    if text is not None:
        element.text = safe(str(text))
    return element


def add_permissions(parent: Element, permissions: Permissions | None) -> None:
    """Append ``<permissions>``, unless they are empty."""
    if permissions is None or permissions == Permissions():
        return
    element = add(parent, "permissions")
    if permissions.mode is not None:
        add(element, "mode", f"0{permissions.mode:o}")
    if permissions.owner is not None:
        add(element, "owner", permissions.owner)
    if permissions.group is not None:
        add(element, "group", permissions.group)
    if permissions.label is not None:
        add(element, "label", permissions.label)


def render(element: Element) -> str:
    """Write the document, indented by two blanks, with a newline at its end."""
    etree.indent(element, "  ")
    return str(etree.tostring(element, encoding="unicode")) + "\n"
