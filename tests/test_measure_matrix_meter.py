from __future__ import annotations

import math
import unittest
import warnings
from fractions import Fraction
from typing import Any

import numpy as np

from moe_weights.measure.matrix_meter import MatrixMeter
from tests.support.matrices import (
    DTYPES,
    assert_close,
    make_settings,
    matrix_of,
    normal_matrix,
)
from tests.support.slow_measures import meter_matrix, slow_counts, slow_measures

FINITE_LIMITS = {"bfloat16": 3.38e38, "float16": 65504.0, "float32": 3.4e38, "float64": 1.79e308}
SMALLEST = {"bfloat16": 9.2e-41, "float16": 6e-8, "float32": 1.4e-45, "float64": 5e-324}


def adversarial_matrices(dtype: str) -> dict[str, np.ndarray]:
    """Return matrices (R, C) on which careless sums go wrong."""
    draw = np.random.default_rng(5)
    limit, smallest = FINITE_LIMITS[dtype], SMALLEST[dtype]
    normal = draw.normal(size=(5, 64))
    cancelling = np.vstack([normal, -normal]) * (limit / 8)
    cancelling[0, 0] = 1.0
    outlier = normal * 0.02
    outlier[2, 3] = limit
    nearly = np.full((4, 96), 0.75)
    step = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}
    nearly[1, 17] += step[dtype]
    wide = normal * 10.0 ** draw.integers(-4, 4, size=normal.shape)
    matrices = {
        "normal": draw.normal(size=(7, 160)) * 0.02,
        "odd shape": draw.normal(size=(3, 37)),
        "one column": draw.normal(size=(9, 1)),
        "one row": draw.normal(size=(1, 200)),
        "cancelling": cancelling,
        "outlier": outlier,
        "nearly constant": nearly,
        "at the limit": np.where(normal > 0, limit, -limit),
        "denormal": np.rint(normal * 8) * smallest,
        "sparse": np.where(draw.random((6, 64)) < 0.9, 0.0, draw.normal(size=(6, 64))),
        "many magnitudes": wide,
        "mean zero": np.array([[1.0, -1.0, 2.0, -2.0]] * 3),
        "all zero": np.zeros((2, 32)),
        "constant": np.full((3, 33), -0.1),
        "rows of equal norm": np.array([[3.0, 4.0], [4.0, 3.0], [-3.0, 4.0]]),
    }
    with np.errstate(over="ignore", under="ignore"):
        return {name: matrix.astype(DTYPES[dtype]) for name, matrix in matrices.items()}


