"""What an error that is kept keeps: the frames that it came through, and all that these have in hand."""

from __future__ import annotations

import contextlib
import inspect

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def let_go_of_locals(error: BaseException) -> None:
    """Empty the frames of an error, and of its causes.

    Whoever keeps the error would keep a descriptor in one of them, say, and that a mount busy.
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
                if not frame.f_code.co_flags & _MAY_BE_SUSPENDED:  # to clear such a frame is to end what goes on in it
                    with contextlib.suppress(RuntimeError):  # it is still being executed
                        frame.clear()
                at = at.tb_next
            rest += [one.__cause__, one.__context__]
