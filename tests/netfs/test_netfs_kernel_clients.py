"""Pools on real NFS and CIFS mounts, by a real kernel: that of a guest (user-mode Linux), which serves itself.

The guest is booted once and runs guest_pools.py, which writes down what it saw; here it is compared with what is claimed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beds import uml

pytestmark = [pytest.mark.root, pytest.mark.nfs]

Seen = Callable[[str], dict[str, Any]]
ALWAYS = {"nodev", "nosuid", "noexec"}


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """What was seen in the guest, trial by trial, and what its console and its program said."""
    folder = tmp_path_factory.mktemp("guest")
    program = Path(__file__).with_name("guest_pools.py")
    said = uml.run_in_guest(
        [sys.executable, str(program), "/run/host/result.json"], folder, modules=("ipv6",), timeout=500
    )
    seen = json.loads((folder / "result.json").read_text())
    console = (folder / "console").read_text(errors="replace")
    return seen, f"--- console\n{console}\n--- program\n{said}"


@pytest.fixture
def seen(guest: tuple[dict[str, dict[str, Any]], str]) -> Seen:
    """What one trial saw: ``seen("nfs42")``."""

    def of(trial: str) -> dict[str, Any]:
        trials, said = guest
        if trial not in trials:
            reason = "there is no smbd or no mount.cifs (Debian packages samba cifs-utils)"
            if os.environ.get("ASTORE_REQUIRE_ALL") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        if "failed here" in trials[trial]:
            pytest.fail(f"{trial}, in the guest: {trials[trial]['failed here']}\n{said}", pytrace=False)
        return trials[trial]

    return of


LIVES = {
    "nfs42": ("nfs4", "127.0.0.1:/", {"vers=4.2"}),
    "nfs3": ("nfs", "127.0.0.1:/run/export", {"vers=3"}),
    "auto": ("nfs4", "127.0.0.1:/", {"vers=4.2"}),
    "ipv6": ("nfs4", "[::1]:/", {"vers=4.2"}),
    "cifs": ("cifs", "//127.0.0.1/share", {"sec=none"}),
    "cifs inner": ("cifs", "//127.0.0.1/share/inner", {"sec=none"}),
}
FILES = {"cifs": ["c.raw", "inner"], "cifs inner": ["d.raw"]}
"""What the server has, unless it is the NFS export's."""


@pytest.mark.parametrize("trial", LIVES)
def test_start_mounts_what_is_asked_for(seen: Seen, trial: str) -> None:
    """One mount, of that file system, from there, with libvirt's options, the definition's and its protocol version."""
    kind, source, options = LIVES[trial]
    ((_, mounted_kind, mounted_source, mounted_options),) = seen(trial)["mounts"]
    assert (mounted_kind, mounted_source) == (kind, source)
    assert ALWAYS | options <= set(mounted_options.split(","))
    assert "acregmin=0" in mounted_options or "actimeo=0" in mounted_options


@pytest.mark.parametrize("trial", LIVES)
def test_refresh_finds_what_the_server_has(seen: Seen, trial: str) -> None:
    """All entries at the start, and afterwards the one that was made on the server."""
    files = FILES.get(trial, ["a.raw", "b.raw", "sub"])
    new = f"{trial.replace(' ', '-')}.new"
    assert seen(trial)["first"] == files
    assert seen(trial)["outcome"] == [[new], [], []]
    assert seen(trial)["second"] == sorted([*files, new])
    assert seen(trial)["capacity"] > 0


@pytest.mark.parametrize("trial", LIVES)
def test_second_start_finds_it_mounted(seen: Seen, trial: str) -> None:
    """Another Manager uses the mount that is there."""
    assert seen(trial)["mounts then"] == seen(trial)["mounts"]


@pytest.mark.parametrize("trial", LIVES)
def test_stop_unmounts_what_nobody_uses(seen: Seen, trial: str) -> None:
    """A file open on the mount keeps the pool running, in words; closed, the pool stops and the mount is gone."""
    error, words, state = seen(trial)["busy"]
    assert (error, state) == ("StorageError", "running")
    assert "in use" in words
    assert seen(trial)["mounts after"] == []


@pytest.mark.parametrize("trial", ["login", "login at once"])
def test_a_password_logs_in_and_is_not_seen(seen: Seen, trial: str) -> None:
    """A real mount.cifs takes it from the file; no program's arguments have it, and the file is gone afterwards."""
    login = seen(trial)
    assert (login["error"], login["names"]) == ("", ["c.raw", "inner"]), login
    ((_, kind, source, options),) = login["mounts"]
    assert (kind, source) == ("cifs", "//127.0.0.1/private")
    assert "username=root" in options and "sec=none" not in options
    assert set(options.split(",")) >= ALWAYS
    assert login["mounting"], login
    assert not login["shown"]
    assert login["left"] == []


