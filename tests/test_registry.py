"""The registry: what is installed is listed, imported once when it is needed, and refused by name when it is no good."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
from core_fakes import HELD, FakeBackend, backend_module, counted, distribution, eventually, import_gate, others_loaded

import astore
from astore.entry_points import ENTRY_POINT_GROUP
from astore.registry import BackendRegistry

Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path for throwaway distributions; their modules are forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """Makes a distribution with one backend ``type`` in one module, named after the distribution."""

    def make(name: str, type: str, *, before: str = "", inside: str = "", text: str | None = None) -> None:
        module = name.replace("-", "_") + "_module"
        source = backend_module(type, before=before, inside=inside) if text is None else text
        distribution(site, name, f"{type} = {module}:Plugin", modules={module: source})
        importlib.invalidate_caches()

    return make


def found(registry: BackendRegistry, type: str) -> astore.BackendInfo:
    return next(info for info in registry.backends() if info.type == type)


async def test_listing_imports_nothing(install: Install) -> None:
    """A backend is listed with its distribution and version before its module was ever imported."""
    install("some-plugin", "some")
    registry = BackendRegistry()
    assert registry.types() == ()
    await asyncio.to_thread(registry.scan)
    info = found(registry, "some")
    assert (info.status, info.distribution, info.version) == ("unloaded", "some-plugin", "1.0")
    assert (info.api_version, info.abilities, info.error, info.pools) == (None, (), None, 0)
    assert "some" in registry
    assert registry.loaded("some") is None
    assert "some_plugin_module" not in sys.modules
    backend = await registry.get("some")
    assert registry.loaded("some") is backend
    info = found(registry, "some")
    assert (info.status, info.api_version) == ("ready", 1)


async def test_imported_once_however_many_ask(install: Install) -> None:
    """Hundreds who need a backend at once wait for one import, in a thread that is not theirs."""
    before = "import threading, time\ntime.sleep(0.05)\nTHREADS = [threading.current_thread().name]\n"
    install("slow-plugin", "slow", before=before, inside="made = []\n    def __init__(self): self.made.append(self)")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    backends = await asyncio.gather(*(registry.get("slow") for _ in range(200)))
    assert len({id(backend) for backend in backends}) == 1
    module = sys.modules["slow_plugin_module"]
    assert len(module.Plugin.made) == 1
    assert module.THREADS == ["astore-import"]


async def test_one_who_leaves_does_not_take_the_import_along(install: Install) -> None:
    """Who is cancelled while waiting for an import leaves it to the others."""
    install("slow-plugin", "slow", before=HELD)
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    with import_gate() as gate:
        leaver, stayer = (asyncio.ensure_future(registry.get("slow")) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        gate.set()
        assert (await stayer).type == "slow"


FUTURE = "api_version = 99"
OLD = "api_version = 0"
BAD_PLUGINS = {
    "raises": ({"before": "raise RuntimeError('broken on import')"}, "RuntimeError: broken on import"),
    "exits": ({"before": "import sys; sys.exit(3)"}, "SystemExit"),
    "lacks": ({"before": "import no_such_module_anywhere"}, "no_such_module_anywhere"),
    "syntax": ({"text": "class Plugin(:"}, "SyntaxError"),
    "empty": ({"text": ""}, "Plugin"),
    "thing": ({"text": "Plugin = object()"}, "is not an astore Backend"),
    "made": ({"inside": "def __init__(self): raise ValueError('cannot be made')"}, "cannot be made"),
    "abstract": (
        {"text": "from astore.backend import Backend\nclass Plugin(Backend):\n    type = 'abstract'"},
        "abstract",
    ),
    "future": ({"inside": FUTURE}, "api_version 99, this astore takes up to 1: upgrade astore"),
    "old": ({"inside": OLD}, "api_version 0, this astore takes up to 1: upgrade the backend"),
    "library": (
        {"inside": "def require(self): raise OSError('no libthing.so: install the package libthing1')"},
        "install the package libthing1",
    ),
    "other": ({"inside": "type = 'different'"}, "drives 'different' but is announced as 'other'"),
    "typeless": ({"inside": "type = ''"}, "does not say which pool type it drives"),
}


@pytest.mark.parametrize("type", BAD_PLUGINS)
async def test_a_bad_plugin_is_named_and_hurts_nobody(install: Install, type: str) -> None:
    """What is wrong with a plugin stands beside its name and is told to whoever asks; the others work."""
    how, words = BAD_PLUGINS[type]
    install(f"bad-{type}", type, **how)
    install("good-plugin", "good")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    with pytest.raises(astore.BackendLoadError) as caught:
        await registry.get(type)
    assert words in str(caught.value)
    assert caught.value.type == type
    infos = {info.type: info for info in await registry.load_all()}
    assert infos[type].status == "failed"
    assert words in (infos[type].error or "")
    assert infos[type].distribution == f"bad-{type}"
    assert (infos["good"].status, infos["dir"].status) == ("ready", "ready")
    assert registry.loaded(type) is None


async def test_an_error_does_not_grow_with_those_it_is_told_to(install: Install) -> None:
    """Asking again and again for a backend that failed keeps nothing of who asked."""
    install("bad-plugin", "bad", before="raise RuntimeError('broken')")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    depths = []
    for _ in range(5):
        with pytest.raises(astore.BackendLoadError) as caught:
            await registry.get("bad")
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert depths[1:] == depths[1:2] * 4


async def test_a_plugin_that_hangs(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A hanging import costs who asks the deadline and nobody else anything; done at last, the backend works."""
    install("hung-plugin", "hung", before=HELD)
    install("good-plugin", "good")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    with import_gate() as gate:
        await others_loaded(registry, "hung")
        registry.import_timeout = 0.2
        infos = {info.type: info for info in await registry.load_all()}
        assert infos["hung"].status == "failed"
        assert "hung-plugin" in (infos["hung"].error or "")
        assert "did not load within 0.2 s" in (infos["hung"].error or "")
        assert infos["good"].status == "ready"
        assert found(registry, "hung").status == "unloaded"
        with pytest.raises(astore.BackendLoadError, match="did not load"):
            await registry.get("hung")
        gate.set()
        await eventually(lambda: registry.loaded("hung"), "the import's end")
        assert (await registry.get("hung")).type == "hung"
    assert not caplog.records


