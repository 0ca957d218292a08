"""Volume XML and sizes."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_heads import qcow2
from lxml import etree

from astore import DefinitionError, Manager, Permissions, PoolDef, Target, VolumeDef, VolumeInfo, VolumeType
from astore.errors import LibvirtCode
from astore.model import BackingStore, Encryption, Reference, ReferenceKind
from astore.model.definitions import Extent, SourceDevice, Timestamps
from astore.model.formats import PARTITION_FORMATS
from astore.volume_io.qemu_img import check_definition
from astore.xml.reading import parse_size
from astore.xml.volume import LARGEST_CAPACITY, volume_from_xml, volume_info_to_xml

FULL = """<volume type='file'>
  <name>v.qcow2</name><key>ignored</key>
  <source><device path='/dev/vdb'><extent start='4' end='8'/><extent start='9' end='10'/></device><device path='/x'/></source>
  <capacity unit='GiB'>10</capacity><allocation>0</allocation>
  <target><path>/ignored</path><format type='qcow2'/>
    <permissions><mode>0600</mode><owner>1</owner><group>2</group><label>system_u:x</label></permissions>
    <timestamps><atime>5</atime><mtime>1.5</mtime><ctime>18446744073709551615.000000001</ctime><btime>0</btime></timestamps>
    <compat>1.1</compat><nocow/><clusterSize unit='KiB'>64</clusterSize>
    <features><lazy_refcounts/><extended_l2/></features>
    <encryption format='luks' engine='qemu'><secret type='passphrase' uuid='d50c93cb-9a11-466f-96d1-0f4fafe977df'/>
      <cipher name='aes' size='256' mode='cbc' hash='sha256'/><ivgen name='essiv' hash='sha256'/></encryption>
  </target>
  <backingStore><path>/b</path><format type='raw'/><permissions><mode>0644</mode></permissions>
    <timestamps><mtime>7</mtime></timestamps></backingStore>
