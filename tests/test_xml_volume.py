"""Volume XML and sizes."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from astore import DefinitionError, Permissions, VolumeDef, VolumeInfo, VolumeType
from astore.model import BackingStore, Encryption
from astore.xml import parse_size, volume_from_xml, volume_info_to_xml

FULL = """<volume type='file'>
  <name>v.qcow2</name><key>ignored</key>
  <capacity unit='GiB'>10</capacity><allocation>0</allocation>
  <target><path>/ignored</path><format type='qcow2'/>
    <permissions><mode>0600</mode><owner>1</owner><group>2</group></permissions>
    <compat>1.1</compat><nocow/><clusterSize unit='KiB'>64</clusterSize>
    <features><lazy_refcounts/><extended_l2/></features>
    <encryption format='luks'><secret type='passphrase' uuid='d50c93cb-9a11-466f-96d1-0f4fafe977df'/>
      <cipher name='aes' size='256' mode='cbc' hash='sha256'/><ivgen name='essiv' hash='sha256'/></encryption>
  </target>
  <backingStore><path>/b</path><format type='raw'/><permissions><mode>0644</mode></permissions></backingStore>
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
        permissions=Permissions(0o600, 1, 2),
        compat="1.1",
        features=("extended_l2", "lazy_refcounts"),
        cluster_size=65_536,
        nocow=True,
        encryption=Encryption(
            "luks", "d50c93cb-9a11-466f-96d1-0f4fafe977df", None, "aes", 256, "cbc", "sha256", "essiv", "sha256"
        ),
        backing=BackingStore("/b", "raw", Permissions(0o644)),
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


REFUSED = [
    ("<pool/>", "no <volume>"),
    ("<volume/>", "no name"),
    ("<volume><name>a/b</name></volume>", "'/'"),
    ("<volume type='x'><name>v</name></volume>", "none of"),
    ("<volume><name>v</name></volume>", "needs a capacity"),
    ("<volume><name>v</name><capacity>-1</capacity></volume>", "no size"),
    ("<volume><name>v</name><capacity unit='XB'>1</capacity></volume>", "unknown unit"),
    ("<volume><name>v</name><capacity unit='EiB'>16</capacity></volume>", "too large"),
    ("<volume><name>v</name><capacity>1</capacity><target><format type='x'/></target></volume>", "none of"),
    ("<volume><name>v</name><capacity>1</capacity><target><compat>new</compat></target></volume>", "no version"),
    ("<volume><name>v</name><capacity>1</capacity><target><features><x/></features></target></volume>", "none of"),
    ("<volume><name>v</name><capacity>1</capacity><target><encryption/></target></volume>", "'format'"),
    (
        "<volume><name>v</name><capacity>1</capacity><target><encryption format='luks'><ivgen/></encryption></target></volume>",
        "'name'",
    ),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_is_refused(text: str, words: str) -> None:
    """Each with words that say what is wrong."""
    with pytest.raises(DefinitionError, match=words):
        volume_from_xml(text)


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
    """Powers of 1024 and of 1000, in any case."""
    assert parse_size(f" {number} ", unit) == parse_size(str(number), unit.upper()) == number * UNITS[unit]


@pytest.mark.parametrize(
    ("text", "unit"), [("1", "Kb/s"), ("x", None), ("1.5", "G"), ("18446744073709551616", None), ("1", "i")]
)
def test_sizes_that_are_none(text: str, unit: str | None) -> None:
    """Unknown units, fractions and what overflows are errors."""
    with pytest.raises(DefinitionError):
        parse_size(text, unit)


def test_what_was_found_is_described() -> None:
    """The document of a volume that a refresh found, as vol-dumpxml has it."""
    info = VolumeInfo(
        "v", VolumeType.FILE, "/p/v", "/p/v", 4, 3, 2, "qcow2", stat.S_IFREG | 0o640, 1, 2, 9, 5 * 10**9, 1_500_000_000, 3,
        "b", "/p/b", "raw", "1.1", ("lazy_refcounts",), "luks", 65_536,
    )  # fmt: skip
    root = etree.fromstring(volume_info_to_xml(info))
    assert [child.tag for child in root] == [
        "name",
        "key",
        "capacity",
        "allocation",
        "physical",
        "target",
        "backingStore",
    ]
    assert root.findtext("target/permissions/mode") == "0640"
    assert [e.text for e in root.find("target/timestamps")] == ["5", "1.500000000", "0.000000003"]
    assert (root.findtext("backingStore/path"), root.find("target/encryption").get("format")) == ("/p/b", "luks")
    plain = VolumeInfo("v", VolumeType.DIR, "/v", "/v", 0, 0, 0, None, 0o755, 0, 0, 1, 0, 0, 0, backing="x:y")
    assert etree.fromstring(volume_info_to_xml(plain)).findtext("backingStore/path") == "x:y"
