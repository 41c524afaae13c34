"""Which parts of a tensor name are ids, and what is the name without them?

A checkpoint has 100 000 names and, ids apart, a few dozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ID = re.compile(r"\.[0-9]+(?![^.])")
_ID_IN_LINES = re.compile(r"\.[0-9]+(?![^.\n])")
_ANY_ID = r"\.([0-9]{1,9})"  # no model counts further, and tables hold 64-bit integers


def without_ids(name: str) -> str:
    """Return a name with 0 for every segment that is a number, as layer and expert ids are.

    The first segment stays as it is. Names that are equal without ids are called alike.
    """
    return _ID.sub(".0", name)


def templates_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name without its ids, in order; equal ones are one text."""
    known: dict[str, str] = {}
    names = list(names)
    # All names as the lines of one text: a fifth of the time, and no name has a line break.
    stripped = _ID_IN_LINES.sub(".0", "\n".join(names)).split("\n")
    if len(stripped) != len(names):
        stripped = [without_ids(name) for name in names]
    return tuple(map(known.setdefault, stripped, stripped))


def ids_pattern(template: str) -> re.Pattern[str]:
    """Return the pattern that takes the ids out of all names that are called alike.

    Args:
        template: What `without_ids` returned.

    Returns:
        A pattern for `fullmatch` with a group for each id, in order. It does not match names with
        an id of more than nine digits.
    """
    return re.compile(_ANY_ID.join(map(re.escape, _ID.split(template))))
