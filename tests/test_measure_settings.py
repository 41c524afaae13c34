from __future__ import annotations

import unittest

from moe_weights.measure.settings import extra_percentile_columns, percentile_text


class PercentileNames(unittest.TestCase):
    def test_drop_the_point_of_whole_numbers(self) -> None:
        self.assertEqual(
            [percentile_text(p) for p in (95, 95.0, 0.0, 100.0)], ["95", "95", "0", "100"]
        )

    def test_keep_every_digit_of_fractions(self) -> None:
        self.assertEqual(
            [percentile_text(p) for p in (99.9, 12.5, 99.95, 0.1)],
            ["99_9", "12_5", "99_95", "0_1"],
        )


class ExtraPercentiles(unittest.TestCase):
    def test_leave_out_the_three_fixed_ones_and_repeats(self) -> None:
        asked = (99.9, 99.5, 50.0, 1.0, 99.5, 99.0)
        self.assertEqual(extra_percentile_columns(asked), {"p99_5_abs": 99.5, "p1_abs": 1.0})
