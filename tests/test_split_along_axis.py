from __future__ import annotations

import unittest

import numpy as np

from moe_weights.errors import PackedSplitError
from moe_weights.extract.packed_split import split_along_axis

ROWS_OF_FIVE = np.arange(10).reshape(5, 2)


class Splitting(unittest.TestCase):
    def test_cuts_consecutive_parts_in_order(self) -> None:
        first, second = split_along_axis(ROWS_OF_FIVE, 0, [2, 3])
        np.testing.assert_array_equal(first, [[0, 1], [2, 3]])
        np.testing.assert_array_equal(second, [[4, 5], [6, 7], [8, 9]])

    def test_counts_a_negative_axis_from_the_end(self) -> None:
        left, right = split_along_axis(ROWS_OF_FIVE, -1, [1, 1])
        np.testing.assert_array_equal(left[:, 0], [0, 2, 4, 6, 8])
        np.testing.assert_array_equal(right[:, 0], [1, 3, 5, 7, 9])
        (same,) = split_along_axis(ROWS_OF_FIVE, -2, [5])
        np.testing.assert_array_equal(same, ROWS_OF_FIVE)

    def test_gives_views_without_a_copy(self) -> None:
        parts = split_along_axis(ROWS_OF_FIVE, 0, [1, 4])
        self.assertEqual(len(parts), 2)
        for part in parts:
            self.assertTrue(np.shares_memory(part, ROWS_OF_FIVE))

    def test_leaves_the_other_axes_whole(self) -> None:
        bank = np.zeros((2, 3, 6, 4))
        shapes = [part.shape for part in split_along_axis(bank, 2, [1, 5])]
        self.assertEqual(shapes, [(2, 3, 1, 4), (2, 3, 5, 4)])


class Refusals(unittest.TestCase):
    def refusal(self, axis: object, sizes: object) -> str:
        with self.assertRaises(PackedSplitError) as caught:
            split_along_axis(ROWS_OF_FIVE, axis, sizes)  # type: ignore[arg-type]
        return str(caught.exception)

    def test_an_axis_that_is_no_integer(self) -> None:
        self.assertEqual(self.refusal("rows", [5]), "axis 'rows' is not an integer")
        self.assertEqual(self.refusal(1.0, [2]), "axis 1.0 is not an integer")
        self.assertEqual(self.refusal(True, [2]), "axis True is not an integer")

    def test_an_axis_out_of_range(self) -> None:
        for axis in (2, -3):
            self.assertEqual(
                self.refusal(axis, [5]), f"axis {axis} is out of range for an array of 2 axes"
            )

    def test_no_sizes(self) -> None:
        self.assertEqual(self.refusal(0, []), "splits is empty; give one size per projection")

    def test_a_size_that_is_no_integer(self) -> None:
        self.assertEqual(self.refusal(0, [2.0, 3]), "split size 2.0 is not an integer")
        self.assertEqual(self.refusal(0, [True, 4]), "split size True is not an integer")

    def test_a_size_of_zero_or_less(self) -> None:
        self.assertEqual(self.refusal(0, [5, 0]), "split size 0 is not positive")
        self.assertEqual(self.refusal(0, [6, -1]), "split size -1 is not positive")

    def test_sizes_that_do_not_sum_to_the_axis_naming_both_numbers(self) -> None:
        self.assertEqual(self.refusal(0, [2, 2]), "splits [2, 2] sum to 4, the axis has 5")
        self.assertEqual(self.refusal(-1, [2, 2]), "splits [2, 2] sum to 4, the axis has 2")

    def test_any_split_of_a_scalar(self) -> None:
        with self.assertRaises(PackedSplitError) as caught:
            split_along_axis(np.array(1.0), 0, [1])
        self.assertEqual(str(caught.exception), "axis 0 is out of range for an array of 0 axes")


if __name__ == "__main__":
    unittest.main()
