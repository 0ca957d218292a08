"""Pool XML: libvirt's rules, round trips, and hostile documents."""

from __future__ import annotations

import glob
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from lxml import etree
from strategies import pool_definitions

from astore import DefinitionError, PoolDef, PoolInfo, PoolState
from astore.model import Adapter, Auth, Device, DiscoveredSource, Host, PciAddress, Permissions, Source, Target
from astore.xml.documents import DiscoveredSources, capabilities_to_xml
from astore.xml.pool import pool_from_xml
from astore.xml.pool_writing import pool_to_xml
from astore.xml.reading import LARGEST_DOCUMENT

DIR = "<pool type='dir'><name>d</name><target><path>/d</path></target></pool>"


@given(pool_definitions())
@settings(max_examples=300)
def test_every_definition_survives_a_round_trip(definition: PoolDef) -> None:
    """What is written is read back equal, for all fourteen types."""
    assert PoolDef.from_xml(definition.to_xml()) == definition


def schema() -> etree.RelaxNG:
    found = glob.glob("/usr/share/libvirt/schemas/storagepool.rng")
    return etree.RelaxNG(etree.parse(found[0]))


def test_what_is_written() -> None:
    """libvirt's order and spelling, with the sizes of an info."""
    info = PoolInfo("n", "u", "netfs", PoolState.RUNNING, True, False, capacity=3, allocation=2, available=1)
    definition = pool_from_xml(
        """<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'>
        <fs:mount_opts><fs:option name='sync'/><fs:option name='lazytime'/></fs:mount_opts>
        <refresh><volume allocation='capacity'/></refresh>
        <target><permissions><mode>0755</mode><owner>-1</owner><group>0</group><label>l</label></permissions>
          <path>/mnt//x/</path></target>
        <source><product name='p'/><vendor name='v'/><protocol ver='4.1'/><format type='nfs'/><dir path='/e//x/'/>
          <host name='h' port='2049'/></source>
        <uuid>D50C93CB9A11466F96D10F4FAFE977DF</uuid><name>n</name></pool>"""
    )
    assert pool_to_xml(definition, info) == (
        '<pool xmlns:fs="http://libvirt.org/schemas/storagepool/fs/1.0" type="netfs">\n'
        "  <name>n</name>\n"
        "  <uuid>d50c93cb-9a11-466f-96d1-0f4fafe977df</uuid>\n"
        '  <capacity unit="bytes">3</capacity>\n'
        '  <allocation unit="bytes">2</allocation>\n'
        '  <available unit="bytes">1</available>\n'
        "  <source>\n"
        '    <host name="h" port="2049"/>\n'
        '    <dir path="/e/x"/>\n'
        '    <format type="nfs"/>\n'
        '    <protocol ver="4.1"/>\n'
        '    <vendor name="v"/>\n'
        '    <product name="p"/>\n'
        "  </source>\n"
        "  <target>\n"
        "    <path>/mnt/x</path>\n"
        "    <permissions>\n"
        "      <mode>0755</mode>\n"
        "      <group>0</group>\n"
        "      <label>l</label>\n"
        "    </permissions>\n"
        "  </target>\n"
        "  <refresh>\n"
        '    <volume allocation="capacity"/>\n'
        "  </refresh>\n"
        "  <fs:mount_opts>\n"
        '    <fs:option name="sync"/>\n'
        '    <fs:option name="lazytime"/>\n'
        "  </fs:mount_opts>\n"
        "</pool>\n"
    )


def test_gluster_defaults() -> None:
    """The name defaults to the volume's and the other way round, the directory to /, and there is no target."""
    by_volume = pool_from_xml(
        "<pool type='gluster'><source><host name='h'/><name>v</name></source><target><path>/x</path></target></pool>"
    )
    assert (by_volume.name, by_volume.source.name, by_volume.source.directory) == ("v", "v", "/")
    assert by_volume.target == Target()
    by_name = pool_from_xml(
        "<pool type='gluster'><name>n</name><source><host name='h'/><dir path='/a//b/'/></source></pool>"
    )
    assert (by_name.name, by_name.source.name, by_name.source.directory) == ("n", "n", "/a/b")


