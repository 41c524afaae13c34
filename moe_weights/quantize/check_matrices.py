"""Which small matrices tell two quantisers apart?

Every code, every tie between two codes and its nearest neighbours, scales at both ends of their
range, and what a format does badly: zeros with either sign, denormals, outliers, constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.scale_codes import decode_e4m3
from moe_weights.quantize.round_trip import SchemeSpec

COLS = 512  # a multiple of every group that MLX takes
_NUDGES = (0.0, 2.0**-8, -(2.0**-8), 2.0**-11, -(2.0**-11), 2.0**-23, -(2.0**-23))


def check_matrices(scheme: SchemeSpec, dtype: np.dtype[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Return matrices (R, 512) that `scheme` is hard to follow on.

    Args:
        scheme: How they will be quantised.
        dtype: float16, bfloat16 or float32.

    Returns:
        What each is about, and the matrix; all weights are finite.
    """
    largest, smallest = _limits(dtype)
    draw = np.random.default_rng(0)
    normal = draw.normal(size=(6, COLS))
    yield "normal weights", _as(normal, dtype)
    if scheme.mode == "affine":
        yield "ties", _as(np.array(list(_affine_ties(scheme.bits, scheme.group_size))), dtype)
    else:
        points = _points(scheme.mode)
        yield "ties", _as(np.array(list(_ties(points, scheme.group_size, largest))), dtype)
    powers = np.linspace(np.log2(smallest), np.log2(largest), 64)[:, None]
    sizes = np.exp2(np.repeat(powers, COLS, axis=1) - draw.exponential(1.5, (64, COLS)))
    yield "all magnitudes", _as(np.clip(sizes * _signs(64), -largest, largest), dtype)
    # Every power of two over which the scale codes of the mx modes fall below zero.
    lowest = smallest * np.exp2(np.arange(24.0))[:, None]
    yield "denormals", _as(draw.integers(-9, 10, (24, COLS)) * lowest, dtype)
    yield (
        "small scales",
        _as(normal * np.float64(2.0) ** -np.array([[7, 9, 11, 20, 23, 26]]).T, dtype),
    )
    yield "zeros and constants", _as(_plain_rows(largest, smallest), dtype)


def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the largest and the smallest positive number."""
    name = dtype.name
    if name == "float16":
        return 65504.0, 2.0**-24
    return (3.3895313892515355e38, 2.0**-133) if name == "bfloat16" else (3.4028234e38, 2.0**-149)


def _as(rows: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(rows.astype(np.float32).astype(dtype))


def _signs(rows: int) -> NDArray[np.float64]:
    signs = np.ones((rows, COLS))
    signs[:, 1::3] = -1
    return signs


def _fill(values: NDArray[np.float64], group: int, heads: tuple[float, ...]) -> NDArray[np.float64]:
    """Return rows that hold all values, every group starting with `heads` to fix its scale."""
    group = group if 0 < group <= COLS and COLS % group == 0 else COLS
    room = group - len(heads)
    n_groups = -(-values.size // room)
    n_groups = -(-n_groups // (COLS // group)) * (COLS // group)
    body = np.resize(values, (n_groups, room))
    head = np.tile(np.array(heads), (n_groups, 1))
    return np.concatenate([head, body], axis=1).reshape(-1, COLS)


def _affine_ties(bits: int, group: int) -> Iterator[NDArray[np.float64]]:
    top = 2.0 ** min(max(bits, 1), 8) - 1
    halves = np.arange(0.0, 2 * top + 1) / 2
    for scale in (1.0, -1.0, 0.0625, 3e-3, 2e-8):
        for shift in (0.0, -top / 3, -top):
            yield from _fill(
                (halves + shift) * scale, group, (shift * scale, (top + shift) * scale)
            )


def _points(mode: str) -> NDArray[np.float64]:
    if mode == "mxfp8":
        codes = decode_e4m3(np.arange(127, dtype=np.uint8))
    else:
        codes = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    return np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, [codes[-1] * 17 / 16]])


def _ties(points: NDArray[np.float64], group: int, largest: float) -> Iterator[NDArray[np.float64]]:
    top = float(points[-1]) / 17 * 16
    signed = np.concatenate([points, -points])
    for scale in (1.0, 2.0**-7, 1.75):
        for nudge in _NUDGES:
            values = np.clip(signed * (1 + nudge), -top, top) * scale
            yield from np.clip(_fill(values, group, (top * scale,)), -largest, largest)


def _plain_rows(largest: float, smallest: float) -> NDArray[np.float64]:
    rows = np.zeros((12, COLS))
    rows[1, ::2] = rows[2, 1::2] = rows[3] = -0.0
    rows[4], rows[5], rows[6] = 0.3, -7.0, smallest
    rows[7, ::2], rows[7, 1::2] = largest / 4, -largest / 4
    rows[8], rows[8, ::64] = 1.0, largest
    rows[9, 5::16] = 1e-6
    rows[10], rows[11] = largest, np.linspace(0, 40 * smallest, COLS)
    return rows
