"""The oracle itself: what it answers is libvirt's."""

from __future__ import annotations

import pytest
from differential.oracle import LibvirtRefusedError, Oracle

pytestmark = pytest.mark.libvirt


def test_answers_and_refusals(oracle: Oracle) -> None:
    """What libvirt takes comes back as it writes it, what it refuses as an error with its code."""
    oracle.ask("events")
    written = oracle.ask("round_trip", "<pool type='dir'><name>one</name><target><path>/tmp//x/</path></target></pool>")
    assert "<path>/tmp/x</path>" in written
    with pytest.raises(LibvirtRefusedError) as refused:
        oracle.ask("round_trip", "<pool type='dir'><name>one</name></pool>")
    assert refused.value.code == 27  # VIR_ERR_XML_ERROR
    assert oracle.ask("events") == [["one", "defined"], ["one", "undefined"]]
