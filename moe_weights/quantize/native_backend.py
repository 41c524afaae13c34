"""Quantisation without MLX: its rules in compiled code, bit for bit.

`native_kernel` says which MLX; `self_check` finds out whether the installed one agrees.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe_weights.quantize.error import ErrorSums, NonFiniteWeights
from moe_weights.quantize.native_kernel import simulate_rows
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.stored_weights import (
    MODES,
    kind_of,
    real_scales,
    refuse_scheme,
    refuse_shape,
    refuse_width,
    stored_bytes,
)

_NO_FLOATS = np.zeros(0, dtype=np.float32)
_NO_BYTES = np.zeros(0, dtype=np.uint8)


class NativeBackend:
    """Quantises as MLX does on a CPU.

    Attributes:
        name: "native_verified" where the installed MLX was found equal, else "native".
    """

    def __init__(self, name: Literal["native", "native_verified"] = "native") -> None:
        """Say what rows are to call it."""
        self.name = name

    def round_trip(self, matrix: NDArray[Any], scheme: SchemeSpec) -> RoundTrip:
        """Quantise and dequantise one matrix.

        Args:
            matrix: (R, C) float16, bfloat16 or float32; quantised in that dtype.
            scheme: Mode, bits and group size.

        Returns:
            All that there is to compare: codes, scales, biases and reconstructed weights.

        Raises:
            ValueError: what MLX refuses, in its words.
            NonFiniteWeights: the matrix holds NaN or Inf; what MLX makes of them is not imitated.
        """
        data = stored_bytes(matrix)
        rows, cols = matrix.shape
        refuse_shape(scheme, rows, cols)
        refuse_scheme(scheme)
        shape = (rows, cols // scheme.group_size)
        values = np.empty(rows * cols, dtype=np.float32)
        codes = np.empty(rows * cols, dtype=np.uint8)
        scales = np.empty(shape[0] * shape[1], dtype=np.float32)
        biases, scale_codes = np.empty_like(scales), np.empty(scales.size, dtype=np.uint8)
        sums = ErrorSums(scheme, matrix.dtype)
        outputs = (values, codes, scales, biases, scale_codes)
        self._simulate(data, matrix, scheme, sums, True, *outputs)
        if not sums.holds_finite_weights:
            raise NonFiniteWeights("a weight is NaN or infinite")
        values, codes = values.reshape(rows, cols), codes.reshape(rows, cols)
        if scheme.mode == "affine":
            return RoundTrip(
                values,
                scales.reshape(shape).astype(np.float64),
                biases.reshape(shape).astype(np.float64),
                codes,
            )
        scale_codes = scale_codes.reshape(shape)
        real = real_scales(scheme.mode, scale_codes)
        return RoundTrip(values, real, None, codes, scale_codes)

    def add_errors(self, block: NDArray[Any], scheme: SchemeSpec, sums: ErrorSums) -> None:
        """Quantise some rows and add their errors; no reconstructed matrix is made.

        Args:
            block: (r, C) contiguous float16, bfloat16 or float32; the next rows of a matrix.
            scheme: Mode, bits and group size.
            sums: Those of this matrix and scheme.

        Raises:
            ValueError: what MLX refuses, in its words.
        """
        data = stored_bytes(block)
        refuse_width(scheme, *block.shape)
        refuse_scheme(scheme)
        nothing = (_NO_FLOATS, _NO_BYTES, _NO_FLOATS, _NO_FLOATS, _NO_BYTES)
        self._simulate(data, block, scheme, sums, False, *nothing)

    @staticmethod
    def _simulate(
        data: NDArray[np.uint8],
        block: NDArray[Any],
        scheme: SchemeSpec,
        sums: ErrorSums,
        keeps: bool,
        *outputs: NDArray[Any],
    ) -> None:
        rows, cols = block.shape
        simulate_rows(
            data,
            rows,
            cols,
            kind_of(block.dtype),
            MODES[scheme.mode],
            scheme.group_size,
            scheme.bits,
            sums.places,
            keeps,
            *outputs,
        )
        sums.n_weights += rows * cols
