"""XML declarations, encodings, namespaces and very long numbers: libvirt and astore read the same, of ``str`` and of bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from differential.oracle import LibvirtRefusedError, Oracle
from lxml import etree

from astore import DefinitionError, PoolDef, VolumeDef

pytestmark = pytest.mark.libvirt

DOCS = Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md"

POOL = "<pool type='dir'><name>aä€c</name><target><path>/a</path>{}</target></pool>"
DIR = POOL.format("")
DECLARED = "<?xml version='1.0' encoding='{}'?>" + DIR

ALIKE = {
    "none": DIR,
    "utf-8": DECLARED.format("UTF-8"),
    "utf-16 declared": DECLARED.format("UTF-16"),
    "utf-32 declared": DECLARED.format("UTF-32"),
    "latin-1 declared": DECLARED.format("ISO-8859-1"),
    "ascii declared": DECLARED.format("US-ASCII"),
    "windows declared": DECLARED.format("windows-1252"),
    "no encoding": DECLARED.format(""),
    "blank in the encoding": DECLARED.format("utf-8 "),
    "byte order mark": "\ufeff" + DIR,
    "byte order mark and another encoding": "\ufeff" + DECLARED.format("ISO-8859-1"),
    "version 1.1": "<?xml version='1.1'?>" + DIR,
    "version 2.0": "<?xml version='2.0'?>" + DIR,
    "empty version": "<?xml version=''?>" + DIR,
    "no version": "<?xml encoding='UTF-8'?>" + DIR,
    "empty declaration": "<?xml ?>" + DIR,
    "wrong word": "<?xml version='1.0' bogus='1'?>" + DIR,
    "wrong order": "<?xml version='1.0' standalone='yes' encoding='UTF-8'?>" + DIR,
    "wrong standalone": "<?xml version='1.0' standalone='maybe'?>" + DIR,
    "no quotes": "<?xml version=1.0?>" + DIR,
    "no blank": "<?xml version='1.0'encoding='UTF-8'?>" + DIR,
    "large letters": "<?XML version='1.0'?>" + DIR,
    "blank before": " <?xml version='1.0'?>" + DIR,
    "line before": "\n<?xml version='1.0'?>" + DIR,
    "two": "<?xml version='1.0'?>" * 2 + DIR,
    "after": DIR + "<?xml version='1.0'?>",
    "not closed": "<?xml version='1.0'" + DIR,
    "default namespace": DIR.replace("<pool", "<pool xmlns='urn:x'"),
    "xml:lang": DIR.replace("<pool", "<pool xml:lang='en'"),
    "two attributes": DIR.replace("<pool", "<pool type='dir'"),
}


def of_libvirt(document: str, oracle: Oracle) -> str | int:
    """The pool's name, or the code of the error."""
    try:
        return etree.fromstring(oracle.ask("parsed", document).encode()).findtext("name") or ""
    except LibvirtRefusedError as error:
        return error.code


def volume_of_libvirt(document: str, oracle: Oracle) -> int:
    """The code of the error, or 0."""
    try:
        oracle.ask("volume_parsed", document)
    except LibvirtRefusedError as error:
        return error.code
    return 0


def of_astore(document: str | bytes) -> str | int:
    """The pool's name, or the code of the error."""
    try:
        return PoolDef.from_xml(document).name
    except DefinitionError as error:
        return int(error.libvirt_code)


@pytest.mark.parametrize("document", ALIKE.values(), ids=ALIKE)
def test_declarations_are_read_alike(document: str, oracle: Oracle) -> None:
    """A document is UTF-8, whatever its declaration says, and a wrong declaration is an error."""
    expected = of_libvirt(document, oracle)
    assert (of_astore(document), of_astore(document.encode())) == (expected, expected)


