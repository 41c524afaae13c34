"""What does an array look like, in five numbers?

Computed block by block in float64, so a large array needs no second copy. Values that are not
finite are counted and left out of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_weights.atomic_files import JsonValue
from moe_weights.errors import InvalidDataError

BLOCK_ELEMENTS = 1 << 18
_NOT_NUMBERS = "OSUMmc"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySummary:
    """Five numbers about the finite elements.

    Attributes:
        n_elements: All elements.
        n_non_finite: NaN and infinite ones.
        minimum: Smallest; None without finite elements, as for the others.
        maximum: Largest.
        mean: Arithmetic mean.
        rms: Root of the mean square.
    """

    n_elements: int
    n_non_finite: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    rms: float | None

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "n_elements": self.n_elements,
            "n_non_finite": self.n_non_finite,
            "min": self.minimum,
            "max": self.maximum,
            "mean": self.mean,
            "rms": self.rms,
        }


def float64_blocks(array: npt.NDArray[np.generic]) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the elements in row-major order, as float64, a block at a time.

    Raises:
        InvalidDataError: the elements are no real numbers.
    """
    if array.dtype.kind in _NOT_NUMBERS:
        raise InvalidDataError(f"array of {array.dtype}: its elements are no real numbers")
    flat = array.reshape(-1)
    try:
        for start in range(0, flat.size, BLOCK_ELEMENTS):
            yield flat[start : start + BLOCK_ELEMENTS].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(
            f"array of {array.dtype}: its elements are no real numbers"
        ) from error


def summarise_array(array: npt.NDArray[np.generic]) -> ArraySummary:
    """Summarise an array of any real dtype.

    Raises:
        InvalidDataError: the elements are no real numbers.
    """
    n_non_finite, n_finite, total, squares = 0, 0, 0.0, 0.0
    low, high = math.inf, -math.inf
    for block in float64_blocks(array):
        finite = block[np.isfinite(block)]
        n_non_finite += block.size - finite.size
        if finite.size:
            n_finite += finite.size
            low, high = min(low, float(np.min(finite))), max(high, float(np.max(finite)))
            with np.errstate(over="ignore"):
                total += float(finite.sum())
                squares += float(np.dot(finite, finite))
    return ArraySummary(
        n_elements=int(array.size),
        n_non_finite=n_non_finite,
        minimum=low if n_finite else None,
        maximum=high if n_finite else None,
        mean=_finite(total / n_finite) if n_finite else None,
        rms=_finite(math.sqrt(squares / n_finite)) if n_finite else None,
    )


def _finite(value: float) -> float | None:
    # Sums of values near the end of the float64 range overflow; there is no number to tell then.
    return value if math.isfinite(value) else None