</volume>"""


def test_everything_is_read_and_written() -> None:
    """All elements of a volume document, and a round trip of them."""
    definition = volume_from_xml(FULL)
    assert definition == VolumeDef(
        name="v.qcow2",
        capacity=10 << 30,
        allocation=0,
        format="qcow2",
        type=VolumeType.FILE,
        permissions=Permissions(0o600, 1, 2, "system_u:x"),
        compat="1.1",
        features=("extended_l2", "lazy_refcounts"),
        cluster_size=65_536,
        nocow=True,
        encryption=Encryption(
            "luks", "d50c93cb-9a11-466f-96d1-0f4fafe977df", None, "aes", 256, "cbc", "sha256", "essiv", "sha256", "qemu"
        ),
        backing=BackingStore("/b", "raw", Permissions(0o644), Timestamps(mtime_ns=7 * 10**9)),
        timestamps=Timestamps(5 * 10**9, 1_500_000_000, -(10**9) + 1, 0),
        source=(SourceDevice("/dev/vdb", (Extent(4, 8), Extent(9, 10))), SourceDevice("/x")),
    )
    assert VolumeDef.from_xml(definition.to_xml()) == definition


def test_defaults() -> None:
    """The allocation defaults to the capacity, the format to raw; a backed volume needs no capacity."""
    plain = volume_from_xml("<volume><name>v</name><capacity>512</capacity></volume>")
    assert (plain.allocation, plain.format, plain.type, plain.backing) == (512, "raw", None, None)
    assert VolumeDef.from_xml(plain.to_xml()) == plain
    backed = volume_from_xml("<volume><name>v</name><backingStore><path>/b</path></backingStore></volume>")
    assert (backed.capacity, backed.backing) == (None, BackingStore("/b"))
    assert VolumeDef.from_xml(backed.to_xml()) == backed
    keyed = "<encryption format='default'/>"
    text = f"<volume><name>v</name><capacity>1</capacity><target>{keyed}</target></volume>"
    assert VolumeDef.from_xml(volume_from_xml(text).to_xml()).encryption == Encryption("default")


def _volume(inside: str = "", capacity: str = "<capacity>1</capacity>", **attributes: str) -> str:
    """A document with these elements in its target."""
    words = "".join(f" {name.rstrip('_')}='{value}'" for name, value in attributes.items())
    return f"<volume{words}><name>v</name>{capacity}<target>{inside}</target></volume>"


SECRET = "<secret type='passphrase' uuid='d50c93cb9a11 466f-96d10f4fafe977df '/>"
CIPHER = "<cipher name='aes' size='256'/>"


def _luks(inside: str, **attributes: str) -> str:
    words = "".join(f" {name}='{value}'" for name, value in {"format": "luks", **attributes}.items())
    return _volume(f"<encryption{words}>{inside}</encryption>")


REFUSED = [
    ("<pool/>", "no <volume>", 27),
    ("<volume/>", "no name", 27),
    ("<volume><name>a/b</name></volume>", "'/'", 55),
    (_volume(type="x"), "none of", 67),
    (_volume(capacity=""), "needs a capacity", 27),
    (_volume(capacity="<capacity/>"), "needs a capacity", 27),
    (_volume(capacity="<backingStore><format type='raw'/></backingStore>"), "needs a capacity", 27),
    (_volume(capacity="<capacity>-1</capacity>"), "no size", 27),
    (_volume(capacity="<capacity>1 </capacity>"), "no size", 27),
    (_volume(capacity="<capacity unit='XB'>0</capacity>"), "unknown unit", 8),
    (_volume(capacity="<capacity unit='EiB'>8</capacity>"), "too large", 82),
    (_volume("<format type='x'/>"), "none of", 67),
    (_volume("<format type='luks'/>"), "none of", 67),
    (_volume("<compat>new</compat>"), "no version", 27),
    (_volume("<compat>1.4294967296</compat>"), "no version", 27),
    (_volume("<clusterSize unit='E'>16</clusterSize>"), "too large", 82),
    (_volume("<features><x/></features>"), "none of", 67),
    (_volume("<permissions><owner/></permissions>"), "owner", 27),
    (_volume("<encryption/>"), "'format'", 27),
    (_luks("", format="luks-any"), "none of", 67),
    (_luks("", engine="x"), "none of", 27),
    (_luks("<secret/>"), "'type'", 27),
    (_luks("<secret type='x'/>"), "none of", 67),
    (_luks("<secret type='passphrase'/>"), "by its uuid or", 27),
    (_luks("<secret type='passphrase' usage='u' uuid='0'/>"), "by its uuid or", 27),
    (_luks("<secret type='passphrase' uuid='0'/>"), "no UUID", 27),
    (_luks(SECRET + SECRET), "one secret", 27),
    (_luks("<cipher size='1'/>"), "'name'", 27),
    (_luks("<cipher name='aes'/>"), "no number", 27),
    (_luks("<cipher name='aes' size='4294967296'/>"), "not between", 27),
    (_luks(CIPHER + "<ivgen/>"), "'name'", 27),
    (_luks("<ivgen name='x'/>"), "needs a cipher", 27),
]


@pytest.mark.parametrize(("text", "words", "code"), REFUSED)
def test_what_is_refused(text: str, words: str, code: int) -> None:
    """Each with words that say what is wrong, and with libvirt's code."""
    with pytest.raises(DefinitionError, match=words) as refused:
        volume_from_xml(text)
    assert refused.value.libvirt_code == LibvirtCode(code)


def test_where_something_is_there_twice() -> None:
    """It is the first that says something, over all targets, as libvirt's XPaths have it."""
    text = _volume("<format/><format type='qcow2'/></target><target><format type='vdi'/><compat>0.10</compat>")
    definition = volume_from_xml(text.replace("<capacity>1", "<capacity unit='k'>1"))
    assert (definition.format, definition.compat, definition.capacity) == ("qcow2", "0.10", 1024)


def test_what_features_imply() -> None:
    """An element ``features``, of whatever namespace its features are, means compat 1.1 where none is said."""
    empty = volume_from_xml(_volume("<features/>"))
    assert (empty.compat, empty.features) == ("1.1", ())
    assert "<features/>" in empty.to_xml()
    assert volume_from_xml(_volume("")).features is None
    definition = volume_from_xml(_volume("<features xmlns:x='u:x'><x:extended_l2/><lazy_refcounts/></features>"))
    assert (definition.compat, definition.features) == ("1.1", ("extended_l2", "lazy_refcounts"))
    assert definition.to_xml().index("lazy_refcounts") < definition.to_xml().index("extended_l2")  # libvirt's order


def test_a_cluster_size_of_nothing() -> None:
    """It is none, as in libvirt."""
    definition = volume_from_xml(_volume("<clusterSize>0</clusterSize>"))
    assert definition.cluster_size is None
    assert "clusterSize" not in definition.to_xml()


@pytest.mark.parametrize("word", PARTITION_FORMATS)
def test_formats_of_partitions(word: str) -> None:
    """The documents of a disk pool's volumes are read and written; a pool of files makes no such volume."""
    definition = volume_from_xml(_volume(f"<format type='{word}'/>"))
    assert definition.format == word
    assert volume_from_xml(definition.to_xml()) == definition
    with pytest.raises(DefinitionError, match="only the volumes of disk pools") as refused:
        check_definition(definition)
    assert refused.value.libvirt_code == LibvirtCode.CONFIG_UNSUPPORTED


