from __future__ import annotations

import unittest

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.extract.shape_check import ShapeVerdict, judge_shape


def judge(proj: str, rows: int, cols: int, hidden: int | None = 8, *widths: int) -> str:
    dimensions = ExpertDimensions(hidden_size=hidden, expert_widths=widths, n_experts=None)
    return judge_shape(proj, rows, cols, dimensions)


class Verdicts(unittest.TestCase):
    def test_gate_and_up_read_the_hidden_state_and_down_writes_it(self) -> None:
        for proj in ("gate_proj", "up_proj"):
            self.assertEqual(judge(proj, 6, 8, 8, 6), ShapeVerdict.CONFIRMED)
            self.assertEqual(judge(proj, 8, 6, 8, 6), ShapeVerdict.TRANSPOSED)
        self.assertEqual(judge("down_proj", 8, 6, 8, 6), ShapeVerdict.CONFIRMED)
        self.assertEqual(judge("down_proj", 6, 8, 8, 6), ShapeVerdict.TRANSPOSED)

    def test_a_shape_that_fits_both_ways_is_ambiguous(self) -> None:
        self.assertEqual(judge("gate_proj", 8, 8, 8, 8), ShapeVerdict.AMBIGUOUS)
        self.assertEqual(judge("down_proj", 8, 8, 8, 4, 8), ShapeVerdict.AMBIGUOUS)

    def test_an_unknown_width_is_not_held_against_a_shape(self) -> None:
        self.assertEqual(judge("gate_proj", 5, 8), ShapeVerdict.CONFIRMED)
        self.assertEqual(judge("gate_proj", 8, 5), ShapeVerdict.TRANSPOSED)
        self.assertEqual(judge("gate_proj", 8, 8), ShapeVerdict.AMBIGUOUS)
        self.assertEqual(judge("gate_proj", 5, 5), ShapeVerdict.CONTRADICTED)

    def test_a_wrong_width_or_hidden_size_contradicts(self) -> None:
        self.assertEqual(judge("gate_proj", 5, 8, 8, 6), ShapeVerdict.CONTRADICTED)
        self.assertEqual(judge("gate_proj", 6, 9, 8, 6), ShapeVerdict.CONTRADICTED)

    def test_nothing_is_said_without_a_hidden_size_or_about_other_projections(self) -> None:
        self.assertEqual(judge("gate_proj", 6, 8, None, 6), ShapeVerdict.SILENT)
        self.assertEqual(judge("qkv", 6, 8, 8, 6), ShapeVerdict.SILENT)
