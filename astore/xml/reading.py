"""Read hostile XML, bounded in size and depth, without DTD, entities or network."""

from __future__ import annotations

import re
from functools import cache
from typing import TypeAlias, cast

from lxml import etree

from astore.errors import DefinitionError, LibvirtCode, printable
from astore.model import Permissions
from astore.model.definitions import shown_option
from astore.names import check_uuid

Element: TypeAlias = etree._Element

LARGEST_DOCUMENT = 1 << 20
"""The largest document, in bytes; libvirt's largest messages are of that order."""

DEEPEST = 64
MOST_ELEMENTS = 20_000
MOST_NAMESPACES = 256
"""The most declarations of namespaces: each name with a prefix is looked up among all in scope."""

FS_NAMESPACE = "http://libvirt.org/schemas/storagepool/fs/1.0"
ASTORE_NAMESPACE = "urn:astore:storagepool:1.0"
"""The namespace of elements that only astore reads; libvirt drops them."""
RBD_NAMESPACE = "http://libvirt.org/schemas/storagepool/rbd/1.0"
NAMESPACES = {"fs": FS_NAMESPACE, "rbd": RBD_NAMESPACE}

_DETAIL = LibvirtCode.XML_DETAIL  # libvirt's code for libxml2's errors
_DECLARATION = r"^\s*<\?xml\s[^>]*\?>"
_PLACE = r", line \d+, column \d+( \(.*\))?$"
_INTEGER = r"[ \t\n\v\f\r]*(?P<sign>[-+]?)(?P<digits>(0[xX])?[0-9a-fA-F]+)"
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1}
_PREFIXES = "kmgtpe"
LARGEST_SIZE = (1 << 64) - 1


def hardened_parser() -> etree.XMLParser:
    """Return a parser for hostile XML: no DTD, entities or network, and neither comments nor processing instructions."""
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def parse(text: str | bytes, root: str) -> Element:
    """Return the root element of a document, which must have this name.

    :raises DefinitionError: it is not well-formed, too large, too deep, has a DTD, or is another document.
    """
    if len(text) > LARGEST_DOCUMENT:
        raise DefinitionError(f"the document is longer than {LARGEST_DOCUMENT} bytes")
    if isinstance(text, str):
        try:
            text = re.sub(_DECLARATION, "", text, count=1).encode()
        except UnicodeEncodeError:
            raise DefinitionError("the document is not valid Unicode") from None
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        line = text[: text.index(b"<!")].count(b"\n") + 1
        raise DefinitionError("a document type or an entity is not allowed", line=line)
    if text.replace(b"\0", b"").count(b"xmlns") > MOST_NAMESPACES:  # without NUL: so that UTF-16 counts too
        raise DefinitionError(f"more than {MOST_NAMESPACES} declarations of namespaces")
    try:
        element = etree.fromstring(text, hardened_parser())
    except etree.XMLSyntaxError as error:
        why = re.sub(_PLACE, "", printable(error.msg or str(error)))  # the error has the line already
        raise DefinitionError(f"not well-formed XML: {why}", line=error.lineno, libvirt_code=_DETAIL) from None
    except (ValueError, LookupError) as error:
        raise DefinitionError(f"not XML: {printable(str(error))}", libvirt_code=_DETAIL) from None
    if element is None:
        raise DefinitionError("the document is empty", libvirt_code=_DETAIL)
    if element.getroottree().docinfo.doctype:  # type: ignore[union-attr]
        raise DefinitionError("a document type is not allowed", line=1)
    _bound(element)
    if element.tag != root:
        raise DefinitionError(f"this is no <{root}> document", line=line_of(element), element=_name(element))
    return element


def _bound(root: Element) -> None:
    depth = count = 0
    for event, element in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        count += event == "start"
        if depth > DEEPEST:
            raise DefinitionError(f"nested more than {DEEPEST} deep", line=line_of(element), element=_name(element))
        if count > MOST_ELEMENTS:
            raise DefinitionError(f"more than {MOST_ELEMENTS} elements", line=line_of(element), element=_name(element))


def _name(element: Element) -> str:
    return printable(etree.QName(element).localname)[:64]


def line_of(element: Element) -> int | None:
    """Return the line of the document that the element stands on."""
    return cast("int | None", element.sourceline)


def wrong(element: Element, message: str, libvirt_code: LibvirtCode | None = None) -> DefinitionError:
    """Return the error for an element, with its line."""
    return DefinitionError(message, line=line_of(element), element=_name(element), libvirt_code=libvirt_code)


@cache
def _xpath(path: str) -> etree.XPath:
    return etree.XPath(path, namespaces=NAMESPACES, smart_strings=False)


def string_of(element: Element, path: str) -> str | None:
    """Return the first value at an XPath, like libvirt's virXPathString for ``string(path)``; None if it is empty.

    The path is one of this package's own, such as ``./source/format/@type``.
    """
    return cast(str, _xpath(f"string({path})")(element)) or None


def all_of(element: Element, path: str) -> list[Element]:
    """Return the elements that an XPath finds."""
    return cast("list[Element]", _xpath(path)(element))


def attribute(element: Element, name: str) -> str:
    """Return an attribute, which must not be absent or empty."""
    value = element.get(name)
    if not value:
        raise wrong(element, f"it has no attribute {name!r}")
    return value


