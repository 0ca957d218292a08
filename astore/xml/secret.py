"""Read and write ``<secret>`` documents, by the rules of libvirt 9.0 (secret_conf.c)."""

from __future__ import annotations

from lxml import etree

from astore.errors import DefinitionError, LibvirtCode, printable
from astore.model import SecretDef
from astore.xml.known_types import USAGES
from astore.xml.reading import Element, all_of, parse, safe, string_of, uuid_of, wrong
from astore.xml.writing import add, add_given, render

_INTERNAL = LibvirtCode.INTERNAL_ERROR

_PARTS = {"volume": "volume", "ceph": "name", "iscsi": "target", "tls": "name", "vtpm": "name", "cifs": "name"}
"""The element below ``<usage>`` that has the name of the use, by usage type."""


def secret_from_xml(text: str | bytes) -> SecretDef:
    """Read a ``<secret>`` document.

    :raises DefinitionError: the definition is not acceptable; the error names line and element.
    """
    root = parse(text, "secret")
    uuid = string_of(root, "./uuid")
    usage_type, usage = _usage(root)
    return SecretDef(
        uuid=None if uuid is None else uuid_of(all_of(root, "./uuid")[0], uuid, _INTERNAL),
        usage_type=usage_type,
        usage=usage,
        description=string_of(root, "./description"),
        ephemeral=_flag(root, "ephemeral"),
        private=_flag(root, "private"),
    )


def _flag(root: Element, name: str) -> bool:
    value = string_of(root, f"./@{name}")
    if value not in (None, "yes", "no"):
        raise wrong(root, f"{name} {printable(value or '')!r} is none of yes, no")
    return value == "yes"


def _usage(root: Element) -> tuple[str, str | None]:
    element = root.find("usage")
    if element is None:
        return "none", None
    type_ = string_of(root, "./usage/@type")
    if type_ is None:
        raise wrong(element, "it has no attribute 'type'")
    if type_ not in USAGES:
        raise wrong(
            element, f"type {printable(type_)!r} is none of {', '.join(USAGES)}", LibvirtCode.CONFIG_UNSUPPORTED
        )
    if type_ == "none":
        return type_, None
    usage = string_of(root, f"./usage/{_PARTS[type_]}")
    if usage is None:
        raise wrong(element, f"a usage of type {type_} needs a <{_PARTS[type_]}>", _INTERNAL)
    return type_, usage


def secret_to_xml(definition: SecretDef) -> str:
    """Write a ``<secret>`` document.

    :raises DefinitionError: there is no such usage type, or XML cannot hold a text.
    """
    if definition.usage_type not in USAGES:
        raise DefinitionError(
            f"type {printable(definition.usage_type)!r} is none of {', '.join(USAGES)}", element="usage"
        )
    root = etree.Element("secret")
    root.set("ephemeral", "yes" if definition.ephemeral else "no")
    root.set("private", "yes" if definition.private else "no")
    add_given(root, "uuid", definition.uuid)
    add_given(root, "description", definition.description)
    if definition.usage_type != "none":
        usage = add(root, "usage", type=definition.usage_type)
        add(usage, _PARTS[definition.usage_type], safe(definition.usage or ""))
    return render(root)
