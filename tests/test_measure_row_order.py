from __future__ import annotations

import unittest

import numpy as np

from moe_weights.compiled import kernel
from moe_weights.measure.float_format import FORMATS
from moe_weights.measure.row_order import RowOrder, column_squares, make_row_order, order_row
from tests.support.matrices import DTYPES, normal_matrix

_NOTHING = np.zeros(0, dtype=np.int64)


@kernel
def _order(block: np.ndarray, order: RowOrder, nothing: np.ndarray) -> None:  # pragma: no cover
    for r in range(len(block)):
        order_row(block[r], r, order, nothing)


def folded(lanes: np.ndarray) -> float:
    """Add lane i to lane i + half until one is left."""
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


class Chunks(unittest.TestCase):
    def test_are_the_longest_that_all_groups_consist_of(self) -> None:
        number_format = FORMATS["bfloat16"]
        chunks = {
            (): 64, (32, 64): 32, (16,): 16, (128,): 128, (48, 64): 16, (7,): 7, (8, 12): 4,
            (4096,): 512, (1,): 1, (1021,): 1, (6 * 521,): 6, (96, 160): 32,
        }  # fmt: skip
        for sizes, chunk in chunks.items():
            order = make_row_order(1, 10, sizes, number_format)
            with self.subTest(sizes=sizes):
                self.assertEqual(order.chunk, chunk)

    def test_are_added_in_sixteen_lanes_and_then_as_a_tree(self) -> None:
        for dtype in DTYPES:
            for size in (16, 32, 64, 24, 5):
                matrix = normal_matrix(3, 2 * size * 3, dtype)
                bits = FORMATS[dtype].bits_of(matrix)
                order = make_row_order(*matrix.shape, (size,), FORMATS[dtype])
                _order(bits, order, _NOTHING)
                magnitudes = np.abs(matrix[-1].astype(np.float64))
                groups = magnitudes.reshape(-1, size)
                padded = np.zeros((len(groups), -(-size // 16) * 16))
                padded[:, :size] = groups
                sums = []
                for group in padded.reshape(len(groups), -1, 16):
                    lanes = np.zeros(16)
                    for part in group:
                        lanes = lanes + part
                    sums.append(folded(lanes))
                with self.subTest(dtype=dtype, size=size):
                    self.assertEqual(order.chunks[0].tolist(), sums)
                    self.assertEqual(order.chunks[1].tolist(), groups.max(axis=1).tolist())


class Squares(unittest.TestCase):
    def test_are_those_of_rows_and_columns(self) -> None:
        for dtype in DTYPES:
            for shape in ((2, 1), (5, 15), (600, 33), (3, 130)):
                matrix = normal_matrix(*shape, dtype)
                order = make_row_order(*shape, (), FORMATS[dtype], square_scale=1.0)
                _order(FORMATS[dtype].bits_of(matrix), order, _NOTHING)
                squares = matrix.astype(np.float64) ** 2
                with self.subTest(dtype=dtype, shape=shape):
                    np.testing.assert_allclose(order.row_squares, squares.sum(axis=1), rtol=1e-14)
                    found = column_squares(order, shape[1])
                    np.testing.assert_allclose(found, squares.sum(axis=0), rtol=1e-14)
