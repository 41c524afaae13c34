from __future__ import annotations

import math
import unittest
from typing import Any

import numpy as np

from moe_weights.quantize.error import ERROR_COLUMNS, SCALE_ABS_MAX, measure_quant_error
from moe_weights.quantize.round_trip import RoundTrip
from tests.support.matrices import DTYPES, assert_close, matrix_of


def round_trip(values: Any, scales: Any = ((1.0,),), biases: Any = None) -> RoundTrip:
    return RoundTrip(
        np.array(values, dtype=np.float32),
        np.array(scales, dtype=np.float64),
        None if biases is None else np.array(biases, dtype=np.float64),
    )


class RelativeErrors(unittest.TestCase):
    def test_divide_frobenius_norms_and_largest_magnitudes(self) -> None:
        for dtype in DTYPES:
            found = measure_quant_error(
                matrix_of([[3.0, -4.0]], dtype), round_trip([[3.5, -4.0]]), eps=0.0
            )
            self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.1, 0.125])

    def test_add_eps_to_the_denominators(self) -> None:
        found = measure_quant_error(matrix_of([[3.0, 4.0]]), round_trip([[3.0, 5.0]]), eps=1.0)
        assert_close(self, found, {"w_rel_fro": 1 / 6, "w_rel_max": 1 / 5})

    def test_of_an_exact_round_trip_are_zero(self) -> None:
        found = measure_quant_error(matrix_of([[3.0, 4.0]]), round_trip([[3.0, 4.0]]), eps=0.0)
        self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.0, 0.0])

    def test_of_a_zero_matrix_are_zero_even_without_eps(self) -> None:
        for eps in (0.0, 1e-12):
            found = measure_quant_error(matrix_of([[0.0, 0.0]]), round_trip([[0.0, 0.0]]), eps)
            self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.0, 0.0])

    def test_without_a_denominator_are_null(self) -> None:
        found = measure_quant_error(matrix_of([[0.0, 0.0]]), round_trip([[0.0, 1.0]]), eps=0.0)
        self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [None, None])

    def test_are_taken_in_float64_where_float16_would_overflow_or_vanish(self) -> None:
        for size in (60_000.0, 1e-7):
            matrix = matrix_of([[size] * 64] * 64, "float16")
            restored = matrix.astype(np.float32) * np.float32(1.25)
            found = measure_quant_error(matrix, round_trip(restored), eps=0.0)
            assert_close(self, found, {"w_rel_fro": 0.25, "w_rel_max": 0.25})

    def test_cover_matrices_of_several_blocks(self) -> None:
        matrix = np.ones((3, 2**20), dtype=np.float16)
        restored = np.ones_like(matrix, dtype=np.float32)
        restored[0, 0], restored[2, -1] = 1.5, 0.0
        found = measure_quant_error(matrix, round_trip(restored), eps=0.0)
        expected = {"w_rel_fro": math.sqrt(1.25 / matrix.size), "w_rel_max": 1.0}
        assert_close(self, found, expected)

    def test_of_weights_that_come_back_not_finite_are_refused(self) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            with self.subTest(bad=bad), self.assertRaises(OverflowError) as caught:
                measure_quant_error(matrix_of([[1.0, 2.0]]), round_trip([[bad, 2.0]]), eps=0.0)
            self.assertEqual(
                str(caught.exception),
                "a reconstructed weight is not finite; the weights are near the limit",
            )


class ScalesAndBiases(unittest.TestCase):
    def test_give_mean_largest_and_largest_magnitude(self) -> None:
        found = measure_quant_error(
            matrix_of([[1.0]]), round_trip([[1.0]], [[-3.0, 1.0]], [[-2.0, -4.0]]), eps=0.0
        )
        self.assertEqual(
            {name: found[name] for name in list(found)[2:]},
            {"scale_mean": -1.0, "scale_max": 1.0, "bias_mean": -3.0, "bias_max": -2.0,
             "scale_abs_max": 3.0},
        )  # fmt: skip

    def test_have_null_biases_for_modes_without_them(self) -> None:
        found = measure_quant_error(matrix_of([[1.0]]), round_trip([[1.0]]), eps=0.0)
        self.assertEqual([found["bias_mean"], found["bias_max"]], [None, None])

    def test_that_are_not_finite_are_null(self) -> None:
        found = measure_quant_error(
            matrix_of([[1.0]]), round_trip([[1.0]], [[np.nan]], [[np.inf]]), eps=0.0
        )
        for name in ("scale_mean", "scale_max", "scale_abs_max", "bias_mean", "bias_max"):
            self.assertIsNone(found[name])


class Columns(unittest.TestCase):
    def test_are_the_contracts_six_and_one_more(self) -> None:
        self.assertEqual(
            [column.name for column in (*ERROR_COLUMNS, SCALE_ABS_MAX)],
            ["w_rel_fro", "w_rel_max", "scale_mean", "scale_max", "bias_mean", "bias_max",
             "scale_abs_max"],
        )  # fmt: skip
