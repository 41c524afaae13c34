from __future__ import annotations

import math
import unittest
from fractions import Fraction
from typing import Any

import numpy as np

from moe_weights.quantize.error import (
    ERROR_COLUMNS,
    EXTRA_COLUMNS,
    NUMBER_COLUMNS,
    SCALE_ABS_MAX,
    ErrorSums,
    NonFiniteWeights,
)
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from tests.support.matrices import DTYPES, assert_close, matrix_of

COLS = 16
AFFINE = SchemeSpec(name="a", mode="affine", bits=4, group_size=COLS)
NVFP4 = SchemeSpec(name="n", mode="nvfp4", bits=4, group_size=COLS)


def cells(
    stored: Any, back: Any, *, eps: float = 0.0, scales: Any = None, biases: Any = None,
    dtype: str = "float32", scheme: SchemeSpec = NVFP4,
) -> dict[str, Any]:  # fmt: skip
    """Compare rows of up to sixteen weights, padded with zeros that come back as zeros."""
    matrix = matrix_of([[*row, *[0.0] * (COLS - len(row))] for row in stored], dtype)
    values = np.zeros(matrix.shape, dtype=np.float32)
    for place, row in enumerate(back):
        values[place, : len(row)] = row
    given = np.ones((len(stored), 1)) if scales is None else np.array(scales, dtype=np.float64)
    shifts = None if biases is None else np.array(biases, dtype=np.float64)
    sums = ErrorSums(scheme, DTYPES[dtype])
    sums.add_restored(matrix, RoundTrip(values, given, shifts))
    return dict(sums.cells(eps))


class RelativeErrors(unittest.TestCase):
    def test_divide_frobenius_norms_and_largest_magnitudes(self) -> None:
        for dtype in ("bfloat16", "float16", "float32"):
            found = cells([[3.0, -4.0]], [[3.5, -4.0]], dtype=dtype)
            self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.1, 0.125])

    def test_take_small_weights_beside_large_ones_into_account(self) -> None:
        # 2**60 + 1 is 2**60 in float64; float32 has steps of 64 below 2**30.
        rows = [[2.0**30], *([[1.0]] * 4096)]
        found = cells(rows, [[2.0**30 - 64], *rows[1:]])
        self.assertEqual(found["w_rel_fro"], 64 / math.sqrt(2**60 + 4096))

    def test_add_eps_to_the_denominators(self) -> None:
        found = cells([[3.0, 4.0]], [[3.0, 5.0]], eps=1.0)
        assert_close(self, found, {"w_rel_fro": 1 / 6, "w_rel_max": 1 / 5})

    def test_of_an_exact_round_trip_are_zero(self) -> None:
        found = cells([[3.0, 4.0]], [[3.0, 4.0]])
        self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.0, 0.0])

    def test_of_a_zero_matrix_are_zero_even_without_eps(self) -> None:
        for eps in (0.0, 1e-12):
            found = cells([[0.0]], [[0.0]], eps=eps)
            self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [0.0, 0.0])

    def test_without_a_denominator_are_null(self) -> None:
        found = cells([[0.0, 0.0]], [[0.0, 1.0]])
        self.assertEqual([found["w_rel_fro"], found["w_rel_max"]], [None, None])

    def test_are_taken_in_float64_where_float16_would_overflow_or_vanish(self) -> None:
        for size in (60_000.0, 2.0**-23):
            row = [size] * COLS
            back = [size * 1.25] * COLS
            found = cells([row] * 8, [back] * 8, dtype="float16")
            assert_close(self, found, {"w_rel_fro": 0.25, "w_rel_max": 0.25})

    def test_of_weights_that_come_back_not_finite_are_refused(self) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            with self.subTest(bad=bad), self.assertRaises(OverflowError) as caught:
                cells([[1.0, 2.0]], [[bad, 2.0]])
            self.assertEqual(
                str(caught.exception),
                "a reconstructed weight is not finite: this scheme has no scale for weights near "
                "the largest number of their type, or for a group of denormals",
            )

    def test_of_weights_that_are_not_finite_are_refused(self) -> None:
        for bad in (np.nan, np.inf, -np.inf):
            with self.subTest(bad=bad), self.assertRaises(NonFiniteWeights) as caught:
                cells([[bad, 2.0]], [[1.0, 2.0]])
            self.assertEqual(str(caught.exception), "a weight is NaN or infinite")

    def test_of_no_rows_are_refused(self) -> None:
        with self.assertRaises(ValueError) as caught:
            ErrorSums(NVFP4, DTYPES["float32"]).cells(0.0)
        self.assertEqual(str(caught.exception), "the matrix is empty")


