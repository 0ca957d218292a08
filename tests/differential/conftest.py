"""An oracle for all tests that compare with libvirt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from differential.oracle import Oracle, asking

from astore.testing.beds.libvirt import LibvirtBed


@pytest.fixture(scope="session")
def oracle(libvirt_bed: LibvirtBed) -> Iterator[Oracle]:
    """The session's private libvirtd, to ask."""
    with asking(libvirt_bed.uri) as one:
        yield one
