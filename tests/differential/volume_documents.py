"""``<volume>`` documents, as libvirt and as astore read them; and where they are meant to differ."""

from __future__ import annotations

import copy
import re
from typing import Any

from differential.mutations import mutated
from differential.oracle import LibvirtRefusedError, Oracle
from differential.pool_documents import Difference, Disagreement, Outcome
from hypothesis import strategies as st
from lxml import etree
from strategies import names, paths, permissions, uuids, words

from astore import BackingStore, DefinitionError, Encryption, Permissions, VolumeDef, VolumeType
from astore.model.definitions import Extent, SourceDevice, Timestamps
from astore.model.formats import PARTITION_FORMATS
from astore.xml.reading import string_of
from astore.xml.volume import VOLUME_FORMATS

TAKEN = "taken"
"""The name of a volume that there is. libvirt reads all of a document before it says VIR_ERR_STORAGE_VOL_EXIST, which tells
whether it can read it from whether it can make the volume."""
EXISTS = 90

_OFTEN = ("raw", "raw", "raw", "qcow2", "qcow2", "dir", *VOLUME_FORMATS)


def _text(root: Any, path: str) -> str:
    return string_of(root, path) or ""


def is_unsafe(name: str) -> bool:
    """Whether libvirt takes such a name, and astore does not."""
    return name.startswith("-") or any(ord(c) < 32 or ord(c) == 127 for c in name)


UNSAFE_NAME = Difference(
    "a volume's name that begins with '-', or has control characters",
    "it becomes an argument of programs, and is shown to people",
    lambda root: is_unsafe(_text(root, "./name")),
    "volume name",
)

STRICTER = (
    UNSAFE_NAME,
    Difference(
        "a compat with signs or blanks",
        "libvirt's schema does not allow it, and qemu-img knows no such version",
        lambda root: bool(re.fullmatch(r"\s*[-+]?[0-9]+\.\s*[-+]?[0-9]+", _text(root, "./target/compat"))),
        "is no version",
    ),
    Difference(
        "several secrets",
        "libvirt reads them, and makes no volume of such a document",
        lambda root: len(root.xpath("./target/encryption[1]/secret")) > 1,
        "one secret is enough",
    ),
)
"""libvirt reads it, astore refuses it."""

PARTITION_FORMAT = Difference(
    "a format of partitions, of a volume in another pool than a disk pool",
    "astore reads a document before it knows for which pool it is; making the volume is refused with the same code",
    lambda root: any(
        _text(root, f"./{parent}/format/@type") in PARTITION_FORMATS for parent in ("target", "backingStore")
    ),
    "only the volumes of disk pools have the format",
)
"""astore reads it, libvirt refuses it with VIR_ERR_CONFIG_UNSUPPORTED."""
UNSUPPORTED = 67


def _luks(root: Any) -> Any:
    found = root.find("target/encryption")
    return found if found is not None and found.get("format") == "luks" else None


def _has_uncommon_cipher(root: Any) -> bool:
    luks = _luks(root)
    cipher = None if luks is None else luks.find("cipher")
    if luks is None or cipher is None:
        return False
    incomplete = (cipher.get("mode") is None) != (cipher.get("hash") is None)
    return incomplete or luks.find("ivgen") is None or luks.find("secret") is None


SCHEMA_IS_STRICTER = (
    Difference(
        "a volume of type ploop",
        "libvirt has such volumes, and writes them so",
        lambda root: bool(root.get("type") == "ploop"),
    ),
    Difference(
        "a path of a backing file that is relative, a URI, or has line ends",
        "it is what the image's header has; libvirt writes it so",
        lambda root: not re.fullmatch(r"(/|[a-zA-Z]:\\)[^\n\r]+", _text(root, "./backingStore/path") or "/x"),
    ),
    Difference(
        "a cipher without an iv generator or a secret, or with a mode and no hash, or a hash and no mode",
        "libvirt takes it, and writes it so",
        _has_uncommon_cipher,
    ),
)
"""What astore, like libvirt, reads and writes though the schema does not allow it."""


