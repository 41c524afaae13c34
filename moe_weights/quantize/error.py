"""How far is a quantised matrix from the stored one?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Column
from moe_weights.quantize.native_sums import add_errors
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.stored_weights import MODES, kind_of, stored_bytes
from moe_weights.quantize.sum_places import (
    ABS_ERROR,
    ABS_SCALE,
    ABS_WEIGHT,
    BIAS,
    BIAS_MAX,
    ERROR_SQUARE,
    PRODUCT,
    RESTORED_SQUARE,
    SATURATED,
    SCALE,
    SCALE_MAX,
    WEIGHT_SQUARE,
    ZERO_SCALE,
    exact_mean,
    new_sums,
)

_UNIT = "weight"

ERROR_COLUMNS = (
    Column("w_rel_fro", "float64", "||q(w) - w||_F / (||w||_F + eps), 0 = exact", "relative"),
    Column("w_rel_max", "float64", "max|q(w) - w| / (max|w| + eps), 0 = exact", "relative"),
    Column("scale_mean", "float64", "mean of the real scales; affine scales have a sign", _UNIT),
    Column("scale_max", "float64", "largest real scale", _UNIT),
    Column("bias_mean", "float64", "mean of the biases; null for modes without biases", _UNIT),
    Column("bias_max", "float64", "largest bias; null for modes without biases", _UNIT),
)
SCALE_ABS_MAX = Column("scale_abs_max", "float64", "largest |real scale|", _UNIT)
EXTRA_COLUMNS = (
    Column(
        "sqnr_db",
        "float64",
        "signal to quantisation noise, 20 log10(||w||_F / ||q(w) - w||_F); null for an exact round "
        "trip and for a zero matrix. Source: arXiv 2603.04359",
        "dB",
    ),
    Column(
        "cosine",
        "float64",
        "<q(w), w> / (||q(w)||_F ||w||_F), at most 1; null where a norm is zero",
        "cosine",
    ),
    Column(
        "n_saturated",
        "int64",
        "weights clipped to the outermost code: beyond what it stands for by more than half the "
        "last step (affine |scale| / 2, E2M1 1 scale, E4M3 16 scales), so that a code beyond the "
        "range would have been nearer",
        "weights",
    ),
    Column(
        "n_zero_scale",
        "int64",
        "groups whose real scale is 0: zeros or underflow in nvfp4, whose weights all come back "
        "as 0; in affine, equal weights beyond 3.4e31, which come back exactly; never in the "
        "mx modes, which give groups of zeros the scale 1",
        "groups",
    ),
    Column(
        "bits_per_weight",
        "float64",
        "bits stored per weight: bits + (bits of a scale and a bias) / group_size; affine stores "
        "both in quant_dtype, other modes a scale of 8 bits",
        "bits",
    ),
)
NUMBER_COLUMNS = (*ERROR_COLUMNS, SCALE_ABS_MAX, *EXTRA_COLUMNS)


class ErrorSums:
    """What is remembered of one matrix under one scheme while its rows go by.

    Attributes:
        scheme: How it is quantised.
        places: The sums, see sum_places; kernels add to them.
        n_weights: How many weights were added.
    """

    __slots__ = ("_scale_bits", "n_weights", "places", "scheme")

    def __init__(self, scheme: SchemeSpec, dtype: np.dtype[Any]) -> None:
        """Start with no rows.

        Args:
            scheme: How the matrix is quantised.
            dtype: In which dtype; affine stores scales and biases in it.
        """
        self.scheme = scheme
        self.places = new_sums()
        self.n_weights = 0
        self._scale_bits = 2 * 8 * dtype.itemsize if scheme.mode == "affine" else 8

    def add_restored(self, block: NDArray[Any], result: RoundTrip) -> None:
        """Add weights that a backend has brought back.

        Args:
            block: (r, C) the weights that were quantised; float16, bfloat16 or float32.
            result: What came back.
        """
        rows, cols = block.shape
        scheme = self.scheme
        biases = np.zeros_like(result.scales) if result.biases is None else result.biases
        add_errors(
            stored_bytes(block),
            rows,
            cols,
            kind_of(block.dtype),
            MODES[scheme.mode],
            scheme.group_size,
            scheme.bits,
            np.ascontiguousarray(result.values, dtype=np.float32).reshape(-1),
            np.ascontiguousarray(result.scales, dtype=np.float32).reshape(-1),
            np.ascontiguousarray(biases, dtype=np.float32).reshape(-1),
            self.places,
        )
        self.n_weights += rows * cols

    @property
    def holds_finite_weights(self) -> bool:
        """Whether no stored weight so far is NaN or infinite."""
        return math.isfinite(self.places[WEIGHT_SQUARE])

    def cells(self, eps: float) -> dict[str, Cell]:
        """Return a value for each of `NUMBER_COLUMNS`.

        Args:
            eps: Added to the denominators of the relative errors; unit: that of the weights.

        Returns:
            Finite numbers; None where one is undefined. A zero matrix that comes back as zeros has
            error 0.

        Raises:
            ValueError: no weights were added.
            NonFiniteWeights: a stored weight is NaN or infinite.
            OverflowError: a reconstructed weight is not finite (the backend's own overflow); so it
                is wherever a scale or a bias is not.
        """
        if not self.n_weights:
            raise ValueError("the matrix is empty")
        places = self.places.tolist()
        weight_square = places[WEIGHT_SQUARE] + places[WEIGHT_SQUARE + 1]
        if not self.holds_finite_weights:
            raise NonFiniteWeights("a weight is NaN or infinite")
        error_square = places[ERROR_SQUARE] + places[ERROR_SQUARE + 1]
        if not math.isfinite(error_square):
            raise OverflowError(
                "a reconstructed weight is not finite: this scheme has no scale for weights near "
                "the largest number of their type, or for a group of denormals"
            )
        norm_error, norm_weight = math.sqrt(error_square), math.sqrt(weight_square)
        product = places[PRODUCT] + places[PRODUCT + 1]
        restored_square = places[RESTORED_SQUARE] + places[RESTORED_SQUARE + 1]
        n_groups = self.n_weights // self.scheme.group_size
        has_biases = self.scheme.mode == "affine"
        return {
            "w_rel_fro": _relative(norm_error, norm_weight + eps),
            "w_rel_max": _relative(places[ABS_ERROR], places[ABS_WEIGHT] + eps),
            "scale_mean": exact_mean(places, SCALE, n_groups),
            "scale_max": _finite(places[SCALE_MAX]),
            "bias_mean": exact_mean(places, BIAS, n_groups) if has_biases else None,
            "bias_max": _finite(places[BIAS_MAX]) if has_biases else None,
            "scale_abs_max": _finite(places[ABS_SCALE]),
            "sqnr_db": _decibels(norm_weight, norm_error),
            "cosine": _cosine(product, math.sqrt(restored_square), norm_weight),
            "n_saturated": int(places[SATURATED]),
            "n_zero_scale": int(places[ZERO_SCALE]),
            "bits_per_weight": self.scheme.bits + self._scale_bits / self.scheme.group_size,
        }


class NonFiniteWeights(ValueError):  # noqa: N818 - rows name it so
    """A matrix holds NaN or Inf; no quantiser says what comes of them."""


def _relative(error: float, denominator: float) -> float | None:
    if error == 0:
        return 0.0
    return error / denominator if denominator else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _decibels(signal: float, noise: float) -> float | None:
    return 20 * math.log10(signal / noise) if signal and noise else None


def _cosine(product: float, one: float, other: float) -> float | None:
    return max(-1.0, min(1.0, product / one / other)) if one and other else None