class AgainstExactFractions(unittest.TestCase):
    def check(self, matrix: np.ndarray, eps: float) -> None:
        sizes = [n for n in (4, 16, 32, 48, 64) if matrix.shape[1] % n == 0]
        settings = make_settings(group_sizes=tuple(sizes), eps=eps)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = meter_matrix(matrix, settings)[0].values
        expected = slow_measures(matrix, eps=eps, group_sizes=sizes)
        kurtosis, spreads = expected.pop("kurtosis"), {
            name: expected.pop(name) for name in ("row_norm_cv", "col_norm_cv")
        }  # fmt: skip
        magnitudes = np.abs(matrix.astype(np.float64))
        for name, percentile in (("p50_abs", 50), ("p99_abs", 99), ("p999_abs", 99.9)):
            expected.pop(name)
            self.assertEqual(found[name], float(np.percentile(magnitudes, percentile)))
        # The least denormal is as coarse as numbers get.
        for name in [name for name, value in expected.items() if value and value < 1e-307]:
            self.assertAlmostEqual(found[name], expected.pop(name), delta=5e-324)
        assert_close(self, found, expected, relative=1e-14)
        assert_close(self, found, slow_counts(matrix))
        if kurtosis is None:
            self.assertIsNone(found["kurtosis"])
        else:  # the subtraction of 3 may cancel
            self.assertAlmostEqual(found["kurtosis"], kurtosis, delta=1e-14 * (kurtosis + 3))
        for name, spread in spreads.items():
            if spread is None:
                self.assertIsNone(found[name])
            else:  # small deviations have the rounding of the norms
                self.assertAlmostEqual(found[name], spread, delta=1e-14 * (1 + spread))

    def test_on_adversarial_matrices_of_every_dtype(self) -> None:
        for dtype in DTYPES:
            for name, matrix in adversarial_matrices(dtype).items():
                with self.subTest(dtype=dtype, matrix=name):
                    self.check(matrix, 1e-12)

    def test_without_eps(self) -> None:
        for dtype in DTYPES:
            for name in ("normal", "at the limit", "constant"):
                with self.subTest(dtype=dtype, matrix=name):
                    self.check(adversarial_matrices(dtype)[name], 0.0)

    def test_on_float64_of_every_exponent(self) -> None:
        draw = np.random.default_rng(8)
        signs = np.where(draw.random((6, 64)) < 0.5, -1.0, 1.0)
        for exponent in (-1023, -1000, -700, -600, -512, -500, 500, 511, 512, 700, 1000, 1023):
            with self.subTest(exponent=exponent):
                self.check(np.ldexp(draw.random((6, 64)) * signs, exponent), 0.0)

    def test_on_float64_denormals_of_every_width(self) -> None:
        draw = np.random.default_rng(9)
        for bits in (1, 2, 3, 8, 24, 47, 48, 49, 51, 52):
            matrix = draw.integers(1, 2**bits, (6, 64)).astype(np.uint64).view(np.float64)
            matrix[1] = 0.0
            with self.subTest(bits=bits):
                self.check(matrix, 1e-12)

    def test_on_float64_rows_of_very_different_size(self) -> None:
        matrix = np.random.default_rng(10).normal(size=(5, 64))
        for row, exponent in ((0, 300), (1, -150), (2, -150), (4, 310)):
            matrix[row] = np.ldexp(matrix[row], exponent)
        matrix[:, 7] = np.ldexp(matrix[:, 7], -70)
        self.check(np.ldexp(matrix, -20), 0.0)
        self.check(np.ldexp(matrix, 700), 0.0)
        self.check(np.ldexp(matrix, -1000), 1e-12)

    def test_without_a_ratio_to_a_median_that_is_nothing_beside_the_largest(self) -> None:
        matrix = np.random.default_rng(11).normal(size=(5, 32))
        matrix[4] = np.ldexp(matrix[4], 500)
        found = meter_matrix(matrix, make_settings())[0].values
        self.assertIsNone(found["row_norm_max_over_median"])
        self.assertAlmostEqual(found["row_norm_cv"], 2.0, places=14)  # type: ignore[arg-type]

    def test_sums_of_many_rows(self) -> None:
        matrix = normal_matrix(600, 3, "float32", sigma=0.02)  # columns are emptied twice
        self.check(matrix, 1e-12)


class NormsOfFloat64(unittest.TestCase):
    def test_are_exact_or_count_as_zero(self) -> None:
        # The square of the last is a subnormal number: the quotient would be wrong by 1e-5.
        last = 1.37 * 2.0**-530
        for small, expected in ((2.0**-300, 2.0**300), (2.0**-470, 2.0**470), (last, None)):
            matrix = matrix_of([[1.0], [small], [small]], "float64")
            with self.subTest(small=small):
                values = meter_matrix(matrix, make_settings())[0].values
                self.assertEqual(values["row_norm_max_over_median"], expected)


