from __future__ import annotations

import unittest
import warnings

import numpy as np

from moe_weights.measure.histogram import PatternHistogram
from tests.support.matrices import DTYPES, SIXTEEN_BIT, matrix_of, normal_matrix
from tests.support.reference import (
    fractions_of,
    slow_abs_percentile,
    slow_mean,
    slow_mean_abs,
    slow_rms,
    slow_std,
)


class Counting(unittest.TestCase):
    def test_tells_nan_infinity_and_zero_apart(self) -> None:
        for dtype in SIXTEEN_BIT:
            rows = [[0.0, -0.0, np.nan, np.inf], [-np.inf, 1.0, np.nan, np.nan]]
            histogram = PatternHistogram.of(matrix_of(rows, dtype))
            self.assertEqual(
                (histogram.n_elements, histogram.n_zero, histogram.n_nan, histogram.n_inf),
                (8, 2, 3, 2),
            )

    def test_takes_every_bit_pattern_without_a_warning(self) -> None:
        patterns = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
        for dtype, n_nan in (("bfloat16", 254), ("float16", 2046)):
            with self.subTest(dtype=dtype), warnings.catch_warnings():
                warnings.simplefilter("error")
                histogram = PatternHistogram.of(patterns.view(DTYPES[dtype]))
                self.assertEqual((histogram.n_nan, histogram.n_inf), (n_nan, 2))
                self.assertEqual(histogram.counts.tolist(), [1] * (65_536 - n_nan - 2))


class Statistics(unittest.TestCase):
    def test_equal_the_slow_loop_over_fractions(self) -> None:
        for dtype in SIXTEEN_BIT:
            matrix = normal_matrix(19, 23, dtype, sigma=0.02)
            values, histogram = fractions_of(matrix), PatternHistogram.of(matrix)
            with self.subTest(dtype=dtype):
                mean = histogram.mean()
                self.assertAlmostEqual(mean / slow_mean(values), 1, delta=1e-15)
                self.assertAlmostEqual(histogram.mean_abs() / slow_mean_abs(values), 1, delta=1e-15)
                self.assertAlmostEqual(histogram.rms() / slow_rms(values), 1, delta=1e-15)
                self.assertAlmostEqual(histogram.std(mean) / slow_std(values), 1, delta=1e-15)
                self.assertEqual(histogram.max_abs, float(max(map(abs, values))))

    def test_percentiles_equal_numpy_to_the_last_bit(self) -> None:
        percentiles = [0.0, 1.0, 50.0, 95.0, 99.0, 99.9, 100.0]
        for dtype in SIXTEEN_BIT:
            matrix = normal_matrix(37, 41, dtype)
            expected = np.percentile(np.abs(matrix.astype(np.float64)), percentiles)
            found = PatternHistogram.of(matrix).abs_percentiles(percentiles)
            self.assertEqual(found, expected.tolist())
            self.assertAlmostEqual(
                found[5], slow_abs_percentile(fractions_of(matrix), 99.9), delta=1e-12
            )

    def test_count_the_two_zeros_as_one_value(self) -> None:
        histogram = PatternHistogram.of(matrix_of([[0.0, -0.0, -0.0, 4.0]], "bfloat16"))
        self.assertEqual(histogram.abs_percentiles([50.0, 100.0]), [0.0, 4.0])

    def test_of_subnormals_are_exact(self) -> None:
        for dtype in SIXTEEN_BIT:
            matrix = np.array([[1, 2], [0x8003, 4]], dtype=np.uint16).view(DTYPES[dtype])
            values = fractions_of(matrix)
            self.assertEqual(PatternHistogram.of(matrix).mean(), slow_mean(values))
            self.assertEqual(PatternHistogram.of(matrix).rms(), slow_rms(values))