def test_secrets_and_ciphers() -> None:
    """A secret has a usage or a uuid, however that is spelt; only for LUKS does a cipher count."""
    encryption = volume_from_xml(_luks(SECRET + CIPHER)).encryption
    assert encryption == Encryption(
        "luks", secret_uuid="d50c93cb-9a11-466f-96d1-0f4fafe977df", cipher_name="aes", cipher_size=256
    )
    used = volume_from_xml(_luks("<secret type='passphrase' usage=''/><cipher/>", format="luks2"))
    assert used.encryption == Encryption("luks2", secret_usage="")
    assert VolumeDef.from_xml(used.to_xml()) == used


def test_what_libvirt_does_not_read() -> None:
    """Timestamps and sources are kept where they can be read, and are never an error."""
    times = "<timestamps><atime>x</atime><mtime>1.0000000001</mtime><ctime>18446744073709551616</ctime></timestamps>"
    source = "<source><device/><device path='x'/><device path='/x'><extent start='1' end='x'/></device></source>"
    definition = volume_from_xml(_volume(times).replace("<target>", f"{source}<target>"))
    assert (definition.timestamps, definition.source) == (None, (SourceDevice("/x"),))


def test_the_type_counts_for_little() -> None:
    """It is kept, unless it says that a file is a directory: the format says what a volume is to be."""
    assert volume_from_xml(_volume(type="block")).type is VolumeType.BLOCK
    assert volume_from_xml(_volume(type="dir")).type is None
    assert volume_from_xml(_volume("<format type='dir'/>", type="dir")).type is VolumeType.DIR


def test_copies_need_no_capacity() -> None:
    """A document for a copy may leave out sizes: those are the source's."""
    text = "<volume><name>v</name></volume>"
    copied = VolumeDef.from_xml(text, copied=True)
    assert (copied.capacity, copied.allocation, copied.format) == (None, None, "raw")
    assert VolumeDef.from_xml(copied.to_xml(), copied=True) == copied
    larger = VolumeDef.from_xml("<volume><name>v</name><capacity>9</capacity></volume>", copied=True)
    assert (larger.capacity, larger.allocation) == (9, None)


UNITS = {
    "": 1,
    "B": 1,
    "bytes": 1,
    "K": 1024,
    "KiB": 1024,
    "KB": 1000,
    "m": 1 << 20,
    "MB": 10**6,
    "GiB": 1 << 30,
    "G": 1 << 30,
}
UNITS |= {"TB": 10**12, "PiB": 1 << 50, "EB": 10**18, "E": 1 << 60, "byte": 1}


