"""Unsigned codes of 1 to 8 bits that lie one after the other in 32-bit words, lowest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 32


def n_words(n_codes: int, bits: int) -> int:
    """Return how many words hold `n_codes` codes of `bits` bits; the last may be padded."""
    return -(-n_codes * bits // _WORD_BITS)


def unpack_codes(words: NDArray[Any], bits: int, n_codes: int) -> NDArray[np.uint8]:
    """Unpack the streams along the last axis.

    Args:
        words: (..., W) 32-bit integers; code i starts at bit i * bits and may cross a word border.
        bits: 1 to 8.
        n_codes: Codes per stream; W >= n_words(n_codes, bits), further bits are padding.

    Returns:
        (..., n_codes) codes, 0 to 2**bits - 1; possibly a view of a longer array.
    """
    words = np.ascontiguousarray(words)
    mask = (1 << bits) - 1
    if 8 % bits == 0:
        return _unpack_bytes(words.view(np.uint8), bits, mask)[..., :n_codes]
    # 32 codes fill `bits` words exactly: the pattern of shifts repeats after them.
    n_periods = -(-words.shape[-1] // bits)
    padded = np.zeros((*words.shape[:-1], n_periods * bits), dtype=np.uint32)
    padded[..., : words.shape[-1]] = words.view(np.uint32)
    periods = padded.reshape(*words.shape[:-1], n_periods, bits)
    codes = np.empty((*periods.shape[:-1], _WORD_BITS), dtype=np.uint8)
    for position in range(_WORD_BITS):
        word, shift = divmod(position * bits, _WORD_BITS)
        code = periods[..., word] >> np.uint32(shift)
        if shift + bits > _WORD_BITS:
            code |= periods[..., word + 1] << np.uint32(_WORD_BITS - shift)
        codes[..., position] = code & np.uint32(mask)
    return codes.reshape(*words.shape[:-1], n_periods * _WORD_BITS)[..., :n_codes]


def _unpack_bytes(stream: NDArray[np.uint8], bits: int, mask: int) -> NDArray[np.uint8]:
    """Unpack codes that never cross a byte."""
    per_byte = 8 // bits
    codes = np.empty((*stream.shape, per_byte), dtype=np.uint8)
    for position in range(per_byte):
        codes[..., position] = (stream >> np.uint8(position * bits)) & np.uint8(mask)
    return codes.reshape(*stream.shape[:-1], stream.shape[-1] * per_byte)
