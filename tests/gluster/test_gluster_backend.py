"""What the backend makes of definitions. No Gluster is needed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astore.backend import Context, abilities
from astore.errors import DefinitionError
from astore.model import Host, Permissions, PoolDef, Source, Target
from astore_gluster.backend import GlusterBackend

XML = """
<pool type='gluster'>
  <name>images</name>
  <source><host name='one'/><host name='two' port='24010'/><dir path='{dir}'/><name>vol</name></source>
</pool>
"""


def definition(directory: str | None = "/", name: str | None = "vol", *hosts: Host, **more: Any) -> PoolDef:
    source = Source(hosts=hosts or (Host("h"),), directory=directory, name=name)
    return PoolDef(type="gluster", name="p", source=source, **more)


def test_defaults() -> None:
    """The folder is the volume's root where none is named; target and format, which a Gluster pool has not, are dropped."""
    given_ = definition(None, target=Target(path="/x", permissions=Permissions(mode=0o700)))
    given_ = msgspec.structs.replace(given_, source=msgspec.structs.replace(given_.source, format="auto"))
    checked = GlusterBackend().check(given_)
    assert checked.source == Source(hosts=(Host("h"),), directory="/", name="vol")
    assert checked.target == Target()
    assert given_.source.directory is None


def test_xml_gives_names_to_each_other() -> None:
    """The pool's name is the volume's where that is missing, and the other way round."""
    check = GlusterBackend().check
    only_pool = PoolDef.from_xml("<pool type='gluster'><name>vol</name><source><host name='h'/></source></pool>")
    assert check(only_pool).source.name == "vol"
    only_volume = PoolDef.from_xml("<pool type='gluster'><source><host name='h'/><name>vol</name></source></pool>")
    assert check(only_volume).name == "vol"
    assert "<target>" not in check(only_pool).to_xml()


@pytest.mark.parametrize(
    ("given_", "checked"),
    [
        ("/", "/"),
        ("//", "/"),
        ("/a//b/", "/a/b"),
        ("/./a/.", "/a"),
        ("/ü/a b", "/ü/a b"),
        ("/...", "/..."),
        ("/-a", "/-a"),
    ],
)
def test_folders(given_: str, checked: str) -> None:
    """Doubled, trailing and do-nothing parts go; a checked definition passes unchanged."""
    backend = GlusterBackend()
    once = backend.check(definition(given_))
    assert once.source.directory == checked
    assert backend.check(once) == once
    assert backend.check(PoolDef.from_xml(XML.format(dir=given_))).source.directory == checked


@pytest.mark.parametrize(
    "directory", ["", "a", "../a", "/a/../b", "/..", "/a\nb", "/a\0", "/a\x7f", "/\ud800", "/" + "x" * 256, "/a" * 2048]
)
def test_bad_folders(directory: str) -> None:
    """A folder that is not below the volume's root, or cannot be a path, is refused by naming the element."""
    with pytest.raises(DefinitionError) as caught:
        GlusterBackend().check(definition(directory))
    assert caught.value.element == "dir"


@pytest.mark.parametrize("name", [None, "", "a/b", "-v", "--help", "a\n", "a\0", "\ud800", "x" * 255])
def test_bad_volumes(name: str | None) -> None:
    """What cannot be a volume's name is refused by naming the element."""
    with pytest.raises(DefinitionError) as caught:
        GlusterBackend().check(definition("/", name))
    assert caught.value.element == "name"


def test_hosts_are_needed_and_checked() -> None:
    """No host is refused, and so is any bad one among several."""
    backend = GlusterBackend()
    empty = PoolDef(type="gluster", name="p", source=Source(directory="/", name="vol"))
    for bad in (empty, definition("/", "vol", Host("good"), Host("-bad"))):
        with pytest.raises(DefinitionError) as caught:
            backend.check(bad)
        assert caught.value.element == "host"


def test_source_key() -> None:
    """The same volume, folder and hosts are one source, in whatever order and with whatever port is the default."""
    backend = GlusterBackend()

    def key(*arguments: Any) -> tuple[tuple[str, str], ...]:
        return backend.source_key(backend.check(definition(*arguments)))

    first = key("/a", "vol", Host("h"), Host("i", 1))
    assert first == (("source name", "vol"), ("source dir", "/a"), ("source host", "h,i:1"))
    assert key("/a/", "vol", Host("i", 1), Host("h", 24007)) == first
    assert key("/a", "vol", Host("i", 1), Host("h"), Host("h")) == first
    others = [
        key("/b", "vol", Host("h"), Host("i", 1)),
        key("/a", "other", Host("h"), Host("i", 1)),
        key("/a", "vol", Host("h")),
        key("/a", "vol", Host("h"), Host("i", 2)),
        key("/a", "vol", Host("/h"), Host("i", 1)),
    ]
    assert first not in others
    assert len(set(others)) == len(others)
    assert backend.source_key(definition(None)) == backend.source_key(definition("/"))


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_check_answers_whatever_it_is_given(directory: str, name: str, host: str) -> None:
    """A definition of any strings is accepted or refused, and nothing else; accepted, it survives XML."""
    backend = GlusterBackend()
    try:
        checked = backend.check(definition(directory, name, Host(host)))
    except DefinitionError:
        return
    assert backend.check(checked) == checked
    again = backend.check(PoolDef.from_xml(checked.to_xml()))
    assert again.source == checked.source


def test_abilities() -> None:
    """It finds sources and names volumes; a Gluster pool has nothing to be built or deleted."""
    assert set(abilities(GlusterBackend())) == {"discover", "name-volumes"}


@pytest.mark.parametrize(("host", "port"), [(None, None), ("-oevil", None), ("h", 70000), ("h", 24010), ("/s", 24007)])
async def test_discovery_of_bad_hosts(context: Context, host: str | None, port: int | None) -> None:
    """No host, a bad one, or a port that the program cannot reach: refused before anything is run."""

    async def run(*args: object, **kwargs: object) -> Any:
        raise AssertionError("nothing may be run")

    context = msgspec.structs.replace(context, run_command=run)
    with pytest.raises(DefinitionError):
        await GlusterBackend().discover(host, context, port=port)
