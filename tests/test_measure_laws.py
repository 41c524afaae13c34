"""Laws of the measures, on whatever hypothesis comes up with."""

from __future__ import annotations

import math
import unittest
from typing import Any

import numpy as np

from moe_weights.measure.order_statistics import percentiles_of
from moe_weights.measure.settings import FIXED_PERCENTILES, percentile_text
from tests.support.matrices import DTYPES, SIXTEEN_BIT, assert_close, measure
from tests.support.reference import slow_statistics

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
    from hypothesis.extra import numpy as hnp
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@st.composite
def patterns(draw: Any) -> np.ndarray:
    """A matrix (R, C) of 16-bit patterns that stand for finite numbers in both 16-bit types."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 9)))
    bits = st.integers(0, 0x7BFF).flatmap(lambda low: st.sampled_from([low, low | 0x8000]))
    return draw(hnp.arrays(np.uint16, shape, elements=bits))


@st.composite
def moderate_matrices(draw: Any) -> np.ndarray:
    """A float32 matrix (R, 4) whose squares, halves and doubles are far from the limits."""
    shape = draw(st.tuples(st.integers(1, 5), st.just(4)))
    number = st.floats(2.0**-40, 2.0**40, width=32)
    signed = st.tuples(number, st.sampled_from([-1.0, 0.0, 1.0])).map(lambda p: p[0] * p[1])
    return draw(hnp.arrays(np.float32, shape, elements=signed))


def is_relative_name(name: str) -> bool:
    relative = ("outlier", "kurtosis", "crest", "aimer", "norm", "n_")
    return any(part in name for part in relative) and not name.startswith("mean")


class SixteenBits(unittest.TestCase):
    @quick
    @given(patterns(), st.floats(0, 100))
    def test_give_numpys_percentiles(self, bits: np.ndarray, percentile: float) -> None:
        for dtype in SIXTEEN_BIT:
            matrix = bits.view(DTYPES[dtype])
            magnitudes = np.abs(matrix.astype(np.float64))
            expected = float(np.percentile(magnitudes, percentile))
            found = measure(matrix, percentiles_abs=(percentile,))
            if percentile not in FIXED_PERCENTILES.values():
                self.assertEqual(found[f"p{percentile_text(percentile)}_abs"], expected)
            self.assertEqual(percentiles_of(magnitudes.reshape(-1), [percentile]), [expected])


class Measures(unittest.TestCase):
    @quick
    @given(moderate_matrices())
    def test_equal_the_slow_loop(self, matrix: np.ndarray) -> None:
        # A deviation that is small beside the values has the rounding of their squares.
        expected = slow_statistics(matrix, eps=1e-12, group_sizes=(2,))
        std = expected.pop("std")
        found = measure(matrix, group_sizes=(2,))
        assert_close(self, found, expected)
        self.assertAlmostEqual(found["std"], std, delta=1e-12 * (expected["rms"] or 1))

    @quick
    @given(moderate_matrices(), st.integers(-20, 20))
    def test_scale_with_powers_of_two(self, matrix: np.ndarray, exponent: int) -> None:
        plain = measure(matrix, eps=0.0, group_sizes=(2,))
        scaled = measure(np.ldexp(matrix, exponent), eps=0.0, group_sizes=(2,))
        for name, cell in plain.items():
            is_relative = is_relative_name(name)
            expected = cell if is_relative or cell is None else math.ldexp(cell, exponent)
            self.assertEqual(scaled[name], expected, name)

    @quick
    @given(moderate_matrices())
    def test_are_the_same_in_float32_and_float64(self, matrix: np.ndarray) -> None:
        found = measure(matrix, group_sizes=(2,))
        assert_close(self, measure(matrix.astype(np.float64), group_sizes=(2,)), found)

    @quick
    @given(moderate_matrices())
    def test_turn_only_the_mean_with_the_sign(self, matrix: np.ndarray) -> None:
        found = measure(matrix, group_sizes=(2,))
        self.assertEqual(measure(-matrix, group_sizes=(2,)), found | {"mean": -found["mean"]})
