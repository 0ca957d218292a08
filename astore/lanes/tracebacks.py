"""Drop the locals that a stored traceback keeps alive."""

from __future__ import annotations

import contextlib
import inspect

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def let_go_of_locals(error: BaseException) -> None:
    """Clear the frames of an error, and of its causes.

    A stored error could otherwise keep a descriptor open, and so a mount busy.
    """
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            at = one.__traceback__
            while at is not None:
                frame = at.tb_frame
                if not frame.f_code.co_flags & _MAY_BE_SUSPENDED:  # clearing a suspended frame would end it
                    with contextlib.suppress(RuntimeError):  # the frame is still running
                        frame.clear()
                at = at.tb_next
            rest += [one.__cause__, one.__context__]
