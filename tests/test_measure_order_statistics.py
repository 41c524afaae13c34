from __future__ import annotations

import unittest

import numpy as np

from moe_weights.measure.order_statistics import Percentiles, percentiles_of
from tests.support.matrices import DTYPES

PERCENTILES = (0.0, 0.1, 5.0, 12.5, 50.0, 75.0, 95.0, 99.0, 99.5, 99.9, 100.0)


class PercentilesOfValues(unittest.TestCase):
    def test_equal_numpy_to_the_last_bit(self) -> None:
        generator = np.random.default_rng(0)
        for dtype in DTYPES.values():
            for size in (1, 2, 3, 10, 101, 997, 4096):
                values = np.abs(generator.normal(size=size)).astype(dtype)
                expected = np.percentile(values.astype(np.float64), PERCENTILES, method="linear")
                with self.subTest(dtype=dtype.name, size=size):
                    self.assertEqual(percentiles_of(values, PERCENTILES), expected.tolist())

    def test_of_one_value_are_that_value(self) -> None:
        self.assertEqual(percentiles_of(np.array([2.5]), [0.0, 50.0, 99.9, 100.0]), [2.5] * 4)

    def test_come_in_the_order_asked_for_with_repeats(self) -> None:
        self.assertEqual(percentiles_of(np.arange(5.0), [100, 0, 50, 100]), [4.0, 0.0, 2.0, 4.0])

    def test_leave_the_values_as_they_were(self) -> None:
        values = np.array([3.0, 1.0, 2.0])
        percentiles_of(values, [50])
        self.assertEqual(values.tolist(), [3.0, 1.0, 2.0])

    def test_near_the_limit_of_float64_do_not_overflow(self) -> None:
        self.assertEqual(percentiles_of(np.array([0.0, 1.5e308]), [50.0]), [0.75e308])


class Ranks(unittest.TestCase):
    def test_are_sorted_without_repeats(self) -> None:
        self.assertEqual(Percentiles(11, [99, 50, 50, 0]).ranks.tolist(), [0, 1, 5, 6, 9, 10])

    def test_are_enough_to_interpolate(self) -> None:
        median = Percentiles(4, [50])
        self.assertEqual(median.ranks.tolist(), [1, 2])
        self.assertEqual(median.interpolate(np.array([10.0, 20.0])), [15.0])
