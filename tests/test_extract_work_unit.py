from __future__ import annotations

import unittest
from collections.abc import Sequence
from unittest import mock

from tests.support.extraction import make_header, make_rule, plan_headers


class UnitSizes(unittest.TestCase):
    BANK = make_header("experts.gate_proj.weight", (10, 4, 8))  # 64 bytes an expert

    def sizes(self, n_bytes: int, shape: Sequence[int] = (10, 4, 8)) -> list[int]:
        with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", n_bytes):
            plan = plan_headers([make_header("experts.gate_proj.weight", shape)])
        return [len(unit.matrices) for unit in plan.units]

    def test_a_bank_is_cut_where_the_next_expert_would_exceed_the_target(self) -> None:
        self.assertEqual(self.sizes(64 * 4), [4, 4, 2])
        self.assertEqual(self.sizes(64 * 4 - 1), [3, 3, 3, 1])
        self.assertEqual(self.sizes(64 * 10), [10])

    def test_a_matrix_above_the_target_is_a_unit_of_its_own(self) -> None:
        self.assertEqual(self.sizes(1), [1] * 10)

    def test_experts_that_share_bytes_are_read_once_however_small_the_target(self) -> None:
        rule = make_rule(".*", expert=1, rows=0, cols=2)
        with mock.patch("moe_weights.extract.work_unit.TARGET_UNIT_BYTES", 1):
            plan = plan_headers([self.BANK], {"extract_rules": [rule]})
        (unit,) = plan.units
        self.assertEqual((unit.start, unit.stop, len(unit.matrices)), (0, 320, 4))

    def test_by_default_a_unit_holds_sixteen_mebibytes(self) -> None:
        plan = plan_headers([make_header("experts.gate_proj.weight", (8, 1024, 4096))])
        self.assertEqual([unit.nbytes for unit in plan.units], [16 * 2**20] * 4)
