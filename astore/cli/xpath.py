"""Parts of an XML document, chosen by an XPath expression: virsh's ``--xpath`` and ``--wrap``."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

from astore.cli.command_line import option
from astore.cli.exits import CliError, Exit
from astore.cli.output import Answer, xml_answer
from astore.errors import printable

F = TypeVar("F", bound=Callable[..., Any])


def xpath_options(command: F) -> F:
    """Add the options --xpath and --wrap to a command."""
    expression = option("--xpath", metavar="EXPRESSION", help="Only the nodes that this XPath expression chooses.")
    return expression(option("--wrap", is_flag=True, help="Put them into one element, <nodes>.")(command))


def filtered(text: str, expression: str | None, wrap: bool) -> Answer:
    """Make the answer that is a document, or the nodes that an expression chooses.

    :raises CliError: the expression is wrong, or chooses no nodes but a number or a text.
    """
    if expression is None:
        return xml_answer(text)
    from lxml import etree

    try:
        found = etree.fromstring(text).xpath(expression)
    except (etree.XPathError, ValueError) as error:
        raise CliError(f"--xpath {printable(expression)!r}: {error}", Exit.USAGE) from error
    if not isinstance(found, list) or any(isinstance(one, tuple) for one in found):  # tuples: of namespaces
        raise CliError(f"--xpath {printable(expression)!r} chooses no nodes, but computes {found!r}", Exit.USAGE)
    nodes = [_written(one) for one in found]
    xml = _wrapped(found) if wrap else "\n".join(nodes)
    return Answer({"xml": xml}, lambda output: output.xml(xml) if xml else None)


def _wrapped(nodes: list[Any]) -> str:
    """Write one element with these nodes in it; attributes become its own."""
    from lxml import etree

    root = etree.Element("nodes")
    for node in nodes:
        if etree.iselement(node):
            root.append(deepcopy(node))
            root[-1].tail = None
        elif getattr(node, "is_attribute", False):
            root.set(node.attrname, str(node))
        elif len(root):
            root[-1].tail = f"{root[-1].tail or ''}{node}"
        else:
            root.text = f"{root.text or ''}{node}"
    if len(root) and root.text is None and all(one.tail is None for one in root):
        etree.indent(root)
    return etree.tostring(root, encoding="unicode")


def _written(node: Any) -> str:
    """Write an element, a text or an attribute as libxml2 does."""
    from lxml import etree

    if etree.iselement(node):
        alone = deepcopy(node)
        etree.indent(alone)  # as if it were a document
        return etree.tostring(alone, encoding="unicode", with_tail=False)
    holder = etree.Element("x")
    if getattr(node, "is_attribute", False):
        holder.set(node.attrname, str(node))
        return etree.tostring(holder, encoding="unicode").removeprefix("<x").removesuffix("/>")
    holder.text = str(node)
    return etree.tostring(holder, encoding="unicode").removeprefix("<x>").removesuffix("</x>")
