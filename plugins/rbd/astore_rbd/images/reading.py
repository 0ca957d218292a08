"""Read many objects of a pool at once, from one thread: compound operations of librados, several in flight.

The clusters' class ``rbd`` answers what librbd asks it when it opens an image: these are librbd's inner methods (of Ceph's
``src/cls/rbd/cls_rbd.cc``), which are known by their answers. Where an answer is not as expected, the caller opens the image.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import itertools
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from astore_rbd.cluster import Cluster
from astore_rbd.librbd import Pointer, failure

T = TypeVar("T")

IN_FLIGHT = 128
"""How many operations are under way at once."""

MEMORY = 32 << 20
"""How many bytes there is room for at once, unless one answer needs more. librados waits at 100 MiB, writes included."""

STEP = 32
"""How many operations end between two calls of ``step``."""


class Method(NamedTuple):
    """A method of the class ``rbd``: its name, its encoded arguments, and the longest answer in bytes that is taken."""

    name: bytes
    arguments: bytes = b""
    room: int = 2048


class Question(NamedTuple):
    """What is asked of an object: either methods' answers, or its bytes from 0 up to ``length``; its version in any case."""

    object: bytes
    methods: tuple[Method, ...] = ()
    length: int = 0


class Answer(NamedTuple):
    """What an object answered.

    :ivar result: 0, or a negative errno of the first part that failed. :ivar version: the object's version.
    :ivar parts: the methods' answers, or the bytes; None after a failure, or where the room did not do.
    """

    result: int
    version: int
    parts: tuple[bytes | None, ...]


class _Kind:
    """What questions of a kind ask, and where their answers are in memory: lengths and results, then the bytes of each.

    :ivar blank: lengths and results of answers that have not come. :ivar size: of all, in bytes. :ivar calls: for each method,
        its name, its arguments, their length, where the bytes of its answer begin, their room, and where their length and the
        method's result are. :ivar into: of the first answer, where its bytes, their length and its result are.
    """

    def __init__(self, methods: tuple[Method, ...], length: int) -> None:
        rooms = [method.room for method in methods] or [length]
        count = len(rooms)
        counts = struct.Struct(f"{count}Q{count}i")
        self.blank = b"\xff" * counts.size
        *starts, self.size = itertools.accumulate(rooms, initial=counts.size)
        self.calls = [
            (name, arguments, len(arguments), start, room, 8 * number, 8 * count + 4 * number)
            for number, ((name, arguments, room), start) in enumerate(zip(methods, starts, strict=False))
        ]
        self.into = starts[0], 0, 8 * count
        self._counts = counts.unpack_from
        self._places = list(zip(starts, range(count), range(count, 2 * count), strict=True))

    def parts(self, memory: memoryview, result: int) -> tuple[bytes | None, ...]:
        """Copy the answers of an operation; None for each if it failed, and for one that its room did not hold."""
        if result < 0:
            return (None,) * len(self._places)
        found = self._counts(memory)
        return tuple(
            [
                None if found[status] < 0 else bytes(memory[at : at + found[length]])
                for at, length, status in self._places
            ]
        )


_kind_of = functools.lru_cache(maxsize=64)(_Kind)


