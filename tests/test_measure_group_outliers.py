from __future__ import annotations

import tracemalloc
import unittest
import warnings

import numpy as np

from moe_weights.measure.metric_table import group_outlier_columns
from tests.support.matrices import (
    DTYPES,
    assert_close,
    make_settings,
    matrix_of,
    measure,
    normal_matrix,
)
from tests.support.reference import slow_group_ratios
from tests.support.slow_measures import meter_matrix


class GroupRatios(unittest.TestCase):
    def test_run_along_the_columns_of_each_row(self) -> None:
        matrix = matrix_of([[1, 3, 1, 1], [2, 2, 0, 8]])
        found = measure(matrix, group_sizes=(2, 4), eps=0.0, group_outlier_percentile=50.0)
        self.assertEqual([found["g2_p50_outlier"], found["g2_max_outlier"]], [1.25, 2.0])
        expected = {"g4_p50_outlier": (2 + 8 / 3) / 2, "g4_max_outlier": 8 / 3}
        assert_close(self, found, expected, relative=1e-15)

    def test_equal_the_slow_loop_and_numpys_percentile(self) -> None:
        for dtype in DTYPES:
            matrix = normal_matrix(9, 192, dtype)
            for size in (1, 2, 3, 32, 64, 192):
                ratios = [float(ratio) for ratio in slow_group_ratios(matrix, size, 1e-12)]
                expected = {
                    f"g{size}_p99_9_outlier": float(np.percentile(ratios, 99.9)),
                    f"g{size}_max_outlier": max(ratios),
                }
                found = measure(matrix, group_sizes=(size,), group_outlier_percentile=99.9)
                with self.subTest(dtype=dtype, size=size):
                    assert_close(self, found, expected, relative=1e-14)

    def test_cover_matrices_of_several_blocks(self) -> None:
        matrix = np.ones((3, 2**20), dtype=np.float16)
        matrix[2, -1] = 3.0
        found = measure(matrix, group_sizes=(2,), eps=0.0)
        self.assertEqual([found["g2_p95_outlier"], found["g2_max_outlier"]], [1.0, 1.5])

    def test_add_eps_to_the_mean(self) -> None:
        found = measure(matrix_of([[1.0, 3.0]]), group_sizes=(2,), eps=1.0)
        self.assertEqual(found["g2_max_outlier"], 1.0)

    def test_near_the_limits_of_float64_stay_exact(self) -> None:
        for value in (1.7e308, 1e-300):
            with self.subTest(value=value), warnings.catch_warnings():
                warnings.simplefilter("error")
                matrix = matrix_of([[value] * 32, [value] * 31 + [0.0]], "float64")
                found = measure(matrix, group_sizes=(32,), eps=0.0)
                assert_close(self, found, {"g32_max_outlier": 32 / 31})

    def test_of_equal_size_are_not_held_twice(self) -> None:
        matrix = np.ones((2048, 1024), dtype=np.float16)
        measure(matrix[:1], group_sizes=(1,))  # kernels are loaded, tables made
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        found = measure(matrix, group_sizes=(1,), eps=0.0)
        self.assertEqual((found["g1_p95_outlier"], found["g1_max_outlier"]), (1.0, 1.0))
        copy_nbytes, ratios_nbytes = matrix.nbytes, 8 * matrix.size
        self.assertLess(
            tracemalloc.get_traced_memory()[1] - copy_nbytes, ratios_nbytes + 10 * 2**20
        )


class UndefinedRatios(unittest.TestCase):
    def test_are_null_where_the_size_does_not_divide_the_columns(self) -> None:
        found = measure(matrix_of([[1.0, 2.0, 3.0]]), group_sizes=(2, 6, 3))
        self.assertIsNone(found["g2_p95_outlier"])
        self.assertIsNone(found["g2_max_outlier"])
        self.assertIsNone(found["g6_max_outlier"])
        self.assertIsNotNone(found["g3_max_outlier"])

    def test_are_null_for_sizes_that_are_not_positive(self) -> None:
        found = measure(matrix_of([[1.0, 2.0]]), group_sizes=(0, -2))
        for name in ("g0_p95_outlier", "g0_max_outlier", "g-2_p95_outlier", "g-2_max_outlier"):
            self.assertIsNone(found[name])

    def test_are_null_for_a_zero_group_without_eps_and_zero_with_it(self) -> None:
        matrix = matrix_of([[0.0, 0.0, 1.0, 1.0]])
        self.assertIsNone(measure(matrix, group_sizes=(2,), eps=0.0)["g2_max_outlier"])
        zero = matrix_of([[0.0, 0.0]])
        self.assertEqual(measure(zero, group_sizes=(2,))["g2_max_outlier"], 0.0)

    def test_are_null_in_float64_where_the_bits_of_a_denominator_are_lost(self) -> None:
        # Sums are lowered by 2**64 where they might overflow: 1e-303 would keep twelve bits.
        matrix = matrix_of([[1e300, 2e300], [1e-303, 3e-303]], "float64")
        for eps in (0.0, 1e-303):
            for kept in (10, 0):
                settings = make_settings(group_sizes=(2,), eps=eps)
                found = meter_matrix(matrix, settings, most_kept_ratios=kept)[0].values
                self.assertIsNone(found["g2_p95_outlier"])
                self.assertIsNone(found["g2_max_outlier"])
        found = measure(matrix, group_sizes=(2,), eps=1e-280, group_outlier_percentile=0.0)
        assert_close(self, found, {"g2_p0_outlier": 3e-23, "g2_max_outlier": 4 / 3})
        found = measure(matrix_of([[1e300, 0.0, 0.0, 0.0]], "float64"), group_sizes=(2,))
        self.assertEqual(found["g2_max_outlier"], 2.0)


class Columns(unittest.TestCase):
    def names(self, **changes: object) -> list[str]:
        return [column.name for column in group_outlier_columns(make_settings(**changes))]

    def test_of_the_template(self) -> None:
        self.assertEqual(
            self.names(),
            ["g32_p95_outlier", "g32_max_outlier", "g64_p95_outlier", "g64_max_outlier"],
        )

    def test_spell_a_fractional_percentile_out(self) -> None:
        self.assertEqual(
            self.names(group_sizes=(16,), group_outlier_percentile=99.9),
            ["g16_p99_9_outlier", "g16_max_outlier"],
        )

    def test_are_absent_without_sizes(self) -> None:
        self.assertEqual(self.names(group_sizes=()), [])
