"""Compiled loops behind `bit_stream`: eight codes at a time, one code in each byte of a result."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import inlined, kernel

_U: Any = np.uint64
_LINE = 16  # 32-bit words of a cache line
_SHUFFLED = 64  # words of a column that are gathered at a time


@inlined
def _spread(codes: Any, width: int) -> Any:
    """Move eight codes of 1 to 8 bits, the lowest bits of a number, to a byte each."""
    one, two, four = _U(width), _U(2 * width), _U(4 * width)
    half = (_U(1) << four) - _U(1)
    quarter = ((_U(1) << two) - _U(1)) * _U(0x0000000100000001)
    eighth = ((_U(1) << one) - _U(1)) * _U(0x0001000100010001)
    codes = (codes & half) | (((codes >> four) & half) << _U(32))
    codes = (codes & quarter) | (((codes >> two) & quarter) << _U(16))
    return (codes & eighth) | (((codes >> one) & eighth) << _U(8))


@inlined
def _window(words: NDArray[Any], at: Any, step: Any, shift: Any) -> Any:
    """Return 64 bits of a stream from a bit of a word on, which lie in up to three words."""
    found = _U(words[at]) >> shift
    found |= _U(words[at + step]) << (_U(32) - shift)
    return found | ((_U(words[at + step + step]) << _U(1)) << (_U(63) - shift))


@kernel
def unpack_rows(words: NDArray[Any], bits: int, codes: NDArray[Any]) -> None:
    """Unpack streams of 32-bit words along rows.

    Args:
        words: (R, W) uint32, contiguous.
        bits: Of a code, 1 to 8; 32 codes fill as many words.
        codes: (R, n) uint64, contiguous; eight codes in each, the first one lowest. Those that
            would lie behind the last word may be anything. Overwritten.
    """
    rows, n_words = words.shape
    n_eights = codes.shape[1]
    flat, one, period = words.reshape(words.size), _U(1), _U(bits)
    end = np.zeros(3, dtype=np.uint32)
    for row in range(rows):
        found = codes[row]
        if bits == 4:  # a word for each eight; most codes are so, and a known width is fastest
            for i in range(_U(0), _U(n_eights)):
                found[i] = _spread(_U(flat[_U(row * n_words) + i]), 4)
            continue
        # One at a time of the four places where eight codes begin within 32.
        for place in range(4):
            first, shift = row * n_words + place * 8 * bits // 32, _U(place * 8 * bits % 32)
            count = max(0, n_eights - place + 3) // 4
            # What lies behind the needed words is read as well, but not behind the last row.
            n_safe = max(0, min(count, (flat.size - 3 - first) // bits + 1))
            at, to = _U(first), _U(place)
            for i in range(_U(0), _U(n_safe)):
                part = _window(flat, at + i * period, one, shift)
                found[_U(4) * i + to] = _spread(part, bits)
            for i in range(n_safe, count):
                for word in range(3):
                    beyond = first + i * bits + word >= flat.size
                    end[word] = 0 if beyond else flat[first + i * bits + word]
                found[4 * i + place] = _spread(_window(end, _U(0), one, shift), bits)


@kernel
def unpack_columns(
    words: NDArray[Any], first: int, planes: NDArray[Any], codes: NDArray[Any]
) -> None:
    """Unpack streams of 32-bit words down columns.

    Args:
        words: (W, C) uint32, contiguous.
        first: Column of the first stream.
        planes: (p, 2) int64; width of each plane and its lowest bit in a code. Of 32 codes, which
            fill whole words, the planes follow each other; one plane of all bits is a plain stream.
        codes: (streams, n) uint64; see `unpack_rows`.
    """
    n_words, stride = words.shape
    n_streams, n_eights = codes.shape
    flat, line = words.reshape(words.size), _U(_LINE)
    bits = 0
    for plane in range(len(planes)):
        bits += planes[plane, 0]
    # 64 codes of 16 streams at a time, as words of one line each and as rows of a line each.
    near = np.zeros((2 * 8 + 2) * _LINE, dtype=np.uint32)
    tile = np.zeros(8 * _LINE, dtype=np.uint64)
    for top in range(0, n_streams, _LINE):
        height = min(_LINE, n_streams - top)
        for left in range(0, n_eights, 8):
            above = left // 4 * bits
            for word in range(min(2 * bits, n_words - above)):
                at = _U((above + word) * stride + first + top)
                for row in range(_U(height)):
                    near[_U(word) * line + row] = flat[at + row]
            tile[:] = _U(0)
            before = 0
            for plane in range(len(planes)):
                width, lowest = planes[plane, 0], _U(planes[plane, 1])
                for column in range(8):
                    bit = column % 4 * 8 * width
                    at = _U(column // 4 * bits + before + bit // 32) * line
                    shift, to = _U(bit % 32), _U(column) * line
                    for row in range(line):
                        part = _window(near, at + row, line, shift)
                        tile[to + row] |= _spread(part, width) << lowest
                before += width
            for row in range(height):
                found = codes[top + row]
                for column in range(min(8, n_eights - left)):
                    found[_U(left + column)] = tile[_U(column) * line + _U(row)]


@kernel
def unpack_shuffled(
    words: NDArray[Any], first: int, shifts: NDArray[Any], codes: NDArray[Any]
) -> None:
    """Unpack 4-bit codes that are packed along the rows of the result.

    Args:
        words: (C, n) uint32, contiguous; a word holds eight rows of one column.
        first: Word of the first eight rows.
        shifts: (8,) uint32; lowest bit of each row in its word.
        codes: (rows, C) uint8, contiguous; rows are a multiple of 8. Overwritten.
    """
    rows, cols = codes.shape
    n_words = words.shape[1]
    flat = words.reshape(words.size)
    column = np.zeros(_SHUFFLED, dtype=np.uint32)
    for left in range(0, cols, _SHUFFLED):
        width = _U(min(_SHUFFLED, cols - left))
        for eight in range(rows // 8):
            at = _U(left * n_words + first + eight)
            for place in range(_U(0), width):
                column[place] = flat[at + place * _U(n_words)]
            for row in range(8):
                shift = shifts[row]
                line = codes[8 * eight + row]
                for place in range(_U(0), width):
                    line[_U(left) + place] = np.uint8((column[place] >> shift) & np.uint32(15))