class ScalesAndBiases(unittest.TestCase):
    def test_give_mean_largest_and_largest_magnitude(self) -> None:
        found = cells(
            [[1.0], [1.0]], [[1.0], [1.0]],
            scales=[[-3.0], [1.0]], biases=[[-2.0], [-4.0]], scheme=AFFINE,
        )  # fmt: skip
        names = ("scale_mean", "scale_max", "bias_mean", "bias_max", "scale_abs_max")
        self.assertEqual([found[name] for name in names], [-1.0, 1.0, -3.0, -2.0, 3.0])

    def test_are_added_up_without_loss(self) -> None:
        column = [[2.0**60], [1.0], [-(2.0**60)]]
        found = cells([[1.0]] * 3, [[1.0]] * 3, scales=column, biases=column, scheme=AFFINE)
        self.assertEqual([found["scale_mean"], found["bias_mean"]], [1 / 3, 1 / 3])

    def test_have_null_biases_for_modes_without_them(self) -> None:
        found = cells([[1.0]], [[1.0]])
        self.assertEqual([found["bias_mean"], found["bias_max"]], [None, None])


class MeanScalesAndBiases(unittest.TestCase):
    """Within a row, where float64 may add them, and over rows."""

    TOP, LEAST = float(np.finfo(np.float32).max), 2.0**-149

    def means(self, scales: list[list[float]]) -> list[float | None]:
        """Return the means of scales and of biases, which are the scales turned round."""
        given = np.array(scales)
        matrix = np.zeros((given.shape[0], given.shape[1] * COLS), dtype=np.float32)
        sums = ErrorSums(AFFINE, matrix.dtype)
        sums.add_restored(matrix, RoundTrip(matrix, given, -given))
        found = sums.cells(0.0)
        return [found["scale_mean"], found["bias_mean"]]  # type: ignore[list-item] # numbers

    def check(self, scales: list[list[float]]) -> None:
        exact = sum(Fraction(float(np.float32(scale))) for row in scales for scale in row)
        mean = float(exact / (len(scales) * len(scales[0])))
        self.assertEqual(self.means(scales), [mean, -mean])

    def test_are_rounded_once_however_much_cancels(self) -> None:
        top, least = self.TOP, self.LEAST
        self.check([[top, 0.0, -top, 0.0, 1e-3, 0.0, 0.0, least]])
        self.check([[top, top, top, least, -top, -top, -top, least]] * 3)
        self.check([[top, 1.0], [-top, least], [1e20, -1.0], [-1e20, -1e-30]])
        self.check([[0.1, -0.1], [1e30, -1e30], [1e-40, 3e-41]])
        self.check([[1.0, -1.0] * 4])

    def test_do_not_overflow(self) -> None:
        self.check([[self.TOP] * 8] * 5)
        self.check([[-self.TOP, -self.LEAST]] * 5)

    def test_are_rounded_once_for_random_sizes_and_signs(self) -> None:
        draw = np.random.default_rng(4)
        for spread in (1, 6, 12, 37):
            scales = draw.normal(size=(9, 24)) * 10.0 ** draw.integers(-spread, spread + 1, (9, 24))
            self.check(scales.tolist())

    def test_are_rounded_once_where_sizes_change_from_row_to_row(self) -> None:
        rows = [[10.0**size, -(10.0**size) / 3] for size in range(-40, 39)]
        self.check(rows)
        self.check(rows[::-1])
        self.check([*rows, [1.0, self.TOP], *rows[::-1], [0.0, 0.0]])

    def test_are_null_where_one_is_not_finite(self) -> None:
        for scale in (math.inf, -math.inf, math.nan):
            self.assertEqual(self.means([[1.0, scale], [2.0, 3.0]]), [None, None])

    def test_beside_them_the_largest_are_null_as_well_where_they_are_infinite(self) -> None:
        found = cells([[0.0]], [[0.0]], scales=[[math.inf]], biases=[[math.inf]], scheme=AFFINE)
        names = ("scale_max", "bias_max", "scale_abs_max")
        self.assertEqual([found[name] for name in names], [None] * 3)