@given(st.sampled_from(sorted(UNITS)), st.integers(0, 15))
def test_sizes(unit: str, number: int) -> None:
    """Powers of 1024 and of 1000, in any case, with blanks and zeros before the number."""
    assert parse_size(f" \t+{number:030}", unit) == parse_size(str(number), unit.upper()) == number * UNITS[unit]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("1", "Kb/s"), ("x", None), ("1.5", "G"), ("18446744073709551616", None), ("1", "i"), ("1 ", None), ("-0", None),
        ("", None), ("0x1", None), ("1", " k"), ("1", "\u212a"), ("\xa01", None), ("\u0661", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_sizes_that_are_none(text: str, unit: str | None) -> None:
    """Unknown units, fractions, signs, what overflows, and digits and blanks that are not C's are errors."""
    with pytest.raises(DefinitionError):
        parse_size(text, unit)


def test_the_largest_capacity() -> None:
    """A capacity is a file's size; a cluster may be called larger than that."""
    assert volume_from_xml(_volume(capacity=f"<capacity>{LARGEST_CAPACITY}</capacity>")).capacity == LARGEST_CAPACITY
    with pytest.raises(DefinitionError, match="too large"):
        volume_from_xml(_volume(capacity=f"<capacity>{LARGEST_CAPACITY + 1}</capacity>"))
    assert volume_from_xml(_volume("<clusterSize unit='E'>15</clusterSize>")).cluster_size == 15 << 60


_BACKED = (Reference(ReferenceKind.BACKING, "b", "raw", "/p/b"),)


def _found(**changes: object) -> VolumeInfo:
    info = VolumeInfo(
        "v", VolumeType.FILE, "/p/v", "/p/v", 4, 3, 2, "qcow2", stat.S_IFREG | 0o4640, 1, 2, 9, 5 * 10**9, 1_500_000_000,
        -1, _BACKED, "1.1", ("extended_l2", "lazy_refcounts"), "luks", 65_536,
    )  # fmt: skip
    return msgspec.structs.replace(info, **changes)


def _tags(info: VolumeInfo) -> list[str]:
    return [element.tag for element in etree.fromstring(volume_info_to_xml(info)).find("target")]


def test_what_was_found_is_described() -> None:
    """The document of a volume that a refresh found, as vol-dumpxml has it."""
    root = etree.fromstring(volume_info_to_xml(_found()))
    tags = ["name", "key", "capacity", "allocation", "physical", "target", "backingStore"]
    assert [element.tag for element in root] == tags
    inside = ["path", "format", "permissions", "timestamps", "encryption", "compat", "clusterSize", "features"]
    assert _tags(_found()) == inside
    assert root.findtext("target/permissions/mode") == "0640"
    assert [e.text for e in root.find("target/timestamps")] == ["5", "1.500000000", "18446744073709551615.999999999"]
    assert (root.findtext("backingStore/path"), root.find("target/encryption").get("format")) == ("/p/b", "luks")
    assert [e.tag for e in root.find("backingStore")] == ["path", "format"]
    unknown = etree.fromstring(volume_info_to_xml(_found(references=(Reference(ReferenceKind.BACKING, "x:y"),))))
    assert unknown.findtext("backingStore/path") == "x:y"


def test_formats_are_described_as_libvirt_does() -> None:
    """LUKS is raw and encrypted; only qcow2 tells its clusters, and of its first version nothing else."""
    assert _tags(_found(encryption=None, features=()))[-3:] == ["compat", "clusterSize", "features"]
    assert _tags(_found(encryption=None, compat="0.10", features=()))[-2:] == ["timestamps", "clusterSize"]
    assert _tags(_found(encryption=None, compat=None, features=(), format="vdi"))[-1] == "timestamps"
    luks = etree.fromstring(volume_info_to_xml(_found(format="luks", compat=None, features=(), cluster_size=None)))
    assert (luks.find("target/format").get("type"), luks.find("target/encryption").get("format")) == ("raw", "luks")


def test_what_has_no_size() -> None:
    """A directory's size is nought, and a physical size of nought is not told."""
    root = etree.fromstring(volume_info_to_xml(_found(type=VolumeType.DIR, format="dir", capacity=4096)))
    assert [root.findtext(name) for name in ("capacity", "allocation", "physical")] == ["0", "0", None]
    assert etree.fromstring(volume_info_to_xml(_found(physical=0))).find("physical") is None


def test_a_backing_file_is_described_where_it_is_known() -> None:
    """Its permissions and times, as libvirt reads them of the file."""
    text = volume_info_to_xml(_found(), _found(mode=0o100604, uid=7))
    backing = etree.fromstring(text).find("backingStore")
    assert [e.tag for e in backing] == ["path", "format", "permissions", "timestamps"]
    assert (backing.findtext("permissions/mode"), backing.findtext("permissions/owner")) == ("0604", "7")
    unsaid = etree.fromstring(
        volume_info_to_xml(
            _found(references=(Reference(ReferenceKind.BACKING, "b", None, "/p/b"),)), _found(format="luks")
        )
    )
    assert unsaid.find("backingStore/format").get("type") == "raw"


async def test_a_backing_file_is_known_where_a_pool_has_it(tmp_path: Path) -> None:
    """A volume of any active pool; of another file, and of what was a volume, there is only the name."""
    for name in ("bases", "disks"):
        (tmp_path / name).mkdir()
    base = tmp_path / "bases" / "base.img"
    base.write_bytes(bytes(512))
    base.chmod(0o640)
    for name, backing in (("over", base), ("astray", tmp_path / "base.img")):
        (tmp_path / "disks" / name).write_bytes(qcow2(backing=bytes(backing)))
    async with Manager(state_dir=tmp_path / "state") as manager:
        for name in ("bases", "disks"):
            pool = await manager.define(PoolDef("dir", name, target=Target(path=str(tmp_path / name))))
            await pool.start()
        over, astray = (etree.fromstring(pool.volume(name).to_xml()) for name in ("over", "astray"))
        await manager.pool("bases").stop()
        alone = etree.fromstring(pool.volume("over").to_xml())
    assert over.findtext("backingStore/path") == str(base)
    assert over.findtext("backingStore/permissions/mode") == "0640"
    assert astray.find("backingStore/permissions") is alone.find("backingStore/permissions") is None
