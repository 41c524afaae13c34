"""What comes back when a matrix is quantised and dequantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moe_weights.quantize.error import ErrorSums


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeSpec:
    """One way to quantise, as the config names it.

    Attributes:
        name: Label in the tables.
        mode: "affine", "mxfp4", "mxfp8" or "nvfp4"; others are refused by the backend.
        bits: Bits per code.
        group_size: Consecutive columns that share a scale, elements.
    """

    name: str
    mode: str
    bits: int
    group_size: int


@dataclass(frozen=True, slots=True, eq=False)
class RoundTrip:
    """A matrix after quantisation.

    Attributes:
        values: (R, C) float32, exactly the reconstructed weights in whatever dtype they came back.
        scales: Real scales, decoded from codes where stored as codes; (R, C / group_size), float64.
            As they are multiplied with: an overflow is infinite here too.
        biases: Real biases, (R, C / group_size), float64; None for modes without biases.
        codes: (R, C) uint8, one code per weight; None where nobody asked.
        scale_codes: (R, C / group_size) uint8, the scales as stored; None for affine.
    """

    values: NDArray[Any]
    scales: NDArray[np.float64]
    biases: NDArray[np.float64] | None
    codes: NDArray[np.uint8] | None = None
    scale_codes: NDArray[np.uint8] | None = None


class QuantBackend(Protocol):
    """Something that quantises matrices; safe to call from several threads."""

    @property
    def name(self) -> str:
        """What rows say in the column `backend`."""

    def round_trip(self, matrix: NDArray[Any], scheme: SchemeSpec) -> RoundTrip:
        """Quantise and dequantise (R, C) float16, bfloat16 or float32 along the columns.

        Raises:
            ValueError: the scheme cannot be applied to this matrix.
        """

    def add_errors(self, block: NDArray[Any], scheme: SchemeSpec, sums: ErrorSums) -> None:
        """Quantise some rows of a matrix and add what comes of it to the sums of the matrix.

        Args:
            block: (r, C) contiguous float16, bfloat16 or float32; the next rows.
            scheme: Mode, bits and group size.
            sums: Those of this matrix and scheme.

        Raises:
            ValueError: the scheme cannot be applied to this matrix.
        """
