"""Checks of a backend alone against the contract in astore/backend.py, without a Manager."""

from __future__ import annotations

import asyncio

import pytest

from astore.backend import (
    API_VERSIONS_ACCEPTED,
    BACKEND_ABILITIES,
    SESSION_ABILITIES,
    Backend,
    Context,
    RefreshesVolume,
    abilities,
)
from astore.model import EntryError, PoolDef, Snapshot, VolumeInfo
from astore.testing.conformance.base import (
    FALSE_CAPACITY,
    UNSETTLED,
    ConformanceBase,
    NewSource,
    broken,
    cancel_everywhere,
    falsified,
    opened,
    require,
)
from astore.testing.conformance.source import BREAK, SourceUnderTest, raw, renamed

HOSTILE = ("", ".", "..", "../a.img", "a.img/..", "a.img/", "/a.img", "a.img\0", "a.img\0.b", "x" * 5000)
"""Texts that are not names of entries of the pool's directory."""


class ContractChecks(ConformanceBase):
    """Checks of what a backend and its sessions promise the core."""

    async def test_says_what_it_is(self, backend: Backend, source: SourceUnderTest) -> None:
        """A backend has a type, an API version that this astore accepts, and the formats of its volumes."""
        assert backend.type == source.definition.type
        assert backend.api_version in API_VERSIONS_ACCEPTED
        assert all(isinstance(one, str) and one for one in (*backend.source_formats, *backend.volume_formats))
        assert backend.lane_threads >= 1

    async def test_check_is_idempotent(self, backend: Backend, source: SourceUnderTest) -> None:
        """A checked definition passes a second check unchanged, and a check does not change its argument."""
        before = repr(source.definition)
        checked = backend.check(source.definition)
        assert backend.check(checked) == checked
        assert backend.check(source.definition) == checked
        assert repr(source.definition) == before
        assert (checked.name, checked.type) == (source.definition.name, source.definition.type)

    async def test_check_is_pure(self, backend: Backend, source: SourceUnderTest) -> None:
        """A definition is checked without asking the source, which need not answer."""
        checked = backend.check(source.definition)
        require(source, BREAK)
        async with broken(source):
            assert backend.check(source.definition) == checked
            assert backend.source_key(checked) == backend.source_key(checked)

    async def test_definition_survives_xml(self, backend: Backend, source: SourceUnderTest) -> None:
        """A checked definition is the same after it was written as libvirt XML and read again."""
        checked = backend.check(source.definition)
        again = PoolDef.from_xml(checked.to_xml())
        assert backend.check(again) == checked
        assert backend.source_key(backend.check(again)) == backend.source_key(checked)

    async def test_source_key_names_the_source(
        self, backend: Backend, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """The key of a source has fields and values, differs between sources, and does not depend on the pool's name."""
        key = backend.source_key(backend.check(source.definition))
        assert all(isinstance(field, str) and field and isinstance(value, str) for field, value in key)
        assert key, "without a key, two pools may be defined on one source"
        assert backend.source_key(backend.check(renamed(source.definition, "another-name"))) == key
        other = await new_source()
        assert backend.source_key(backend.check(other.definition)) != key

    async def test_abilities_are_known_words(self, backend: Backend, source: SourceUnderTest, context: Context) -> None:
        """The abilities of backend and session follow from their methods."""
        assert set(abilities(backend)) <= BACKEND_ABILITIES.keys()
        async with opened(backend, backend.check(source.definition), context) as session:
            assert set(abilities(session)) <= SESSION_ABILITIES.keys()

    async def test_session_takes_records_over(
        self, backend: Backend, source: SourceUnderTest, context: Context
    ) -> None:
        """Refreshing anew with the last snapshot gives an equal one; it touches neither that snapshot nor its records."""
        await source.put_all({"b.img": raw(), "a.img": raw(), "c.img": raw()})
        await source.settle()
        async with opened(backend, backend.check(source.definition), context) as session:
            first = await session.refresh(Snapshot.EMPTY)
            seen = dict(first.by_name)
            assert list(seen) == ["a.img", "b.img", "c.img"], "volumes are kept in the order of their names"
            second = await session.refresh(first)
            assert second is not first
            assert list(second.by_name) == list(seen)
            assert all(record.same_as(seen[name]) for name, record in second.by_name.items())
            assert dict(first.by_name) == seen
            third = await session.refresh(second, full=True)
            assert not third.changes_since(second)

    async def test_full_trusts_nothing(self, backend: Backend, source: SourceUnderTest, context: Context) -> None:
        """The record of an unchanged entry is kept, right or wrong; ``full=True`` reads it anew."""
        await source.put_all({"b.img": raw(), "a.img": raw(), "c.img": raw()})
        await source.settle()
        await asyncio.sleep(UNSETTLED)
        async with opened(backend, backend.check(source.definition), context) as session:
            first = await session.refresh(Snapshot.EMPTY)
            wrong = falsified(first)
            taken = await session.refresh(wrong)
            if all(record.capacity == FALSE_CAPACITY for record in taken.volumes):
                assert not taken.changes_since(wrong)
            else:
                assert not taken.changes_since(first), "of some it took over what is known, others it read"
            assert not (await session.refresh(wrong, full=True)).changes_since(first)

    async def test_refresh_of_one_volume(self, backend: Backend, source: SourceUnderTest, context: Context) -> None:
        """A volume refreshed alone has the record of a whole refresh; an unused name gives None."""
        await source.put("a.img", raw())
        await source.settle()
        async with opened(backend, backend.check(source.definition), context) as session:
            if not isinstance(session, RefreshesVolume):
                assert "refresh-volume" not in abilities(session)
                return
            whole = (await session.refresh(Snapshot.EMPTY)).get("a.img")
            alone = await session.refresh_volume("a.img")
            assert isinstance(whole, VolumeInfo)
            assert isinstance(alone, VolumeInfo)
            assert alone.same_as(whole)
            assert await session.refresh_volume("nobody.img") is None

    async def test_no_name_leads_out_of_the_pool(
        self, backend: Backend, source: SourceUnderTest, context: Context
    ) -> None:
        """Names with slashes, NULs and dots lead nowhere: no record, whatever is there; nothing but an OSError."""
        await source.put("a.img", raw())
        await source.settle()
        async with opened(backend, backend.check(source.definition), context) as session:
            if not isinstance(session, RefreshesVolume):
                assert "refresh-volume" not in abilities(session)
                return
            for name in HOSTILE:
                try:
                    found = await session.refresh_volume(name)
                except OSError:
                    continue
                assert found is None or isinstance(found, EntryError), f"{name[:20]!r} leads to {found}"

    async def test_close_twice(self, backend: Backend, source: SourceUnderTest, context: Context) -> None:
        """A session may be closed twice; using it afterwards raises at once."""
        await source.put("a.img", raw())
        session = await backend.open(backend.check(source.definition), context)
        try:
            await session.refresh(Snapshot.EMPTY)
        finally:
            await session.stop()
            await session.aclose()
            await session.aclose()
        with pytest.raises(OSError):
            await session.refresh(Snapshot.EMPTY)

    async def test_sessions_are_independent(self, backend: Backend, source: SourceUnderTest, context: Context) -> None:
        """Two sessions on one pool, as two processes have them: closing one leaves the other at work."""
        await source.put("a.img", raw())
        await source.settle()
        checked = backend.check(source.definition)
        async with opened(backend, checked, context) as one:
            two = await backend.open(checked, context)
            assert len(await two.refresh(Snapshot.EMPTY)) == 1
            await two.aclose()
            assert len(await one.refresh(Snapshot.EMPTY)) == 1

    async def test_cancelled_open_can_be_repeated(
        self, backend: Backend, source: SourceUnderTest, context: Context
    ) -> None:
        """An open that is cancelled at any step does not block a later one."""
        checked = backend.check(source.definition)

        async def open_and_close() -> None:
            session = await backend.open(checked, context)
            await session.stop()
            await session.aclose()

        async def nothing(cancelled: bool) -> None: ...

        await cancel_everywhere(open_and_close, nothing)
        async with opened(backend, checked, context) as session:
            assert len(await session.refresh(Snapshot.EMPTY)) == 0
