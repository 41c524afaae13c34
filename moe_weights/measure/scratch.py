"""Arrays that one matrix after the other uses.

Tables of counts are as large for a small matrix as for a large one. Making and clearing them anew
would take longer than measuring a small matrix does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Scratch:
    """Arrays by name, made once; of one worker, which measures one matrix at a time."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def empty(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array with anything in it; whoever had it before must be done with it."""
        array = self._arrays.pop(name, None)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = None  # freed before there is another one
            array = np.empty(shape, dtype)
        self._arrays[name] = array
        return array

    def zeros(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return the array of that name full of zeros; see `empty`."""
        array = self.empty(name, shape, dtype)
        array.fill(0)  # other threads may run meanwhile, which `numpy.zeros` does not let them
        return array