class LongRows(unittest.TestCase):
    def test_round_no_more_than_short_ones(self) -> None:
        # Sums of equal terms that are no binary fractions drift the most; the exact ratio is known.
        stored, back = np.float32(0.1), np.float32(0.113)
        matrix = np.full((1, 2**24), stored)
        sums = ErrorSums(AFFINE, matrix.dtype)
        nothing = np.zeros((1, 2**24 // COLS))
        sums.add_restored(matrix, RoundTrip(np.full_like(matrix, back), nothing, nothing))
        exact = Fraction(float(back)) / Fraction(float(stored)) - 1
        found = sums.cells(0.0)
        self.assertAlmostEqual(found["w_rel_fro"] / float(exact), 1.0, delta=1e-14)


class SignalToNoise(unittest.TestCase):
    def test_is_twenty_logarithms_of_the_relative_error_without_eps(self) -> None:
        found = cells([[3.0, 4.0]], [[3.5, 4.0]], eps=1.0)
        self.assertAlmostEqual(found["sqnr_db"], 20.0, delta=1e-12)

    def test_is_null_for_an_exact_round_trip_and_for_zeros(self) -> None:
        self.assertIsNone(cells([[3.0]], [[3.0]])["sqnr_db"])
        self.assertIsNone(cells([[0.0]], [[1.0]])["sqnr_db"])


class Cosine(unittest.TestCase):
    def test_is_that_between_the_weights_and_what_comes_back(self) -> None:
        self.assertAlmostEqual(
            cells([[1.0, 0.0]], [[1.0, 1.0]])["cosine"], math.sqrt(0.5), delta=1e-15
        )
        self.assertEqual(cells([[1.0, 2.0]], [[-1.0, -2.0]])["cosine"], -1.0)

    def test_is_at_most_one(self) -> None:
        for size in (0.1, 0.3, 1.7):
            found = cells([[size] * 7], [[size * 3] * 7])["cosine"]
            self.assertLessEqual(found, 1.0)
            self.assertAlmostEqual(found, 1.0, delta=1e-7)
        self.assertGreater(26 / math.sqrt(26) / math.sqrt(26), 1.0)
        self.assertEqual(cells([[1.0, 5.0]], [[1.0, 5.0]])["cosine"], 1.0)

    def test_stands_where_next_to_nothing_comes_back(self) -> None:
        found = cells([[1.0, 2.0]], [[2.0**-40, 2.0**-40]])["cosine"]
        self.assertAlmostEqual(found, 3 / math.sqrt(10), delta=1e-15)
        # Affine steps are never below 1e-7: of weights like these only one comes back at all.
        stored, back = [[4.9e-8] * 16] * 4095, [[0.0] * 16] * 4095
        stored, back = [[6e-8] + [4.9e-8] * 15, *stored], [[6e-8] + [0.0] * 15, *back]
        found = cells(stored, back, scheme=AFFINE)["cosine"]
        small, large = (Fraction(float(np.float32(size))) ** 2 for size in (4.9e-8, 6e-8))
        expected = math.sqrt(large / ((4096 * 16 - 1) * small + large))
        self.assertAlmostEqual(found / expected, 1.0, delta=1e-14)

    def test_is_null_where_a_norm_is_zero(self) -> None:
        self.assertIsNone(cells([[0.0]], [[1.0]])["cosine"])
        self.assertIsNone(cells([[1.0]], [[0.0]])["cosine"])


class Counts(unittest.TestCase):
    def test_take_weights_more_than_half_a_step_beyond_the_codes(self) -> None:
        row = [[7.0, 7.001, -7.0, -7.001]]
        self.assertEqual(cells(row, [[6.0, 6.0, -6.0, -6.0]])["n_saturated"], 2)
        mxfp8 = SchemeSpec(name="m", mode="mxfp8", bits=8, group_size=COLS)
        row = [[464.0, 464.001, -464.001]]
        self.assertEqual(cells(row, [[448.0] * 2], scheme=mxfp8)["n_saturated"], 2)
        # codes 0 to 15 of scale -1 reach from 2 down to -13
        row = [[2.5, 2.501, -13.5, -13.501, 0.0]]
        found = cells(row, row, scales=[[-1.0]], biases=[[2.0]], scheme=AFFINE)
        self.assertEqual(found["n_saturated"], 2)

    def test_take_groups_whose_scale_is_zero(self) -> None:
        found = cells([[1.0], [2.0], [0.0]], [[0.0]] * 3, scales=[[0.0], [1.0], [-0.0]])
        self.assertEqual((found["n_zero_scale"], found["n_saturated"]), (2, 1))


class BitsPerWeight(unittest.TestCase):
    def test_holds_scales_and_biases_in_the_dtype_of_the_weights(self) -> None:
        cases = {
            ("affine", 4, 64, "bfloat16"): 4.5, ("affine", 8, 32, "float16"): 9.0,
            ("affine", 4, 64, "float32"): 5.0, ("affine", 3, 128, "bfloat16"): 3.25,
            ("mxfp4", 4, 32, "float32"): 4.25, ("mxfp8", 8, 32, "bfloat16"): 8.25,
            ("nvfp4", 4, 16, "bfloat16"): 4.5,
        }  # fmt: skip
        for (mode, bits, size, dtype), expected in cases.items():
            scheme = SchemeSpec(name="s", mode=mode, bits=bits, group_size=size)
            sums = ErrorSums(scheme, DTYPES[dtype])
            zeros = np.zeros((1, size), dtype=DTYPES[dtype])
            groups = np.ones((1, 1))
            sums.add_restored(zeros, RoundTrip(zeros, groups, groups))
            self.assertEqual(sums.cells(0.0)["bits_per_weight"], expected)


class Columns(unittest.TestCase):
    def test_are_the_contracts_six_one_more_and_the_extra_ones(self) -> None:
        names = [column.name for column in NUMBER_COLUMNS]
        self.assertEqual(
            names,
            ["w_rel_fro", "w_rel_max", "scale_mean", "scale_max", "bias_mean", "bias_max",
             "scale_abs_max", "sqnr_db", "cosine", "n_saturated", "n_zero_scale",
             "bits_per_weight"],
        )  # fmt: skip
        self.assertEqual(NUMBER_COLUMNS, (*ERROR_COLUMNS, SCALE_ABS_MAX, *EXTRA_COLUMNS))
        self.assertEqual(list(cells([[1.0]], [[1.0]])), names)
