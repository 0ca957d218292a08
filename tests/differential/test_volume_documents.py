"""Volume documents by the thousand, and volumes by the hundred: libvirt and astore take, make and write the same.

ASTORE_DIFFERENTIAL_DOCUMENTS says how many documents, ASTORE_DIFFERENTIAL_SEED which; the session's summary prints the counts.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import pytest
from differential import counts
from differential.made_volumes import (
    ASTORE_ONLY,
    BACKING_FORMAT,
    BASE,
    DEFAULT_COMPAT,
    DIRECTORY_MODE,
    IMAGE_BLOCKS,
    IN_WHAT_IS_MADE,
    KIBIBYTES,
    LIBVIRT_ONLY,
    MORE_THAN_CAPACITY,
    NO_CAPACITY,
    NO_SIZE_IN_HEADER,
    POOL,
    SECTORS,
    UNDESCRIBED,
    Made,
    compare_made,
    compare_making,
    compare_seen,
    described_by_libvirt,
    made_by_astore,
    made_by_libvirt,
    makeable_documents,
)
from differential.oracle import Oracle
from differential.pool_documents import LARGE_IDS, Outcome
from differential.schema import relaxng
from differential.volume_documents import (
    PARTITION_FORMAT,
    SCHEMA_IS_STRICTER,
    STRICTER,
    TAKEN,
    UNSAFE_NAME,
    compare_reading,
    is_unsafe,
    volume_definitions,
    volume_documents,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lxml import etree

from astore import DefinitionError, Manager, Pool, VolumeDef

pytestmark = [pytest.mark.libvirt, pytest.mark.root]

DOCS = Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md"

WANTED = counts.documents_wanted()

ENOUGH = 500
"""Of fewer documents all may happen to be of one kind."""

ONE_IN = 8
"""Of that many documents that are compared, one is a volume that is made."""

DIR_POOL = "<pool type='dir'><name>{name}</name><target><path>{path}</path></target></pool>"


@pytest.fixture
def libvirts(oracle: Oracle, tmp_path: Path) -> Iterator[str]:
    """A started pool of libvirt's, at ``tmp_path / "libvirts"``."""
    path = tmp_path / "libvirts"
    path.mkdir()
    oracle.ask("define", DIR_POOL.format(name="libvirts", path=path))
    oracle.ask("pool_call", "libvirts", "create")
    yield "libvirts"
    oracle.ask("pool_call", "libvirts", "destroy")
    oracle.ask("pool_call", "libvirts", "undefine")


def _generated(strategy: st.SearchStrategy[str], number: int) -> list[str]:
    """So many documents, the same for the same seed."""
    found: list[str] = []

    @seed(counts.SEED_OF_SESSION)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(document: str) -> None:
        found.append(document)

    collect()
    return found


class Bed(NamedTuple):
    """Two pools side by side, and who has made them."""

    oracle: Oracle
    libvirts: str
    manager: Manager
    astores: Pool
    folder: Path

    def folder_of(self, name: str) -> Path:
        """The folder of the pool of this name."""
        return self.folder / name

    async def make(self, document: str) -> tuple[Made, Made]:
        """Have libvirt and astore make a volume of a document, in which ``POOL`` is the pool's folder."""
        one, other = (document.replace(POOL, str(self.folder_of(name))) for name in (self.libvirts, self.astores.name))
        return made_by_libvirt(one, self.libvirts, self.oracle), await made_by_astore(other, self.astores)


@pytest.fixture
async def bed(oracle: Oracle, libvirts: str, tmp_path: Path) -> AsyncIterator[Bed]:
    """A started pool of libvirt's and one of astore's."""
    path = tmp_path / "astores"
    path.mkdir()
    async with Manager(state_dir=tmp_path / "state") as manager:
        pool = await manager.define(DIR_POOL.format(name="astores", path=path))
        await pool.start()
        yield Bed(oracle, libvirts, manager, pool, tmp_path)


