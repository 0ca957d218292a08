"""What every thread of this process is doing, for a test that waits in vain: something hangs, and it may be in the kernel."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback


def of_all_threads() -> str:
    """Return the stacks of all threads: Python's, and the kernel's if this is root.

    On a thread of its own: an event loop must not read files, and its executor's threads may hang.
    """
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_stacks()), daemon=True)
    thread.start()
    thread.join(10.0)
    return found[0] if found else "the stacks cannot be read"


def _stacks() -> str:
    python = {thread.ident: thread.name for thread in threading.enumerate()}
    native = {str(thread.native_id): thread.name for thread in threading.enumerate()}
    parts = [
        f"-- Python: {python.get(number)}\n{''.join(traceback.format_stack(frame))}"
        for number, frame in sys._current_frames().items()
    ]
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/stack") as stack:
            parts.append(f"-- kernel: {native.get(task)} {task}\n{stack.read()}")
    return "\n".join(parts)
