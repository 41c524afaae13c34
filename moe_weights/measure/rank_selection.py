"""Which values have given ranks, found in passes over numbers that need not be kept.

1. Keys are the bits of magnitudes, left-aligned in 64 bits: they are ordered as the magnitudes.
2. Counts by the first sixteen bits tell the class of each wanted rank, and its rank within.
3. Each further pass fixes sixteen more bits by counting, or keeps the keys of small classes and
   sorts them.

Numbers that are kept all need no passes, see `take_neighbours`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel

# One pass counts within at most this many classes at once: 512 KiB each.
_MOST_CLASSES = 16
_DIGIT = 16
# Numbers that are kept are told apart in so many parts at a time: counts of 16 KiB.
_N_PARTS = 2048
_NO_COUNTS = np.zeros((0, 2**_DIGIT), dtype=np.int64)
_NO_KEYS = np.zeros(0, dtype=np.uint64)


@kernel
def search_keys(
    bits: NDArray[Any],
    first_digits: NDArray[np.uint8],
    prefixes: NDArray[np.uint64],
    shifts: NDArray[np.int64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    kept: NDArray[np.uint64],
) -> None:  # pragma: no cover
    """Count or keep the keys that belong to wanted classes.

    Args:
        bits: (n,) float32 or float64 patterns, uint32 or uint64.
        first_digits: (65536,) nonzero where a class begins so.
        prefixes: (k,) first bits of each class.
        shifts: (k,) bits that are still open.
        counts: (k, 65536) of the next digit, for classes that are counted.
        places: (k, 3) where keys are kept: next, first, end; end 0 for classes that are counted.
        kept: Keys that are kept.
    """
    # Few keys belong to a wanted class, so four are turned down at once.
    to_digit = np.uint64(8 * bits.itemsize - 16)
    mask = np.uint64(0x7FFF)
    n_unrolled = len(bits) // 4 * 4
    for i in range(0, n_unrolled, 4):
        hits = (
            first_digits[(bits[i] >> to_digit) & mask]
            | first_digits[(bits[i + 1] >> to_digit) & mask]
            | first_digits[(bits[i + 2] >> to_digit) & mask]
            | first_digits[(bits[i + 3] >> to_digit) & mask]
        )
        if hits:
            for k in range(i, i + 4):
                if first_digits[(bits[k] >> to_digit) & mask]:
                    _take_key(bits, k, prefixes, shifts, counts, places, kept)
    for k in range(n_unrolled, len(bits)):
        if first_digits[(bits[k] >> to_digit) & mask]:
            _take_key(bits, k, prefixes, shifts, counts, places, kept)


@kernel
def _take_key(
    bits: NDArray[Any],
    i: int,
    prefixes: NDArray[np.uint64],
    shifts: NDArray[np.int64],
    counts: NDArray[np.int64],
    places: NDArray[np.int64],
    kept: NDArray[np.uint64],
) -> None:  # pragma: no cover
    """Count or keep number `i` if it belongs to a wanted class."""
    lift = np.uint64(64 - 8 * bits.itemsize)
    key = (np.uint64(bits[i]) << lift) & np.uint64(0x7FFFFFFFFFFFFFFF)
    for wanted in range(len(prefixes)):
        shift = np.uint64(shifts[wanted])
        if key >> shift != prefixes[wanted]:
            continue
        if not places[wanted, 2]:
            counts[wanted, (key >> (shift - np.uint64(16))) & np.uint64(0xFFFF)] += 1
        elif places[wanted, 0] < places[wanted, 2]:
            kept[places[wanted, 0]] = key
            places[wanted, 0] += 1
        return


@kernel
def class_of_rank(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:  # pragma: no cover
    """Return the class that holds a rank, and the rank within it.

    Args:
        counts: (n,) members of each class, in order.
        rank: 0 = smallest member of the first class; less than all members.
    """
    place = 0
    while rank >= counts[place]:
        rank -= counts[place]
        place += 1
    return place, rank


@kernel
def classes_of_ranks(
    counts: NDArray[np.int64], start: int, ranks: NDArray[np.int64], places: NDArray[np.int64]
) -> None:  # pragma: no cover
    """Find the classes that hold some ranks, in one walk.

    Args:
        counts: (n,) members of each class, in order.
        start: First class that has members.
        ranks: (k,) sorted; see `class_of_rank`.
        places: (k,) filled with the classes.
    """
    place, below = start, 0
    for k in range(len(ranks)):
        while ranks[k] - below >= counts[place]:
            below += counts[place]
            place += 1
        places[k] = place


@kernel
def take_neighbours(keys: NDArray[np.uint64], rank: int) -> tuple[Any, Any]:  # pragma: no cover
    """Return the keys at a rank and at the next one, of numbers that are kept.

    Args:
        keys: (n,) in any order; spent afterwards.
        rank: 0 = smallest. Where it is the largest, the second key returned means nothing.
    """
    n_left, above = len(keys), np.uint64(2**64 - 1)
    counts = np.empty(_N_PARTS, dtype=np.int64)
    while True:
        lowest = highest = keys[0]
        for i in range(n_left):
            lowest, highest = min(lowest, keys[i]), max(highest, keys[i])
        if lowest == highest:
            return lowest, lowest if rank + 1 < n_left else above
        # What lies between them is cut into equal parts; only the one with the rank is left.
        shift = np.uint64(0)
        while (highest - lowest) >> shift >= np.uint64(_N_PARTS):
            shift += np.uint64(1)
        counts[:] = 0
        for i in range(n_left):
            counts[(keys[i] - lowest) >> shift] += 1
        wanted, rank = class_of_rank(counts, rank)
        # Each key is written and only those that belong move the end: nothing to be mispredicted.
        place = 0
        for i in range(n_left):
            key = keys[i]
            part = np.int64((key - lowest) >> shift)
            keys[place] = key
            place += part == wanted
            above = min(above, key if part > wanted else above)
        n_left = place


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """Keys with the same first bits; ranks are counted from its smallest key."""

    prefix: int
    shift: int
    rank: int
    size: int


class RankSelection:
    """The keys at some ranks of a population that is shown several times.

    Each pass: `search` for all its numbers, in any order, then `end_pass`.
    """

    def __init__(
        self,
        ranks: NDArray[np.int64],
        first_counts: NDArray[np.int64],
        *,
        key_bits: int,
        limit: int,
    ) -> None:
        """Take what the first pass counted.

        Args:
            ranks: Wanted ranks, 0 = smallest.
            first_counts: (32768,) keys by their first sixteen bits; the first bit is 0.
            key_bits: Bits of a key that may be set, from the top: 32 or 64.
            limit: Most keys to keep; 0 means to count only.
        """
        self._last_shift = 64 - key_bits
        self._limit = limit
        whole = _Class(prefix=0, shift=64, rank=0, size=0)
        self._open: dict[int, _Class] = {}
        self._found: dict[int, int] = {}
        for rank in ranks.tolist():
            self._settle(rank, _narrowed(replace(whole, rank=rank), first_counts))
        self._begin_pass()

    @property
    def needs_another_pass(self) -> bool:
        """Some rank is not known yet."""
        return bool(self._open)

    def search(self, bits: NDArray[Any]) -> None:
        """Look at some numbers, (n,) uint32 or uint64 patterns."""
        search_keys(bits, *self.arguments)

    @property
    def arguments(self) -> tuple[NDArray[Any], ...]:
        """What `search_keys` takes after the numbers."""
        return (
            self._first_digits, self._prefixes, self._shifts, self._counts, self._places, self._kept
        )  # fmt: skip

    def end_pass(self) -> None:
        """Draw the conclusions.

        Raises:
            ValueError: the pass did not show the numbers of the first one.
        """
        for number, (prefix, shift) in enumerate(self._wanted):
            members = [
                (rank, one) for rank, one in self._open.items()
                if (one.prefix, one.shift) == (prefix, shift)
            ]  # fmt: skip
            next_place, first, end = self._places[number].tolist()
            counted = next_place - first if end else int(self._counts[number].sum())
            if counted != members[0][1].size:
                raise ValueError("the rows of a later pass are not those of the first")
            if end:
                keys = self._kept[first:end]
                inner = [one.rank for _rank, one in members]
                keys.partition(sorted(set(inner)))
                for rank, one in members:
                    self._found[rank] = int(keys[one.rank])
                    del self._open[rank]
            else:
                for rank, one in members:
                    del self._open[rank]
                    self._settle(rank, _narrowed(one, self._counts[number]))
        self._begin_pass()

    def keys(self, ranks: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the keys at the wanted ranks, in their order."""
        return np.array([self._found[rank] for rank in ranks.tolist()], dtype=np.uint64)

    def _settle(self, rank: int, one: _Class) -> None:
        if one.shift == self._last_shift:
            self._found[rank] = one.prefix << one.shift
        else:
            self._open[rank] = one

    def _begin_pass(self) -> None:
        if not self._open:  # nobody will search
            self._counts, self._kept = _NO_COUNTS, _NO_KEYS
            return
        classes = {(one.prefix, one.shift): one.size for one in self._open.values()}
        self._wanted = list(classes)[:_MOST_CLASSES]
        n_wanted = len(self._wanted)
        self._first_digits = np.zeros(2**_DIGIT, dtype=np.uint8)
        self._prefixes = np.array([prefix for prefix, _shift in self._wanted], dtype=np.uint64)
        self._shifts = np.array([shift for _prefix, shift in self._wanted], dtype=np.int64)
        self._places = np.zeros((n_wanted, 3), dtype=np.int64)
        n_kept = 0
        for number, (prefix, shift) in enumerate(self._wanted):
            self._first_digits[prefix << shift >> 48] = 1
            size = classes[prefix, shift]
            if n_kept + size <= self._limit:
                self._places[number] = (n_kept, n_kept, n_kept + size)
                n_kept += size
        has_counts = bool((self._places[:, 2] == 0).any())
        self._counts = np.zeros((n_wanted if has_counts else 0, 2**_DIGIT), dtype=np.int64)
        self._kept = np.empty(n_kept, dtype=np.uint64)


def _narrowed(one: _Class, counts: NDArray[np.int64]) -> _Class:
    """Return the class, one digit longer, that holds the rank."""
    digit, rank = class_of_rank(counts, one.rank)
    return _Class(
        prefix=one.prefix << _DIGIT | digit,
        shift=one.shift - _DIGIT,
        rank=rank,
        size=int(counts[digit]),
    )
