from __future__ import annotations

import unittest
from typing import Any

import numpy as np

from tests.support.matrices import DTYPES, make_settings, normal_matrix
from tests.support.slow_fingerprint import slow_fingerprint
from tests.support.slow_measures import meter_matrix

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

quick = settings(max_examples=60, deadline=None, database=None, derandomize=True)
UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def fingerprint(matrix: np.ndarray, heights: tuple[int, ...] = (10**9,)) -> str:
    return meter_matrix(matrix, make_settings(), heights)[0].fingerprint


@st.composite
def matrices(draw: Any) -> np.ndarray:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    rows, cols = draw(st.tuples(st.integers(1, 5), st.integers(1, 70)))
    return normal_matrix(rows, cols, dtype, seed=draw(st.integers(0, 2**16)))


class Fingerprints(unittest.TestCase):
    @quick
    @given(matrices())
    def test_equal_the_slow_loop(self, matrix: np.ndarray) -> None:
        self.assertEqual(fingerprint(matrix), slow_fingerprint(matrix))

    def test_equal_the_slow_loop_over_long_rows(self) -> None:
        for cols in (4096, 4099, 9001):
            matrix = normal_matrix(2, cols, "bfloat16")
            self.assertEqual(fingerprint(matrix), slow_fingerprint(matrix))

    @quick
    @given(matrices(), st.data())
    def test_tell_a_flipped_bit(self, matrix: np.ndarray, data: st.DataObject) -> None:
        changed = matrix.copy()
        bits = changed.reshape(-1).view(UNSIGNED[matrix.dtype.itemsize])
        place = data.draw(st.integers(0, bits.size - 1))
        bits[place] ^= bits.dtype.type(1 << data.draw(st.integers(0, 8 * bits.itemsize - 1)))
        self.assertNotEqual(fingerprint(changed), fingerprint(matrix))

    @quick
    @given(matrices(), st.data())
    def test_tell_elements_that_changed_places(
        self, matrix: np.ndarray, data: st.DataObject
    ) -> None:
        order = data.draw(st.permutations(range(matrix.size)))
        changed = np.ascontiguousarray(matrix.reshape(-1)[order].reshape(matrix.shape))
        same = changed.tobytes() == matrix.tobytes()
        self.assertEqual(fingerprint(changed) == fingerprint(matrix), same)

    @quick
    @given(matrices())
    def test_tell_signs_rows_and_shapes(self, matrix: np.ndarray) -> None:
        rows, cols = matrix.shape
        others = [-matrix, np.ascontiguousarray(matrix.T), matrix.reshape(1, -1)]
        others += [np.ascontiguousarray(matrix[::-1]), np.ascontiguousarray(matrix[:, ::-1])]
        found = fingerprint(matrix)
        for other in others:
            same = other.shape == (rows, cols) and other.tobytes() == matrix.tobytes()
            self.assertEqual(fingerprint(other) == found, same)

    @quick
    @given(matrices(), st.lists(st.integers(1, 3), min_size=1, max_size=3))
    def test_do_not_see_blocks(self, matrix: np.ndarray, heights: list[int]) -> None:
        self.assertEqual(fingerprint(matrix, tuple(heights)), fingerprint(matrix))

    def test_differ_between_zeros_of_different_shapes(self) -> None:
        shapes = [(r, c) for r in range(1, 9) for c in range(1, 9)]
        found = {fingerprint(np.zeros(shape, dtype=np.float16)) for shape in shapes}
        self.assertEqual(len(found), len(shapes))

    def test_spread_over_all_bits(self) -> None:
        texts = [fingerprint(normal_matrix(2, 8, "float16", seed=k)) for k in range(256)]
        ones = np.sum([[int(bit) for bit in f"{int(text, 16):0128b}"] for text in texts], axis=0)
        self.assertGreater(int(ones.min()), 80)  # 6 standard deviations below one half
        self.assertLess(int(ones.max()), 176)
