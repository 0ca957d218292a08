"""Hosts and servers in network namespaces: killed, stopped, cut off in either direction, with clocks that are off.

Each host's clock is off by a minute all the time. The hosts share a folder, a Gluster volume, or an NFS export; the last in
a guest, whose kernel serves it. ASTORE_FLEET_FAULTS says how often each fault comes; without it there are a few, once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet_faults import HOST_FAULTS, SERVER_FAULTS, go_on
from fleet_history import UNCLOSED
from fleet_hosts import Scene, scene
from fleet_storage import gluster_volume, plain_folder

from beds import gluster, hosts, nats, uml

ROUNDS = int(os.environ.get("ASTORE_FLEET_FAULTS", "0"))

pytestmark = [
    pytest.mark.root,
    pytest.mark.soak,
    pytest.mark.timeout(0 if ROUNDS else 1200),
]


@pytest.fixture
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """Two hosts, with as many servers, and such storage, as the parameter says."""
    servers, storage = request.param
    if reason := nats.missing() or hosts.missing() or (gluster.missing() if storage is gluster_volume else None):
        pytest.fail(reason)
    async with scene(tmp_path, servers, storage) as found:
        yield found


@UNCLOSED
@pytest.mark.parametrize(
    ("made", "few"),
    [
        pytest.param((3, plain_folder), ["killed", "cut", "server-cut"], id="cluster"),
        pytest.param((1, plain_folder), ["stopped", "deaf", "clocks", "server-killed"], id="one server"),
        pytest.param((3, gluster_volume), ["killed", "cut", "mute", "server-killed"], id="Gluster"),
    ],
    indirect=["made"],
)
async def test_faults(made: Scene, few: list[str]) -> None:
    """Pools go on elsewhere, no event is lost or doubled, nobody writes by an old token, no work is done twice."""
    await go_on(made, [*HOST_FAULTS, *SERVER_FAULTS, "clocks"] if ROUNDS else few, ROUNDS or 1)


def test_faults_on_nfs(tmp_path: Path) -> None:
    """The same with pools on NFS: hosts, servers and the export are in a guest."""
    if reason := nats.missing() or uml.missing():
        pytest.fail(reason)
    program = Path(__file__).with_name("guest_fleet.py")
    few = [*HOST_FAULTS, "server-killed"] if ROUNDS else ["killed", "cut"]
    argv = [sys.executable, str(program), str(ROUNDS or 1), *few]
    timeout = 1000.0 * max(ROUNDS, 1)
    said = uml.run_in_guest(argv, tmp_path, modules=("bridge", "veth"), timeout=timeout)
    assert "all as it should be" in said.splitlines(), said
