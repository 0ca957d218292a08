"""Read many objects of a pool at once, from one thread: compound operations of librados, several in flight.

The clusters' class ``rbd`` answers what librbd asks it when it opens an image: these are librbd's inner methods (of Ceph's
``src/cls/rbd/cls_rbd.cc``), which are known by their answers. Where an answer is not as expected, the caller opens the image.
"""

from __future__ import annotations

import ctypes
import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from astore_rbd.cluster import Cluster
from astore_rbd.librbd import failure

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
    """An operation under way."""

    def __init__(self, cluster: Cluster, io: int | None, question: Question) -> None:
        lib = self._lib = cluster.lib
        self._io = io
        self._length = question.length
        self._operation = lib.rados_create_read_op()
        count = len(question.methods)
        self._data = (ctypes.c_void_p * count)()
        self._lengths = (ctypes.c_size_t * max(count, 1))()
        self._results = (ctypes.c_int * max(count, 1))()
        data, lengths = ctypes.addressof(self._data), ctypes.addressof(self._lengths)
        results = ctypes.addressof(self._results)
        for number, (name, arguments) in enumerate(question.methods):
            at = data + 8 * number, lengths + 8 * number, results + 4 * number
            lib.rados_read_op_exec(self._operation, b"rbd", name, arguments, len(arguments), *at)
        self._buffer = ctypes.create_string_buffer(self._length) if self._length else None
        if self._length:
            lib.rados_read_op_read(self._operation, 0, self._length, self._buffer, lengths, results)
        elif not count:
            lib.rados_read_op_assert_exists(self._operation)
        completion = ctypes.c_void_p()
        lib.rados_aio_create_completion(None, None, None, ctypes.byref(completion))
        self._completion = completion.value
        self._began = lib.rados_aio_read_op_operate(self._operation, io, self._completion, question.object, 0)

    def cancel(self) -> None:
        """Let the operation end at once."""
        if self._began >= 0:
            self._lib.rados_aio_cancel(self._io, self._completion)

    def answer(self) -> Answer:
        """Wait for the answer. Call it once."""
        lib = self._lib
        try:
            if self._began < 0:
                return Answer(self._began, 0, ())
            if not lib.rados_aio_is_complete(self._completion):
                lib.rados_aio_wait_for_complete(self._completion)
            result = lib.rados_aio_get_return_value(self._completion)
            version = lib.rados_aio_get_version(self._completion)
            parts: list[bytes | None] = []
            if self._buffer is not None:
                parts.append(ctypes.string_at(self._buffer, self._lengths[0]) if self._results[0] >= 0 else None)
            for number, data in enumerate(self._data):
                known = self._results[number] >= 0 and result >= 0
                parts.append(ctypes.string_at(data or 0, self._lengths[number] if data else 0) if known else None)
                if data:
                    lib.rados_buffer_free(data)
            return Answer(min(result, 0), version, tuple(parts))
        finally:
            lib.rados_aio_release(self._completion)
            lib.rados_release_read_op(self._operation)


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
    count = 0

    def next_answer() -> tuple[T, Answer]:
        nonlocal count
        key, asked = under_way.popleft()
        answer = asked.answer()
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
            under_way.append((key, _Asked(cluster, cluster.io if io is None else io, question)))
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