def integer(
    element: Element, text: str | None, what: str, *, base: int = 10, least: int = 0, most: int = LARGEST_SIZE
) -> int:
    """Read a whole number between ``least`` and ``most``, like C's strtol(): blanks may stand before it, not after it.

    :param base: 8, 10, 16, or 0: by the number's prefix.
    """
    found = re.fullmatch(_INTEGER, text or "")
    try:
        if found is None or text is None:
            raise ValueError
        digits = found["digits"].lower()
        if base == 0 and not digits.startswith("0x"):
            base = 8 if digits.startswith("0") else 10  # "010" is no number for Python
        number = int(digits, base)
    except ValueError:
        raise wrong(element, f"{what} {printable(text or '')!r} is no number") from None
    if found["sign"] == "-":
        number = -number
    if not least <= number <= most:
        raise wrong(element, f"{what} {text.strip() if text else ''} is not between {least} and {most}")
    return number


def choice(
    element: Element,
    value: str | None,
    what: str,
    choices: tuple[str, ...],
    libvirt_code: LibvirtCode | None = None,
) -> str | None:
    """Return one of some words, or None."""
    if value is not None and value not in choices:
        raise wrong(element, f"{what} {printable(value)!r} is none of {', '.join(choices)}", libvirt_code)
    return value


def word_at(root: Element, path: str, name: str, what: str, choices: tuple[str, ...]) -> str | None:
    """Return the first attribute ``name`` at an XPath, which must be one of some words; None if it is absent or empty."""
    value = string_of(root, f"{path}/@{name}")
    if value is None:
        return None
    return choice(all_of(root, f"{path}[@{name}]")[0], value, what, choices, LibvirtCode.CONFIG_UNSUPPORTED)


def secret_of(secret: Element) -> tuple[str | None, str | None]:
    """Read what names a ``<secret>``: its uuid or its usage."""
    uuid, usage = secret.get("uuid"), secret.get("usage")
    if (uuid is None) == (usage is None):
        raise wrong(secret, "a secret is named by its uuid or its usage, one of them")
    return None if uuid is None else uuid_of(secret, uuid), usage


def uuid_of(element: Element, text: str, libvirt_code: LibvirtCode | None = None) -> str:
    """Return a UUID in its usual form; see :func:`astore.names.check_uuid`."""
    try:
        return check_uuid(text)
    except DefinitionError as error:
        raise wrong(element, str(error).removeprefix(f"<{error.element}>: "), libvirt_code) from None


def yes_no(element: Element | None, name: str) -> bool | None:
    """Read an attribute that is ``yes`` or ``no``; None if it is absent."""
    value = None if element is None else element.get(name)
    if element is None or value is None:
        return None
    return choice(element, value, name, ("yes", "no")) == "yes"


def parse_size(text: str, unit: str | None = None, *, element: Element | None = None, most: int = LARGEST_SIZE) -> int:
    """Read a size in bytes, as libvirt does (virStrToLong_ullp, virScaleInteger): blanks before it, no sign but ``+``.

    Units are case-insensitive: B, byte, bytes; K, KiB … E, EiB are powers of 1024, KB … EB of 1000.

    :param most: the largest size allowed, in bytes.
    :raises DefinitionError: no number, an unknown unit, or too large.
    """
    name = None if element is None else _name(element)
    line = None if element is None else line_of(element)
    found = re.fullmatch(r"[ \t\n\r]*\+?0*([0-9]{1,20})", text)
    if found is None or int(found[1]) > LARGEST_SIZE:
        raise DefinitionError(f"{printable(text[:64])!r} is no size", line=line, element=name)
    lower = unit.lower() if unit is not None and unit.isascii() else unit or ""
    factor = _UNITS.get(lower)
    if factor is None and lower[0] in _PREFIXES:
        power = _PREFIXES.index(lower[0]) + 1
        factor = {"": 1024**power, "ib": 1024**power, "b": 1000**power}.get(lower[1:])
    if factor is None:
        unknown = f"unknown unit {printable(unit or '')!r}"
        raise DefinitionError(unknown, line=line, element=name, libvirt_code=LibvirtCode.INVALID_ARG)
    size = int(found[1]) * factor
    if size > most:
        large = f"{found[1]} {unit or ''}".rstrip() + " is too large"
        raise DefinitionError(large, line=line, element=name, libvirt_code=LibvirtCode.OVERFLOW)
    return size


def permissions_of(element: Element | None) -> Permissions | None:
    """Read ``<permissions>``: mode octal up to 0777, owner and group whole numbers, -1 for unset; None if it is empty."""
    if element is None:
        return None
    mode_text = string_of(element, "./mode")
    mode = None if mode_text is None else integer(element, mode_text, "mode", base=8, most=0o777)
    owner, group = _id_of(element, "owner"), _id_of(element, "group")
    permissions = Permissions(mode=mode, owner=owner, group=group, label=string_of(element, "./label"))
    return None if permissions == Permissions() else permissions


def _id_of(element: Element, name: str) -> int | None:
    if element.find(name) is None:
        return None
    number = integer(element, string_of(element, f"./{name}"), name, least=-1, most=(1 << 32) - 1)
    return None if number in (-1, (1 << 32) - 1) else number


def safe(text: str) -> str:
    """Return the text. :raises DefinitionError: XML cannot hold it: it has control characters or is not Unicode."""
    if not text.isprintable():
        for c in text:
            if (c < " " and c not in "\t\n\r") or "\ud800" <= c <= "\udfff" or c in "\ufffe\uffff":
                raise DefinitionError(f"{printable(shown_option(text))!r} cannot be written as XML")
    return text
