from __future__ import annotations

import math
import unittest

import numpy as np

from moe_weights.measure.exact_sum import exact_sum


class ExactSum(unittest.TestCase):
    def test_keeps_what_cancellation_would_lose(self) -> None:
        values = np.array([2.0**60, 1.0, -(2.0**60)], dtype=np.float32)
        self.assertEqual(exact_sum(values), 1.0)
        self.assertEqual(exact_sum(values.astype(np.float64)), 1.0)

    def test_keeps_what_cancels_between_blocks(self) -> None:
        values = np.zeros(2**20 + 1, dtype=np.float32)
        values[:2] = 2.0**60, 1.0
        values[-1] = -(2.0**60)
        self.assertEqual(exact_sum(values), 1.0)
        self.assertEqual(exact_sum(values.astype(np.float64)), 1.0)

    def test_of_float32_spans_the_whole_range(self) -> None:
        limits = np.finfo(np.float32)
        values = np.array([limits.max, limits.smallest_subnormal, -limits.max], dtype=np.float32)
        self.assertEqual(exact_sum(values), float(limits.smallest_subnormal))

    def test_of_subnormals_equals_fsum(self) -> None:
        bits = np.random.default_rng(3).integers(1, 2**23, 500, dtype=np.uint32)
        values = bits.view(np.float32)
        self.assertEqual(exact_sum(values), math.fsum(values.tolist()))

    def test_of_nothing_is_zero(self) -> None:
        for dtype in (np.float32, np.float64):
            self.assertEqual(exact_sum(np.empty(0, dtype=dtype)), 0.0)

    def test_says_when_the_sum_is_beyond_float64(self) -> None:
        with self.assertRaises(OverflowError):
            exact_sum(np.full(3, np.finfo(np.float64).max))
