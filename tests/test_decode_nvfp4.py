from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.nvfp4 import Nvfp4
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.scaled_codes import context_of, decode_all, decode_cut, e2m1, e4m3, fill

E4M3 = ml_dtypes.float8_e4m3fn
Shapes = dict[str, tuple[str, tuple[int, ...]]]


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def totals(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).uniform(1e-3, 1e-1, shape).astype(np.float32)


def slow_rows(
    packed: np.ndarray, scales: np.ndarray, total: np.ndarray, divides: bool, group: int = 16
) -> np.ndarray:
    """Decode flat rows (..., R, C / 2) one number at a time, in float32."""
    lead = packed.shape[:-2]
    per_matrix = np.broadcast_to(total.reshape(lead if total.size > 1 else ()), lead)

    def value(*at: int) -> float:
        byte = int(packed[(*at[:-1], at[-1] // 2)])
        code = byte >> 4 if at[-1] % 2 else byte & 15
        scale = np.float32(e4m3(int(scales[(*at[:-1], at[-1] // group)])))
        whole = np.float32(per_matrix[at[:-2]])
        return float(np.float32(e2m1(code)) * (scale / whole if divides else scale * whole))

    return fill((*packed.shape[:-1], 2 * packed.shape[-1]), value)


def claim(
    tensors: Shapes, config: dict[str, object] | None = None
) -> StoredTensor | EncodingRefusal | None:
    context = context_of(tensors, config)
    return Nvfp4().claim(next(iter(context.by_name.values())), context)


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


class Companions(unittest.TestCase):
    def test_scales_of_activations_are_explained_by_the_weights(self) -> None:
        for tensors in (
            {
                "x.weight": ("U8", (4, 8)),
                "x.weight_scale": ("F8_E4M3", (4, 1)),
                "x.weight_scale_2": ("F32", ()),
                "x.input_scale": ("F32", ()),
            },
            {
                "x.weight_packed": ("U8", (4, 8)),
                "x.weight_scale": ("F8_E4M3", (4, 1)),
                "x.weight_global_scale": ("F32", (1,)),
                "x.input_global_scale": ("F32", (1,)),
            },
            {
                "gate_up_proj": ("U8", (2, 4, 8)),
                "gate_up_proj_weight_scale": ("F8_E4M3", (2, 4, 1)),
                "gate_up_proj_weight_scale_2": ("F32", (2,)),
                "gate_up_proj_input_scale": ("F32", ()),
            },
        ):
            claimed = claim(tensors)
            assert isinstance(claimed, StoredTensor)
            self.assertEqual([header.name for _role, header in claimed.parts], list(tensors))
            self.assertEqual(claimed.parts[3][0], "input_scale")


class OtherTensors(unittest.TestCase):
    def test_tensors_of_other_kinds_are_left_alone(self) -> None:
        for tensors in (
            {"x.weight": ("BF16", (4, 8)), "x.weight_scale": ("F8_E4M3", (4, 1))},
            {"x.weight": ("U8", (4, 16)), "x.weight_scale": ("U8", (4, 1))},
            {"x.weight_packed": ("U8", (4, 16)), "x.weight_scale": ("U8", (4, 1))},
            {"x.weight": ("F4", (4, 32)), "x.scale": ("F8_E8M0", (4, 1))},
            {"x.weight": ("I8", (4, 16)), "x.weight_scale": ("BF16", (4, 1))},
            {"x.weight": ("U8", (32, 1)), "x.weight.absmax": ("F32", (1,))},
            {"x.weight": ("U8", (4, 16))},
            {"x.weight_scale": ("U8", (4, 16)), "x.weight_scale_2": ("F32", ())},
            {"x.weight_scale": ("F8_E4M3", (4, 1)), "x.weight_scale_2": ("F32", ())},
            {"x.weight": ("U8", (8,)), "x.weight_scale_2": ("F32", ())},
        ):
            self.assertIsNone(claim(tensors), tensors)


class Refusals(unittest.TestCase):
    def refuse(
        self,
        tensors: Shapes,
        kind: RefusalKind,
        cause: str,
        config: dict[str, object] | None = None,
    ) -> None:
        refusal = claim(tensors, config)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
        self.assertEqual(
            [header.name for header in refusal.companions],
            [name for name in tensors if name != refusal.header.name],
        )

    def test_no_scale_for_all(self) -> None:
        self.refuse(
            {"x.weight": ("U8", (4, 8)), "x.weight_scale": ("F8_E4M3", (4, 1))},
            RefusalKind.MISSING_COMPANION,
            "FP4 weights x.weight U8 [4, 8], x.weight_scale F8_E4M3 [4, 1] lack a scale; looked "
            "for x.weight_scale_2, x.scale_2, x.weight_global_scale, x.global_scale",
        )

    def test_no_group_scales(self) -> None:
        self.refuse(
            {"x.weight_packed": ("U8", (4, 8)), "x.weight_global_scale": ("F32", (1,))},
            RefusalKind.MISSING_COMPANION,
            "FP4 weights x.weight_packed U8 [4, 8], x.weight_global_scale F32 [1] lack a scale; "
            "looked for x.weight_scale, x.scale",
        )

    def test_no_scale_at_all(self) -> None:
        for name, code, config in (
            ("x.weight_packed", "U8", {}),
            ("x.weight", "F4", {}),
            ("x.weight", "U8", {"quant_algo": "NVFP4"}),
            ("x.weight", "U8", {"quantization": {"quant_algo": "W4A8_MXFP4_FP8"}}),
        ):
            self.refuse(
                {name: (code, (4, 8))},
                RefusalKind.MISSING_COMPANION,
                f"FP4 weights {name} {code} [4, 8] lack a scale; looked for x.weight_scale, "
                "x.scale, x.weight_scale_2, x.scale_2, x.weight_global_scale, x.global_scale",
                config,
            )

    def test_packed_weights_with_a_scale_of_no_known_type(self) -> None:
        refusal = claim({"x.weight_packed": ("U8", (4, 16)), "x.weight_scale": ("F32", (4, 1))})
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.MISSING_COMPANION)

    def test_group_scales_of_the_wrong_shape_or_type(self) -> None:
        for code, shape in (
            ("F8_E4M3", (4, 3)),
            ("F8_E4M3", (4, 1)),  # half of them lost, not groups of 32
            ("F8_E4M3", (3, 2)),
            ("F8_E4M3", (8,)),
            ("F8_E4M3", ()),
            ("U8", (4, 2)),
            ("F32", (4, 2)),
        ):
            self.refuse(
                {
                    "x.weight": ("U8", (4, 16)),
                    "x.weight_scale": (code, shape),
                    "x.weight_scale_2": ("F32", ()),
                },
                RefusalKind.BAD_COMPANION,
                f"scale x.weight_scale {code} {list(shape)} does not fit FP4 weights x.weight U8 "
                "[4, 16]; NVFP4 has F8_E4M3 scales in groups of 16",
            )

    def test_a_scale_for_all_of_the_wrong_shape_or_type(self) -> None:
        for shape, code, total in (
            ((4, 16), "F32", (4,)),
            ((4, 16), "F32", (4, 1)),
            ((4, 16), "U8", ()),
            ((2, 4, 16), "F32", (4,)),
            ((2, 4, 16), "F32", (2, 2)),
        ):
            self.refuse(
                {
                    "w": ("U8", shape),
                    "w_scale": ("F8_E4M3", (*shape[:-1], 2)),
                    "w_scale_2": (code, total),
                },
                RefusalKind.BAD_COMPANION,
                f"scale w_scale_2 {code} {list(total)} does not fit FP4 weights w U8 "
                f"{list(shape)}; one float is needed, or one for each stacked matrix",
            )

    def test_a_scale_for_each_half_of_what_has_no_known_halves(self) -> None:
        experts = "m.experts"
        for name, shape, scale_shape, word, total in (
            ("down_proj", (3, 6, 16), (3, 6, 2), "weight_scale_2", (3, 2)),
            ("up_proj", (3, 6, 16), (3, 6, 2), "weight_scale_2", (3, 2)),
            ("w13_weight", (3, 6, 16), (3, 6, 2), "weight_scale_2", (3, 2)),  # interleaved?
            ("gate_up_proj", (3, 5, 16), (3, 5, 2), "weight_scale_2", (3, 2)),
            ("gate_up_proj", (3, 16, 5), (3, 2, 5), "weight_scale_2", (3, 2)),
            ("gate_up_proj", (3, 6, 16), (3, 6, 2), "weight_scale_2", (2, 3)),
            ("gate_up_proj", (3, 6, 16), (3, 6, 2), "weight_scale_2", (3, 2, 1)),
            ("gate_up_proj", (3, 6, 16), (3, 6, 2), "weight_scale_2", (2,)),
            ("gate_up_proj", (3, 6, 16), (3, 6, 2), "weight_global_scale", (3, 2)),
            ("gate_up_proj", (6, 16), (6, 2), "weight_scale_2", (2,)),
        ):
            stem = f"{experts}.{name.removesuffix('_weight')}"
            whole = f"{stem}_{word}"
            self.refuse(
                {
                    f"{experts}.{name}": ("U8", shape),
                    f"{stem}_weight_scale": ("F8_E4M3", scale_shape),
                    whole: ("F32", total),
                },
                RefusalKind.BAD_COMPANION,
                f"scale {whole} F32 {list(total)} does not fit FP4 weights {experts}.{name} U8 "
                f"{list(shape)}; one float is needed, or one for each stacked matrix",
            )

    def test_both_scales_for_all(self) -> None:
        self.refuse(
            {
                "w": ("U8", (4, 8)),
                "w_scale": ("F8_E4M3", (4, 1)),
                "w_scale_2": ("F32", ()),
                "w_global_scale": ("F32", ()),
            },
            RefusalKind.BAD_COMPANION,
            "FP4 weights w U8 [4, 8], w_scale F8_E4M3 [4, 1], w_scale_2 F32 [], w_global_scale "
            "F32 [] have more than two scales; which ones count is not known",
        )

    def test_a_zero_point(self) -> None:
        self.refuse(
            {
                "x.weight_packed": ("U8", (4, 8)),
                "x.weight_scale": ("F8_E4M3", (4, 1)),
                "x.weight_global_scale": ("F32", (1,)),
                "x.weight_zero_point": ("F8_E4M3", (4, 1)),
            },
            RefusalKind.BAD_COMPANION,
            "FP4 weights x.weight_packed U8 [4, 8] have a zero point x.weight_zero_point F8_E4M3 "
            "[4, 1]; FP4 with zero points is not understood",
        )


if __name__ == "__main__":
    unittest.main()
