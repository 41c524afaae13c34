from __future__ import annotations

import math
import unittest
import warnings

import numpy as np

from moe_weights.measure.metric_table import magnitude_columns, percentile_columns
from moe_weights.measure.moments import ratio
from tests.support.matrices import (
    DTYPES,
    SIXTEEN_BIT,
    assert_close,
    make_settings,
    matrix_of,
    measure,
    normal_matrix,
)
from tests.support.reference import fractions_of, slow_mean, slow_statistics

FLOATS = [column.name for column in magnitude_columns()]


class PinnedFixture(unittest.TestCase):
    """The bank [[[-1, 0], [2, 3]], [[-1, -2], [4, 0]]], expert by expert."""

    def test_gives_the_pinned_numbers_in_every_dtype(self) -> None:
        experts = [[[-1.0, 0.0], [2.0, 3.0]], [[-1.0, -2.0], [4.0, 0.0]]]
        pinned = [
            {
                "mean": 1.0, "std": math.sqrt(2.5), "mean_abs": 1.5, "rms": math.sqrt(3.5),
                "max_abs": 3.0, "p50_abs": 1.5, "p99_abs": 2.97, "p999_abs": 2.997,
            },
            {
                "mean": 0.25, "std": math.sqrt(5.1875), "mean_abs": 1.75, "rms": math.sqrt(5.25),
                "max_abs": 4.0, "p50_abs": 1.5, "p99_abs": 3.94, "p999_abs": 3.994,
            },
        ]  # fmt: skip
        for dtype in DTYPES:
            for rows, expected in zip(experts, pinned, strict=True):
                assert_close(self, measure(matrix_of(rows, dtype)), expected, relative=1e-15)


class AgainstTheSlowLoop(unittest.TestCase):
    def check(self, dtype: str, sigma: float) -> None:
        matrix = normal_matrix(11, 64, dtype, sigma=sigma)
        expected = slow_statistics(matrix, eps=1e-12, group_sizes=(32, 64))
        assert_close(self, measure(matrix), expected)

    def test_every_dtype_at_every_scale(self) -> None:
        for dtype in DTYPES:
            for sigma in (1.0, 0.02, 1e-4):
                with self.subTest(dtype=dtype, sigma=sigma):
                    self.check(dtype, sigma)

    def test_float32_near_both_ends_of_its_range(self) -> None:
        self.check("float32", 1e37)
        self.check("float32", 1e-36)

    def test_float32_subnormals(self) -> None:
        self.check("float32", 1e-40)

    def test_float64_far_beyond_float32(self) -> None:
        self.check("float64", 1e300)
        self.check("float64", 1e-300)

    def test_a_mean_that_nearly_cancels(self) -> None:
        matrix = normal_matrix(8, 64, "float32", sigma=1.0)
        matrix[4:] = -matrix[:4]
        matrix[0, 0] += np.float32(1e-3)
        self.assertEqual(measure(matrix)["mean"], slow_mean(fractions_of(matrix)))

    def test_a_deviation_that_is_small_beside_the_mean(self) -> None:
        matrix = matrix_of([[1e16, 1e16 + 2], [1e16 + 2, 1e16 + 2]], "float64")
        self.assertEqual(measure(matrix)["std"], math.sqrt(0.75))

    def test_a_single_element(self) -> None:
        for dtype in DTYPES:
            found = measure(matrix_of([[-2.0]], dtype))
            self.assertEqual([found[name] for name in FLOATS[:8]], [-2.0, 0.0, *[2.0] * 6])


class Limits(unittest.TestCase):
    def test_of_each_dtype_do_not_overflow(self) -> None:
        for dtype in DTYPES.values():
            largest = float(np.finfo(dtype).max) if dtype.kind == "f" else 3.3895313892515355e38
            for signs in ([[1.0, 1.0, 1.0]], [[1.0, -1.0, 1.0]]):
                with self.subTest(dtype=dtype.name, signs=signs), warnings.catch_warnings():
                    warnings.simplefilter("error")
                    matrix = (np.array(signs) * largest).astype(dtype)
                    expected = slow_statistics(matrix, eps=1e-12, group_sizes=(3,))
                    assert_close(self, measure(matrix, group_sizes=(3,)), expected)

    def test_of_float64_keep_a_mean_that_cancels(self) -> None:
        matrix = matrix_of([[1e300, -1e300, 3e-20]], "float64")
        self.assertEqual(measure(matrix)["mean"], slow_mean(fractions_of(matrix)))

    def test_equal_elements_have_no_deviation(self) -> None:
        for dtype in DTYPES:
            for value in (0.1, 3e-5, 1000.3):
                found = measure(matrix_of([[value] * 7] * 3, dtype))
                self.assertEqual(found["std"], 0.0)
                self.assertEqual(found["mean"], found["max_abs"])
                self.assertEqual(found["p50_abs"], found["max_abs"])

    def test_zeros_of_either_sign_are_counted_and_give_zeros(self) -> None:
        for dtype in DTYPES:
            found = measure(matrix_of([[0.0, -0.0], [-0.0, -0.0]], dtype))
            self.assertEqual(found["n_zero"], 4)
            for name in FLOATS:
                self.assertEqual(str(found[name]), "0.0", name)


