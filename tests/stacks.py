"""What every thread of this process is doing, for a test that waits in vain: something hangs, and it may be in the kernel."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback


def of_all_threads() -> str:
    """Return the stacks of all threads: Python's, and the kernel's if this is root."""
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
