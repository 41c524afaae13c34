"""Whether two matrices are the same, bit for bit, told by 128 bits each.

1. Each stretch of a row is hashed with NH: pairs of 32-bit halves of its words, each half added to
   a key of its own place, are multiplied and summed, twice with different keys.
2. The two 64-bit results of each stretch are mixed into the state, in order, by the body of
   MurmurHash3 x64 128; rows and the shape are mixed alike.

The keys are fixed, so it is no defence against somebody who makes two matrices collide. Matrices
that were not made for it collide with a chance of about 2**-64 a pair.

Source:
    NH: Black et al., UMAC: Fast and Secure Message Authentication, CRYPTO 1999, section 4.
    Mixing: Austin Appleby, MurmurHash3 (public domain), MurmurHash3_x64_128.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel
from moe_weights.measure.element_access import load_word

# Words of a stretch: its keys stay in the first-level cache.
_STRETCH = 1024
# The second hash takes the keys this many words later (Toeplitz, as in UMAC).
_KEY_STEP = 2
_MASK = 2**64 - 1


@lru_cache(maxsize=1)
def fingerprint_keys() -> NDArray[np.uint64]:
    """Return the keys by place, (1026,): SplitMix64 from 0 on."""
    keys = []
    for place in range(1, _STRETCH + _KEY_STEP + 1):
        word = place * 0x9E3779B97F4A7C15 & _MASK
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
        keys.append(word ^ (word >> 31))
    return np.array(keys, dtype=np.uint64)


@kernel
def _rotated(word: np.uint64, bits: int) -> np.uint64:  # pragma: no cover
    return np.uint64((word << np.uint64(bits)) | (word >> np.uint64(64 - bits)))


@kernel
def mix_into(state: NDArray[np.uint64], one: np.uint64, two: np.uint64) -> None:  # pragma: no cover
    """Mix two words into the state (2,): one step of MurmurHash3 x64 128."""
    factor_1, factor_2 = np.uint64(0x87C37B91114253D5), np.uint64(0x4CF5AD432745937F)
    state[0] ^= _rotated(one * factor_1, 31) * factor_2
    state[0] = (_rotated(state[0], 27) + state[1]) * np.uint64(5) + np.uint64(0x52DCE729)
    state[1] ^= _rotated(two * factor_2, 33) * factor_1
    state[1] = (_rotated(state[1], 31) + state[0]) * np.uint64(5) + np.uint64(0x38495AB5)


@kernel
def fingerprint_row(
    row: NDArray[Any], keys: NDArray[np.uint64], state: NDArray[np.uint64]
) -> None:  # pragma: no cover
    """Mix a row into the state.

    Args:
        row: (C,) bits, contiguous.
        keys: Of `fingerprint_keys`.
        state: (2,).
    """
    raw = row.view(np.uint8)
    n_words = len(raw) // 8
    half = np.uint64(0xFFFFFFFF)
    upper = np.uint64(32)
    for start in range(0, n_words, _STRETCH):
        one = np.uint64(0)
        two = np.uint64(0)
        for place in range(min(_STRETCH, n_words - start)):
            word = load_word(row, (start + place) * 8)
            low, high = word & half, word >> upper
            key, other = keys[place], keys[place + _KEY_STEP]
            one += ((low + key) & half) * ((high + (key >> upper)) & half)
            two += ((low + other) & half) * ((high + (other >> upper)) & half)
        mix_into(state, one, two)
    if len(raw) > n_words * 8:
        rest = np.uint64(0)
        for i in range(n_words * 8, len(raw)):
            rest = (rest << np.uint64(8)) | np.uint64(raw[i])
        mix_into(state, rest, np.uint64(len(raw)))


@kernel
def _finished(word: np.uint64) -> np.uint64:  # pragma: no cover
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return np.uint64(word ^ (word >> np.uint64(33)))


@kernel
def finish_fingerprint(state: NDArray[np.uint64], rows: int, cols: int) -> None:  # pragma: no cover
    """Mix in the shape and spread every bit over the whole state."""
    mix_into(state, np.uint64(rows), np.uint64(cols))
    state[0] += state[1]
    state[1] += state[0]
    state[0] = _finished(state[0])
    state[1] = _finished(state[1])
    state[0] += state[1]
    state[1] += state[0]
