from __future__ import annotations

import unittest

import numpy as np

from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.scratch import Scratch
from tests.support.matrices import make_settings, normal_matrix


class Arrays(unittest.TestCase):
    def test_are_made_once(self) -> None:
        scratch = Scratch()
        first = scratch.zeros("counts", (2, 3), np.int64)
        first += 7
        again = scratch.zeros("counts", (2, 3), np.int64)
        self.assertIs(again, first)
        self.assertFalse(again.any())
        self.assertIsNot(scratch.zeros("others", (2, 3), np.int64), first)

    def test_of_another_shape_or_type_are_made_anew(self) -> None:
        scratch = Scratch()
        first = scratch.empty("counts", (2, 3), np.int64)
        other = scratch.empty("counts", (3, 2), np.int64)
        self.assertEqual(other.shape, (3, 2))
        self.assertFalse(np.shares_memory(first, other))
        self.assertEqual(scratch.empty("counts", (3, 2), np.uint32).dtype, np.uint32)


class MatricesInOneScratch(unittest.TestCase):
    def test_leave_nothing_to_the_next_one(self) -> None:
        special = normal_matrix(6, 64, "bfloat16")
        special[1, :3] = [np.nan, np.inf, 0]
        matrices = [
            normal_matrix(6, 64, "bfloat16"), special, normal_matrix(5, 96, "float16"),
            normal_matrix(6, 64, "float32"), normal_matrix(6, 64, "float64"),
            np.zeros((64, 6), dtype=np.float32), normal_matrix(6, 64, "bfloat16"),
        ]  # fmt: skip
        scratch = Scratch()
        for number, matrix in enumerate(matrices):
            found = []
            for shared in (scratch, None):
                meter = MatrixMeter(*matrix.shape, matrix.dtype, make_settings(), scratch=shared)
                meter.add(matrix)
                while meter.needs_another_pass:
                    meter.add_again(matrix)
                found.append(meter.finish())
            with self.subTest(number=number):
                self.assertEqual(found[0], found[1])
