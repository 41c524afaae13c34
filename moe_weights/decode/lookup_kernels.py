"""Compiled loops behind `scaled_lookup`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel


@kernel
def scale_bytes(
    codes: NDArray[Any],
    table: NDArray[Any],
    scales: NDArray[Any],
    side: tuple[int, int],
    values: NDArray[Any],
) -> None:
    """Write table[code] * scale for one code in each byte.

    Args:
        codes: (entries, R, bytes) uint8, contiguous.
        table: (256,) float32.
        scales: (entries, block rows, block cols) float32.
        side: (rows, bytes) that share a scale; the last ones are cut.
        values: (entries * R * bytes,) float32; overwritten.
    """
    n_entries, rows, n_bytes = codes.shape
    flat = codes.reshape(codes.size)
    for entry in range(n_entries):
        for row in range(rows):
            start = (entry * rows + row) * n_bytes
            if side[1] == 1:
                for col in range(n_bytes):
                    scale = scales[entry, row // side[0], col]
                    values[start + col] = table[flat[start + col]] * scale
                continue
            for group in range(scales.shape[2]):
                # Unsigned positions: negative ones would be looked for at every element.
                first = np.uint64(start + group * side[1])
                last = np.uint64(start + min((group + 1) * side[1], n_bytes))
                scale = scales[entry, row // side[0], group]
                for at in range(first, last):
                    values[at] = table[flat[at]] * scale


@kernel
def scale_pairs(
    codes: NDArray[Any],
    table: NDArray[Any],
    scales: NDArray[Any],
    side: tuple[int, int],
    values: NDArray[Any],
) -> None:
    """Write table[code] * scale for two codes in each byte.

    Args:
        codes: (entries, R, bytes) uint8, contiguous.
        table: (512,) float32; both values of byte 0, then those of byte 1, ...
        scales: (entries, block rows, block cols) float32.
        side: (rows, bytes) that share a scale; the last ones are cut.
        values: (entries * R * bytes * 2,) float32; overwritten.
    """
    n_entries, rows, n_bytes = codes.shape
    flat = codes.reshape(codes.size)
    one: Any = np.uint64(1)
    two: Any = np.uint64(2)
    for entry in range(n_entries):
        for row in range(rows):
            start = (entry * rows + row) * n_bytes
            for group in range(scales.shape[2]):
                first = np.uint64(start + group * side[1])
                last = np.uint64(start + min((group + 1) * side[1], n_bytes))
                scale = scales[entry, row // side[0], group]
                for at in range(first, last):
                    pair = two * np.uint64(flat[at])
                    values[two * at] = table[pair] * scale
                    values[two * at + one] = table[pair + one] * scale
