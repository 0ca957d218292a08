"""Documents made from libvirt's own RELAX NG schemas: a walk through the grammar, as hypothesis strategies.

``documents("storagepool")`` are texts that the schema allows; ``trees`` the same before they are written, for those who
change them first (``mutations.py``). Only what the storage schemas use of RELAX NG is understood; all else is an error.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from lxml import etree

SCHEMAS = Path("/usr/share/libvirt/schemas")

# what text is made of: mostly plain letters, but also what XML, paths, options and URIs give a meaning to
PLAIN = string.ascii_letters + string.digits + "_-"
ALPHABET = st.sampled_from(PLAIN * 2 + " ./:,;=+%&<>'\"@[]()\\äß漢😀")
texts = st.text(st.sampled_from(PLAIN), min_size=1, max_size=8) | st.text(ALPHABET, max_size=12)

_NUMBERS = {
    "int": (-(1 << 31), (1 << 31) - 1),
    "unsignedInt": (0, (1 << 32) - 1),
    "unsignedLong": (0, (1 << 64) - 1),
    "positiveInteger": (1, 1 << 66),
}
_RNG = "{http://relaxng.org/ns/structure/1.0}"


T = TypeVar("T")


def pick(draw: st.DrawFn, options: Sequence[T]) -> T:
    """One of them. By number: hypothesis tells strategies apart by what they sample from, and elements by their address, so
    that a seed would not give the same documents again."""
    return options[draw(st.integers(0, len(options) - 1))]


def _local(pattern: Any) -> str:
    return str(pattern.tag).removeprefix(_RNG)


def _inside(pattern: Any) -> list[Any]:
    """The patterns in a pattern, less comments."""
    return [inner for inner in pattern if isinstance(inner.tag, str)]


class Grammar:
    """One of libvirt's schemas, with all that it includes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._defined: dict[str, Any] = {}
        self._start: Any = None
        self._load(SCHEMAS / f"{name}.rng")
        reached = self._reachable(self._start)
        elements = [e for d in reached for e in d.iter(f"{_RNG}element") if e.get("name")]
        self.elements = {(e.get("name"), e.get("ns")): e for e in elements}
        """Its elements' patterns by name and namespace; of several with a name, the last."""
        self.attributes = sorted({str(a.get("name")) for d in reached for a in d.iter(f"{_RNG}attribute")})
        self.values = sorted({str(v.text) for d in reached for v in d.iter(f"{_RNG}value")})
        """The words that its attributes and texts choose from: types, formats, yes and no."""

    def _load(self, path: Path) -> None:
        for part in _inside(etree.parse(path).getroot()):
            if _local(part) == "include":
                self._load(path.parent / part.get("href"))
            elif _local(part) == "start":
                self._start = part
            else:
                assert _local(part) == "define" and part.get("combine") is None
                self._defined[part.get("name")] = part

    def _reachable(self, start: Any) -> list[Any]:
        """The definitions that a document can come by."""
        found, waiting = [], [start]
        while waiting:
            found.append(waiting.pop())
            for ref in found[-1].iter(f"{_RNG}ref"):
                definition = self._defined[ref.get("name")]
                if definition not in found and definition not in waiting:
                    waiting.append(definition)
        return found

    def draw_document(self, draw: st.DrawFn) -> Any:
        """A whole document's root."""
        return self._content(draw, self._start)[0]

    def draw_element(self, draw: st.DrawFn, pattern: Any) -> Any:
        """An element of this pattern."""
        space = next((a.get("ns") for a in (pattern, *pattern.iterancestors()) if a.get("ns")), None)
        prefix = {} if space is None else {space.rstrip("/").split("/")[-2]: space}
        element = etree.Element(f"{{{space}}}{pattern.get('name')}" if space else pattern.get("name"), nsmap=prefix)
        for item in self._content(draw, pattern):
            if isinstance(item, tuple):
                element.set(*item)
            elif isinstance(item, str):
                element.text = (element.text or "") + item
            else:
                element.append(item)
        return element

    def _content(self, draw: st.DrawFn, pattern: Any) -> list[Any]:
        """What a pattern's inner patterns give, in a row: elements, texts, and attributes as pairs."""
        return [item for inner in _inside(pattern) for item in self._draw(draw, inner)]

    def _draw(self, draw: st.DrawFn, pattern: Any) -> list[Any]:
        kind = _local(pattern)
        if kind in ("group", "empty"):
            return self._content(draw, pattern)
        if kind == "ref":
            return self._content(draw, self._defined[pattern.get("name")])
        if kind == "choice":
            return self._draw(draw, pick(draw, _inside(pattern)))
        if kind == "optional":
            return self._content(draw, pattern) if draw(st.booleans()) else []
        if kind in ("oneOrMore", "zeroOrMore"):
            times = pick(draw, [1, 1, 2, 3] if kind == "oneOrMore" else [0, 1, 2, 3])
            return [item for _ in range(times) for item in self._content(draw, pattern)]
        if kind == "interleave":
            parts = [self._draw(draw, inner) for inner in _inside(pattern)]
            items = [item for part in parts for item in part]
            if len(items) > 1 and draw(st.integers(0, 3)) == 0:
                return [items[number] for number in draw(st.permutations(range(len(items))))]
            return items
        if kind == "element":
            return [self.draw_element(draw, pattern)]
        if kind == "attribute":
            value = "".join(self._content(draw, pattern)) if _inside(pattern) else draw(texts)
            return [(pattern.get("name"), value)]
        if kind == "text":
            return [draw(texts)]
        if kind == "value":
            return [pattern.text]
        if kind == "data":
            return [draw(_data(pattern))]
        raise NotImplementedError(f"RELAX NG's <{kind}>")


