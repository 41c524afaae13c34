"""The fingerprint of a matrix, word by word in Python's integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64
_HALF = 2**32


def slow_fingerprint(matrix: NDArray[Any]) -> str:
    """Return what the docstring of `moe_weights.measure.fingerprint` says."""
    keys = _keys(1024 + 2)
    state = (0, 0)
    for row in matrix:
        raw = np.ascontiguousarray(row).tobytes()
        n_words = len(raw) // 8
        words = [int.from_bytes(raw[8 * k : 8 * k + 8], "little") for k in range(n_words)]
        for start in range(0, n_words, 1024):
            stretch = words[start : start + 1024]
            state = _mixed(state, _nh(stretch, keys), _nh(stretch, keys[2:]))
        if len(raw) % 8:
            state = _mixed(state, int.from_bytes(raw[8 * n_words :], "big"), len(raw))
    one, two = _mixed(state, *matrix.shape)
    one = (one + two) % _WORD
    two = (two + one) % _WORD
    one, two = _finished(one), _finished(two)
    one = (one + two) % _WORD
    two = (two + one) % _WORD
    return f"{one:016x}{two:016x}"


def _nh(words: list[int], keys: list[int]) -> int:
    total = 0
    for word, key in zip(words, keys, strict=False):
        low = (word % _HALF + key % _HALF) % _HALF
        high = (word // _HALF + key // _HALF) % _HALF
        total += low * high
    return total % _WORD


def _keys(count: int) -> list[int]:
    keys = []
    for place in range(1, count + 1):
        word = place * 0x9E3779B97F4A7C15 % _WORD
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % _WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB % _WORD
        keys.append(word ^ word >> 31)
    return keys


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) % _WORD


def _mixed(state: tuple[int, int], one: int, two: int) -> tuple[int, int]:
    factor_1, factor_2 = 0x87C37B91114253D5, 0x4CF5AD432745937F
    first, second = state
    first ^= _rotated(one * factor_1 % _WORD, 31) * factor_2 % _WORD
    first = ((_rotated(first, 27) + second) * 5 + 0x52DCE729) % _WORD
    second ^= _rotated(two * factor_2 % _WORD, 33) * factor_1 % _WORD
    second = ((_rotated(second, 31) + first) * 5 + 0x38495AB5) % _WORD
    return first, second


def _finished(word: int) -> int:
    word = (word ^ word >> 33) * 0xFF51AFD7ED558CCD % _WORD
    word = (word ^ word >> 33) * 0xC4CEB9FE1A85EC53 % _WORD
    return word ^ word >> 33