@st.composite
def volume_documents(draw: st.DrawFn) -> str:
    """Documents that the schema allows, with some changes; in most of them what libvirt refuses most often is made good."""
    text = draw(mutated("storagevol"))
    root = etree.fromstring(text.encode())
    if draw(st.integers(0, 3)) == 0:
        return text
    for element in root.xpath("./target/format | ./backingStore/format"):
        if element.get("type") not in VOLUME_FORMATS:
            element.set("type", draw(st.sampled_from(_OFTEN)))
    if not _text(root, "./capacity"):
        capacity = etree.Element("capacity", {"unit": draw(st.sampled_from(["b", "KiB", "MB", "g"]))})
        capacity.text = str(draw(st.integers(0, 10_000)))
        root.insert(0, capacity)
    return str(etree.tostring(root, encoding="unicode"))


_counts = st.integers(0, 5000) | st.integers(0, (1 << 63) - 1)
_wide = st.integers(0, (1 << 64) - 1)
_times = st.none() | st.builds(Timestamps, *[st.none() | st.integers(-(10**12), 10**19)] * 3, st.integers(0, 10**19))
_kinds = st.sampled_from(VOLUME_FORMATS)
_encryptions = st.builds(
    Encryption,
    st.sampled_from(["default", "qcow", "luks2"]),
    secret_uuid=st.none() | uuids,
    engine=st.sampled_from([None, "qemu", "librbd"]),
) | st.builds(
    Encryption,
    st.just("luks"),
    secret_usage=words,
    cipher_name=words,
    cipher_size=st.integers(0, (1 << 32) - 1),
    cipher_mode=words,
    cipher_hash=words,
    ivgen_name=words,
    ivgen_hash=st.none() | words,
)
_some_permissions = st.none() | permissions.filter(lambda one: one != Permissions())


@st.composite
def volume_definitions(draw: st.DrawFn) -> VolumeDef:
    """Definitions that a program may make, and that libvirt accepts."""
    kind, features = draw(_kinds), draw(st.sets(st.sampled_from(["extended_l2", "lazy_refcounts"])))
    given = draw(st.none() | st.just(tuple(sorted(features)))) if not features else tuple(sorted(features))
    versions = st.builds("{}.{}".format, st.integers(0, 99), st.integers(0, (1 << 32) - 1))
    types = [type_ for type_ in VolumeType if type_ not in ("ploop", "dir", "netdir")]
    extents = st.lists(st.builds(Extent, _wide, _wide), max_size=2).map(tuple)
    return VolumeDef(
        name=draw(names.filter(lambda name: not is_unsafe(name))),
        capacity=draw(_counts),
        allocation=draw(_counts),
        format=kind,
        type=VolumeType.DIR if kind == "dir" else draw(st.none() | st.sampled_from(types)),
        permissions=draw(_some_permissions),
        compat=draw(versions if given is not None else st.none() | versions),
        features=given,
        cluster_size=draw(st.none() | _wide.filter(bool)),
        nocow=draw(st.sampled_from([None, True])),
        encryption=draw(st.none() | _encryptions),
        backing=draw(st.none() | st.builds(BackingStore, paths, st.none() | _kinds, _some_permissions, _times)),
        timestamps=draw(_times),
        source=tuple(draw(st.lists(st.builds(SourceDevice, paths, extents), max_size=2))),
    )


def _under_the_name(document: str, name: str) -> str:
    """The document with another name, if it has one."""
    root = etree.fromstring(document.encode())
    if not _text(root, "./name"):
        return document
    element = root.find("name")
    for inner in list(element):
        element.remove(inner)
    element.text = name
    return str(etree.tostring(root, encoding="unicode"))


