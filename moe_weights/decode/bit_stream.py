"""Unsigned codes of 1 to 8 bits that lie one after the other in 32-bit words, lowest bit first.

Streams run along rows (most writers) or down columns (GPTQ). Where codes are planar, the low bits
of 32 codes come first and the higher ones after them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Width and lowest bit of each plane.
Planes: TypeAlias = tuple[tuple[int, int], ...]

PERIOD = 32  # codes that fill whole words at any width
_WORD_BITS = 32
_BYTE_BITS = 8


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
        (..., n_codes) codes, 0 to 2**bits - 1; possibly a view of a longer array, or of the words.
    """
    words = np.require(words, requirements=["C", "A"])
    if bits == _BYTE_BITS:
        return words.view(np.uint8)[..., :n_codes]
    # Plans claim tensors without decoding any; they need not wait for a compiler to load.
    from moe_weights.decode import unpack_kernels

    lead = words.shape[:-1]
    codes = np.empty((*lead, -(-n_codes // 8)), dtype=np.uint64)
    unpack_kernels.unpack_rows(
        words.view(np.uint32).reshape(-1, words.shape[-1]),
        bits,
        codes.reshape(-1, codes.shape[-1]),
    )
    return codes.view(np.uint8)[..., :n_codes]


def unpack_columns(
    words: NDArray[Any], columns: tuple[int, int], n_codes: int, planes: Planes
) -> NDArray[np.uint8]:
    """Unpack streams along the first axis.

    Args:
        words: (W, S) 32-bit integers; see `unpack_codes`.
        columns: First stream, one past the last.
        n_codes: Codes per stream.
        planes: One for codes that are not planar: their bits, and 0.

    Returns:
        (streams, n_codes) codes; possibly a view of a longer array.
    """
    from moe_weights.decode import unpack_kernels  # see `unpack_codes`

    codes = np.empty((columns[1] - columns[0], -(-n_codes // 8)), dtype=np.uint64)
    unpack_kernels.unpack_columns(
        np.require(words, requirements=["C", "A"]).view(np.uint32),
        columns[0],
        np.array(planes, dtype=np.int64),
        codes,
    )
    return codes.view(np.uint8)[:, :n_codes]


def unpack_nibbles(stream: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return both four-bit codes of each byte, the low one first.

    Args:
        stream: (..., n) bytes.

    Returns:
        (..., 2n).
    """
    # Both codes of a byte at once: 0xAB becomes 0x0A0B, whose low byte comes first.
    pairs = np.ascontiguousarray(stream).astype("<u2")
    pairs |= pairs << np.uint16(4)
    pairs &= np.uint16(0x0F0F)
    return pairs.view(np.uint8)


NIBBLES = unpack_nibbles(np.arange(256, dtype=np.uint8)[:, None])  # (256, 2): codes of each byte