def test_targets_that_follow_from_the_source() -> None:
    """Logical and zfs pools have their targets below /dev."""
    logical = pool_from_xml("<pool type='logical'><name>vg</name><source><device path='/dev/sda'/></source></pool>")
    assert (logical.target.path, logical.source.format) == ("/dev/vg", "lvm2")
    assert (
        pool_from_xml("<pool type='zfs'><name>z</name><source><name>t</name></source></pool>").target.path
        == "/dev/zvol/t"
    )


def test_foreign_namespaces_are_kept() -> None:
    """A top-level element of a namespace that nobody here knows survives a round trip, indented or not."""
    text = DIR.replace(
        "</pool>", "<x:a xmlns:x='urn:x' b='c'>\n  <x:d>text</x:d>\n <x:e/> </x:a><y xmlns='urn:y'/><unknown/></pool>"
    )
    definition = pool_from_xml(text)
    assert len(definition.foreign) == 2
    again = pool_from_xml(definition.to_xml())
    assert again == definition
    assert pool_from_xml(again.to_xml()) == definition


def test_foreign_elements_have_the_namespaces_they_use() -> None:
    """However many are in scope; and a relative one, which canonical XML does not know, is as good as any."""
    declared = " ".join(f"xmlns:n{number}='urn:{number}'" for number in range(200))
    text = DIR.replace("<pool ", f"<pool {declared} ").replace(
        "</pool>", "<n7:a n9:b='c'/><r:a xmlns:r='relative'/></pool>"
    )
    definition = pool_from_xml(text)
    assert definition.foreign == (
        '<n7:a xmlns:n7="urn:7" xmlns:n9="urn:9" n9:b="c"/>',
        '<r:a xmlns:r="relative"/>',
    )
    assert pool_from_xml(definition.to_xml()) == definition


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_more_namespaces_than_anybody_needs(encoding: str) -> None:
    """Each name would be looked up among all of them."""
    declared = " ".join(f"xmlns:n{number}='urn:{number}'" for number in range(300))
    with pytest.raises(DefinitionError, match="more than 256 declarations of namespaces"):
        pool_from_xml(DIR.replace("<pool ", f"<pool {declared} ").encode(encoding))


def test_unknown_types_are_kept() -> None:
    """A type that libvirt does not have is taken as it is, with what it brings."""
    text = "<pool type='tape'><name>t</name><source><host name='h'/><name>n</name></source></pool>"
    definition = pool_from_xml(text)
    assert (definition.type, definition.source) == ("tape", Source(hosts=(Host("h"),), name="n"))
    assert pool_from_xml(definition.to_xml()) == definition


def test_old_scsi_adapters() -> None:
    """An adapter without a type is a scsi_host."""
    text = "<pool type='scsi'><name>s</name><source><adapter name='host0'/></source><target><path>/dev/x</path></target></pool>"
    assert pool_from_xml(text).source.adapter == Adapter("scsi_host", "host0")
    by_address = text.replace(
        "<adapter name='host0'/>",
        "<adapter type='scsi_host'><parentaddr unique_id='1'><address domain='0x0000' bus='0x00' slot='0x1f' function='0x2'/>"
        "</parentaddr></adapter>",
    )
    adapter = pool_from_xml(by_address).source.adapter
    assert adapter is not None
    assert (adapter.parent_address, adapter.unique_id) == (PciAddress(0, 0, 0x1F, 2), 1)


def pool(
    source: str = "", *, type_: str = "dir", name: str = "<name>n</name>", target: str = "/x", more: str = ""
) -> str:
    return f"<pool type='{type_}'>{name}<source>{source}</source><target><path>{target}</path></target>{more}</pool>"


