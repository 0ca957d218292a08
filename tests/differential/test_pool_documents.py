"""``<pool>`` documents by the thousand: what astore accepts, refuses, defaults and writes is what libvirt does.

They are made from libvirt's own schema and changed at random. ASTORE_DIFFERENTIAL_DOCUMENTS says how many,
ASTORE_DIFFERENTIAL_SEED which; the session's summary prints the counts and the seed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from differential.counts import SEED_OF_SESSION, counting, documents_wanted
from differential.mutations import mutated
from differential.oracle import LibvirtRefusedError, Oracle
from differential.pool_documents import (
    KEPT_EXTENTS,
    KEPT_FOREIGN,
    LARGE_IDS,
    LAXER_THAN_SCHEMA,
    LINE_ENDS,
    LOOSER,
    STRICTER,
    UNESCAPED,
    WRITTEN,
    Outcome,
    compare,
)
from differential.schema import documents, relaxng
from hypothesis import HealthCheck, Phase, given, seed, settings
from lxml import etree
from strategies import pool_definitions

from astore import DefinitionError, PoolDef
from astore.xml.known_types import POOL_TYPES

pytestmark = pytest.mark.libvirt

DOCS = Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md"
COUNTS = counting("pool documents")
WANTED = documents_wanted()
ANY_SPEED = settings(database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])


@pytest.fixture(autouse=True, scope="module")
def _no_events_left(oracle: Oracle) -> Iterator[None]:
    """Each pool that is defined and undefined again is two events, which are nobody else's."""
    yield
    oracle.ask("events")


def _counted(outcome: Outcome) -> Outcome:
    if outcome.outcome == "different on purpose":
        COUNTS.differed(outcome.differences[0])
    else:
        COUNTS.came_out(outcome.outcome)
        COUNTS.differences.update(outcome.differences)
    return outcome


@pytest.mark.timeout(max(900, WANTED))
def test_documents_agree(oracle: Oracle) -> None:
    """Both accept a document and write the same of it, or both refuse it, or the difference has a name and a reason.

    And what astore writes is what libvirt's schema accepts, unless it does not accept what libvirt writes either.
    """
    valid = relaxng("storagepool").validate
    types: dict[str, int] = {}
    before = COUNTS.compared, COUNTS.outcomes["accepted by both"], COUNTS.outcomes["refused by both"]

    @seed(SEED_OF_SESSION)
    @settings(ANY_SPEED, max_examples=WANTED)
    @given(mutated("storagepool", most=2))
    def check(document: str) -> None:
        outcome = _counted(compare(document, oracle))
        if not outcome.written:
            return
        types[outcome.type] = types.get(outcome.type, 0) + 1
        if not valid(etree.fromstring(document.encode())):
            COUNTS.differences[LAXER_THAN_SCHEMA] += 1
        if not valid(etree.fromstring(outcome.written)) and KEPT_FOREIGN not in outcome.differences:
            assert not valid(etree.fromstring(outcome.libvirt_wrote)), outcome.written

    check()
    compared, accepted, refused = (
        now - then
        for now, then in zip(
            (COUNTS.compared, COUNTS.outcomes["accepted by both"], COUNTS.outcomes["refused by both"]),
            before,
            strict=True,
        )
    )
    assert compared >= WANTED
    if WANTED >= 500:  # fewer may happen to be of a few types
        assert accepted > 0.3 * compared
        assert refused > 0.1 * compared
        assert sorted(types) == sorted(POOL_TYPES)


def test_documents_that_the_schema_allows(oracle: Oracle) -> None:
    """What astore writes of them the schema allows as well, always."""
    valid = relaxng("storagepool").validate
    written = 0

    @seed(SEED_OF_SESSION)
    @settings(ANY_SPEED, max_examples=100)
    @given(documents("storagepool"))
    def check(document: str) -> None:
        nonlocal written
        assert valid(etree.fromstring(document))
        outcome = _counted(compare(document, oracle))
        assert not outcome.written or valid(etree.fromstring(outcome.written)), outcome.written
        written += bool(outcome.written)

    check()
    assert written > 30


def test_definitions_made_by_programs(oracle: Oracle) -> None:
    """libvirt reads what astore writes of any definition, of any type, and writes the same."""

    @seed(SEED_OF_SESSION)
    @settings(ANY_SPEED, max_examples=150)
    @given(pool_definitions())
    def check(definition: PoolDef) -> None:
        assert _counted(compare(definition.to_xml(), oracle)).outcome == "accepted by both"

    check()


DIR = "<pool type='dir'><name>n</name><target><path>/x</path>{}</target></pool>"
NETFS = (
    "<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'><name>n</name><source><host name='h'/>"
    "<dir path='/e'/>{}</source><target><path>/x</path></target>{}</pool>"
)
GLUSTER = "<pool type='gluster'><name>n</name><source><host name='h'/>{}</source></pool>"
DISK = "<pool type='disk'><name>n</name><source><device path='/d'>{}</device></source><target><path>/x</path></target></pool>"
SCSI = (
    "<pool type='scsi'><name>n</name><source><adapter type='scsi_host' name='{}'/></source>"
    "<target><path>/x</path></target></pool>"
)
OPTION = "<fs:mount_opts><fs:option name='{}'/></fs:mount_opts>"