@pytest.mark.timeout(max(900, WANTED))
def test_documents_are_read_alike(oracle: Oracle, libvirts: str) -> None:
    """libvirt and astore take and refuse the same, with the same codes; what astore writes is read again as it was."""
    counted = counts.counting("volume documents")
    schema = relaxng("storagevol")
    oracle.ask("create_volume", libvirts, f"<volume><name>{TAKEN}</name><capacity>0</capacity></volume>")

    @seed(counts.SEED_OF_SESSION)
    @settings(
        max_examples=WANTED,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(volume_documents())
    def compare(document: str) -> None:
        outcome = compare_reading(document, libvirts, oracle, schema)
        counted.outcomes[outcome.outcome] += 1
        counted.differences.update(outcome.differences)

    before = counted.compared
    compare()
    assert counted.compared - before >= WANTED
    if WANTED >= ENOUGH:
        assert counted.outcomes["accepted by both"] > counted.compared / 5
        assert counted.outcomes["refused by both"] > counted.compared / 5


def test_definitions_made_by_programs(oracle: Oracle, libvirts: str) -> None:
    """libvirt reads, and the schema allows, what astore writes of any definition; and it is the same when it is read."""
    schema = relaxng("storagevol")
    oracle.ask("create_volume", libvirts, f"<volume><name>{TAKEN}</name><capacity>0</capacity></volume>")

    @seed(counts.SEED_OF_SESSION)
    @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(volume_definitions())
    def compare(definition: VolumeDef) -> None:
        written = definition.to_xml()
        assert VolumeDef.from_xml(written) == definition
        assert compare_reading(written, libvirts, oracle, schema) == Outcome("accepted by both", written=written)

    compare()


@pytest.mark.qemu
@pytest.mark.timeout(max(900, WANTED))
async def test_volumes_are_made_alike(bed: Bed) -> None:
    """libvirt and astore make the same volumes of the same documents, and say the same of each other's."""
    counted = counts.counting("volumes made")
    documents = _generated(makeable_documents(), WANTED // ONE_IN)
    before = counted.compared
    made = await _make_and_compare(documents, bed, counted)
    assert counted.compared - before == len(documents)
    assert made > len(documents) / 2 or WANTED < ENOUGH


async def _make_and_compare(documents: list[str], bed: Bed, counted: counts.Comparison) -> int:
    """Have both make all of them, and look at what both made; how many that were."""
    for name in (bed.libvirts, bed.astores.name):
        base = ["qemu-img", "create", "-q", "-f", "qcow2", str(bed.folder_of(name) / BASE), "1M"]
        subprocess.run(base, check=True, timeout=200)  # noqa: ASYNC221
    bed.oracle.ask("pool_call", bed.libvirts, "refresh")
    await bed.astores.refresh()
    made: dict[str, str] = {}
    for number, document in enumerate(documents):
        name = f"v{number}"
        document = document.replace("<name>NAME</name>", f"<name>{name}</name>")
        one, other = await bed.make(document)
        _count(counted, compare_making(document, one, other))
        if one.xml and other.xml:
            made[name] = document
    await _compare_folders(bed, made, counted)
    return len(made)


def _count(counted: counts.Comparison, outcome: str) -> None:
    if outcome.startswith("made by"):
        counted.came_out(outcome)
    else:
        counted.differed(outcome)


async def _compare_folders(bed: Bed, made: dict[str, str], counted: counts.Comparison) -> None:
    """What each says of both folders, and whether what was made in them is the same."""
    beside = await bed.manager.define(DIR_POOL.format(name="beside", path=bed.folder_of(bed.libvirts)))
    await beside.start()
    await bed.astores.refresh()
    bed.oracle.ask("pool_call", bed.libvirts, "refresh")
    libvirts = described_by_libvirt(bed.libvirts, bed.oracle)
    bed.oracle.ask("create_pool", DIR_POOL.format(name="astores", path=bed.folder_of("astores")))
    try:
        astores = described_by_libvirt("astores", bed.oracle)
    finally:
        bed.oracle.ask("pool_call", "astores", "destroy")
    schema = relaxng("storagevol")
    for pool, volumes in ((beside, libvirts), (bed.astores, astores)):
        assert sorted(volumes) == sorted(volume.name for volume in pool.volumes)
        for name, xml in volumes.items():
            ours = pool.volume(name).to_xml()
            assert schema.validate(etree.fromstring(ours)), ours
            counted.differences.update(compare_seen(xml, ours) if xml else [UNDESCRIBED])
    for name, document in ((name, document) for name, document in made.items() if libvirts[name]):
        counted.differences.update(compare_made(document, libvirts[name], bed.astores.volume(name).to_xml()))


NAMES = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("./-\n\t\x7f\x85 "), min_size=1, max_size=6
) | (st.sampled_from([".", "..", "-", "-rf", "a" * 255, "a" * 256, "ä" * 128, " ", "a\nb", ".hidden", "x:y", "%s"]))


async def test_names_are_taken_alike(bed: Bed) -> None:
    """libvirt and astore take and refuse the same volumes' names, and list the volumes under them."""
    counted = counts.counting("volume names")
    for name in sorted(set(_generated(NAMES.filter(_is_xml), 200))):
        document = f"<volume><name>{escape(name)}</name><capacity>0</capacity></volume>".replace("\r", "&#13;")
        _count(counted, compare_making(document, *await bed.make(document)))
    await bed.astores.refresh()
    bed.oracle.ask("pool_call", bed.libvirts, "refresh")
    listed = bed.oracle.ask("pool_call", bed.libvirts, "listVolumes")
    assert sorted(name for name in listed if not is_unsafe(name)) == sorted(v.name for v in bed.astores.volumes) != []


def _is_xml(text: str) -> bool:
    try:
        etree.Element("a").text = text
    except ValueError:
        return False
    return "\0" not in text


def _document(target: str = "", more: str = "<capacity>1024</capacity>", name: str = "NAME") -> str:
    return f"<volume><name>{name}</name>{more}<target>{target}</target></volume>"


SECRET = "<secret type='passphrase' usage='u'/>"
SCHEMAS_TYPE, SCHEMAS_PATH, SCHEMAS_CIPHER = (
    f"not allowed by the schema: {difference.name}" for difference in SCHEMA_IS_STRICTER
)
READ = [
    (UNSAFE_NAME.name, _document(name="-rf")),
    (UNSAFE_NAME.name, _document(name="a&#10;b")),
    (STRICTER[1].name, _document("<compat> 1.-1</compat>")),
    (STRICTER[2].name, _document(f"<encryption format='luks'>{SECRET}{SECRET}</encryption>")),
    (PARTITION_FORMAT.name, _document("<format type='linux-swap'/>")),
    (PARTITION_FORMAT.name, _document(more="<backingStore><path>/b</path><format type='none'/></backingStore>")),
    (SCHEMAS_TYPE, _document().replace("<volume>", "<volume type='ploop'>")),
    (SCHEMAS_PATH, _document(more="<backingStore><path>base</path></backingStore>")),
    (SCHEMAS_PATH, _document(more="<backingStore><path>gluster://h/v/f</path></backingStore>")),
    (SCHEMAS_CIPHER, _document(f"<encryption format='luks'>{SECRET}<cipher name='aes' size='256'/></encryption>")),
]


@pytest.mark.parametrize(("name", "document"), READ)
def test_differences_in_reading(name: str, document: str, oracle: Oracle, libvirts: str) -> None:
    """Each deliberate difference is one, still."""
    oracle.ask("create_volume", libvirts, f"<volume><name>{TAKEN}</name><capacity>0</capacity></volume>")
    assert compare_reading(document, libvirts, oracle, relaxng("storagevol")).differences == (name,)


QCOW2 = "<format type='qcow2'/>"
BACKED = f"<capacity>1024</capacity><backingStore><path>{POOL}/{BASE}</path></backingStore>"
MADE = [
    (LIBVIRT_ONLY[1].name, _document("<clusterSize>65536</clusterSize>")),
    (LIBVIRT_ONLY[1].name, _document("<features><lazy_refcounts/></features>")),
    (LIBVIRT_ONLY[2].name, _document("<format type='iso'/>")),
    (
        ASTORE_ONLY[0].name,
        _document(QCOW2, BACKED.replace(BASE, "absent").replace("</path>", "</path><format type='raw'/>")),
    ),
    (ASTORE_ONLY[1].name, _document("<nocow/>")),
    (
        ASTORE_ONLY[2].name,
        _document("<format type='dir'/>", BACKED.replace("</path>", "</path><format type='qcow2'/>")),
    ),
    (
        NO_CAPACITY,
        _document(QCOW2 + "<compat>1.1</compat>", BACKED.replace("1024", "0").replace("</path>", "</path>" + QCOW2)),
    ),
    (NO_SIZE_IN_HEADER, _document(QCOW2 + "<compat>1.1</compat>", "<capacity>0</capacity>")),
    (KIBIBYTES, _document(QCOW2 + "<compat>1.1</compat>", "<capacity>1025</capacity>")),
    (SECTORS, _document(QCOW2 + "<compat>1.1</compat>")),
    (MORE_THAN_CAPACITY, _document(more="<capacity>1024</capacity><allocation unit='KiB'>64</allocation>")),
    (DIRECTORY_MODE, _document("<format type='dir'/>")),
    (DEFAULT_COMPAT, _document(QCOW2)),
    (BACKING_FORMAT, _document(QCOW2 + "<compat>1.1</compat>", BACKED)),
    (UNDESCRIBED, _document("<format type='qed'/>", BACKED.replace("</path>", "</path><format type='qcow2'/>"))),
    (LARGE_IDS, _document("<permissions><owner>4294967294</owner><group>2147483648</group></permissions>")),
]


@pytest.mark.qemu
async def test_differences_in_making(bed: Bed) -> None:
    """Each deliberate difference is one, still."""
    counted = counts.Comparison("examples")
    made = await _make_and_compare([document for _, document in MADE], bed, counted)
    assert made == len([name for name, _ in MADE if name in IN_WHAT_IS_MADE])
    assert set(counted.differences) - {IMAGE_BLOCKS} == {name for name, _ in MADE}


def test_differences_are_documented() -> None:
    """Each has an example here, and its row in the documentation."""
    read = {difference.name for difference in (*STRICTER, PARTITION_FORMAT)} | {
        SCHEMAS_TYPE,
        SCHEMAS_PATH,
        SCHEMAS_CIPHER,
    }
    assert {name for name, _ in READ} == read
    made = {difference.name for difference in (*LIBVIRT_ONLY, *ASTORE_ONLY)} | IN_WHAT_IS_MADE
    assert {name for name, _ in MADE} | {IMAGE_BLOCKS, UNSAFE_NAME.name} == made
    text = DOCS.read_text(encoding="utf-8")
    rows = [name.removeprefix("not allowed by the schema: ") for name in sorted(read | made)]
    assert [name for name in rows if f"| {name[0].upper()}{name[1:]} |" not in text] == []


async def test_encrypted_volumes_are_not_made(bed: Bed) -> None:
    """astore reads and writes what is said of encryption, and makes no volume that needs a secret of its own."""
    document = _document(f"<encryption format='luks'>{SECRET}</encryption>")
    definition = VolumeDef.from_xml(document)
    assert "<encryption" in definition.to_xml()
    with pytest.raises(DefinitionError, match="are not made"):
        await bed.astores.create_volume(definition)