class NotFinite(unittest.TestCase):
    def test_makes_every_float_null_and_keeps_the_counts(self) -> None:
        rows = [[np.nan, 1.0, 0.0, np.inf], [-np.inf, np.nan, np.nan, 2.0]]
        for dtype in DTYPES:
            found = measure(matrix_of(rows, dtype), group_sizes=(2,), percentiles_abs=(25.0,))
            counts = {name: found.pop(name) for name in ("n_zero", "n_nan", "n_inf")}
            self.assertEqual(found.pop("n_denormal"), 0)
            self.assertEqual(found.pop("n_distinct"), 6 if dtype in SIXTEEN_BIT else None)
            with self.subTest(dtype=dtype):
                self.assertEqual(counts, {"n_zero": 1, "n_nan": 3, "n_inf": 2})
                self.assertEqual(set(found.values()), {None})
                self.assertIn("p25_abs", found)
                self.assertIn("g2_max_outlier", found)

    def test_gives_no_warning_not_even_for_signalling_nan(self) -> None:
        patterns = {
            "bfloat16": (np.uint16, 0x7F81),
            "float16": (np.uint16, 0x7C01),
            "float32": (np.uint32, 0x7F800001),
            "float64": (np.uint64, 0x7FF0000000000001),
        }
        for dtype, (integer, pattern) in patterns.items():
            matrix = np.array([[pattern, 0]], dtype=integer).view(DTYPES[dtype])
            with self.subTest(dtype=dtype), warnings.catch_warnings():
                warnings.simplefilter("error")
                self.assertEqual(measure(matrix)["n_nan"], 1)


class Ratios(unittest.TestCase):
    def test_add_eps_to_the_denominator(self) -> None:
        found = measure(matrix_of([[1.0, 1.0, 1.0, 5.0]]), eps=1.0)
        expected = {"outlier_max_over_mean": 5.0 / 3.0, "outlier_p99_over_median": 4.88 / 2.0}
        assert_close(self, found, expected)

    def test_without_a_denominator_are_null(self) -> None:
        found = measure(matrix_of([[0.0, 0.0, 0.0, 1.0]]), eps=0.0)
        self.assertIsNone(found["outlier_p99_over_median"])
        self.assertEqual(found["outlier_max_over_mean"], 4.0)

    def test_that_overflow_are_null(self) -> None:
        self.assertIsNone(ratio(1e300, 1e-300))


class Columns(unittest.TestCase):
    def test_stand_in_contract_order(self) -> None:
        self.assertEqual(
            FLOATS,
            ["mean", "std", "mean_abs", "rms", "max_abs", "p50_abs", "p99_abs", "p999_abs",
             "outlier_max_over_mean", "outlier_p99_over_median", "outlier_p999_over_median"],
        )  # fmt: skip

    def test_beyond_them_are_percentiles(self) -> None:
        settings = make_settings(percentiles_abs=(99.5, 50.0, 99.5, 10.0))
        names = [column.name for column in percentile_columns(settings)]
        self.assertEqual(names, ["p99_5_abs", "p10_abs"])

    def test_the_three_percentiles_are_written_whatever_is_asked_for(self) -> None:
        found = measure(matrix_of([[1.0, 2.0, 3.0]]), percentiles_abs=())
        self.assertEqual([found["p50_abs"], found["p99_abs"]], [2.0, 2.98])

    def test_extra_percentiles_equal_numpy(self) -> None:
        for dtype in DTYPES:
            matrix = normal_matrix(13, 17, dtype)
            found = measure(matrix, percentiles_abs=(99.5, 0.0, 100.0))
            values = np.abs(matrix.astype(np.float64))
            for name, percentile in (("p99_5_abs", 99.5), ("p0_abs", 0.0), ("p100_abs", 100.0)):
                self.assertEqual(found[name], np.percentile(values, percentile))
