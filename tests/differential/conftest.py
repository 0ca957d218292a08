"""An oracle for all tests that compare with libvirt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from differential import counts
from differential.oracle import Oracle, asking
from hypothesis.internal.conjecture import providers

from beds.libvirt import LibvirtBed


@pytest.fixture(scope="session")
def oracle(libvirt_bed: LibvirtBed) -> Iterator[Oracle]:
    """The session's private libvirtd, to ask."""
    with asking(libvirt_bed.uri) as one:
        yield one


@pytest.fixture(autouse=True, scope="module")
def _documents_by_seed_alone() -> Iterator[None]:
    """One seed gives the same documents always: hypothesis takes some values from whatever modules are loaded; not here."""
    name = "_maybe_draw_constant"
    with pytest.MonkeyPatch.context() as patched:
        if hasattr(providers.HypothesisProvider, name):
            patched.setattr(providers.HypothesisProvider, name, lambda *_, **__: None)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was compared, and how it came out."""
    if lines := counts.summary():
        terminalreporter.section("compared with libvirt")
        for line in lines:
            terminalreporter.write_line(line)