def compare_reading(document: str, pool: str, oracle: Oracle, schema: etree.RelaxNG) -> Outcome:
    """Have both read a document, and astore write it. :raises Disagreement: they differ, and should not.

    :param pool: one of libvirt's, which has a volume :data:`TAKEN`.
    """
    libvirts = _libvirts_code(_under_the_name(document, TAKEN), pool, oracle)
    root = etree.fromstring(document.encode(), etree.XMLParser(remove_comments=True, remove_pis=True))
    if libvirts == UNSUPPORTED and PARTITION_FORMAT.met(root):
        return Outcome("different on purpose", differences=(PARTITION_FORMAT.name,))
    try:
        read = VolumeDef.from_xml(document)
    except DefinitionError as error:
        if libvirts:
            if error.libvirt_code != libvirts and not _is_about_the_name(error):
                raise Disagreement(
                    f"libvirt's code is {libvirts}, astore's {error.libvirt_code!r}:\n{document}"
                ) from None
            return Outcome("refused by both")
        if "/" in _text(root, "./name") and _is_about_the_name(error):  # libvirt says so when it comes to make it
            return Outcome("refused by both")
        names = [d.name for d in STRICTER if d.met(root) and re.search(d.says, str(error))]
        if not names:
            raise Disagreement(f"astore refuses it ({error}), libvirt takes it:\n{document}") from None
        return Outcome("different on purpose", differences=tuple(names[:1]))
    if libvirts:
        raise Disagreement(f"libvirt refuses it ({libvirts}), astore takes it:\n{document}\nas\n{read}")
    written = read.to_xml()
    if VolumeDef.from_xml(written) != read or VolumeDef.from_xml(written).to_xml() != written:
        raise Disagreement(f"not the same when it is read again:\n{document}\nas\n{written}")
    _compare_writing(document, written, oracle)
    return Outcome("accepted by both", differences=_by_the_schema(written, schema), written=written)


def _compare_writing(document: str, written: str, oracle: Oracle) -> None:
    """Compare what both write of the target and the backing file. :raises Disagreement: it is not the same.

    libvirt's test driver has little room, so the sizes are replaced; test_volumes_are_made_alike compares them.
    """
    root = etree.fromstring(_under_the_name(document, "compared").encode())
    for element in root.xpath("./capacity | ./allocation"):
        root.remove(element)
    etree.SubElement(root, "capacity").text = "1"
    said = oracle.ask("volume_parsed", etree.tostring(root, encoding="unicode"))
    libvirts, astores = (etree.fromstring(text.encode()) for text in (said, written))
    for part in ("target", "backingStore"):
        one, other = (_comparable(tree_.find(part)) for tree_ in (libvirts, astores))
        if one != other:
            raise Disagreement(f"libvirt writes\n{one}\nastore writes\n{other}\nof\n{document}")


def _comparable(part: Any) -> Any:
    """What is compared of ``<target>`` or ``<backingStore>``; docs/differences-from-libvirt.md names what is left out."""
    if part is None:
        return None
    # libvirt: a backing file of no format is raw
    part = without(part, "timestamps", "nocow", "path" if part.tag == "target" else "format[@type='raw']")
    for ids in part.xpath("./permissions/owner | ./permissions/group"):
        ids.text = str(int(ids.text) % (1 << 32))
    for encryption in part.findall("encryption"):  # libvirt writes it in two lines, also with nothing between them
        encryption.text = None
    return tree(part)


def _is_about_the_name(error: DefinitionError) -> bool:
    return error.element == "name"


def _libvirts_code(document: str, pool: str, oracle: Oracle) -> int:
    """The code of libvirt's error, if it cannot read the document."""
    try:
        oracle.ask("create_volume", pool, document)
    except LibvirtRefusedError as error:
        return 0 if error.code == EXISTS else error.code
    raise Disagreement(f"libvirt made a volume that it had:\n{document}")


def _by_the_schema(written: str, schema: etree.RelaxNG) -> tuple[str, ...]:
    """Why the schema does not allow what astore wrote. :raises Disagreement: nobody knows."""
    root = etree.fromstring(written.encode())
    if schema.validate(root):
        return ()
    names = tuple(f"not allowed by the schema: {d.name}" for d in SCHEMA_IS_STRICTER if d.met(root))
    if not names:
        raise Disagreement(f"the schema does not allow what astore wrote: {schema.error_log.last_error}\n{written}")
    return names


def tree(element: Any) -> Any:
    """An element, to compare: its tag, its text, its attributes, and what it has inside."""
    text = (element.text or "").strip() if len(element) else element.text or ""
    return element.tag, text, dict(element.attrib), [tree(inner) for inner in element]


def without(element: Any, *paths: str) -> Any:
    """A copy of an element, less what is at these paths."""
    element = copy.deepcopy(element)
    for path in paths:
        for found in element.findall(path):
            found.getparent().remove(found)
    return element
