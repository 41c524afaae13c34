from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.block_scale import block_shape_of
from moe_weights.decode.fp8 import Fp8
from tests.support.scaled_codes import decode_all, decode_cut, e4m3, fill, random_bytes

E4M3 = ml_dtypes.float8_e4m3fn
BLOCK_128 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
W, S = "m.experts.0.up_proj.weight", "m.experts.0.up_proj.weight_scale_inv"


def codes_of(shape: tuple[int, ...]) -> np.ndarray:
    codes = random_bytes(shape)
    codes[codes & 0x7F == 0x7F] = 0x7E  # no NaN
    return codes


def scales_of(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-4, 1e-2, shape).astype(np.float32)


class GoldenValues(unittest.TestCase):
    def test_every_code_times_one_scale(self) -> None:
        codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
        arrays = {W: codes.view(E4M3), S: np.float32([3.0])}
        _tensor, values = decode_all(Fp8(), arrays, W)
        expected = fill((16, 16), lambda r, c: e4m3(16 * r + c) * 3)
        np.testing.assert_array_equal(values, expected)
        # 0x38 = 2**0, 0x7e = 448, 0x01 = 2**-9, 0xb8 = -1; written out by hand.
        np.testing.assert_array_equal(
            values.reshape(-1)[[0x38, 0x7E, 0x01, 0xB8]], [3, 1344, 3 / 512, -3]
        )

    def test_e5m2_and_the_fnuz_kinds_keep_their_own_meaning_of_a_code(self) -> None:
        # 0x40: E5M2 exponent 16, bias 15 -> 2; E4M3 exponent 8, bias 7 -> 2; the FNUZ kinds have
        # a bias that is one larger -> 1.
        for dtype, value in (
            (ml_dtypes.float8_e5m2, 2),
            (E4M3, 2),
            (ml_dtypes.float8_e5m2fnuz, 1),
            (ml_dtypes.float8_e4m3fnuz, 1),
        ):
            arrays = {W: np.uint8([[0x40, 0]]).view(dtype), S: np.array(0.5, dtype=np.float32)}
            _tensor, values = decode_all(Fp8(), arrays, W)
            np.testing.assert_array_equal(values, [[value / 2, 0]], err_msg=str(dtype))

    def test_scale_types_are_widened_before_they_multiply(self) -> None:
        # 1.0078125 is exact in bfloat16; times 1.125 it is 1.1337890625, exact in float32 only.
        for scale in (
            np.array([1.0078125], dtype=ml_dtypes.bfloat16),
            np.array([1.0078125], dtype=np.float64),
            np.float32(1.0078125),
        ):
            arrays = {W: np.array([[1.125, -1.0]], dtype=E4M3), S: np.asarray(scale)}
            _tensor, values = decode_all(Fp8(), arrays, W)
            np.testing.assert_array_equal(values, np.float32([[1.1337890625, -1.0078125]]))

    def test_one_byte_integer_scales_are_exponents(self) -> None:
        for dtype in (np.uint8, ml_dtypes.float8_e8m0fnu):
            scale = np.uint8([[127, 124, 255], [0, 130, 128]]).view(dtype)
            arrays = {W: np.full((2, 96), 1.5, dtype=E4M3), S: scale}
            tensor, values = decode_all(Fp8(), arrays, W)
            self.assertEqual(tensor.option("block"), (1, 32))
            expected = np.float32([[1.5, 0.1875, np.nan], [1.5 * 2.0**-127, 12, 3]])
            np.testing.assert_array_equal(values[:, ::32], expected)
            np.testing.assert_array_equal(values[:, 31::32], expected)


