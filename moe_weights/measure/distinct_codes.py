"""How many different codes an encoded matrix stores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.compiled import kernel

_MOST_CODES = 65_536


@kernel
def _mark(codes: NDArray[Any], seen: NDArray[np.uint8]) -> None:  # pragma: no cover
    for i in range(len(codes)):
        seen[codes[i]] = 1


class DistinctCodes:
    """Codes of one byte or two, seen so far; of one width."""

    def __init__(self) -> None:
        """See nothing yet."""
        self._seen = np.zeros(_MOST_CODES, dtype=np.uint8)

    def add(self, codes: NDArray[Any]) -> None:
        """See some codes.

        Raises:
            TypeError: a code has more than two bytes.
        """
        if codes.dtype.itemsize > 2:
            many = f"codes of type {codes.dtype} are too many to tell apart"
            raise TypeError(f"{many}; give codes of one or two bytes")
        flat = np.require(codes, requirements=["C", "A", "W"]).reshape(-1)
        _mark(flat.view(f"u{codes.dtype.itemsize}"), self._seen)

    @property
    def count(self) -> int:
        """Different codes seen."""
        return int(np.count_nonzero(self._seen))
