from __future__ import annotations

import unittest

from moe_weights.measure.metric_table import metric_columns
from moe_weights.measure.settings import ADDITIVE_METRICS
from tests.support.matrices import (
    DTYPES,
    SIXTEEN_BIT,
    make_settings,
    matrix_of,
    measure,
    normal_matrix,
)


class MetricColumns(unittest.TestCase):
    def test_are_the_fixed_ones_then_group_ratios_then_additive_ones(self) -> None:
        settings = make_settings(
            group_sizes=(16,), group_outlier_percentile=99.9, percentiles_abs=(99.5,)
        )
        self.assertEqual(
            [column.name for column in metric_columns(settings)],
            ["mean", "std", "mean_abs", "rms", "max_abs", "p50_abs", "p99_abs", "p999_abs",
             "outlier_max_over_mean", "outlier_p99_over_median", "outlier_p999_over_median",
             "g16_p99_9_outlier", "g16_max_outlier", "p99_5_abs", *ADDITIVE_METRICS],
        )  # fmt: skip

    def test_leave_out_additive_ones_that_are_not_chosen(self) -> None:
        chosen = frozenset({"frobenius", "crest"})
        names = [column.name for column in metric_columns(make_settings(metrics=chosen))]
        self.assertEqual(names[-3:], ["g64_max_outlier", "crest", "frobenius"])
        self.assertEqual(list(measure(matrix_of([[1.0]]), metrics=chosen)), names)

    def test_say_what_they_mean_and_in_which_unit(self) -> None:
        for column in metric_columns(make_settings(percentiles_abs=(99.5,))):
            with self.subTest(column=column.name):
                self.assertTrue(column.meaning)
                self.assertIn(column.unit, ("weight", "relative", "elements", "codes"))

    def test_all_have_a_value_for_every_matrix(self) -> None:
        settings = make_settings(percentiles_abs=(99.5,))
        names = {column.name for column in metric_columns(settings)}
        for dtype in DTYPES:
            for matrix in (normal_matrix(4, 64, dtype), matrix_of([[float("nan")]], dtype)):
                self.assertEqual(set(measure(matrix, percentiles_abs=(99.5,))), names)

    def test_hold_plain_python_numbers(self) -> None:
        for dtype in DTYPES:
            for name, cell in measure(normal_matrix(4, 64, dtype)).items():
                if name == "n_distinct" and dtype not in SIXTEEN_BIT:
                    self.assertIsNone(cell)
                else:
                    self.assertIs(type(cell), int if name.startswith("n_") else float, name)


class Repeating(unittest.TestCase):
    def test_gives_identical_numbers(self) -> None:
        matrix = normal_matrix(64, 64)
        self.assertEqual(measure(matrix), measure(matrix.copy()))

    def test_leaves_the_matrix_as_it_was(self) -> None:
        for dtype in DTYPES:
            matrix = normal_matrix(4, 64, dtype)
            before = matrix.tobytes()
            matrix.setflags(write=False)
            measure(matrix)
            self.assertEqual(matrix.tobytes(), before)