class BlocksAgainstASlowLoop(unittest.TestCase):
    def check(
        self,
        shape: tuple[int, ...],
        scale_shape: tuple[int, ...],
        block: tuple[int, int],
        config: dict[str, object] | None = None,
    ) -> None:
        codes, scales = codes_of(shape), scales_of(scale_shape)
        tensor, values = decode_all(Fp8(), {W: codes.view(E4M3), S: scales}, W, config)
        self.assertEqual(tensor.option("block"), block)
        rows, cols = shape[-2:]
        grid = scales.reshape(*shape[:-2], -(-rows // block[0]), -(-cols // block[1]))
        expected = fill(
            shape,
            lambda *at: (
                np.float32(e4m3(int(codes[at])))
                * grid[(*at[:-2], at[-2] // block[0], at[-1] // block[1])]
            ),
        )
        np.testing.assert_array_equal(values, expected)

    def test_whole_blocks_and_ragged_edges(self) -> None:
        for shape, scale_shape in (
            ((256, 128), (2, 1)),
            ((160, 200), (2, 2)),  # rows // scale_rows would be 80, and wrong
            ((130, 64), (2, 1)),
            ((96, 130), (1, 2)),
            ((128, 128), (1, 1)),
            ((8, 16), (1, 1)),
        ):
            self.check(shape, scale_shape, (128, 128), BLOCK_128)

    def test_the_same_without_a_config(self) -> None:
        self.check((160, 200), (2, 2), (128, 128))
        self.check((96, 130), (1, 2), (128, 128))
        self.check((80, 70), (3, 3), (32, 32))
        self.check((80, 70), (2, 2), (64, 64))

    def test_unusual_blocks_are_right_where_the_config_names_them(self) -> None:
        config = {"weight_block_size": [48, 20]}
        self.check((100, 50), (3, 3), (48, 20), config)

    def test_finer_blocks_than_the_configured_ones_need_exponent_scales(self) -> None:
        for shape, scale_shape, block in (
            ((130, 96), (130, 3), (1, 32)),
            ((130, 100), (130, 4), (1, 32)),
            ((130, 100), (5, 4), (32, 32)),
            ((130, 200), (130, 1), (1, 200)),
        ):
            self.assertEqual(
                block_shape_of(shape, scale_shape, (128, 128), is_exponent=True), block
            )
            # Float scales of another shape than config.json asks for are damaged.
            self.assertIsNone(block_shape_of(shape, scale_shape, (128, 128)))

    def test_ragged_groups_that_could_be_whole_ones_need_a_config(self) -> None:
        # 72 columns in three groups: 32 + 32 + 8, or 24 each.
        self.assertIsNone(block_shape_of((48, 72), (48, 3), None))
        self.assertEqual(block_shape_of((48, 72), (48, 3), None, is_exponent=True), (1, 32))
        self.assertEqual(block_shape_of((48, 96), (48, 3), None), (1, 32))

    def test_a_row_of_scales_per_half_of_a_fused_tensor_that_one_block_covers(self) -> None:
        member, name = Fp8(), "m.experts.gate_up_proj"
        weights = np.arange(3 * 8 * 4, dtype=np.uint8).reshape(3, 8, 4) % 64
        scales = np.array([[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]], dtype=np.float32)
        arrays = {name: weights.view(E4M3), f"{name}_scale_inv": scales}
        _tensor, values = decode_all(member, arrays, name, BLOCK_128)
        expected = weights.view(E4M3).astype(np.float32)
        for expert in range(3):
            expected[expert, :4] *= scales[expert, 0, 0]
            expected[expert, 4:] *= scales[expert, 1, 0]
        np.testing.assert_array_equal(values, expected)

    def test_a_scale_per_half_of_a_fused_tensor_without_blocks(self) -> None:
        no_blocks = {"quant_method": "fp8", "weight_block_size": None}
        for rows, cols, config in (
            (8, 4, {}),  # no block that writers use is as small
            (300, 40, {}),
            (256, 128, {}),  # half and block are the same
            (600, 200, no_blocks),
            (160, 64, no_blocks),
            (96, 48, no_blocks),
        ):
            name = "m.experts.gate_up_proj"
            scales = scales_of((3, 2, 1))
            arrays = {
                name: codes_of((3, rows, cols)).view(E4M3),
                f"{name}_scale_inv": scales,
            }
            tensor, values = decode_all(Fp8(), arrays, name, config)
            expected = arrays[name].astype(np.float32)
            for expert in range(3):
                expected[expert, : rows // 2] *= scales[expert, 0, 0]
                expected[expert, rows // 2 :] *= scales[expert, 1, 0]
            np.testing.assert_array_equal(values, expected)
            for start, stop in ((0, 1), (1, 3)):
                cut = decode_cut(Fp8(), tensor, arrays, start, stop)
                np.testing.assert_array_equal(cut, values[start:stop])

    def test_per_row(self) -> None:
        self.check((5, 12), (5, 1), (1, 12))
        self.check((5, 12), (5,), (1, 12))

    def test_stacked_experts(self) -> None:
        self.check((2, 130, 140), (2, 2, 2), (128, 128), BLOCK_128)
        self.check((3, 6, 5), (3,), (6, 5))
        self.check((3, 6, 5), (3, 1), (6, 5))
        self.check((3, 6, 5), (3, 1, 1), (6, 5))
        self.check((3, 6, 5), (3, 6, 1), (1, 5))
        self.check((3, 6, 5), (3, 6), (1, 5))
        self.check((2, 7, 40), (2, 7, 2), (1, 32))

    def test_stacked_experts_whose_rows_are_inputs(self) -> None:
        self.check((3, 6, 5), (3, 5), (6, 1))
        self.check((3, 6, 5), (3, 1, 5), (6, 1))
        self.check((2, 40, 7), (2, 2, 7), (32, 1))

    def test_the_four_axes_of_modelopt(self) -> None:
        self.check((256, 130), (2, 1, 2, 1), (128, 128))
        self.check((2, 256, 130), (2, 2, 1, 2, 1), (128, 128))

    def test_stacked_experts_of_fbgemm_are_scaled_along_their_last_axis(self) -> None:
        config = {"quant_method": "fbgemm_fp8"}
        for scale_shape in ((2, 1, 4), (2, 4, 1)):
            self.check((2, 4, 4), scale_shape, (4, 1), config)
            self.check((2, 6, 4), scale_shape, (6, 1), config)
        self.check((6, 4), (6, 1), (1, 4), config)

    def test_empty_weights_stay_empty(self) -> None:
        arrays = {W: np.zeros((0, 4), dtype=E4M3), S: np.float32([1])}
        self.assertEqual(decode_all(Fp8(), arrays, W)[1].shape, (0, 4))


class Cuts(unittest.TestCase):
    def test_some_experts_of_a_stack_decode_as_they_do_within_it(self) -> None:
        for scale_shape, config in (
            ((4, 2, 2), BLOCK_128),
            ((4,), {}),
            ((4, 1, 1), {}),
            ((4, 130), {}),
            ((4, 140), {}),
            ((4, 130, 5), {}),
            ((), {}),
            ((1,), {}),
        ):
            arrays = {W: codes_of((4, 130, 140)).view(E4M3), S: scales_of(scale_shape)}
            tensor, values = decode_all(Fp8(), arrays, W, config)
            for start, stop in ((0, 1), (1, 3), (3, 4)):
                cut = decode_cut(Fp8(), tensor, arrays, start, stop)
                np.testing.assert_array_equal(cut, values[start:stop], err_msg=str(scale_shape))


class DamagedScales(unittest.TestCase):
    def test_infinite_scales_give_what_they_give_without_a_warning(self) -> None:
        arrays = {W: np.array([[0, 1], [-1, 448]], dtype=E4M3), S: np.float32([[np.inf], [1e38]])}
        _tensor, values = decode_all(Fp8(), arrays, W)
        np.testing.assert_array_equal(values, np.float32([[np.nan, np.inf], [-1e38, np.inf]]))

    def test_scales_beyond_float32_become_infinite(self) -> None:
        arrays = {W: np.array([[1, 2]], dtype=E4M3), S: np.array(1e300)}
        np.testing.assert_array_equal(decode_all(Fp8(), arrays, W)[1], [[np.inf, np.inf]])

    def test_signalling_nans_stay_nans_without_a_warning(self) -> None:
        scale = np.array(0x7FF0_0000_0000_0001, dtype=np.uint64).view(np.float64)
        arrays = {W: np.array([[1, 2]], dtype=E4M3), S: scale}
        self.assertTrue(np.isnan(decode_all(Fp8(), arrays, W)[1]).all())


if __name__ == "__main__":
    unittest.main()
