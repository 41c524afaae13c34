"""The elements of a matrix that percentiles are taken from when they are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.measure.order_statistics import percentiles_of


class SampledElements:
    """Magnitudes at given places, gathered from blocks that come in order."""

    def __init__(self, indices: NDArray[np.int64]) -> None:
        """Take flat indices without repeats, in any order."""
        self._places = np.sort(indices)
        self._drawn: list[NDArray[np.float64]] = []

    def add(self, block: NDArray[Any], start: int) -> None:
        """Gather from a block (r, C) whose first element has the flat index `start`."""
        first, stop = np.searchsorted(self._places, [start, start + block.size])
        chosen = block.reshape(-1)[self._places[first:stop] - start]
        with np.errstate(invalid="ignore"):  # a signalling NaN is no cause for a warning
            self._drawn.append(np.abs(chosen.astype(np.float64)))

    def abs_percentiles(self, percentiles: Sequence[float]) -> list[float]:
        """Return percentiles of the gathered magnitudes, linear interpolation."""
        return percentiles_of(np.concatenate(self._drawn), percentiles)
