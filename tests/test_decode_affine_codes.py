from __future__ import annotations

import unittest

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_weights.decode.affine_codes import checked_groups, known_groups, scale_integers
from moe_weights.errors import CheckpointError
from tests.support.slow_integers import per_block


class AgreesWithNumPy(unittest.TestCase):
    @settings(max_examples=200, deadline=None)
    @given(
        lead=st.lists(st.integers(1, 3), max_size=2),
        rows=st.integers(1, 9),
        cols=st.integers(1, 40),
        block=st.tuples(st.integers(1, 10), st.integers(1, 41)),
        form=st.sampled_from(["blocks", "one scale", "index", "index of entries"]),
        zeros=st.sampled_from(["none", "one", "many"]),
        is_signed=st.booleans(),
        has_biases=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_bit_for_bit(
        self,
        lead: list[int],
        rows: int,
        cols: int,
        block: tuple[int, int],
        form: str,
        zeros: str,
        is_signed: bool,
        has_biases: bool,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 256, (*lead, rows, cols), dtype=np.uint8)
        codes = codes.view(np.int8) if is_signed else codes
        groups = None
        grid = (*lead, -(-rows // block[0]), -(-cols // block[1]))
        if form.startswith("index"):
            grid = (*lead, rows, 5)
            entries = lead if form == "index of entries" else []
            groups = rng.integers(0, 5, (*entries, cols))
        shape = (1,) if form == "one scale" else grid
        scales = (rng.normal(size=shape) * 10.0 ** rng.integers(-44, 38, shape)).astype(np.float32)
        given_zeros = {
            "none": None,
            "one": np.float32([rng.integers(-9, 9)]),
            "many": rng.integers(-300, 300, shape).astype(np.float32),
        }[zeros]
        biases = rng.normal(size=shape).astype(np.float32)
        biases = biases if has_biases and groups is None else None

        values = scale_integers(
            codes, scales, block, zeros=given_zeros, biases=biases, group_of_column=groups
        )

        expected = codes.astype(np.float32)
        if given_zeros is not None:
            expected = per_block(np.subtract, expected, given_zeros, block, groups)
        expected = per_block(np.multiply, expected, scales, block, groups)
        if biases is not None:
            expected = per_block(np.add, expected, biases, block)
        np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))

    def test_with_scales_that_are_not_finite(self) -> None:
        codes = np.uint8([[8, 9], [7, 9]])
        scales = np.float32([[np.inf], [np.nan]])
        values = scale_integers(codes, scales, (1, 2), zeros=np.float32([8]))
        np.testing.assert_array_equal(values, np.float32([[np.nan, np.inf], [np.nan, np.nan]]))

    def test_on_strided_codes_and_on_none(self) -> None:
        codes = np.arange(24, dtype=np.uint8).reshape(4, 6)
        values = scale_integers(codes[:, 1::2], np.float32([2]), (1, 3))
        np.testing.assert_array_equal(values, 2.0 * codes[:, 1::2])
        for shape in ((0, 4), (3, 0), (0, 2, 2)):
            values = scale_integers(np.empty(shape, dtype=np.uint8), np.float32([]), (1, 2))
            self.assertEqual(values.shape, shape)


class Groups(unittest.TestCase):
    def test_that_do_not_exist_are_an_error(self) -> None:
        for index in ([0, -2], [0, 3]):
            with self.subTest(index=index), self.assertRaises(CheckpointError) as caught:
                checked_groups("x.g_idx", np.int32(index), 3)
            self.assertEqual(
                str(caught.exception),
                f"x.g_idx: group indices run from {min(index)} to {max(index)}, there are 3 "
                "groups; write the checkpoint again",
            )

    def test_are_consecutive_where_the_index_is_missing_unfilled_or_of_one_group(self) -> None:
        self.assertIsNone(known_groups("x", None, 3))
        self.assertIsNone(known_groups("x", np.int32([-1, -1]), 3))
        self.assertIsNone(known_groups("x", np.int32([0, 7]), 1))
        found = known_groups("x", np.int32([2, 0]), 3)
        assert found is not None
        self.assertEqual((found.dtype.name, found.tolist()), ("int64", [2, 0]))


if __name__ == "__main__":
    unittest.main()
