from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.packed_int import PackedInt
from moe_weights.errors import CheckpointError
from tests.support.encoded_tensors import EncodedTensors
from tests.support.packed_ints import PACKED, X, config, groups_of, pack, scheme, stored


def slow_decode(
    codes: np.ndarray, scale: np.ndarray, zeros: np.ndarray, group_of: np.ndarray
) -> np.ndarray:
    """One element after the other; scale and zeros (R, groups)."""
    values = np.empty(codes.shape, dtype=np.float32)
    for row, col in np.ndindex(codes.shape):
        group = group_of[col]
        difference = int(codes[row, col]) - int(zeros[row, group])
        values[row, col] = np.float32(difference) * np.float32(scale[row, group])
    return values


class Values(unittest.TestCase):
    def test_symmetric_codes_stand_around_the_middle(self) -> None:
        # Word 0x76543210 holds 0 to 7 from its low end; less 8, times 0.5: -4, -3.5, ..., -0.5.
        tensors = EncodedTensors(
            arrays={
                PACKED: np.array([[0x76543210]], dtype=np.int32),
                f"{X}.weight_scale": np.array([[0.5]], dtype=np.float32),
                f"{X}.weight_shape": np.array([1, 8]),
            },
            config=config(scheme(4)),
        )

        values = tensors.decode(PackedInt(), PACKED)

        self.assertEqual(values.dtype, np.float32)
        self.assertEqual(values.tolist(), [[-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5]])

    def test_packed_zero_points_run_along_the_rows(self) -> None:
        # Three rows of 8 codes 5; zero points 1, 2, 15 in nibbles of one word: 0xF21.
        tensors = EncodedTensors(
            arrays={
                PACKED: np.full((3, 1), 0x55555555, dtype=np.int32),
                f"{X}.weight_scale": np.array([[1], [2], [0.25]], dtype=ml_dtypes.bfloat16),
                f"{X}.weight_shape": np.array([3, 8]),
                f"{X}.weight_zero_point": np.array([[0xF21]], dtype=np.int32),
            },
            config=config(scheme(4, symmetric=False)),
        )

        values = tensors.decode(PackedInt(), PACKED)

        self.assertEqual(values[:, 0].tolist(), [4, 6, -2.5])

    def test_every_width_agrees_with_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        for bits in range(1, 9):
            for rows, cols, size in ((5, 96, 32), (33, 40, 40), (3, 70, 35), (2, 64, 16)):
                codes = rng.integers(0, 2**bits, (rows, cols))
                scale = rng.normal(size=(rows, cols // size)).astype(np.float16)
                zeros = rng.integers(0, 2**bits, scale.shape)
                plain = (zeros - 2 ** (bits - 1)).astype(np.int8)
                group_of = np.arange(cols) // size
                middle = np.full(scale.shape, 2 ** (bits - 1))
                settings = config(scheme(bits, **groups_of(size)))
                packed = pack(zeros.T, bits).T
                cases = (
                    (middle, stored(codes, bits, scale, settings)),
                    (zeros, stored(codes, bits, scale, settings, zero_point=packed)),
                    (zeros, stored(codes, bits, scale, settings, zero_point=plain)),
                )
                for form, (subtracted, tensors) in enumerate(cases):
                    with self.subTest(bits=bits, cols=cols, form=form):
                        np.testing.assert_array_equal(
                            tensors.decode(PackedInt(), PACKED),
                            slow_decode(codes, scale, subtracted, group_of),
                        )

    def test_a_last_group_may_be_shorter_where_the_config_says_so(self) -> None:
        codes = np.random.default_rng(1).integers(0, 16, (3, 40))
        scale = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32)

        values = stored(codes, 4, scale, config(scheme(4, **groups_of(32)))).decode(
            PackedInt(), PACKED
        )

        expected = slow_decode(codes, scale, np.full((3, 2), 8), np.arange(40) // 32)
        np.testing.assert_array_equal(values, expected)

    def test_a_group_index_names_the_group_of_each_column(self) -> None:
        rng = np.random.default_rng(2)
        codes = rng.integers(0, 16, (3, 64))
        scale = rng.normal(size=(3, 4)).astype(np.float32)
        zeros = rng.integers(0, 16, (3, 4))
        index = rng.permutation(np.arange(64) // 16).astype(np.int32)
        settings = config(scheme(4, **groups_of(16)))
        packed = pack(zeros.T, 4).T
        for subtracted, more in ((np.full((3, 4), 8), {}), (zeros, {"zero_point": packed})):
            tensors = stored(codes, 4, scale, settings, g_idx=index, **more)
            np.testing.assert_array_equal(
                tensors.decode(PackedInt(), PACKED), slow_decode(codes, scale, subtracted, index)
            )

    def test_an_index_of_minus_one_was_never_filled(self) -> None:
        codes = np.random.default_rng(3).integers(0, 16, (3, 64))
        scale = np.arange(12, dtype=np.float32).reshape(3, 4)
        settings = config(scheme(4, **groups_of(16)))
        unfilled = np.full(64, -1, dtype=np.int32)

        values = stored(codes, 4, scale, settings, g_idx=unfilled).decode(PackedInt(), PACKED)

        expected = slow_decode(codes, scale, np.full((3, 4), 8), np.arange(64) // 16)
        np.testing.assert_array_equal(values, expected)

    def test_an_index_of_no_group_is_an_error(self) -> None:
        codes, scale = np.zeros((3, 64), dtype=np.int64), np.ones((3, 4), dtype=np.float32)
        index = np.full(64, 4, dtype=np.int32)
        tensors = stored(codes, 4, scale, config(scheme(4, **groups_of(16))), g_idx=index)

        with self.assertRaises(CheckpointError) as caught:
            tensors.decode(PackedInt(), PACKED)

        self.assertEqual(
            str(caught.exception),
            f"{X}.weight_g_idx: group indices run from 4 to 4, there are 4 groups; write the "
            "checkpoint again",
        )

    def test_one_scale_for_all_or_for_blocks(self) -> None:
        codes = np.random.default_rng(4).integers(0, 16, (5, 24))
        whole = stored(codes, 4, np.array([0.5], np.float32), config(scheme(4, strategy="tensor")))
        blocks = np.array([[1, 2], [3, 4]], dtype=np.float32)
        block_config = config(scheme(4, strategy="block", block_structure=[3, 16]))
        zeros = np.array([[0, 1], [-8, 7]], dtype=np.int8)
        blocked = stored(codes, 4, blocks, block_config, zero_point=zeros)

        rows, cols = np.arange(5) // 3, np.arange(24) // 16
        spread = blocks[rows][:, cols]
        np.testing.assert_array_equal(whole.decode(PackedInt(), PACKED), (codes - 8) * 0.5)
        np.testing.assert_array_equal(
            blocked.decode(PackedInt(), PACKED), (codes - 8 - zeros[rows][:, cols]) * spread
        )

    def test_stacked_experts_are_decoded_a_few_at_a_time(self) -> None:
        rng = np.random.default_rng(5)
        codes = rng.integers(0, 16, (4, 6, 40))
        scale = rng.normal(size=(4, 6, 2)).astype(np.float32)
        zeros = rng.integers(0, 16, (4, 6, 2))
        packed = pack(zeros.swapaxes(1, 2), 4).swapaxes(1, 2)
        settings = config(scheme(4, symmetric=False, **groups_of(20)))
        name = "model.layers.0.mlp.experts.gate_up_proj"
        tensors = stored(codes, 4, scale, settings, name=name, zero_point=packed)

        whole = tensors.decode(PackedInt(), f"{name}_packed")
        part = tensors.decode(PackedInt(), f"{name}_packed", cut=slice(1, 3))

        for expert in range(4):
            expected = slow_decode(codes[expert], scale[expert], zeros[expert], np.arange(40) // 20)
            np.testing.assert_array_equal(whole[expert], expected)
        np.testing.assert_array_equal(part, whole[1:3])


if __name__ == "__main__":
    unittest.main()
