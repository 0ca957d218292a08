"""Sorting a million names in steps, so that no thread holds the interpreter for long."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from operator import lt
from typing import TypeVar

T = TypeVar("T")

STEP = 4096
"""How many names are compared or sorted by one call of C code, during which no other thread runs."""


def sorted_names(names: Iterable[str]) -> list[str]:
    """Return names in order."""
    listed = list(names)
    if len(listed) <= STEP:
        return sorted(listed)
    if _ordered(listed):
        return listed
    bounds = sorted(listed[:: STEP // 8])[8::8]
    buckets: list[list[str]] = [[] for _ in range(len(bounds) + 1)]
    for name in listed:
        buckets[bisect_right(bounds, name)].append(name)
    return [name for bucket in buckets for name in sorted(bucket)]


def in_order(by_name: Mapping[str, T]) -> list[T]:
    """Return the values in the order of their names."""
    names = list(by_name)
    if _ordered(names):
        return list(by_name.values())
    return [by_name[name] for name in sorted_names(names)]


def _ordered(names: list[str]) -> bool:
    return all(all(map(lt, some, some[1:])) for at in range(0, len(names), STEP) if (some := names[at : at + STEP + 1]))
