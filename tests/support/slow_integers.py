"""Integer codes decoded a whole tensor at a time by NumPy, every step in an array of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.stored_tensor import StoredTensor

ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
# Width and lowest bit of each plane.
PLANES = {
    3: ((2, 0), (1, 2)),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
}
NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def unpack(words: NDArray[Any], bits: int, n_codes: int) -> NDArray[np.uint8]:
    """Unpack streams along the last axis, one place of a period after the other."""
    n_periods = -(-words.shape[-1] // bits)
    padded = np.zeros((*words.shape[:-1], n_periods * bits), dtype=np.uint32)
    padded[..., : words.shape[-1]] = np.ascontiguousarray(words).view(np.uint32)
    periods = padded.reshape(*words.shape[:-1], n_periods, bits)
    codes = np.empty((*periods.shape[:-1], 32), dtype=np.uint8)
    for position in range(32):
        word, shift = divmod(position * bits, 32)
        code = periods[..., word] >> np.uint32(shift)
        if shift + bits > 32:
            code |= periods[..., word + 1] << np.uint32(32 - shift)
        codes[..., position] = code & np.uint32((1 << bits) - 1)
    return codes.reshape(*words.shape[:-1], n_periods * 32)[..., :n_codes]


def unpack_planes(words: NDArray[Any], bits: int, n_codes: int) -> NDArray[np.uint8]:
    """Unpack planar streams along the last axis."""
    periods = np.ascontiguousarray(words).reshape(*words.shape[:-1], -1, bits)
    codes = np.zeros((*periods.shape[:-1], 32), dtype=np.uint8)
    first = 0
    for width, lowest in PLANES[bits]:
        codes |= unpack(periods[..., first : first + width], width, 32) << np.uint8(lowest)
        first += width
    return codes.reshape(*words.shape[:-1], -1)[..., :n_codes]


def unpack_shuffled(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Unpack AWQ's words (n, out / 8) to codes (out, n)."""
    by_word = np.ascontiguousarray(words.T).view(np.uint32)
    codes = np.empty((by_word.shape[0], 8, by_word.shape[1]), dtype=np.uint8)
    for output, nibble in enumerate(NIBBLES):
        codes[:, output] = (by_word >> np.uint32(4 * nibble)) & np.uint32(15)
    return codes.reshape(-1, by_word.shape[1])


def per_block(
    operation: np.ufunc,
    values: NDArray[np.float32],
    numbers: NDArray[np.float32],
    block: tuple[int, int],
    group_of_column: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Combine weights (..., R, C) with the number of their block, or of their column's group."""
    lead, (rows, cols) = values.shape[:-2], values.shape[-2:]
    with np.errstate(all="ignore"):
        if numbers.size == 1:
            return operation(values, numbers.reshape(()))
        if group_of_column is not None:
            grid = numbers.reshape(*lead, rows, -1)
            own = lead if group_of_column.size > cols else ()
            index = np.broadcast_to(group_of_column.reshape(*own, 1, cols), values.shape)
            return operation(values, np.take_along_axis(grid, index, axis=-1))
        grid = numbers.reshape(*lead, -(-rows // block[0]), -(-cols // block[1]))
        grid = np.repeat(np.repeat(grid, block[0], axis=-2), block[1], axis=-1)
        return operation(values, grid[..., :rows, :cols])


def gptq_values(tensor: StoredTensor, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Decode a whole GPTQ tensor."""
    (rows, cols), options = tensor.shape, dict(tensor.options)
    bits = int(options["bits"])
    streams = unpack_planes if options["planar"] else unpack
    words, minus_one = parts["zero_point"], bool(options["minus_one"])
    if minus_one and bits in ONES:
        words = np.ascontiguousarray(words).view(np.uint32) + np.uint32(ONES[bits])
    zeros = streams(words, bits, rows)
    if minus_one and bits not in ONES:
        zeros = (zeros + np.uint8(1)) & np.uint8((1 << bits) - 1)
    codes = streams(parts["weight"].T, bits, cols).astype(np.float32)
    groups = parts["group_index"]
    centred = codes - zeros.T.astype(np.float32)[:, groups]
    return centred * parts["scale"].T.astype(np.float32)[:, groups]


def awq_values(tensor: StoredTensor, parts: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Decode a whole AWQ tensor."""
    scales = parts["scale"].T.astype(np.float32)
    zeros = np.full_like(scales, 8)
    if "zero_point" in parts:
        zeros = unpack_shuffled(parts["zero_point"]).astype(np.float32)
    groups = np.arange(tensor.shape[1]) // (tensor.shape[1] // scales.shape[1])
    codes = unpack_shuffled(parts["weight"]).astype(np.float32)
    return (codes - zeros[:, groups]) * scales[:, groups]