ENCODING = "A document whose declaration names an encoding that nobody knows"
PREFIX = "A document with an undeclared prefix, or another mistake in its namespaces"
ROOT = "A root element in a namespace"
DIFFERENT = [
    (ENCODING, DECLARED.format("klingon"), 35, "aä€c"),
    *(
        (PREFIX, document, "aä€c", 35)
        for document in (
            DIR.replace("<target>", "<foo:bar/><target>"),
            DIR.replace("<pool", "<pool foo:x='1'"),
            DIR.replace("<pool", "<pool xmlns:f=''"),
            DIR.replace("<pool", "<pool xmlns:xml='x'"),
            DIR.replace("<target>", "<:a/><target>"),
            DIR.replace("<target>", "<a:b:c/><target>"),
        )
    ),
    (PREFIX, DIR.replace("pool", "f:pool"), 27, 35),
    (ROOT, DIR.replace("pool", "f:pool").replace("<f:pool", "<f:pool xmlns:f='urn:x'"), "aä€c", 27),
]


@pytest.mark.parametrize(("name", "document", "libvirts", "astores"), DIFFERENT)
def test_differences(name: str, document: str, libvirts: str | int, astores: str | int, oracle: Oracle) -> None:
    """Each deliberate difference is one, still, and has its row in the documentation."""
    assert of_libvirt(document, oracle) == libvirts
    assert (of_astore(document), of_astore(document.encode())) == (astores, astores)
    assert f"| {name} |" in DOCS.read_text(encoding="utf-8")


ZEROS = "0" * 5000
NUMBERS = (ZEROS, ZEROS + "7", "9" * 5000, "+" + ZEROS + "7", "0x" + ZEROS + "7", "1" + ZEROS)
NETFS = (
    "<pool type='netfs'><name>n</name><source><host name='h'/><dir path='/e'/>{}</source>"
    "<target><path>/a</path></target></pool>"
)
SCSI = (
    "<pool type='scsi'><name>n</name><source><adapter type='scsi_host'><parentaddr unique_id='{}'><address {}/>"
    "</parentaddr></adapter></source><target><path>/a</path></target></pool>"
)
POOLS_WITH_NUMBERS = (
    POOL.format("<permissions><mode>{}</mode></permissions>"),
    POOL.format("<permissions><owner>{}</owner></permissions>"),
    POOL.format("<permissions><group>{}</group></permissions>"),
    "<pool type='gluster'><name>n</name><source><host name='h' port='{}'/><name>v</name></source></pool>",
    NETFS.format("<protocol ver='{}'/>"),
    *(SCSI.format("1", f"{name}='{{}}'") for name in ("domain", "bus", "slot", "function")),
    SCSI.format("{}", "slot='1'"),
    POOL.format("").replace("<target>", "<uuid>{}</uuid><target>"),
)
VOLUME = "<volume><name>n</name><capacity>{}</capacity><target><format type='qcow2'/>{}</target></volume>"
VOLUMES_WITH_NUMBERS = (
    VOLUME.format("{}", ""),
    VOLUME.format("1</capacity><allocation>{}</allocation><capacity>1", ""),
    VOLUME.format("1", "<clusterSize>{}</clusterSize>"),
    VOLUME.format("1", "<compat>1.{}</compat>"),
    VOLUME.format("1", "<compat>{}.{}</compat>").replace("{}", "{0}"),
    VOLUME.format("1", "<permissions><owner>{}</owner></permissions>"),
    VOLUME.format(
        "1",
        "<encryption format='luks'><secret type='passphrase' usage='u'/><cipher name='aes' size='{}'/></encryption>",
    ),
    VOLUME.format("1", "<timestamps><atime>{}.{}</atime></timestamps>").replace("{}", "{0}"),
)


@pytest.mark.parametrize("template", POOLS_WITH_NUMBERS)
def test_very_long_numbers_of_pools(template: str, oracle: Oracle) -> None:
    """More digits than Python's int() reads: zeros in front count for nothing, and what is too large is an error."""
    for number in NUMBERS:
        document = template.format(number)
        assert of_astore(document) == of_libvirt(document, oracle), number[:3]


@pytest.mark.parametrize("template", VOLUMES_WITH_NUMBERS)
def test_very_long_numbers_of_volumes(template: str, oracle: Oracle) -> None:
    """As for pools, with an error of a few words."""
    for number in NUMBERS:
        document = template.format(number)
        code, words = 0, ""
        try:
            VolumeDef.from_xml(document)
        except DefinitionError as error:
            code, words = int(error.libvirt_code), str(error)
        assert len(words) < 200
        if not (number.startswith("+") and "compat" in template):  # see "A compat with signs or blanks"
            assert code == volume_of_libvirt(document, oracle), number[:3]