async def test_two_backends_of_one_package(site: Path) -> None:
    """A package that imports its modules, and one of them asked for by its own name: both are imported whole."""
    package = site / "both_of_one"
    package.mkdir()
    wait = "import time; time.sleep(0.1)"
    (package / "__init__.py").write_text(
        backend_module("first", before=f"{wait}\nfrom both_of_one.second import Plugin")
    )
    (package / "second.py").write_text(backend_module("second", before="import both_of_one"))
    distribution(site, "both", "first = both_of_one:Plugin\nsecond = both_of_one.second:Plugin")
    importlib.invalidate_caches()
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    first, second = await asyncio.gather(registry.get("first"), registry.get("second"))
    assert (first.type, second.type) == ("first", "second")


def test_an_import_that_outlives_the_loop(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever waited is gone, loop and all, when a hanging import fails at last: nothing is said to nobody."""
    install("hung-plugin", "hung", before=f"{HELD}; raise OSError('late')")
    registry = BackendRegistry(import_timeout=0.05)
    registry.scan()

    async def ask() -> None:
        with pytest.raises(astore.BackendLoadError):
            await registry.get("hung")

    with import_gate() as gate, caplog.at_level(logging.DEBUG):
        asyncio.run(ask())
        gate.set()
        for thread in threading.enumerate():
            if thread.name == "astore-import":
                thread.join()
        gc.collect()
    assert found(registry, "hung").status == "failed"
    assert "late" in (found(registry, "hung").error or "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_two_distributions_claim_one_type(install: Install) -> None:
    """A type that two distributions claim is unusable, and the error names both; the rest works."""
    install("plugin-one", "taken")
    install("plugin-two", "taken")
    install("another-dir", "dir")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    with pytest.raises(astore.BackendConflictError) as caught:
        await registry.get("taken")
    assert "plugin-one and plugin-two" in str(caught.value)
    assert found(registry, "taken").distribution == "plugin-one, plugin-two"
    assert found(registry, "taken").status == "failed"
    assert "another-dir and astore" in (found(registry, "dir").error or "")
    assert "taken_module" not in sys.modules
    registry.register(FakeBackend())
    assert (await registry.get("fake")).type == "fake"


async def test_choosing_among_those_who_claim(install: Install) -> None:
    """Who registers a backend of their own at run time is not overruled by what is installed, before or after."""
    install("plugin-one", "fake")
    install("plugin-two", "fake")
    mine = FakeBackend()
    early = BackendRegistry()
    early.register(mine)
    await asyncio.to_thread(early.scan)
    assert await early.get("fake") is mine
    assert found(early, "fake").distribution is None
    late = BackendRegistry()
    await asyncio.to_thread(late.scan)
    late.register(mine, replace=True)
    await asyncio.to_thread(late.scan, again=True)
    assert await late.get("fake") is mine


async def test_scanning_again(install: Install) -> None:
    """What was installed since is found by scanning again, and nothing is claimed twice."""
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    install("new-plugin", "new")
    await asyncio.to_thread(registry.scan)
    assert "new" not in registry
    await asyncio.to_thread(registry.scan, again=True)
    await asyncio.to_thread(registry.scan, again=True)
    assert (await registry.get("new")).type == "new"
    assert (await registry.get("dir")).type == "dir"


@pytest.mark.parametrize("damage", ["entry points", "bytes", "no metadata", "metadata bytes"])
async def test_damaged_metadata_of_others(install: Install, site: Path, damage: str) -> None:
    """A distribution whose files are damaged costs the others nothing."""
    install("good-plugin", "good")
    install("odd-plugin", "odd")
    info = site / "odd_plugin-1.0.dist-info"
    if damage == "entry points":
        (info / "entry_points.txt").write_text("[astore.backends]\nthis is no entry point\n")
    elif damage == "bytes":
        (info / "entry_points.txt").write_bytes(b"[astore.backends]\nodd = \xff\xfe:Plugin\n")
    elif damage == "no metadata":
        (info / "METADATA").unlink()
    else:
        (info / "METADATA").write_bytes(b"Name: \xff\xfe\n")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)
    assert (await registry.get("good")).type == "good"
    assert (await registry.get("dir")).type == "dir"
    if damage.startswith("no"):
        assert (await registry.get("odd")).type == "odd"


def test_claims_without_distributions() -> None:
    """Entry points made by hand are taken, unless two of them differ."""
    group = ENTRY_POINT_GROUP
    one, two = (metadata.EntryPoint("by-hand", f"module{n}:Plugin", group) for n in (1, 2))
    registry = BackendRegistry(group=None)
    registry.add_entry_points([one, one])
    assert found(registry, "by-hand").status == "unloaded"
    registry.add_entry_points([two])
    assert found(registry, "by-hand").status == "failed"


async def test_unregistered_while_it_is_imported(install: Install) -> None:
    """An import that ends after its type was unregistered is not told."""
    install("slow-plugin", "slow", before=HELD)
    told: list[astore.Event] = []
    registry = BackendRegistry()
    registry.listen(lambda kind, **fields: told.append(kind(**fields)))
    await asyncio.to_thread(registry.scan)
    with import_gate() as gate:
        waiting = asyncio.ensure_future(registry.get("slow"))
        await asyncio.sleep(0)
        await registry.unregister("slow")
        gate.set()
        backend = await waiting
    with pytest.raises(astore.UnknownBackendError):
        registry.acquire(backend)
    assert counted(told) == {"BackendUnregistered": 1}


async def test_no_thread_to_import_on(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told as an error of the backend; when there are threads again it is imported."""
    install("one-plugin", "one")
    registry = BackendRegistry()
    await asyncio.to_thread(registry.scan)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as refusing:
        refusing.setattr(threading.Thread, "start", refuse)
        with pytest.raises(astore.BackendLoadError, match="can't start new thread"):
            await registry.get("one")
    assert (await registry.get("one")).type == "one"
