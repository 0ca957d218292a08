"""The functions of a C library: declared as attributes of a class, checked by their symbols, loaded once for a process.

For backends whose storage is reached by a client library in C, over :mod:`ctypes`::

    class Zstd(CLibrary, type="packed", name="libzstd", product="zstd", oldest="1.4"):
        isError: Callable[[int], int] = quick("1.0", ctypes.c_uint, ctypes.c_size_t)


    zstd = Loaded(lambda: Zstd(lambda name: (ctypes.CDLL("libzstd.so.1"), f"ZSTD_{name}")))
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from astore.errors import BackendLoadError

LibraryT = TypeVar("LibraryT")


class Declaration(NamedTuple):
    """The C declaration of a function.

    :ivar version: a version that has it in this form, at best the first.
    :ivar result: the type of its result, None for void.
    :ivar arguments: the types of its arguments.
    :ivar waits: it may wait for a server, or copies data. Such a function releases the GIL and keeps its errno for
        :func:`ctypes.get_errno`. The others only touch memory, and are called once for each entry of a listing. They keep the
        GIL: releasing it takes longer than the call, and another thread may keep it for long.
    """

    version: str
    result: Any
    arguments: tuple[Any, ...]
    waits: bool

    def bind(self, library: ctypes.CDLL, symbol: str) -> Any:
        """Return the library's function of this name."""
        if self.waits:
            return ctypes.CFUNCTYPE(self.result, *self.arguments, use_errno=True)((symbol, library))
        return ctypes.PYFUNCTYPE(self.result, *self.arguments)((symbol, library))


def waits(version: str, result: Any, *arguments: Any) -> Any:
    """Declare a function that may wait or copies data."""
    return Declaration(version, result, arguments, waits=True)


def quick(version: str, result: Any, *arguments: Any) -> Any:
    """Declare a function that only touches memory."""
    return Declaration(version, result, arguments, waits=False)


class CLibrary:
    """A library's functions: each with its type in Python, and its declaration in C.

    Class arguments:

    :param type: the pool type that needs the library, for errors.
    :param name: the library's name in a sentence.
    :param product: what its versions are versions of.
    :param oldest: the oldest version that has all functions.

    Arguments:

    :param find: returns the library that has a function, and the function's name there.
    :raises BackendLoadError: naming the first missing function and a version that has it.
    """

    declarations: ClassVar[dict[str, Declaration]]
    """The declarations by the attributes' names."""

    _type: ClassVar[str]
    _lacks: ClassVar[str]

    def __init_subclass__(cls, *, type: str, name: str, product: str, oldest: str) -> None:
        cls.declarations = {key: value for key, value in vars(cls).items() if isinstance(value, Declaration)}
        cls._type = type
        cls._lacks = f"{name} has no %s, which {product} %s has: {oldest} or later is needed"

    def __init__(self, find: Callable[[str], tuple[ctypes.CDLL, str]]) -> None:
        for name, declared in self.declarations.items():
            library, symbol = find(name)
            if not hasattr(library, symbol):
                raise BackendLoadError(self._lacks % (symbol, declared.version), type=self._type)
            setattr(self, name, declared.bind(library, symbol))


class Loaded(Generic[LibraryT]):
    """A library that is loaded when it is first asked for.

    :param make: loads it, and raises :exc:`~astore.errors.BackendLoadError` naming the package to install.
    """

    def __init__(self, make: Callable[[], LibraryT]) -> None:
        self._make = make
        self._library: LibraryT | None = None
        self._forget_lock()
        os.register_at_fork(after_in_child=self._forget_lock)

    def _forget_lock(self) -> None:
        self._lock = threading.Lock()  # in a child process, the thread that held it does not exist

    def __call__(self) -> LibraryT:
        """Return the library, the same for the whole process. Any thread may call it.

        :raises BackendLoadError: it cannot be loaded; the next call tries again.
        """
        with self._lock:
            if self._library is None:
                self._library = self._make()
            return self._library