@pytest.mark.parametrize("trial", ["login refused", "login as guest"])
def test_who_may_not_log_in(seen: Seen, trial: str) -> None:
    """A wrong password, and none, are the server's refusal, in words without it; nothing is mounted or left."""
    login = seen(trial)
    assert login["error"] == "PoolInaccessibleError"
    assert "mount error(13)" in login["words"] or "ermission denied" in login["words"]
    assert not login["shown"]
    assert (login["mounts"], login["left"]) == ([], [])


@pytest.mark.parametrize(("trial", "what"), [("nfs part", "127.0.0.1:/sub"), ("cifs part", "/inner of it")])
def test_part_of_the_source_is_not_the_pool(seen: Seen, trial: str, what: str) -> None:
    """A folder of the very same source, bound on the target, is refused by its name and left alone."""
    part = seen(trial)
    assert part["error"] == "PoolInaccessibleError"
    assert what in part["words"]
    assert len(part["before"]) == 1
    assert part["after"] == part["before"]


def test_what_is_not_exported_is_an_error_in_words(seen: Seen) -> None:
    """The server's own words; nothing is mounted, no process is left."""
    missing = seen("missing")
    assert missing["error"] == "PoolInaccessibleError"
    assert "127.0.0.1:/nowhere" in missing["words"]
    assert "No such file or directory" in missing["words"]
    assert (missing["mounts"], missing["marked"]) == ([], [])


def test_exports_are_discovered(seen: Seen) -> None:
    """showmount's exports, though the host has no Gluster."""
    assert seen("discover")["found"] == [["nfs", "/run/export", "127.0.0.1"]]


@pytest.mark.parametrize(
    ("trial", "name", "source"),
    [("defined", "found", "127.0.0.1:/run/export"), ("defined by ipv6", "found6", "[::1]:/run/export")],
)
def test_the_command_defines_what_is_discovered(seen: Seen, trial: str, name: str, source: str) -> None:
    """The pool is built, mounted from the export, and used by a second process, which stops it."""
    trial_seen = seen(trial)
    assert trial_seen["defined"] == [0, [f"pool '{name}' {done}" for done in ("defined", "built", "started")]]
    ((_, kind, mounted_source, _),) = trial_seen["mounts"]
    assert (kind[:3], mounted_source) == ("nfs", source)
    created, *listed, stopped = trial_seen["used"][1]
    assert (created, listed) == ("volume 'new.raw' created (format raw)", ["a.raw", "b.raw", "new.raw", "sub"])
    assert (trial_seen["used"][0], stopped) == (0, f"pool '{name}' stopped")
    assert (trial_seen["served"], trial_seen["mounts after"]) == (1 << 20, [])


def test_stale_handle_is_mounted_anew(seen: Seen) -> None:
    """An export that was replaced on the server (ESTALE) is mounted anew by the next refresh."""
    stale = seen("stale")
    assert stale["added"] == ["later.raw"]
    assert stale["volumes"] == ["a.raw", "b.raw", "later.raw", "sub"]
    assert len(stale["before"]) == len(stale["after"]) == 1


def test_hung_mount_costs_its_pool_only(seen: Seen) -> None:
    """A server that is gone: that pool times out for its caller, and keeps its volumes; the other is refreshed."""
    hung = seen("hung nfs")
    assert hung["failed"] == [["hung", True]]
    assert hung["others"] == ["local"]
    assert (hung["state"], hung["kept"]) == ("running", True)


def test_process_with_a_hung_mount_ends(seen: Seen) -> None:
    """Soon after leaving the Manager, however many of its threads hang in the kernel."""
    assert seen("hung nfs")["exit"] == 0, seen("hung nfs")["exit said"]
    assert seen("hung nfs")["exit seconds"] < 40  # and not 60, which a call may take


def test_hung_mount_is_cut_loose(seen: Seen) -> None:
    """A forced stop takes the mount out of the tree although nobody answers."""
    assert (seen("hung nfs")["stopped"], seen("hung nfs")["mounts"]) == ("inactive", [])


def test_hung_nfs_calls_return(seen: Seen) -> None:
    """After the forced stop no thread hangs any more, and with the server back the pool starts again."""
    assert seen("hung nfs")["stuck"] == 0
    assert seen("hung nfs")["again"] == ["a.raw", "b.raw", "sub"]


def test_mount_that_cannot_begin_leaves_nothing(seen: Seen) -> None:
    """mount.nfs, which would try for two minutes, is ended with the start's own deadline."""
    assert seen("hung nfs")["start"] == ["timeout", [], []]


def test_nothing_is_mounted_in_the_end(seen: Seen) -> None:
    """After all of this no target of any pool is mounted."""
    assert seen("end") == {"mounts": 0}
