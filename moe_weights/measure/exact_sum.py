"""The sum of float32 or float64 numbers without cancellation error, in plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 2**20


def exact_sum(values: NDArray[Any]) -> float:
    """Return the sum of finite numbers, correctly rounded.

    Args:
        values: Flat array (n,) of float32 or float64; all finite.

    Returns:
        For float32 the mantissas (24 bit) of a block are added per exponent, where float64 holds
        their sum exactly, and all partial sums with `math.fsum`. float64 values go to `math.fsum`
        one by one, which is slower.

    Raises:
        OverflowError: the sum of float64 values, or a part of it, is beyond the range of float64.
    """
    terms = _partial_sums if values.dtype == np.float32 else _plain_terms
    starts = range(0, values.size, _BLOCK_ELEMENTS)
    return math.fsum(term for start in starts for term in terms(values[start:][:_BLOCK_ELEMENTS]))


def _plain_terms(block: NDArray[Any]) -> list[float]:
    terms: list[float] = block.tolist()
    return terms


def _partial_sums(block: NDArray[Any]) -> Iterator[float]:
    """Yield one exact sum per binary exponent; exact for blocks of up to 2**29 elements."""
    mantissas, exponents = np.frexp(block)
    lowest = int(exponents.min())
    sums = np.bincount(exponents - lowest, weights=mantissas.astype(np.float64))
    for shift, total in enumerate(sums.tolist()):
        yield math.ldexp(total, lowest + shift)