@cache
def _data(pattern: Any) -> st.SearchStrategy[str]:
    """The strings of a ``<data>``: its type, within its parameters."""
    param = {inner.get("name"): inner.text for inner in _inside(pattern) if _local(inner) == "param"}
    refused = {value.text for value in pattern.iter(f"{_RNG}value")}
    type_ = pattern.get("type")
    if type_ == "anyURI":
        return st.builds("{}://{}".format, st.sampled_from(["gluster", "file", "http"]), st.text(PLAIN + "/.:"))
    least, most = _NUMBERS.get(type_, (0, 0))
    least, most = int(param.get("minInclusive", least)), int(param.get("maxInclusive", most))
    if type_ in _NUMBERS and param.get("pattern") in (None, "[0-9]+"):
        return (st.integers(least, min(most, 300)) | st.integers(least, most)).map(str)
    # XML Schema's dot is all but line ends, and nothing here uses what differs more
    plain = st.from_regex(re.compile(param["pattern"].replace("[^/]", "[^/\n]")), fullmatch=True, alphabet=ALPHABET_SET)
    strings = plain.filter(lambda text: text not in refused)
    return strings.filter(lambda text: least <= int(text) <= most) if type_ in _NUMBERS else strings


ALPHABET_SET = st.characters(codec="utf-8", min_codepoint=32, max_codepoint=126) | st.sampled_from("äß漢😀")


@cache
def grammar(name: str) -> Grammar:
    """The schema of this name (``storagepool``, ``storagevol``), read once."""
    return Grammar(name)


@st.composite
def trees(draw: st.DrawFn, schema_name: str) -> Any:
    """The root element of a document that the schema allows."""
    return grammar(schema_name).draw_document(draw)


def documents(schema_name: str) -> st.SearchStrategy[str]:
    """Documents that the schema allows, as text."""
    return trees(schema_name).map(lambda root: str(etree.tostring(root, encoding="unicode")))


def relaxng(schema_name: str) -> etree.RelaxNG:
    """The schema, to validate with."""
    return etree.RelaxNG(etree.parse(SCHEMAS / f"{schema_name}.rng"))