class Constants(unittest.TestCase):
    def test_have_their_value_as_mean_and_no_deviation(self) -> None:
        for dtype in DTYPES:
            for value in (0.1, -3e-5, 1000.3, 0.0):
                matrix = matrix_of([[value] * 77] * 31, dtype)
                found, _passes = meter_matrix(matrix, make_settings())
                with self.subTest(dtype=dtype, value=value):
                    self.assertEqual(found.values["mean"], float(matrix[0, 0]))
                    self.assertEqual(found.values["mean_abs"], abs(float(matrix[0, 0])))
                    self.assertEqual(found.values["std"], 0.0)
                    self.assertEqual(found.values["row_norm_cv"], None if value == 0 else 0.0)
                    self.assertIsNone(found.values["kurtosis"])
                    self.assertTrue(found.is_constant)

    def test_have_no_norm_beyond_their_value(self) -> None:
        # Numbers whose square, added up, divided again and rooted, rounds to the next one.
        for dtype, text, n in (
            ("float32", "0x1.9a794ep+0", 55),
            ("float64", "0x1.8b016cd9d2b7dp+0", 59),
        ):
            value = float.fromhex(text)
            squares = float(n * Fraction(value) ** 2)
            self.assertGreater(math.sqrt(squares / n), value)
            found = meter_matrix(matrix_of([[value] * n], dtype), make_settings())[0].values
            self.assertEqual([found["rms"], found["crest"]], [value, 1.0])

    def test_have_the_same_bits(self) -> None:
        for dtype in DTYPES:
            for rows in ([[0.0, -0.0]], [[1.0, 1.0], [1.0, 2.0]]):
                found, _passes = meter_matrix(matrix_of(rows, dtype), make_settings())
                self.assertFalse(found.is_constant)
            nan = np.full((3, 4), np.nan).astype(DTYPES[dtype])
            found, n_passes = meter_matrix(nan, make_settings())
            self.assertEqual((found.is_constant, found.n_nan, n_passes), (True, 12, 1))


class Blocks(unittest.TestCase):
    def check(self, matrix: np.ndarray, **options: Any) -> None:
        settings = make_settings(group_sizes=(2, 32), percentiles_abs=(12.5,))
        expected, n_passes = meter_matrix(matrix, settings, **options)
        for heights in ((1,), (2, 3), (7,), (64, 1)):
            found = meter_matrix(matrix, settings, heights, **options)
            self.assertEqual(found, (expected, n_passes))

    def test_change_no_bit(self) -> None:
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                self.check(normal_matrix(300, 64, dtype))
                self.check(adversarial_matrices(dtype)["cancelling"])

    def test_change_no_bit_when_ratios_are_not_kept(self) -> None:
        for dtype in DTYPES:
            with self.subTest(dtype=dtype):
                self.check(normal_matrix(70, 64, dtype), most_kept_ratios=100)

    def test_change_no_bit_of_samples(self) -> None:
        drawn = np.random.default_rng(3).choice(40 * 64, size=200, replace=False)
        for dtype in DTYPES:
            self.check(normal_matrix(40, 64, dtype), sampled=drawn)

    def test_that_are_empty_or_cannot_be_written_to_are_fine(self) -> None:
        matrix = normal_matrix(4, 32)
        meter = MatrixMeter(4, 32, matrix.dtype, make_settings())
        frozen = matrix[:3].copy()
        frozen.setflags(write=False)
        for block in (matrix[:0], frozen, matrix[:0], matrix[3:]):
            meter.add(block)
        for block in (matrix[:0], frozen, matrix[3:]):
            meter.add_again(block)
        self.assertEqual(meter.finish(), meter_matrix(matrix, make_settings())[0])


class Passes(unittest.TestCase):
    def passes(self, matrix: np.ndarray, **options: Any) -> int:
        return meter_matrix(matrix, make_settings(), **options)[1]

    def test_are_one_for_16_bits_and_two_for_wider_types(self) -> None:
        found = [self.passes(normal_matrix(32, 64, dtype)) for dtype in DTYPES]
        self.assertEqual(found, [1, 1, 2, 2])

    def test_are_more_when_ratios_are_not_kept(self) -> None:
        found = [self.passes(normal_matrix(32, 64, dtype), most_kept_ratios=10) for dtype in DTYPES]
        self.assertEqual(found, [2, 2, 2, 3])

    def test_give_the_same_ratios_kept_or_not(self) -> None:
        for dtype in DTYPES:
            matrix = normal_matrix(32, 64, dtype)
            kept = meter_matrix(matrix, make_settings())[0]
            self.assertEqual(meter_matrix(matrix, make_settings(), most_kept_ratios=0)[0], kept)

    def test_that_show_other_rows_are_refused(self) -> None:
        matrix = normal_matrix(8, 32)
        meter = MatrixMeter(8, 32, matrix.dtype, make_settings())
        meter.add(matrix)
        with self.assertRaises(ValueError) as caught:
            meter.add_again(matrix * 64)
        self.assertEqual(
            str(caught.exception), "the rows of a later pass are not those of the first"
        )


