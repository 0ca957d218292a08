"""Find the name that was meant by one that is misspelt."""

from __future__ import annotations

from collections.abc import Iterable

from astore.errors import NotFoundError, printable

MOST_NAMES = 2_000
"""How many names are compared, at most. Of more, one that is alike is likely not the one that was meant."""

MOST_LETTERS = 3
"""By how many letters a name may be longer or shorter."""


def closest(text: str, names: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Return the name that is most like a text, in whatever case; None if none is alike.

    :param cutoff: how alike it must be, from 0 to 1.
    """
    from difflib import get_close_matches

    length = len(text)
    known = {one.casefold(): one for one in names if abs(len(one) - length) <= MOST_LETTERS}
    if len(known) > MOST_NAMES:
        return None
    found = get_close_matches(text.casefold(), known, n=1, cutoff=cutoff)
    return known[found[0]] if found else None


def suggest(error: NotFoundError, meant: str | None) -> None:
    """Note with an error what the user may have meant; None is nothing."""
    if meant is not None:
        error.add_note(f"did you mean {printable(meant)!r}?")