class _Asked:
    """An operation, and the memory for its answers; one at a time, and again and again.

    :ivar size: of that memory, in bytes. :param io: the I/O context.
    """

    def __init__(self, cluster: Cluster, io: Pointer) -> None:
        self.size = 0
        self._lib = cluster.lib
        self._io = io
        self._began = -1
        self._operation: Pointer = None
        self._completion = ctypes.c_void_p()
        self._at_completion = ctypes.byref(self._completion)
        self._methods: tuple[Method, ...] | None = None
        self._length = 0

    def prepare(self, question: Question) -> None:
        """Make room for the answers, and forget those of the operation before."""
        _, methods, length = question
        if methods is not self._methods or length != self._length:
            assert not (methods and length)
            self._methods, self._length = methods, length
            self._kind = _kind_of(methods, length)
            self.size = self._kind.size
            memory = ctypes.create_string_buffer(self.size)
            self._memory = memoryview(memory).cast("B")
            self._at = ctypes.addressof(memory)
        blank = self._kind.blank
        self._memory[: len(blank)] = blank

    def send(self, object: bytes) -> None:
        """Begin an operation, after the answer of the one before."""
        lib, at = self._lib, self._at
        operation = self._operation = lib.rados_create_read_op()
        ask_method = lib.rados_read_op_exec_user_buf
        for name, arguments, given, start, room, count, result in self._kind.calls:
            ask_method(operation, b"rbd", name, arguments, given, at + start, room, at + count, at + result)
        operate = lib.rados_aio_read_op_operate
        if self._length:
            start, count, result = self._kind.into
            lib.rados_read_op_read(operation, 0, self._length, at + start, at + count, at + result)
            operate = lib.rados_aio_read_op_operate_waiting
        elif not self._methods:
            lib.rados_read_op_assert_exists(operation)
        lib.rados_aio_create_completion(None, None, None, self._at_completion)
        self._began = operate(operation, self._io, self._completion, object, 0)

    def cancel(self) -> None:
        """Let the operation end at once."""
        if self._began >= 0:
            self._lib.rados_aio_cancel(self._io, self._completion)

    def answer(self) -> Answer:
        """Wait for the answer, and return it. This, or :meth:`end`, is called once for each operation."""
        lib, completion = self._lib, self._completion
        try:
            if self._began < 0:
                return Answer(self._began, 0, ())
            if not lib.rados_aio_is_complete(completion):
                lib.rados_aio_wait_for_complete(completion)
            result = lib.rados_aio_get_return_value(completion)
            version = lib.rados_aio_get_version(completion)
            return Answer(min(0, result), version, self._kind.parts(self._memory, result))
        finally:
            self._release()

    def end(self) -> None:
        """Wait for the answer, and drop it."""
        if self._began >= 0:
            self._lib.rados_aio_wait_for_complete(self._completion)
        self._release()

    def _release(self) -> None:
        self._lib.rados_aio_release(self._completion)
        self._lib.rados_release_read_op(self._operation)


def ask_all(
    cluster: Cluster,
    questions: Iterable[tuple[T, Question]],
    step: Callable[[], None] = lambda: None,
    io: int | None = None,
) -> Iterator[tuple[T, Answer]]:
    """Ask many objects; yield each question's key and its answer, in order. Blocks.

    :param questions: with keys. They are taken as they are sent, up to :data:`IN_FLIGHT` ahead of the answers, as long as these
        fit into :data:`MEMORY`.
    :param step: called now and then; what it raises ends the work. :param io: an I/O context instead of the cluster's own.
    :raises OSError: an object did not answer in time. That ends all: the others would take as long.
    """
    under_way: deque[tuple[T, _Asked]] = deque()
    free: list[_Asked] = []
    count = held = 0

    def next_answer() -> tuple[T, Answer]:
        nonlocal count, held
        key, asked = under_way.popleft()
        answer = asked.answer()
        if held <= MEMORY:
            free.append(asked)
        else:
            held -= asked.size
        if answer.result == -errno.ETIMEDOUT:
            raise failure(answer.result)
        count += 1
        if not count % STEP:
            step()
        return key, answer

    try:
        for key, question in questions:
            while under_way and (len(under_way) >= IN_FLIGHT or held > MEMORY):
                yield next_answer()
            asked = free.pop() if free else _Asked(cluster, cluster.io if io is None else io)
            held -= asked.size
            asked.prepare(question)
            held += asked.size
            asked.send(question.object)
            under_way.append((key, asked))
        while under_way:
            yield next_answer()
    finally:
        for _, asked in under_way:
            asked.cancel()
        for _, asked in under_way:
            asked.end()


def ask(cluster: Cluster, question: Question, io: int | None = None) -> Answer:
    """Ask one object. Blocks. :raises OSError: it did not answer in time."""
    ((_, answer),) = ask_all(cluster, ((None, question),), io=io)
    return answer
