"""Documents near those that a schema allows: something left out, doubled, renamed, moved, misspelt or put in."""

from __future__ import annotations

import copy
from typing import Any

from differential.schema import PLAIN, grammar, pick, texts, trees
from hypothesis import strategies as st
from lxml import etree

ODD = (
    "", " ", "\n", "0", "-1", "-2", "+1", "00", "01", "0x1F", "0X1f", "0xg", "1.5", "1e3", " 7", "7 ", "\t7\n", "7k", "8", "9",
    "0777", "0o17", "01777", "65535", "65536", "2147483647", "2147483648", "4294967294", "4294967295", "4294967296",
    "-2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "18446744073709551615",
    "18446744073709551616", "-18446744073709551615", "99999999999999999999999", "yes", "no", "YES", "on", "default",
    "auto", "none", "unknown", "/", "//", "///", "//a//b/", "/a/../b", "..", ".", "a/b", "a,b", "-o", "--", "a b", " a ",
    "a\nb", "a\tb", "\x7f", "\x85", "\u2028", "\xa0", "C:\\x", "gluster://h/v", "x://a//b/", "[::1]", "::1", "a:b", "%s", "é",
    "0123456789abcdef", "0123456789abcde", "50:01:43:80:24:d6:ba:e4", "0x0123456789ABCDEF", "12345678-1234",
    " 0123456789abcdef0123456789abcdef\n", "0-123456789abcdef0123456789abcdef-", "{0}", "'\"<>&",
)  # fmt: skip
"""Values that readers disagree about: empty, padded, at the ends of the integers' ranges, of another base or kind."""

FOREIGN = ("urn:x", "http://libvirt.org/schemas/storagepool/fs/1.0", "http://libvirt.org/schemas/storagepool/rbd/1.0")


def _elements(root: Any) -> list[Any]:
    return [element for element in root.iter() if isinstance(element.tag, str)]


@st.composite
def mutated(draw: st.DrawFn, schema_name: str, most: int = 3) -> str:
    """A document of the schema with up to ``most`` changes, which it may or may not allow."""
    root = draw(trees(schema_name))
    for _ in range(draw(st.integers(0, most))):
        _change(draw, root, schema_name)
    for element in _elements(root) if draw(st.integers(0, 5)) == 0 else ():
        _space(element)
    text = str(etree.tostring(root, encoding="unicode"))
    if draw(st.integers(0, 20)) == 0:
        text = "<?xml version='1.0' encoding='UTF-8'?>\n<!-- before -->" + text
    return text


def _change(draw: st.DrawFn, root: Any, schema_name: str) -> None:
    element = pick(draw, _elements(root))
    kinds = [
        _drop,
        _double,
        _rename,
        _put_in,
        _put_in,
        _move,
        _value,
        _value,
        _value,
        _text,
        _text,
        _attribute,
        _foreign,
    ]
    pick(draw, [*kinds, _stray, _retype])(draw, element, schema_name)


def _drop(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Leave out an attribute or the element."""
    if element.attrib and draw(st.booleans()):
        del element.attrib[draw(st.sampled_from(sorted(element.attrib)))]
    elif element.getparent() is not None:
        element.getparent().remove(element)


def _double(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Have an element twice, with a changed value maybe."""
    if element.getparent() is None:
        return
    again = copy.deepcopy(element)
    if draw(st.booleans()):
        _value(draw, again, schema_name)
    element.getparent().insert(draw(st.integers(0, len(element.getparent()))), again)


def _rename(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Give an element or an attribute the name of another."""
    names = grammar(schema_name)
    if element.attrib and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(element.attrib)))
        value = element.attrib.pop(name)
        element.set(draw(st.sampled_from(names.attributes)), value)
    else:
        name, space = draw(st.sampled_from(sorted(names.elements, key=str)))
        element.tag = f"{{{space}}}{name}" if space else name


def _put_in(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Put another of the schema's elements in: most of the time where its like may stand."""
    names = grammar(schema_name)
    pattern = names.elements[draw(st.sampled_from(sorted(names.elements, key=str)))]
    new = names.draw_element(draw, pattern)
    root = element.getroottree().getroot()
    above = [place for place in (root, root.find("source"), root.find("target")) if place is not None]
    place = pick(draw, [element, *above])
    place.insert(draw(st.integers(0, len(place))), new)


def _move(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Put an element where another stands."""
    place = pick(draw, _elements(element.getroottree().getroot()))
    if element not in (place, *place.iterancestors()) and element.getparent() is not None:
        place.insert(0, element)


def _value(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Change an attribute's value, or an element's text if it has no attributes."""
    if not element.attrib:
        return _text(draw, element, schema_name)
    name = draw(st.sampled_from(sorted(element.attrib)))
    old = element.get(name)
    element.set(name, draw(st.sampled_from(ODD) | st.sampled_from(_spellings(old)) | texts))
    return None


def _spellings(value: str) -> list[str]:
    """A value spelt otherwise."""
    return [
        f" {value}",
        f"{value} ",
        f"\n {value}\n",
        value.upper(),
        f"{value}x",
        value[:-1],
        f"/{value}//",
        f"-{value}",
    ]


def _text(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Change an element's text: what of it stands before its first child."""
    element.text = draw(st.sampled_from(ODD) | st.sampled_from(_spellings(element.text or "")) | texts)


def _attribute(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Give an element one more attribute."""
    name = draw(st.sampled_from(grammar(schema_name).attributes))
    element.set(name, draw(st.sampled_from(ODD) | texts))


def _retype(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Give the document another type, which its elements do not fit."""
    values = grammar(schema_name).values
    element.getroottree().getroot().set("type", draw(st.sampled_from(values)))


def _foreign(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Put in an element of a namespace, or move the element there."""
    tag = f"{{{draw(st.sampled_from(FOREIGN))}}}{draw(st.text(PLAIN[:26], min_size=1, max_size=3))}"
    if draw(st.booleans()):
        etree.SubElement(element, tag, draw(st.just({}) | st.just({"name": "a", "value": "b"})))
    else:
        element.tag = tag


def _stray(draw: st.DrawFn, element: Any, schema_name: str) -> None:
    """Comments, instructions and text where none belong, or within a text."""
    new = etree.Comment(" c ") if draw(st.booleans()) else etree.ProcessingInstruction("p", "i")
    new.tail = pick(draw, ["", " ", "tail"])
    element.insert(draw(st.integers(0, len(element))), new)


def _space(element: Any) -> None:
    """Indent an element's children, as people do."""
    if len(element) and not (element.text or "").strip():
        element.text = "\n  "
        for child in element:
            child.tail = child.tail or "\n  "
