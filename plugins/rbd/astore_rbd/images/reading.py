"""Read many objects of a pool at once, from one thread: compound operations of librados, several in flight.

The clusters' class ``rbd`` answers what librbd asks it when it opens an image: these are librbd's inner methods (of Ceph's
``src/cls/rbd/cls_rbd.cc``), which are known by their answers. Where an answer is not as expected, the caller opens the image.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from astore_rbd.cluster import Cluster
from astore_rbd.librbd import Pointer, failure

T = TypeVar("T")

IN_FLIGHT = 64
"""How many operations are under way at once."""

STEP = 32
"""How many operations end between two calls of ``step``."""


class Method(NamedTuple):
    """A method of the class ``rbd``: its name, and its encoded arguments."""

    name: bytes
    arguments: bytes = b""


class Question(NamedTuple):
    """What is asked of an object: methods' answers, or its bytes from 0 up to ``length``; its version in any case."""

    object: bytes
    methods: tuple[Method, ...] = ()
    length: int = 0


class Answer(NamedTuple):
    """What an object answered.

    :ivar result: 0, or a negative errno of the first part that failed. :ivar version: the object's version.
    :ivar parts: the methods' answers, or the bytes; None after a failure.
    """

    result: int
    version: int
    parts: tuple[bytes | None, ...]


class _Asked:
    """An operation, and the memory for its answers; one at a time, and again and again.

    :param io: the I/O context.
    """

    def __init__(self, cluster: Cluster, io: Pointer) -> None:
        self._lib = cluster.lib
        self._io = io
        self._began = -1
        self._operation: Pointer = None
        self._completion = ctypes.c_void_p()
        self._at_completion = ctypes.byref(self._completion)
        self._length = 0
        self._buffer: ctypes.Array[ctypes.c_char] | None = None
        self._prepare(())

    def _prepare(self, methods: tuple[Method, ...]) -> None:
        """Make room for the answers of these methods: pointers to the data, their lengths, and the results."""
        self._methods = methods
        count = max(len(methods), 1)
        self._answers = struct.Struct(f"{count}Q{count}Q{count}i")
        self._room = ctypes.create_string_buffer(self._answers.size)
        data = self._at = ctypes.addressof(self._room)
        lengths, results = data + 8 * count, data + 16 * count
        self._after_data = lengths, results
        self._calls = [
            (name, arguments, len(arguments), data + 8 * number, lengths + 8 * number, results + 4 * number)
            for number, (name, arguments) in enumerate(methods)
        ]

    def send(self, question: Question) -> None:
        """Begin an operation, after the answer of the one before."""
        lib = self._lib
        if question.methods is not self._methods:
            self._prepare(question.methods)
        else:
            ctypes.memset(self._at, 0, self._answers.size)
        operation = self._operation = lib.rados_create_read_op()
        ask_method = lib.rados_read_op_exec
        for call in self._calls:
            ask_method(operation, b"rbd", *call)
        self._length = question.length
        if question.length:
            self._buffer = ctypes.create_string_buffer(question.length)
            lib.rados_read_op_read(operation, 0, question.length, self._buffer, *self._after_data)
        elif not self._calls:
            lib.rados_read_op_assert_exists(operation)
        lib.rados_aio_create_completion(None, None, None, self._at_completion)
        self._began = lib.rados_aio_read_op_operate(operation, self._io, self._completion, question.object, 0)

    def cancel(self) -> None:
        """Let the operation end at once."""
        if self._began >= 0:
            self._lib.rados_aio_cancel(self._io, self._completion)

    def answer(self) -> Answer:
        """Wait for the answer. Call it once for each operation."""
        lib, completion = self._lib, self._completion
        try:
            if self._began < 0:
                return Answer(self._began, 0, ())
            if not lib.rados_aio_is_complete(completion):
                lib.rados_aio_wait_for_complete(completion)
            result = lib.rados_aio_get_return_value(completion)
            return Answer(min(result, 0), lib.rados_aio_get_version(completion), self._parts(result))
        finally:
            lib.rados_aio_release(completion)
            lib.rados_release_read_op(self._operation)

    def _parts(self, result: int) -> tuple[bytes | None, ...]:
        """Take the parts of an answer out of librados's memory, and free that."""
        found = self._answers.unpack_from(self._room)
        if self._length:
            count, status = found[1:]
            return (ctypes.string_at(self._buffer or 0, count) if status >= 0 else None,)
        count = len(self._calls)
        parts: list[bytes | None] = []
        for data, length, status in zip(found[:count], found[count : 2 * count], found[2 * count :], strict=False):
            parts.append((ctypes.string_at(data, length) if data else b"") if status >= 0 and result >= 0 else None)
            if data:
                self._lib.rados_buffer_free(data)
        return tuple(parts)


def ask_all(
    cluster: Cluster,
    questions: Iterable[tuple[T, Question]],
    step: Callable[[], None] = lambda: None,
    io: int | None = None,
) -> Iterator[tuple[T, Answer]]:
    """Ask many objects; yield each question's key and its answer, in order. Blocks.

    :param questions: with keys. They are taken as they are sent, up to :data:`IN_FLIGHT` ahead of the answers.
    :param step: called now and then; what it raises ends the work. :param io: an I/O context instead of the cluster's own.
    :raises OSError: an object did not answer in time. That ends all: the others would take as long.
    """
    under_way: deque[tuple[T, _Asked]] = deque()
    free: list[_Asked] = []
    count = 0

    def next_answer() -> tuple[T, Answer]:
        nonlocal count
        key, asked = under_way.popleft()
        answer = asked.answer()
        free.append(asked)
        if answer.result == -errno.ETIMEDOUT:
            raise failure(answer.result)
        count += 1
        if not count % STEP:
            step()
        return key, answer

    try:
        for key, question in questions:
            if len(under_way) >= IN_FLIGHT:
                yield next_answer()
            asked = free.pop() if free else _Asked(cluster, cluster.io if io is None else io)
            asked.send(question)
            under_way.append((key, asked))
        while under_way:
            yield next_answer()
    finally:
        for _, asked in under_way:
            asked.cancel()
        for _, asked in under_way:
            asked.answer()


def ask(cluster: Cluster, question: Question, io: int | None = None) -> Answer:
    """Ask one object. Blocks. :raises OSError: it did not answer in time."""
    ((_, answer),) = ask_all(cluster, ((None, question),), io=io)
    return answer
