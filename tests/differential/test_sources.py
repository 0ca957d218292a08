"""Finding sources: libvirt's ``<sources>`` document for a ``<source>`` that says whom to ask, and what is refused.

Both ask a real glusterd, and what answers ``showmount`` as a server of NFS exports does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from differential.counts import counting
from differential.exports_server import exporting
from differential.operations import plain
from differential.oracle import LibvirtRefusedError, Oracle

import astore
from astore import LibvirtCode, Manager
from astore.xml.documents import DiscoveredSources

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.libvirt, pytest.mark.gluster]

PAGE = (Path(__file__).parents[2] / "docs" / "differences-from-libvirt.md").read_text()
DIFFERENCES = (
    "Discovery: a glusterd without volumes",
    "Discovery of Gluster volumes: another port than 24007",
    "Discovery: an invalid host name",
)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager."""
    async with Manager(tmp_path / "state") as one:
        yield one


def libvirts(oracle: Oracle, type: str, spec: str | None) -> str:
    """What libvirt finds. :raises LibvirtRefusedError: it says no."""
    return plain(oracle.ask("connection_call", "findStoragePoolSources", type, spec, 0))


SPECS = [
    "<source><host name='@'/></source>",
    "<source><host name='@' port='24007'/><dir path='/elsewhere'/><name>other</name></source>",
    "<source><!-- whom --><host name='@'/><format type='glusterfs'/><unknown/></source>",
]


async def test_the_same_sources(oracle: Oracle, gluster: GlusterBed, manager: Manager) -> None:
    """Of netfs and gluster, whatever else the document says; each is a definition's source as it is."""
    names = ["found1", "found2"]
    for name in names:
        gluster.create_volume(name)
    try:
        for type_ in ("gluster", "netfs"):
            for spec in SPECS:
                spec = spec.replace("@", gluster.host)
                found = await manager.discover(type_, spec=spec)
                assert plain(found.to_xml()) == libvirts(oracle, type_, spec)
                assert {source.source.name or source.source.directory for source in found} >= set(names)
                counting("discovery").came_out("the same sources")
            again = await manager.discover(type_, gluster.host, port=24007)
            assert again == found
            assert DiscoveredSources(again).to_xml() == found.to_xml()
        definition = astore.PoolDef(
            type="gluster", name="p", source=(await manager.discover("gluster", spec=spec))[0].source
        )
        assert (await manager.define(definition)).definition.source.hosts == (astore.Host(gluster.host),)
    finally:
        for name in names:
            gluster.delete_volume(name)


async def test_the_same_exports(oracle: Oracle, manager: Manager) -> None:
    """What showmount tells of a server, in its order, whoever may mount it; a server without exports is no error."""
    host = "127.3.3.3"
    spec = f"<source><host name='{host}'/></source>"
    exports = {
        "/srv/open": (),
        "/srv/some": ("10.0.0.0/8", "@group", "*.example.org"),
        "/srv/with blanks in it": ("client",),
        "/srv/ä": (),
        "/": (),
    }
    with exporting(host, exports):
        found = await manager.discover("netfs", spec=spec)
        assert plain(found.to_xml()) == libvirts(oracle, "netfs", spec)
    assert [source.source.directory for source in found] == list(exports)[:-1]  # libvirt does not see "/" either
    assert {source.source.format for source in found} == {"nfs"}
    counting("discovery").came_out("the same sources")
    with exporting(host, {}):
        nothing = await manager.discover("netfs", spec=spec)
        assert list(nothing) == []
        assert plain(nothing.to_xml()) == libvirts(oracle, "netfs", spec)


REFUSED = {
    "no document": (None, LibvirtCode.INVALID_ARG),
    "no XML": ("nonsense", LibvirtCode.XML_DETAIL),
    "another document": ("<pool/>", LibvirtCode.XML_ERROR),
    "no host": ("<source/>", LibvirtCode.CONFIG_UNSUPPORTED),
    "two hosts": ("<source><host name='127.9.9.9'/><host name='127.9.9.8'/></source>", LibvirtCode.CONFIG_UNSUPPORTED),
    "a host without a name": ("<source><host/></source>", LibvirtCode.XML_ERROR),
    "a malformed port": ("<source><host name='127.9.9.9' port='x'/></source>", LibvirtCode.XML_ERROR),
    "a host that does not answer": ("<source><host name='127.9.9.9'/></source>", LibvirtCode.OPERATION_FAILED),
}


@pytest.mark.parametrize("type_", ["gluster", "netfs"])
@pytest.mark.parametrize(("spec", "code"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused(
    type_: str, spec: str | None, code: LibvirtCode, oracle: Oracle, gluster: GlusterBed, manager: Manager
) -> None:
    """By both, with the same number."""
    with pytest.raises(LibvirtRefusedError) as theirs:
        libvirts(oracle, type_, spec)
    assert theirs.value.code == code
    with pytest.raises(astore.AstoreError) as ours:
        await manager.discover(type_, spec=spec)
    assert ours.value.libvirt_code == code
    counting("discovery").came_out("refused by both")


@pytest.mark.parametrize(("type_", "code"), [("dir", 3), ("zfs", 1), ("nonsense", 1)])
async def test_types_that_are_refused(type_: str, code: int, oracle: Oracle, manager: Manager) -> None:
    """A type that has nothing to find, and one that has no backend."""
    with pytest.raises(LibvirtRefusedError) as theirs:
        libvirts(oracle, type_, None)
    with pytest.raises(astore.AstoreError) as ours:
        await manager.discover(type_)
    assert ours.value.libvirt_code == theirs.value.code == code
    counting("discovery").came_out("refused by both")


async def test_differences(oracle: Oracle, gluster: GlusterBed, manager: Manager) -> None:
    """What docs/differences-from-libvirt.md lists: a host without volumes, ports that nobody asks, and a host in two places."""
    spec = f"<source><host name='{gluster.host}'/></source>"
    try:
        libvirts(oracle, "gluster", spec)
    except LibvirtRefusedError:  # there are no volumes, unless others have left some
        assert list(await manager.discover("gluster", spec=spec)) == []
        assert list(await manager.discover("netfs", spec=spec)) == []
    elsewhere = f"<source><host name='{gluster.host}' port='24008'/></source>"
    with pytest.raises(astore.DefinitionError, match="port 24007 only"):
        await manager.discover("gluster", spec=elsewhere)
    with pytest.raises(astore.DefinitionError, match="give no other"):
        await manager.discover("gluster", gluster.host, spec=spec)
    with pytest.raises(LibvirtRefusedError) as refused:  # it is taken for a host, which does not answer
        libvirts(oracle, "gluster", "<source><host name=''/></source>")
    assert refused.value.code == LibvirtCode.OPERATION_FAILED
    for option in ("-oevil", "a b", ""):
        with pytest.raises(astore.DefinitionError):
            await manager.discover("gluster", spec=f"<source><host name='{option}'/></source>")
    for row in DIFFERENCES:
        assert f"| {row} |" in PAGE
        counting("discovery").differed(row)