class Codes(unittest.TestCase):
    def test_are_counted_whatever_their_width(self) -> None:
        matrix = normal_matrix(2, 32)
        for codes in (
            [np.array([1, 1, 255], dtype=np.uint8), np.array([[7, 1]], dtype=np.uint8)],
            [np.array([-1, 1, -1, 5], dtype=np.int8)],
            [np.array([1, 40_000, 65_535, 1], dtype=np.uint16)],
        ):
            meter = MatrixMeter(2, 32, matrix.dtype, make_settings())
            meter.add(matrix)
            meter.add_again(matrix)
            for part in codes:
                part.setflags(write=False)
                meter.add_codes(part)
            self.assertEqual(meter.finish().values["n_distinct"], 3)

    def test_of_more_than_two_bytes_are_refused(self) -> None:
        meter = MatrixMeter(1, 1, np.dtype(np.float32), make_settings())
        with self.assertRaises(TypeError) as caught:
            meter.add_codes(np.zeros(3, dtype=np.int32))
        self.assertEqual(
            str(caught.exception),
            "codes of type int32 are too many to tell apart; give codes of one or two bytes",
        )


class Finish(unittest.TestCase):
    def test_gives_the_same_numbers_again(self) -> None:
        meter = MatrixMeter(2, 3, np.dtype(np.float16), make_settings())
        meter.add(normal_matrix(2, 3, "float16"))
        self.assertEqual(meter.finish(), meter.finish())


class Misuse(unittest.TestCase):
    def setUp(self) -> None:
        self.meter = MatrixMeter(2, 4, np.dtype(np.float32), make_settings())
        self.block = np.ones((1, 4), dtype=np.float32)

    def assert_refused(self, message: str, call: Any, *arguments: Any) -> None:
        with self.assertRaises((ValueError, TypeError)) as caught:
            call(*arguments)
        self.assertEqual(str(caught.exception), message)

    def test_is_refused(self) -> None:
        settings, dtype = make_settings(), np.dtype(np.float32)
        self.assert_refused(
            "a matrix (0, 4) has nothing to measure", MatrixMeter, 0, 4, dtype, settings
        )
        self.assert_refused(
            "dtype int8 cannot be measured; give one of bfloat16, float16, float32, float64",
            MatrixMeter, 1, 4, np.dtype(np.int8), settings,
        )  # fmt: skip
        self.assert_refused(
            "a block (1, 3) of float32 does not fit a matrix (2, 4) of float32",
            self.meter.add, self.block[:, :3],
        )  # fmt: skip
        self.assert_refused(
            "a block (1, 4) of float64 does not fit a matrix (2, 4) of float32",
            self.meter.add, self.block.astype(np.float64),
        )  # fmt: skip
        self.assert_refused(
            "3 rows were given to a matrix of 2", self.meter.add, np.ones((3, 4), np.float32)
        )

    def test_of_the_order_is_refused(self) -> None:
        meter, block = self.meter, self.block
        meter.add(block)
        self.assert_refused("only 1 of 2 rows were added", meter.finish)
        self.assert_refused("the matrix needs no further pass", meter.add_again, block)
        meter.add(block)
        self.assert_refused(
            "all rows were added already; further passes use add_again", meter.add, block
        )
        self.assert_refused("the matrix needs another pass", meter.finish)
