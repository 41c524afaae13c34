"""What a measured matrix has shown."""

from __future__ import annotations

from dataclasses import dataclass

from moe_weights.columns import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixMeasurement:
    """What a matrix has shown.

    Attributes:
        values: A value for every column of `metric_columns`.
        fingerprint: 128 bits as 32 hexadecimal digits; equal for matrices of one type that are
            equal bit for bit and of one shape, see `fingerprint`.
        is_constant: All elements have the same bits.
        n_zero: Elements that are +0 or -0.
        n_nan: Elements that are NaN.
        n_inf: Elements that are +Inf or -Inf.
    """

    values: dict[str, Cell]
    fingerprint: str
    is_constant: bool
    n_zero: int
    n_nan: int
    n_inf: int
