"""The service that starts marked pools at boot, under a real systemd, in a guest (user-mode Linux): docs/at-boot.md.

The guest is booted once and runs guest_boot.py, which writes down what it saw; here it is compared with what the page says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from beds import uml

pytestmark = [pytest.mark.root, pytest.mark.nfs, pytest.mark.systemd]

Seen = dict[str, Any]

# sd-messages.h: SD_MESSAGE_UNIT_…
FAILED = "d9b373ed55a64feb8242e02dbe79a49c"
RESTARTED = "5eb03494b6584870a536b337290809b3"
STARTED = "39f53479d3a045ac8e11786248231fbf"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What was seen in the guest, at each step."""
    folder = tmp_path_factory.mktemp("guest")
    program = Path(__file__).with_name("guest_boot.py")
    said = uml.run_in_guest([sys.executable, str(program), "/run/host/result.json"], folder, timeout=500)
    print(said)
    found: Seen = json.loads((folder / "result.json").read_text())
    return found


def place(journal: list[Seen], message_id: str) -> int:
    """Where the first entry with this id is."""
    return next(number for number, entry in enumerate(journal) if entry.get("MESSAGE_ID") == message_id)


def test_the_boot_starts_what_is_ready(seen: Seen) -> None:
    """The first try starts one marked pool; for the other, whose folder is missing, the service will try again."""
    assert "READY=1" in seen["boot"]
    first = seen["first"]
    assert first["pools"] == {"images": "running", "late": "inactive"}
    assert first["service"]["ActiveState"] == "activating"
    assert "activating" in first["status"]


def test_others_wait_for_the_first_try_only(seen: Seen) -> None:
    """A service that wants the pools runs, and the boot ends, although one pool is not ready."""
    assert seen["first"]["needs"] == "active"


def test_it_tries_until_all_are_active(seen: Seen) -> None:
    """The next try starts the pool whose folder is there now, and the one that was stopped meanwhile."""
    assert seen["waited"] == 0
    assert seen["retried"]["pools"] == {"images": "running", "late": "running"}
    service = seen["retried"]["service"]
    assert (service["ActiveState"], service["SubState"], service["Result"]) == ("active", "exited", "success")
    assert service["NRestarts"] == "1"
    assert "active (exited)" in seen["retried"]["status"]


def test_the_journal_says_what_failed_and_when_it_was_tried_again(seen: Seen) -> None:
    """Each try's words are there; between two tries is the time that the unit and the page name."""
    journal: list[Seen] = seen["journal"]
    words = [entry["MESSAGE"] for entry in journal]
    failed, again = place(journal, FAILED), place(journal, RESTARTED)
    (why,) = [word for word in words[:failed] if "'late'" in word]
    assert why.startswith("astore: pool 'late': start: /run/pools/late does not exist")
    assert "pool 'images' started" in words[:failed]
    assert {"pool 'images' started", "pool 'late' started"} <= set(words[again : place(journal, STARTED)])
    unit = Path(__file__).parents[1] / "debian" / "astore.astore-autostart.service"
    (seconds,) = re.findall(r"^RestartSec=(\d+)$", unit.read_text(), re.MULTILINE)
    waited = int(journal[again]["_SOURCE_REALTIME_TIMESTAMP"]) - int(journal[failed]["_SOURCE_REALTIME_TIMESTAMP"])
    assert waited >= int(seconds) * 1_000_000


@pytest.mark.parametrize("step", ["first", "retried", "stopped"])
def test_a_process_of_a_mount_stays(seen: Seen, step: str) -> None:
    """What the command left in the service's control group lives on: after a failed try, the next one, and a stop."""
    assert seen[step]["mount"] == "0::/system.slice/astore-autostart.service"


def test_stopping_the_service_stops_no_pool(seen: Seen) -> None:
    """It tries no more, and the pools stay."""
    assert (seen["stopped"]["service"]["ActiveState"], seen["stopped"]["service"]["SubState"]) == ("inactive", "dead")
    assert seen["stopped"]["pools"] == {"images": "running", "late": "running"}
