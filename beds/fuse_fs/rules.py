"""The rules by which the server misbehaves, and the socket over which a test changes them.

Each line of the socket is a command in JSON, answered by a line. Part of the server: it runs on Debian's Python.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import trio


@dataclass(eq=False)
class Rule:
    """One rule: which calls it concerns, and what becomes of them.

    :ivar first: the number of the first call that it acts on; earlier ones pass.
    :ivar delay: seconds for which a call is held; infinite: until the rule is removed.
    :ivar errno: the error that the call fails with after that; 0: none.
    """

    id: int
    call: str
    names: str
    first: int
    delay: float
    errno: int
    seen: int = 0
    held: int = 0
    removed: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)

    async def act(self, name: str) -> None:
        """Hold and fail the call. :raises OSError: as the rule says."""
        if not fnmatch.fnmatchcase(name, self.names):
            return
        self.seen += 1
        if self.seen < self.first:
            return
        if self.delay:
            self._now_held(self.held + 1)
            with trio.move_on_after(self.delay):
                await self.removed.wait()
            self._now_held(self.held - 1)
        if self.errno:
            raise OSError(self.errno, os.strerror(self.errno))

    def _now_held(self, count: int) -> None:
        self.held = count
        self.changed.set()
        self.changed = trio.Event()

    async def wait_held(self, count: int) -> None:
        """Wait until ``count`` calls are held at once, or the rule is removed."""
        while self.held < count and not self.removed.is_set():
            await self.changed.wait()


class Rules:
    """All rules, by call; counts the calls.

    :ivar room: the bytes that can still be written; None: no limit.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.calls: Counter[str] = Counter()
        self.room: int | None = settings["room"]
        self._rules: dict[str, list[Rule]] = {}
        for rule in settings["rules"]:
            self._add(rule)

    async def meet(self, call: str, name: str) -> None:
        """Count a call, and do to it what the rules say, oldest first. :raises OSError: it fails."""
        self.calls[call] += 1
        if call in self._rules:
            for rule in tuple(self._rules[call]):
                await rule.act(name)

    def take_room(self, wanted: int, *, whole: bool) -> int:
        """Return how many of ``wanted`` bytes may be written, and count them.

        :param whole: all or none of them.
        :raises OSError: ENOSPC, none.
        """
        if self.room is None:
            return wanted
        taken = min(wanted, self.room)
        if wanted and (not taken or (whole and taken < wanted)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= taken
        return taken

    # ------------------------------------------------------------------------------------------- the test's commands

    async def serve(self, listener: trio.SocketListener) -> None:
        """Answer commands for good."""
        await trio.serve_listeners(self._converse, [listener])

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            data = b""
            async for part in stream:
                data += part
                while b"\n" in data:
                    line, _, data = data.partition(b"\n")
                    answer = await self._obey(json.loads(line))
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
        except trio.BrokenResourceError:
            return  # the test no longer waits

    async def _obey(self, command: dict[str, Any]) -> object:
        match command["do"]:
            case "add":
                self._add(command["rule"])
            case "remove":
                if (rule := self._find(command["id"])) is not None:
                    self._remove(rule)
            case "wait":
                if (rule := self._find(command["id"])) is None:
                    return 0
                await rule.wait_held(command["count"])
                return rule.held
            case "room":
                self.room = command["bytes"]
            case "calls":
                return self.calls
        return None

    def _add(self, settings: dict[str, Any]) -> None:
        delay = math.inf if settings["delay"] is None else settings["delay"]
        rule = Rule(**{**settings, "delay": delay})
        self._rules.setdefault(rule.call, []).append(rule)

    def _find(self, number: int) -> Rule | None:
        return next((rule for rules in self._rules.values() for rule in rules if rule.id == number), None)

    def _remove(self, rule: Rule) -> None:
        self._rules[rule.call].remove(rule)
        if not self._rules[rule.call]:
            del self._rules[rule.call]
        rule.removed.set()
        rule.changed.set()
