from __future__ import annotations

import unittest

from moe_weights.errors import LayoutError
from moe_weights.extract.layout import Layout, MatrixView


class BankPlaces(unittest.TestCase):
    def test_of_a_stored_bank_count_elements(self) -> None:
        bank = Layout(expert_axis=0, rows_axis=1, cols_axis=2).view((3, 4, 5))
        self.assertEqual((bank.offset, bank.lengths), (0, (1, 3, 4, 5)))
        self.assertEqual(bank.strides, (0, 20, 5, 1))
        self.assertEqual((bank.has_layer_axis, bank.has_expert_axis), (False, True))

    def test_of_layers_and_transposed_matrices(self) -> None:
        bank = Layout(layer_axis=1, expert_axis=0, rows_axis=3, cols_axis=2).view((2, 3, 4, 5))
        self.assertEqual((bank.lengths, bank.strides), ((3, 2, 5, 4), (20, 60, 1, 5)))
        self.assertTrue(bank.has_layer_axis)

    def test_in_fortran_order_let_the_first_axis_run_fastest(self) -> None:
        bank = Layout(rows_axis=0, cols_axis=1).view((4, 5), fortran_order=True)
        self.assertEqual((bank.lengths, bank.strides), ((1, 1, 4, 5), (0, 0, 1, 4)))

    def test_of_a_part_move_the_first_element(self) -> None:
        bank = Layout(rows_axis=0, cols_axis=1).view((4, 5))
        rows, cols = bank.part("rows", 1, 2), bank.part("cols", 2, 3)
        self.assertEqual((rows.offset, rows.lengths), (5, (1, 1, 2, 5)))
        self.assertEqual((cols.offset, cols.lengths), (2, (1, 1, 4, 3)))
        self.assertEqual(rows.part("cols", 2, 3), cols.part("rows", 1, 2))
        self.assertEqual(rows.part("cols", 2, 3).offset, 7)

    def test_of_an_interleaved_part_step_over_the_others(self) -> None:
        bank = Layout(expert_axis=0, rows_axis=1, cols_axis=2).view((2, 6, 5))
        rows = bank.part("rows", 1, 3, step=2)
        self.assertEqual((rows.offset, rows.lengths), (5, (1, 2, 3, 5)))
        self.assertEqual(rows.strides, (0, 30, 10, 1))
        cols = bank.part("cols", 0, 2, step=3)
        self.assertEqual((cols.offset, cols.lengths, cols.strides[3]), (0, (1, 2, 6, 2), 3))

    def test_of_experts_on_one_axis_make_an_axis_of_their_own(self) -> None:
        rows = Layout(rows_axis=0, cols_axis=1, stacked_experts_axis=0).view((6, 5), n_stacked=3)
        self.assertEqual((rows.lengths, rows.strides), ((1, 3, 2, 5), (0, 10, 5, 1)))
        self.assertTrue(rows.has_expert_axis)
        turned = Layout(rows_axis=1, cols_axis=0, stacked_experts_axis=0)
        cols = turned.view((6, 5), n_stacked=3)
        self.assertEqual((cols.lengths, cols.strides), ((1, 3, 5, 2), (0, 10, 1, 5)))


class MatrixPlaces(unittest.TestCase):
    def test_stop_after_the_last_element(self) -> None:
        view = MatrixView(offset=7, rows=3, cols=2, row_stride=10, col_stride=1)
        self.assertEqual(view.stop, 7 + 20 + 1 + 1)
        self.assertEqual(view.shifted(-7).stop, 22)


class Refusals(unittest.TestCase):
    def refusal(self, layout: Layout, shape: tuple[int, ...]) -> str:
        with self.assertRaises(LayoutError) as caught:
            layout.view(shape)
        return str(caught.exception)

    def test_too_few_axes(self) -> None:
        self.assertEqual(
            self.refusal(Layout(rows_axis=0, cols_axis=1), (1, 4, 5)),
            "layout axes [0, 1] do not cover ndim=3; name each of the 3 axes of shape [1, 4, 5] "
            "once",
        )

    def test_too_many_axes(self) -> None:
        self.assertEqual(
            self.refusal(Layout(expert_axis=0, rows_axis=1, cols_axis=2), (4, 5)),
            "layout axes [0, 1, 2] do not cover ndim=2; name each of the 2 axes of shape [4, 5] "
            "once",
        )

    def test_the_right_number_with_one_axis_twice(self) -> None:
        self.assertEqual(
            self.refusal(Layout(rows_axis=1, cols_axis=1), (4, 5)),
            "layout axes [1, 1] do not cover ndim=2; name each of the 2 axes of shape [4, 5] once",
        )

    def test_experts_on_one_axis_that_cannot_be_told_apart(self) -> None:
        layout = Layout(rows_axis=0, cols_axis=1, stacked_experts_axis=0)
        for n_stacked, message in (
            (
                None,
                (
                    "how many experts lie on stacked_experts_axis is unknown; give the rule "
                    "expert_count"
                ),
            ),
            (4, "axis of length 6 does not hold 4 experts of one size"),
            (7, "axis of length 6 does not hold 7 experts of one size"),
        ):
            with self.assertRaises(LayoutError) as caught:
                layout.view((6, 5), n_stacked=n_stacked)
            self.assertEqual(str(caught.exception), message)

    def test_experts_on_an_axis_of_their_own_and_on_another(self) -> None:
        layout = Layout(expert_axis=0, rows_axis=1, cols_axis=2, stacked_experts_axis=1)
        self.assertEqual(
            self.refusal(layout, (2, 6, 5)),
            "layout has both expert_axis and stacked_experts_axis; keep one",
        )

    def test_the_same_refusal_every_time(self) -> None:
        layout = Layout(rows_axis=0, cols_axis=1)
        for _again in range(2):
            self.assertEqual(
                self.refusal(layout, (4,)),
                "layout axes [0, 1] do not cover ndim=1; name each of the 1 axes of shape [4] once",
            )
