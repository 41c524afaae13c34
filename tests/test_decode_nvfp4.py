from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.nvfp4 import Nvfp4
from moe_weights.decode.raw_array import view_raw
from tests.support.scaled_codes import (
    decode_all,
    decode_cut,
    e2m1,
    e4m3,
    fill,
    nibble,
    random_bytes,
)

E4M3 = ml_dtypes.float8_e4m3fn


def totals(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).uniform(1e-3, 1e-1, shape).astype(np.float32)


def slow_rows(
    packed: np.ndarray, scales: np.ndarray, total: np.ndarray, divides: bool, group: int = 16
) -> np.ndarray:
    """Decode flat rows (..., R, C / 2) one number at a time, in float32."""
    lead = packed.shape[:-2]
    per_matrix = np.broadcast_to(total.reshape(lead if total.size > 1 else ()), lead)

    def value(*at: int) -> float:
        code = nibble(packed, *at)
        scale = np.float32(e4m3(int(scales[(*at[:-1], at[-1] // group)])))
        whole = np.float32(per_matrix[at[:-2]])
        return float(np.float32(e2m1(code)) * (scale / whole if divides else scale * whole))

    return fill((*packed.shape[:-1], 2 * packed.shape[-1]), value)


class GoldenValues(unittest.TestCase):
    def test_the_scale_for_all_multiplies_or_divides_by_its_name(self) -> None:
        # 0x52: low nibble 2 -> 1, high nibble 5 -> 3. Scale 0x40 -> 2. Total 4.
        packed, scale = np.full((1, 8), 0x52, dtype=np.uint8), np.uint8([[0x40]]).view(E4M3)
        total = np.array([4], dtype=np.float32)
        for weights, total_name, low, high in (
            ("x.weight", "x.weight_scale_2", 8, 24),
            ("x.weight_packed", "x.weight_global_scale", 0.5, 1.5),
        ):
            arrays = {weights: packed, "x.weight_scale": scale, total_name: total}
            tensor, values = decode_all(Nvfp4(), arrays, weights)
            self.assertEqual((tensor.name, tensor.encoding), ("x.weight", "nvfp4"))
            np.testing.assert_array_equal(values, [[low, high] * 8])

    def test_scales_are_joined_before_the_code_multiplies(self) -> None:
        # Code 1.5 (0x3), scale 1.625 (0x3d), total 1 + u with u = 2**-23. In float32 1.625 * total
        # is 1.625 + 2u; times 1.5 it is 2.4375 + 3u, a tie that goes to 2.4375 + 4u.
        # The other order, 2.4375 * total, would end at 2.4375 + 2u.
        arrays = {
            "x.weight": np.uint8([[0x33] * 8]),
            "x.weight_scale": np.uint8([[0x3D]]).view(E4M3),
            "x.weight_scale_2": np.array(1 + 2.0**-23, dtype=np.float32),
        }
        _tensor, values = decode_all(Nvfp4(), arrays, "x.weight")
        self.assertEqual(float(values[0, 0]), 2.4375 + 4 * 2.0**-23)


class FormsAgainstASlowLoop(unittest.TestCase):
    def test_flat_rows(self) -> None:
        for weights, total_name in (
            ("x.weight", "x.weight_scale_2"),
            ("x.weight_packed", "x.weight_global_scale"),
        ):
            for shape in ((3, 16), (2, 20), (1, 3), (2, 3, 24)):
                for total_shape in ((), (1,)):
                    packed = random_bytes(shape)
                    scales = random_bytes((*shape[:-1], -(-2 * shape[-1] // 16)), 1)
                    total = totals(total_shape)
                    arrays = {
                        weights: packed,
                        "x.weight_scale": scales.view(E4M3),
                        total_name: total,
                    }
                    _tensor, values = decode_all(Nvfp4(), arrays, weights)
                    expected = slow_rows(packed, scales, total, "global" in total_name)
                    np.testing.assert_array_equal(values, expected)

    def test_fused_experts_with_one_scale_each(self) -> None:
        for words in (
            ("gate_up_proj", "gate_up_proj_weight_scale", "gate_up_proj_weight_scale_2"),
            ("gate_up_proj", "gate_up_proj_scale", "gate_up_proj_scale_2"),
            ("w13_weight", "w13_weight_scale", "w13_weight_scale_2"),
            ("w13_weight_packed", "w13_weight_scale", "w13_weight_global_scale"),
            ("up_proj.weight", "up_proj.weight_scale", "up_proj.weight_scale_2"),
        ):
            for total_shape in ((3,), (3, 1), (3, 1, 1), (1,), ()):
                packed, scales, total = (
                    random_bytes((3, 4, 16)),
                    random_bytes((3, 4, 2), 1),
                    totals(total_shape),
                )
                arrays = dict(zip(words, (packed, scales.view(E4M3), total), strict=True))
                tensor, values = decode_all(Nvfp4(), arrays, words[0])
                self.assertEqual(tensor.name, words[0].removesuffix("_packed"))
                self.assertEqual(tensor.shape, (3, 4, 32))
                expected = slow_rows(packed, scales, total, "global" in words[2])
                np.testing.assert_array_equal(values, expected)
                for start, stop in ((0, 1), (1, 3)):
                    cut = decode_cut(Nvfp4(), tensor, arrays, start, stop)
                    np.testing.assert_array_equal(cut, values[start:stop])

    def test_gate_and_up_of_stacked_experts_with_a_scale_each(self) -> None:
        for experts in (1, 2, 3):
            for words in (
                ("gate_up_proj", "gate_up_proj_weight_scale", "gate_up_proj_weight_scale_2"),
                ("gate_up_proj.weight", "gate_up_proj.scale", "gate_up_proj.scale_2"),
            ):
                packed, scales = random_bytes((experts, 6, 16)), random_bytes((experts, 6, 2), 1)
                total = totals((experts, 2))
                arrays = dict(zip(words, (packed, scales.view(E4M3), total), strict=True))
                tensor, values = decode_all(Nvfp4(), arrays, words[0])
                for half, rows in ((0, slice(0, 3)), (1, slice(3, 6))):
                    expected = slow_rows(packed[:, rows], scales[:, rows], total[:, half], False)
                    np.testing.assert_array_equal(values[:, rows], expected)
                for start in range(experts):
                    cut = decode_cut(Nvfp4(), tensor, arrays, start, start + 1)
                    np.testing.assert_array_equal(cut, values[start : start + 1])

    def test_gate_and_up_packed_along_their_rows_with_a_scale_each(self) -> None:
        packed, scales, total = random_bytes((2, 16, 6)), random_bytes((2, 2, 6), 1), totals((2, 2))
        arrays = {
            "e.gate_up_proj": packed,
            "e.gate_up_proj_weight_scale": scales.view(E4M3),
            "e.gate_up_proj_weight_scale_2": total,
        }
        tensor, values = decode_all(Nvfp4(), arrays, "e.gate_up_proj")
        for half, columns in ((0, slice(0, 3)), (1, slice(3, 6))):
            turned = slow_rows(
                packed[..., columns].swapaxes(1, 2),
                scales[..., columns].swapaxes(1, 2),
                total[:, half],
                False,
            )
            np.testing.assert_array_equal(values[..., columns], turned.swapaxes(1, 2))
        cut = decode_cut(Nvfp4(), tensor, arrays, 1, 2)
        np.testing.assert_array_equal(cut, values[1:])

    def test_experts_packed_along_their_rows(self) -> None:
        packed, scales, total = random_bytes((2, 16, 5)), random_bytes((2, 2, 5), 1), totals((2,))
        arrays = {
            "e.down_proj": packed,
            "e.down_proj_weight_scale": scales.view(E4M3),
            "e.down_proj_weight_scale_2": total,
        }
        tensor, values = decode_all(Nvfp4(), arrays, "e.down_proj")
        self.assertEqual(tensor.shape, (2, 32, 5))
        turned = slow_rows(packed.swapaxes(1, 2), scales.swapaxes(1, 2), total, False)
        np.testing.assert_array_equal(values, turned.swapaxes(1, 2))
        cut = decode_cut(Nvfp4(), tensor, arrays, 1, 2)
        np.testing.assert_array_equal(cut, values[1:])

    def test_f4_headers_count_elements(self) -> None:
        packed, scales, total = random_bytes((3, 16)), random_bytes((3, 2), 1), totals(())
        arrays = {
            "x.weight": view_raw(packed.tobytes(), "F4").reshape(3, 32),
            "x.weight_scale": scales.view(E4M3),
            "x.weight_scale_2": total,
        }
        _tensor, values = decode_all(Nvfp4(), arrays, "x.weight")
        np.testing.assert_array_equal(values, slow_rows(packed, scales, total, False))

    def test_groups_of_32_where_the_config_names_their_scheme(self) -> None:
        packed, scales, total = random_bytes((3, 32)), random_bytes((3, 2), 1), totals(())
        arrays = {
            "x.weight": packed,
            "x.weight_scale": scales.view(E4M3),
            "x.weight_scale_2": total,
        }
        for config in (
            {"quant_algo": "W4A8_NVFP4_FP8"},
            {"quantization": {"quant_algo": "W4A8_NVFP4_FP8"}},
        ):
            _tensor, values = decode_all(Nvfp4(), arrays, "x.weight", config)
            np.testing.assert_array_equal(values, slow_rows(packed, scales, total, False, 32))

    def test_damaged_totals_give_what_they_give_without_a_warning(self) -> None:
        for total, expected in ((0.0, [[np.nan, np.inf] * 8]), (np.nan, [[np.nan] * 16])):
            arrays = {
                "x.weight_packed": np.uint8([[0x20] * 8]),
                "x.weight_scale": np.ones((1, 1), dtype=E4M3),
                "x.weight_global_scale": np.array([total], dtype=np.float32),
            }
            _tensor, values = decode_all(Nvfp4(), arrays, "x.weight_packed")
            np.testing.assert_array_equal(values, expected)


if __name__ == "__main__":
    unittest.main()
