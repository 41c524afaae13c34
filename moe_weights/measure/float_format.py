"""How the bits of each measured float type are read.

Weights are sorted into 65 536 classes by their first sixteen bits: sign, exponent and the first
bits of the fraction. For 16-bit types a class is one value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_CLASSES = 65_536
N_MAGNITUDE_CLASSES = N_CLASSES // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """One float type.

    Attributes:
        name: NumPy's or ml_dtypes' name.
        integer: Integer type that stands for it in kernels, see `vector_lanes`.
        width: Bits of an element.
        fraction_bits: Bits of the fraction.
        bias: Exponent field of 1.0.
    """

    name: str
    integer: str
    width: int
    fraction_bits: int
    bias: int

    @property
    def low_bits(self) -> int:
        """Bits that a class leaves open."""
        return self.width - 16

    @property
    def class_fraction_bits(self) -> int:
        """Bits of the fraction that a class fixes."""
        return self.fraction_bits - self.low_bits

    @property
    def n_exponents(self) -> int:
        """Exponent fields of finite numbers; 0 is that of zero and denormals."""
        return (1 << (15 - self.class_fraction_bits)) - 1

    @property
    def not_finite_class(self) -> int:
        """First magnitude class of Inf and NaN."""
        return self.n_exponents << self.class_fraction_bits

    def bits_of(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return a block as integers; a view."""
        bits: NDArray[Any] = block.view(self.integer)
        return bits


FORMATS = {
    known.name: known
    for known in (
        FloatFormat(name="bfloat16", integer="uint16", width=16, fraction_bits=7, bias=127),
        FloatFormat(name="float16", integer="int16", width=16, fraction_bits=10, bias=15),
        FloatFormat(name="float32", integer="uint32", width=32, fraction_bits=23, bias=127),
        FloatFormat(name="float64", integer="uint64", width=64, fraction_bits=52, bias=1023),
    )
}


@lru_cache(maxsize=len(FORMATS))  # a dtype makes its name anew when it is asked
def format_of(dtype: np.dtype[Any]) -> FloatFormat:
    """Return the format of a dtype.

    Raises:
        TypeError: weights of this type cannot be measured.
    """
    if dtype.name not in FORMATS:
        raise TypeError(f"dtype {dtype.name} cannot be measured; give one of {', '.join(FORMATS)}")
    return FORMATS[dtype.name]


@lru_cache(maxsize=len(FORMATS))
def class_values(number_format: FloatFormat) -> NDArray[np.float64]:
    """Return the smallest magnitude of each magnitude class, (32768,); 0 for Inf and NaN."""
    classes = np.arange(N_MAGNITUDE_CLASSES, dtype=np.int64)
    fields = classes >> number_format.class_fraction_bits
    fractions = classes & ((1 << number_format.class_fraction_bits) - 1)
    implicit = (fields > 0).astype(np.int64) << number_format.class_fraction_bits
    exponents = np.maximum(fields, 1) - number_format.bias - number_format.class_fraction_bits
    exponents[number_format.not_finite_class :] = 0
    values: NDArray[np.float64] = np.ldexp((implicit + fractions).astype(np.float64), exponents)
    values[number_format.not_finite_class :] = 0.0
    values.setflags(write=False)
    return values
