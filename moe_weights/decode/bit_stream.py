"""Unsigned codes of 1 to 8 bits that lie one after the other in 32-bit words, lowest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD_BITS = 32
_NIBBLE_BITS = 4


def n_words(n_codes: int, bits: int) -> int:
    """Return how many words hold `n_codes` codes of `bits` bits; the last may be padded."""
    return -(-n_codes * bits // _WORD_BITS)


def unpack_codes(words: NDArray[Any], bits: int, n_codes: int) -> NDArray[np.uint8]:
    """Unpack the streams along the last axis.

    Args:
        words: (..., W) 32-bit integers, or bytes where `bits` divides 8; code i starts at bit
            i * bits and may cross a word border.
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


def as_bytes(
    words: NDArray[Any], bits: int, n_codes: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the streams as bytes, unpacked only where a byte does not hold one or two codes.

    Args:
        words: See `unpack_codes`.
        bits: 1 to 8.
        n_codes: Codes per stream.

    Returns:
        Bytes (..., n) and a table (256, k) of the k codes in each, so that
        `table[bytes].reshape(..., n_codes)` are the codes.
    """
    if bits == _NIBBLE_BITS and n_codes * bits == words.shape[-1] * words.dtype.itemsize * 8:
        return np.ascontiguousarray(words).view(np.uint8), NIBBLES
    return unpack_codes(words, bits, n_codes), _ALL_BYTES


def _unpack_bytes(stream: NDArray[np.uint8], bits: int, mask: int) -> NDArray[np.uint8]:
    """Unpack codes that never cross a byte."""
    if bits == _NIBBLE_BITS:
        # Both codes of a byte at once: 0xAB becomes 0x0A0B, whose low byte comes first.
        pairs = stream.astype("<u2")
        pairs |= pairs << np.uint16(_NIBBLE_BITS)
        pairs &= np.uint16(0x0F0F)
        return pairs.view(np.uint8)
    per_byte = 8 // bits
    codes = np.empty((*stream.shape, per_byte), dtype=np.uint8)
    for position in range(per_byte):
        codes[..., position] = (stream >> np.uint8(position * bits)) & np.uint8(mask)
    return codes.reshape(*stream.shape[:-1], stream.shape[-1] * per_byte)


_ALL_BYTES = np.arange(256, dtype=np.uint8)[:, None]
NIBBLES = unpack_codes(_ALL_BYTES, _NIBBLE_BITS, 2)  # (256, 2): both four-bit codes of each byte