NAME, TARGET, MOUNT_OPTION, PORT, PROTOCOL, VOLUME, DIRECTORY, EXTENT = (difference.name for difference in STRICTER)
EXAMPLES = [
    (NAME, DIR.format("").replace(">n<", ">-n<")),
    (NAME, DIR.format("").replace(">n<", ">..<")),
    (NAME, DIR.format("").replace(">n<", ">a&#9;b<")),
    (TARGET, DIR.format("").replace("/x", "x")),
    (TARGET, DIR.format("").replace("/x", "/x/../y")),
    (TARGET, NETFS.format("", "").replace("/x", "/a&#10;b")),
    (MOUNT_OPTION, NETFS.format("", OPTION.format("a,b"))),
    (MOUNT_OPTION, NETFS.format("", OPTION.format("-o"))),
    (MOUNT_OPTION, NETFS.format("", OPTION.format(""))),
    (MOUNT_OPTION, NETFS.format("", OPTION.format("a&#10;b"))),
    (PORT, GLUSTER.format("<host name='i' port='-1'/>")),
    (PORT, GLUSTER.format("<host name='i' port='65536'/>")),
    (PROTOCOL, NETFS.format("<protocol ver='4 x'/>", "")),
    (VOLUME, GLUSTER.format("<name>a/b</name>")),
    (DIRECTORY, GLUSTER.format("<dir path='d'/>")),
    (EXTENT, DISK.format("<freeExtent start='1'/>")),
    (EXTENT, DISK.format("<freeExtent start='1' end='x'/>")),
    (LOOSER[0].name, DIR.format("").replace("'dir'", "'tape'")),
    (UNESCAPED, SCSI.format("&lt;&apos;&amp;")),
    (KEPT_FOREIGN, DIR.format("").replace("</pool>", "<x:y xmlns:x='urn:x'/></pool>")),
    (KEPT_FOREIGN, NETFS.format("", OPTION.format("a")).replace("netfs", "vstorage")),
    (KEPT_EXTENTS, DISK.format("<freeExtent start='1' end='2'/>")),
    (LARGE_IDS, DIR.format("<permissions><owner>4294967294</owner><group>2147483648</group></permissions>")),
    (LINE_ENDS, SCSI.format("a&#10;b&#9;c")),
    (LINE_ENDS, DIR.format("<permissions><label>a&#13;b</label></permissions>")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "document"), EXAMPLES)
def test_differences(name: str, document: str, oracle: Oracle) -> None:
    """Each deliberate difference is one, still."""
    assert compare(document, oracle).differences == (name,)


def test_differences_are_documented() -> None:
    """Each has an example here, and its row in the documentation."""
    named = {difference.name for difference in (*STRICTER, *LOOSER)} | set(WRITTEN)
    assert {name for name, _ in EXAMPLES} == named
    text = DOCS.read_text(encoding="utf-8")
    assert [name for name in sorted(named) if name[0].upper() + name[1:] not in text] == []


