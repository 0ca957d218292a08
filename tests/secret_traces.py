"""Whether a secret shows where an administrator, or who looks over the shoulder, could read it."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

from astore.model import PoolDef
from astore.secrets import SecretFiles

LINES = (
    "pool define {file}",
    "pool start {pool}",
    "pool refresh {pool} --full",
    "pool info {pool} --json",
    "pool dumpxml {pool}",
    "vol list {pool} --details",
    "vol list {pool} --json",
    "secret list --json",
    "pool stop {pool}",
)


def show_nowhere(folder: Path, definition: PoolDef, usage_type: str, usage: str, value: bytes) -> None:
    """Work on a pool by the command, with its log; assert that nothing that it writes has the secret in it, nor a file of the
    state folder but the secret's own.

    :param folder: for the state. :param usage_type: of the secret. :param usage: of the secret. :param value: its bytes.
    """
    state, document = folder / "state", folder / "pool.xml"
    files = SecretFiles(state)
    files.set(usage_type, usage, value)
    document.write_text(definition.to_xml())
    said = b""
    for line in LINES:
        words = line.format(file=document, pool=definition.name).split()
        argv = [sys.executable, "-m", "astore", "-vv", *words]
        done = subprocess.run(
            argv, env={**os.environ, "ASTORE_STATE_DIR": str(state)}, capture_output=True, check=False
        )
        assert done.returncode == 0, (line, done.stderr)
        said += done.stdout + done.stderr
    assert definition.name.encode() in said
    kept = set(files.folder.iterdir())
    others = [path for path in state.rglob("*") if path.is_file() and path not in kept]
    assert others
    for needle in (value, base64.b64encode(value)):
        assert needle not in said
        assert not [path for path in others if needle in path.read_bytes()]