FS = "xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'"
NETFS = "<host name='h'/><dir path='/e'/>"
WWN = "0x50014380242b9751"
REFUSED = [
    ("", "empty|syntax|Document"),
    ("<pool", "well-formed"),
    ("<volume/>", "no <pool> document"),
    ("<pool><name>n</name></pool>", "'type'"),
    ("<pool type='../x'><name>n</name></pool>", "is not a pool type"),
    ("<pool type='dir'><target><path>/x</path></target></pool>", "no name"),
    (pool(name="<name>a/b</name>"), "'/'"),
    (pool(name="<name>a\nb</name>"), "control"),
    (pool(name="<name>-rf</name>"), "begins with '-'"),
    (pool(name="<name>..</name>"), "cannot be"),
    (pool(name=f"<name>{'n' * 251}</name>"), "longer"),
    (pool(name="<name>n</name><uuid>xyz</uuid>"), "no UUID"),
    ("<pool type='dir'><name>n</name></pool>", "target path"),
    (pool(target="/a/../b"), r"'\.\.'"),
    (pool(target="relative"), "not absolute"),
    (pool("<dir path='/e'/>", type_="netfs"), "source host"),
    (pool("<host name='h'/>", type_="netfs"), "source dir"),
    (pool("<host/>" + NETFS, type_="netfs"), "'name'"),
    (pool("<host name='h' port='x'/>", type_="netfs"), "no number"),
    (pool("<host name='h' port='99999'/>", type_="netfs"), "between"),
    (pool(NETFS + "<format type='ext4'/>", type_="netfs"), "none of"),
    (pool(NETFS + "<format type='cifs'/><protocol ver='4'/>", type_="netfs"), "protocol version"),
    (pool(NETFS + "<protocol ver='4,ro'/>", type_="netfs"), "is not a protocol version"),
    (pool(NETFS, type_="netfs", more=f"<fs:mount_opts {FS}><fs:option name='a,b'/></fs:mount_opts>"), "comma"),
    (pool(NETFS, type_="netfs", more=f"<fs:mount_opts {FS}><fs:option name='a&#10;b'/></fs:mount_opts>"), "control"),
    (pool(NETFS, type_="netfs", more=f"<fs:mount_opts {FS}><fs:option/></fs:mount_opts>"), "'name'"),
    (pool("<name>v</name>", type_="gluster"), "source host"),
    (pool("<host name='h'/><name>a/b</name>", type_="gluster"), "'/'"),
    (pool("<host name='h'/><dir path='x'/>", type_="gluster"), "begin with"),
    (pool(type_="fs"), "device"),
    (pool(type_="disk"), "device"),
    (pool("<host name='h'/>", type_="rbd"), "source name"),
    (pool("<host name='h'/><device path='/d'/>", type_="iscsi-direct"), "initiator"),
    (pool(type_="scsi"), "adapter"),
    (pool("<adapter type='x' name='a'/>", type_="scsi"), "none of"),
    (pool("<adapter wwnn='x'/>", type_="scsi"), "fc_host"),
    (pool("<adapter type='fc_host' wwnn='x' wwpn='y'/>", type_="scsi"), "hexadecimal"),
    (pool("<adapter type='scsi_host'/>", type_="scsi"), "parentaddr"),
    (pool("<adapter name='x'><parentaddr/></adapter>", type_="scsi"), "must have the type"),
    (pool("<adapter type='scsi_host'><parentaddr unique_id='1'/></adapter>", type_="scsi"), "no <address>"),
    (pool("<adapter type='scsi_host'><parentaddr><address/></parentaddr></adapter>", type_="scsi"), "no number"),
    (
        pool(
            "<adapter type='scsi_host' name='x'><parentaddr unique_id='1'><address/></parentaddr></adapter>",
            type_="scsi",
        ),
        "not both",
    ),
    (pool(f"<adapter type='fc_host' wwnn='{WWN}'/>", type_="scsi"), "a wwnn and a wwpn"),
    (pool(f"<adapter type='fc_host' wwnn='{WWN}' wwpn='{WWN}' parent_wwnn='{WWN}'/>", type_="scsi"), "belong together"),
    (pool("<device/>", type_="fs"), "'path'"),
    (pool("<device path='/d' part_separator='maybe'/>", type_="disk"), "none of"),
    (pool("<auth type='x' username='u'><secret usage='s'/></auth>"), "none of"),
    (pool("<auth type='chap' username='u'/>"), "no <secret>"),
    (pool("<auth type='chap' username='u'><secret usage='s' uuid='x'/></auth>"), "one of them"),
    (pool("<auth type='chap'><secret usage='s'/></auth>"), "'username'"),
    (pool("<auth type='chap' username='u'><secret uuid='x'/></auth>"), "no UUID"),
    (pool(more="<features><cow state='perhaps'/></features>"), "none of"),
    (pool(NETFS, type_="netfs", more="<features><cow state='yes'/></features>"), "feature cow"),
    (pool(more="<refresh><volume allocation='x'/></refresh>"), "none of"),
    (DIR.replace("</target>", "<permissions><mode>999</mode></permissions></target>"), "no number"),
    (DIR.replace("</target>", "<permissions><mode>01777</mode></permissions></target>"), "between"),
    (DIR.replace("</target>", "<permissions><owner>x</owner></permissions></target>"), "no number"),
    (DIR.replace("</target>", "<permissions><group>-2</group></permissions></target>"), "between"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_what_is_refused(text: str, words: str) -> None:
    """Each with words that say what is wrong."""
    with pytest.raises(DefinitionError, match=words):
        pool_from_xml(text)


def test_errors_say_where() -> None:
    """Line and element are in the error and in its message."""
    with pytest.raises(DefinitionError) as caught:
        pool_from_xml("<pool type='netfs'>\n<name>n</name>\n<source>\n<host/>\n</source></pool>")
    assert (caught.value.line, caught.value.element) == (4, "host")
    assert "line 4, <host>" in str(caught.value)


HOSTILE = {
    "dtd": "<!DOCTYPE pool SYSTEM 'http://127.0.0.1:1/x.dtd'>" + DIR,
    "entities": "<!DOCTYPE pool [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]>" + DIR.replace("<name>d", "<name>&b;"),
    "file": "<!DOCTYPE pool [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>" + DIR.replace("<name>d", "<name>&a;"),
    "utf-16": ("<?xml version='1.0' encoding='utf-16'?><!DOCTYPE pool []>" + DIR).encode("utf-16"),
    "deep": "<pool type='dir'>" + "<a>" * 10_000 + "</a>" * 10_000 + "</pool>",
    "rather deep": "<pool type='dir'>" + "<a>" * 100 + "</a>" * 100 + "</pool>",
    "long": DIR.replace("<name>d", "<name>" + "d" * (100 << 20)),
    "wide": "<pool type='dir'>" + "<a/>" * 60_000 + "</pool>",
    "attributes": "<pool " + " ".join(f"a{i}='x'" for i in range(60_000)) + "/>",
    "undefined entity": DIR.replace("<name>d", "<name>&nothing;"),
    "bad declaration": b"<?xml encoding='utf-8'?>" + DIR.encode(),
    "blank before the declaration": " <?xml version='1.0'?>" + DIR,
    "not utf-8": DIR.encode().replace(b"<name>d", b"<name>\xff\xfe"),
    "surrogate": DIR.replace("<name>d", "<name>\udcff"),
    "nul": DIR.replace("<name>d", "<name>\0"),
    "comment": "<!-- -->",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents(name: str) -> None:
    """A DefinitionError, without delay and without memory to speak of."""
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(DefinitionError):
            pool_from_xml(HOSTILE[name])
        assert time.process_time() - began < 30  # a guard against what never ends, not a measure of speed
        assert tracemalloc.get_traced_memory()[1] < 16 * LARGEST_DOCUMENT
    finally:
        tracemalloc.stop()


def test_what_is_accepted_all_the_same() -> None:
    """Declarations, comments, bytes and other encodings are no attack."""
    expected = pool_from_xml(DIR)
    declared = "<?xml version='1.0' encoding='utf-8'?>\n<!-- x -->" + DIR
    klingon = declared.replace("utf-8", "klingon")
    utf_16 = (DIR.encode("utf-16"), declared.replace("utf-8", "utf-16").encode("utf-16"))
    for text in (
        *(declared, declared.encode(), klingon, klingon.encode(), *utf_16),
        DIR.replace("<name>", "<name><!-- x -->"),
    ):
        assert pool_from_xml(text) == expected


def test_control_characters_are_not_written() -> None:
    """A record with what XML cannot hold is refused, not written broken."""
    for name in ("a\0b", "a\x1bb", "a\udcffb", "a\ufffeb"):
        with pytest.raises(DefinitionError):
            PoolDef(type="dir", name=name).to_xml()
    with pytest.raises(DefinitionError, match="foreign"):
        PoolDef(type="dir", name="n", foreign=("<x",)).to_xml()


def test_permissions_that_say_nothing() -> None:
    """They are none, and are not written."""
    for empty in ("<permissions/>", "<permissions><owner>-1</owner><group>4294967295</group><label/></permissions>"):
        assert pool_from_xml(DIR.replace("</target>", f"{empty}</target>")).target.permissions is None
    assert "permissions" not in PoolDef("dir", "n", target=Target("/x", Permissions())).to_xml()


def test_what_a_type_has_no_use_for() -> None:
    """It must be right, and is left out, as libvirt does; what no type minds is kept of any."""
    everything = (
        "<host name='h'/><device path='/d'/><dir path='/e'/><adapter name='a'/><name>s</name><initiator><iqn name='i'/>"
        "</initiator><format type='f'/><auth type='chap' username='u'><secret usage='s'/></auth><protocol ver='4'/>"
        "<vendor name='v'/><product name='p'/>"
    )
    kept = pool_from_xml(pool(everything)).source
    assert kept == Source(auth=Auth("chap", "u", secret_usage="s"), protocol_version="4", vendor="v", product="p")
    assert pool_from_xml(pool(everything, type_="tape")).source.hosts == (Host("h"),)
    with pytest.raises(DefinitionError, match="'path'"):
        pool_from_xml(pool("<device/>"))


def test_what_is_found_first_counts() -> None:
    """Of several elements of one name the first that has what is looked for, as by XPath's string()."""
    text = (
        "<pool type='netfs'><name>n</name><target/><source><host name='h' port='0'/><dir/><dir path='/e'/><format/>"
        "<format type='nfs'/></source><target><path>/x</path></target><target><permissions><mode>7</mode></permissions>"
        "</target><refresh><volume/><volume allocation='capacity'/></refresh></pool>"
    )
    definition = pool_from_xml(text)
    assert definition.source == Source(hosts=(Host("h"),), directory="/e", format="nfs")
    assert definition.target == Target("/x", Permissions(mode=7))
    assert definition.refresh_allocation == "capacity"


def test_numbers_as_in_c() -> None:
    """Blanks and signs before them; addresses of another base by how they begin."""
    text = (
        "<adapter type='scsi_host'><parentaddr unique_id=' +7'><address domain='0x1' bus='010' slot=' 9' function='7'/>"
        "</parentaddr></adapter>"
    )
    adapter = pool_from_xml(pool(text, type_="scsi")).source.adapter
    assert adapter == Adapter("scsi_host", parent_address=PciAddress(1, 8, 9, 7), unique_id=7)
    uuid = pool_from_xml(DIR.replace("<target>", "<uuid> 01 23-456789abcdef0123456789abcdef\n</uuid><target>")).uuid
    assert uuid == "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.libvirt
def test_libvirts_schema_accepts_all_types() -> None:
    """What is written of any type is valid, if it has nothing that libvirt reads and its schema does not know."""
    validate = schema()

    @given(pool_definitions())
    @settings(max_examples=200)
    def check(definition: PoolDef) -> None:
        vendors = definition.type in ("dir", "fs", "netfs", "logical", "disk", "iscsi", "scsi")
        source = definition.source
        if not vendors:
            source = msgspec.structs.replace(source, vendor=None, product=None)
        devices = source.devices[:1] if definition.type == "zfs" else source.devices
        if definition.type == "iscsi-direct":
            devices = (Device("iqn.2013-06.com.example:disk"),)
        source = msgspec.structs.replace(source, devices=devices)
        refresh = definition.refresh_allocation if definition.type == "rbd" else None
        plain = msgspec.structs.replace(definition, source=source, refresh_allocation=refresh)
        document = etree.fromstring(plain.to_xml())
        assert validate.validate(document), (plain.to_xml(), validate.error_log.last_error)

    check()


def test_other_documents() -> None:
    """Capabilities and sources, in libvirt's shape."""
    document = capabilities_to_xml([("dir", True, (), ("raw", "qcow2")), ("netfs", False, ("auto", "nfs"), ())])
    root = etree.fromstring(document)
    assert [pool.get("supported") for pool in root] == ["yes", "no"]
    assert root.findtext("pool/volOptions/enum/value") == "raw"
    assert root.find("pool/poolOptions/defaultFormat").get("type") == "auto"
    found = DiscoveredSource("gluster", Source(hosts=(Host("h"),), directory="/", name="v"))
    sources = etree.fromstring(DiscoveredSources([found, found]).to_xml())
    assert [child.tag for child in sources[1]] == ["host", "dir", "name"]
