"""libvirt as an oracle: a private libvirtd, driven through its Python bindings, which belong to Debian's own Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = "/usr/bin/python3"


class LibvirtRefusedError(Exception):
    """libvirt said no: its error's ``code`` (virErrorNumber), and what it says."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Oracle:
    """Asks what ``oracle_process.py`` can answer: ``oracle.ask("define", xml)``. Blocks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.asked = 0

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What libvirt answers. :raises LibvirtRefusedError: it says no."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([operation, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the oracle ended: {self._process.wait(timeout=10)}")
        self.asked += 1
        answer = json.loads(line)
        if "code" in answer:
            raise LibvirtRefusedError(answer["code"], answer["message"])
        return answer["result"]


@contextmanager
def asking(uri: str) -> Iterator[Oracle]:
    """An oracle on the libvirtd at ``uri``."""
    program = Path(__file__).with_name("oracle_process.py")
    with subprocess.Popen(
        [PYTHON, str(program), uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            yield Oracle(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=20)