HOSTILE = {
    "an entity": "<!DOCTYPE pool [<!ENTITY a 'n'>]>" + DIR.format("").replace(">n<", ">&a;<"),
    "a document type": "<!DOCTYPE pool>" + DIR.format(""),
    "depth": DIR.format("").replace("</pool>", "<a>" * 70 + "</a>" * 70 + "</pool>"),
    "elements": DIR.format("").replace("</pool>", "<a/>" * 20_001 + "</pool>"),
    "length": DIR.format("").replace("</pool>", f"<a>{'a' * (1 << 20)}</a></pool>"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_documents(what: str, oracle: Oracle) -> None:
    """libvirt reads them; astore does not, since documents come from strangers."""
    assert "<name>n</name>" in oracle.ask("round_trip", HOSTILE[what])
    with pytest.raises(DefinitionError, match=r"not allowed|deep|elements|longer"):
        PoolDef.from_xml(HOSTILE[what])


WWN = "0x0123456789abcdef"
FAULTS = [
    "<pool type='dir'>",
    "<volume/>",
    "<pool><name>n</name></pool>",
    DIR.format("").replace(">n<", "><"),
    DIR.format("").replace(">n<", ">a/b<"),
    DIR.format("").replace(">n<", ">a\nb<"),
    DIR.format("").replace("<target>", "<uuid>x</uuid><target>"),
    DIR.format("").replace("/x", ""),
    DIR.format("<permissions><mode>8</mode></permissions>"),
    DIR.format("<permissions><owner>x</owner></permissions>"),
    DIR.format("").replace("<target>", "<features><cow state='x'/></features><target>"),
    DIR.format("").replace("<target>", "<refresh><volume allocation='x'/></refresh><target>"),
    NETFS.format("", "<features><cow state='yes'/></features>"),
    NETFS.format("", "").replace("<host name='h'/>", ""),
    NETFS.format("", "").replace("name='h'", ""),
    NETFS.format("", "").replace("name='h'", "name='h' port='x'"),
    NETFS.format("", "").replace("<dir path='/e'/>", ""),
    NETFS.format("<format type='ext4'/>", ""),
    NETFS.format("<format type='cifs'/><protocol ver='4'/>", ""),
    NETFS.format("<protocol ver='4,ro'/>", ""),
    NETFS.format("", "<fs:mount_opts><fs:option/></fs:mount_opts>"),
    NETFS.format("<auth type='none' username='u'><secret usage='s'/></auth>", ""),
    NETFS.format("<auth type='x' username='u'><secret usage='s'/></auth>", ""),
    NETFS.format("<auth username='u'><secret usage='s'/></auth>", ""),
    NETFS.format("<auth username='u'/>", ""),
    NETFS.format("<auth username='u'><secret usage='s' uuid='x'/></auth>", ""),
    NETFS.format("<auth type='chap'><secret usage='s'/></auth>", ""),
    NETFS.format("<auth type='chap' username='u'/>", ""),
    NETFS.format("<auth type='chap' username='u'><secret/></auth>", ""),
    NETFS.format("<auth type='chap' username='u'><secret uuid='x'/></auth>", ""),
    NETFS.format("<device/>", ""),
    NETFS.format("<device path='x' part_separator='x'/>", ""),
    NETFS.format("<adapter type='x'/>", ""),
    NETFS.format("<adapter parent='x'/>", ""),
    NETFS.format("<adapter><parentaddr/></adapter>", ""),
    NETFS.format("<adapter type='scsi_host'><parentaddr unique_id='1'/></adapter>", ""),
    NETFS.format("<adapter type='scsi_host'><parentaddr><address slot='1'/></parentaddr></adapter>", ""),
    NETFS.format("<adapter type='scsi_host'><parentaddr unique_id='1'><address slot='32'/></parentaddr></adapter>", ""),
    NETFS.format("<adapter type='scsi_host'><parentaddr unique_id='1'><address multifunction='x'/></parentaddr></adapter>", ""),
    SCSI.format("x").replace("name='x'", ""),
    SCSI.format("x").replace("type='scsi_host' name", "parentaddr"),
    SCSI.format("x").replace("/></source>", "><parentaddr unique_id='1'><address slot='1'/></parentaddr></adapter></source>"),
    SCSI.format("x").replace("scsi_host", "fc_host"),
    SCSI.format("x").replace("scsi_host", f"fc_host' wwpn='{WWN}' wwnn='{WWN}0"),
    SCSI.format("x").replace("scsi_host", f"fc_host' wwpn='{WWN}' wwnn='{WWN}' parent_wwpn='{WWN}"),
    SCSI.format("x").replace("scsi_host", f"fc_host' wwpn='{WWN}' wwnn='{WWN}' parent_fabric_wwn='x"),
    DISK.format("").replace("device", "x"),
    "<pool type='rbd'><name>n</name><source><host name='h'/></source></pool>",
    "<pool type='iscsi-direct'><name>n</name><source><host name='h'/><device path='x'/></source></pool>",
]  # fmt: skip


@pytest.mark.parametrize("document", FAULTS)
def test_faults_have_libvirts_codes(document: str, oracle: Oracle) -> None:
    """Where a document has one fault, astore's error has libvirt's number."""
    with pytest.raises(LibvirtRefusedError) as libvirts:
        oracle.ask("parsed" if "rbd" in document or "direct" in document else "round_trip", document)
    with pytest.raises(DefinitionError) as astores:
        PoolDef.from_xml(document)
    assert astores.value.libvirt_code == libvirts.value.code, (str(libvirts.value), str(astores.value))


def test_libvirts_own_validator(tmp_path: Path) -> None:
    """The schema is content with what astore writes; and virt-xml-validate, which needs xmllint, says what it says."""
    sync = PoolDef.from_xml(NETFS.format("<protocol ver='4'/>", OPTION.format("sync"))).to_xml()
    texts = [sync, DIR.format(""), DISK.format(""), DISK.format("<x/>"), GLUSTER.format("")]
    valid = [relaxng("storagepool").validate(etree.fromstring(text)) for text in texts]
    assert valid == [True, True, True, False, False]
    if shutil.which("xmllint") is None:
        return
    for number, text in enumerate(texts):
        (tmp_path / str(number)).write_text(text, encoding="utf-8")
        command = ["virt-xml-validate", tmp_path / str(number), "storagepool"]
        done = subprocess.run(command, check=False, capture_output=True, timeout=200)
        assert (done.returncode == 0) == valid[number], done.stderr
