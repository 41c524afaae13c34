from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.mxfp4 import Mxfp4
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.stored_tensor import RefusalKind
from tests.support.claims import ClaimCase
from tests.support.scaled_codes import (
    decode_all,
    decode_cut,
    e2m1,
    e8m0,
    fill,
    nibble,
    random_bytes,
)

E8M0 = ml_dtypes.float8_e8m0fnu


def exponents(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Return exponents of every size, NaN among them."""
    return np.random.default_rng(seed).choice(
        np.uint8([0, 1, 100, 119, 127, 130, 252, 254, 255]), shape
    )


def slow_rows(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Decode flat rows (..., R, C / 2) one number at a time, in float32."""
    shape = (*packed.shape[:-1], 2 * packed.shape[-1])

    def value(*at: int) -> float:
        code = nibble(packed, *at)
        with np.errstate(over="ignore"):
            return float(
                np.float32(e2m1(code)) * np.float32(e8m0(int(scales[(*at[:-1], at[-1] // 32)])))
            )

    return fill(shape, value)


class Mxfp4Case(ClaimCase):
    member = Mxfp4()


class GoldenValues(unittest.TestCase):
    def test_every_code_and_the_low_nibble_first(self) -> None:
        # Byte 0x10: low nibble 0 -> 0, high nibble 1 -> 0.5; ...; 0xfe: 14 -> -4, 15 -> -6.
        packed = np.uint8([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2).reshape(1, 1, 16)
        arrays = {"e.w_blocks": packed, "e.w_scales": np.uint8([[128]])}
        tensor, values = decode_all(Mxfp4(), arrays, "e.w_blocks")
        self.assertEqual((tensor.name, tensor.encoding, tensor.shape), ("e.w", "mxfp4", (1, 32)))
        row = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]  # times 2**(128 - 127)
        np.testing.assert_array_equal(values, [row + row])

    def test_scales_of_every_exponent(self) -> None:
        # 0x22: 1 in both nibbles; exponent 0 is 2**-127 (subnormal), 254 is 2**127, 255 is NaN.
        packed = np.full((256, 16), 0x22, dtype=np.uint8)
        scales = np.arange(256, dtype=np.uint8).reshape(256, 1)
        _tensor, values = decode_all(
            Mxfp4(), {"x.weight_packed": packed, "x.weight_scale": scales}, "x.weight_packed"
        )
        np.testing.assert_array_equal(
            values[:, 0], [2.0 ** (n - 127) for n in range(255)] + [np.nan]
        )
        np.testing.assert_array_equal(values[:, 31], values[:, 0])


class FormsAgainstASlowLoop(unittest.TestCase):
    def test_blocks_of_stacked_experts(self) -> None:
        for weights, scale, name in (
            ("experts.gate_up_proj_blocks", "experts.gate_up_proj_scales", "experts.gate_up_proj"),
            ("mlp.mlp1_weight.blocks", "mlp.mlp1_weight.scales", "mlp.mlp1_weight"),
        ):
            blocks, scales = random_bytes((3, 5, 2, 16)), exponents((3, 5, 2))
            tensor, values = decode_all(Mxfp4(), {weights: blocks, scale: scales}, weights)
            self.assertEqual((tensor.name, tensor.shape), (name, (3, 5, 64)))
            np.testing.assert_array_equal(values, slow_rows(blocks.reshape(3, 5, 32), scales))

    def test_flat_rows_under_every_name_and_type(self) -> None:
        for weights, weight_type, scale, scale_type in (
            ("x.weight_packed", np.uint8, "x.weight_scale", np.uint8),
            ("x.weight_packed", np.uint8, "x.weight_scale", E8M0),
            ("x.weight", np.int8, "x.scale", E8M0),
            ("x.weight", np.int8, "x.scale", np.uint8),
            ("x.weight", np.int8, "x.weight_scale_inv", E8M0),
            ("x.weight", np.uint8, "x.weight_scale", np.uint8),
        ):
            for shape in ((4, 32), (3, 48), (2, 20), (1, 1), (2, 3, 32), (2, 3, 20)):
                codes = random_bytes(shape)
                scales = exponents((*shape[:-1], -(-2 * shape[-1] // 32)))
                arrays = {weights: codes.view(weight_type), scale: scales.view(scale_type)}
                tensor, values = decode_all(Mxfp4(), arrays, weights)
                self.assertEqual((tensor.name, tensor.encoding), ("x.weight", "mxfp4"))
                np.testing.assert_array_equal(values, slow_rows(codes, scales))

    def test_fused_experts_without_a_module_of_their_own(self) -> None:
        for scale in ("gate_up_proj_scale_inv", "gate_up_proj_weight_scale", "gate_up_proj_scale"):
            codes, scales = random_bytes((2, 6, 32)), exponents((2, 6, 2))
            arrays = {"gate_up_proj": codes.view(np.int8), scale: scales.view(E8M0)}
            tensor, values = decode_all(Mxfp4(), arrays, "gate_up_proj")
            self.assertEqual((tensor.name, tensor.shape), ("gate_up_proj", (2, 6, 64)))
            np.testing.assert_array_equal(values, slow_rows(codes, scales))

    def test_experts_packed_along_their_rows(self) -> None:
        codes, scales = random_bytes((2, 16, 6)), exponents((2, 1, 6))
        arrays = {"down_proj": codes, "down_proj_weight_scale": scales}
        tensor, values = decode_all(Mxfp4(), arrays, "down_proj")
        self.assertEqual(tensor.shape, (2, 32, 6))
        turned = slow_rows(codes.swapaxes(1, 2), scales.swapaxes(1, 2))
        np.testing.assert_array_equal(values, turned.swapaxes(1, 2))

    def test_f4_headers_count_elements(self) -> None:
        packed, scales = random_bytes((3, 32)), exponents((3, 2))
        codes = view_raw(packed.tobytes(), "F4").reshape(3, 64)
        tensor, values = decode_all(
            Mxfp4(), {"x.weight": codes, "x.weight_scale": scales}, "x.weight"
        )
        self.assertEqual(tensor.shape, (3, 64))
        np.testing.assert_array_equal(values, slow_rows(packed, scales))

    def test_some_experts_decode_as_they_do_within_the_stack(self) -> None:
        for arrays in (
            {"w_blocks": random_bytes((4, 3, 2, 16)), "w_scales": exponents((4, 3, 2))},
            {"w": random_bytes((4, 3, 20)).view(np.int8), "w_scale": exponents((4, 3, 2))},
            {"w": random_bytes((4, 16, 3)), "w_scale": exponents((4, 1, 3))},
        ):
            tensor, values = decode_all(Mxfp4(), arrays, next(iter(arrays)))
            for start, stop in ((0, 1), (1, 3), (3, 4)):
                cut = decode_cut(Mxfp4(), tensor, arrays, start, stop)
                np.testing.assert_array_equal(cut, values[start:stop])

    def test_empty_weights_stay_empty(self) -> None:
        arrays = {
            "w": np.zeros((0, 16), dtype=np.int8),
            "w_scale": np.zeros((0, 1), dtype=np.uint8),
        }
        self.assertEqual(decode_all(Mxfp4(), arrays, "w")[1].shape, (0, 32))


class Companions(Mxfp4Case):
    def test_scales_of_activations_are_explained_by_the_weights(self) -> None:
        for tensors in (
            {
                "x.weight_packed": ("U8", (4, 16)),
                "x.weight_scale": ("U8", (4, 1)),
                "x.input_global_scale": ("F32", (1,)),
            },
            {
                "x_blocks": ("U8", (4, 1, 16)),
                "x_scales": ("U8", (4, 1)),
                "x_input_scale": ("F32", ()),
            },
        ):
            claimed = self.claimed(tensors)
            names = [header.name for _role, header in claimed.parts]
            self.assertEqual(names, list(tensors))
            self.assertEqual([role for role, _header in claimed.parts][2:], ["input_scale"])


class OtherTensors(Mxfp4Case):
    def test_tensors_of_other_kinds_are_left_alone(self) -> None:
        for tensors in (
            {"x.weight": ("BF16", (4, 16)), "x.weight_scale": ("U8", (4, 1))},
            {"x.weight": ("F8_E4M3", (4, 32)), "x.weight_scale": ("U8", (4, 1))},
            {"x.weight": ("I8", (4, 16)), "x.weight_scale": ("BF16", (4, 1))},
            {"x.weight": ("I8", (4, 16)), "x.SCB": ("F32", (4,))},
            {"x.weight": ("I8", (4, 16))},
            {"x.weight": ("U8", (32, 1)), "x.weight.absmax": ("F32", (1,))},
            {"x.weight_packed": ("I32", (4, 4)), "x.weight_scale": ("BF16", (4, 1))},
            {"x.weight_packed": ("U8", (4, 16)), "x.weight_scale": ("F8_E4M3", (4, 2))},
            {"x.weight_scale": ("U8", (4, 1)), "x.weight": ("U8", (4, 16))},
            {"x_scales": ("U8", (4, 1)), "x_blocks": ("U8", (4, 1, 16))},
            {"x_blocks": ("U8", (4, 16))},
            {"x.weight": ("U8", (64,))},
        ):
            self.assertIsNone(self.claim(tensors), tensors)


class Refusals(Mxfp4Case):
    def test_blocks_without_scales(self) -> None:
        self.refuse(
            {"e.gate_up_proj_blocks": ("U8", (4, 6, 2, 16))},
            RefusalKind.MISSING_COMPANION,
            "weights e.gate_up_proj_blocks U8 [4, 6, 2, 16] have no scale; looked for "
            "e.gate_up_proj_scales",
        )

    def test_blocks_with_scales_of_another_shape_or_type(self) -> None:
        for code, shape in (("U8", (4, 6, 1)), ("U8", (4, 5, 2)), ("F32", (4, 6, 2)), ("U8", ())):
            self.refuse(
                {"e.w_blocks": ("U8", (4, 6, 2, 16)), "e.w_scales": (code, shape)},
                RefusalKind.BAD_COMPANION,
                f"scale e.w_scales {code} {list(shape)} does not fit weights e.w_blocks U8 "
                "[4, 6, 2, 16]; MXFP4 has U8 blocks (..., rows, groups, 16) and U8 scales "
                "(..., rows, groups)",
            )

    def test_blocks_that_are_none(self) -> None:
        for code, shape in (("U8", (4, 6, 2, 8)), ("I8", (4, 6, 2, 16)), ("U8", (4, 16))):
            refusal = self.refused({"w_blocks": (code, shape), "w_scales": ("U8", shape[:-1])})
            self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)

    def test_a_scale_of_the_wrong_shape(self) -> None:
        for shape in ((4, 2), (3, 1), (4,), (), (1, 4)):
            self.refuse(
                {"x.weight": ("I8", (4, 16)), "x.scale": ("F8_E8M0", shape)},
                RefusalKind.BAD_COMPANION,
                f"scale x.scale F8_E8M0 {list(shape)} does not fit weights x.weight I8 [4, 16], "
                "which would be FP4 in groups of 32",
            )

    def test_codes_of_six_bits_do_not_pass_for_four(self) -> None:
        for groups in range(1, 9):
            for name, lead in (("x.weight_packed", ()), ("x.weight", ()), ("x.weight", (2,))):
                codes, scales = (*lead, 4, 24 * groups), (*lead, 4, groups)
                self.refuse(
                    {name: ("U8", codes), "x.weight_scale": ("U8", scales)},
                    RefusalKind.UNKNOWN_DTYPE,
                    f"weights {name} U8 {list(codes)} with scale x.weight_scale U8 {list(scales)} "
                    "have the shapes of MXFP6, which is not read",
                )

    def test_two_scales(self) -> None:
        self.refuse(
            {
                "x.weight": ("I8", (4, 16)),
                "x.weight_scale": ("BF16", (4, 1)),
                "x.scale": ("F8_E8M0", (4, 1)),
            },
            RefusalKind.BAD_COMPANION,
            "weights x.weight I8 [4, 16] have several scales: x.weight_scale BF16 [4, 1], "
            "x.scale F8_E8M0 [4, 1]; which one counts is not known",
        )

    def test_a_zero_point(self) -> None:
        self.refuse(
            {
                "x.weight_packed": ("U8", (4, 16)),
                "x.weight_scale": ("U8", (4, 1)),
                "x.weight_zero_point": ("U8", (4, 1)),
            },
            RefusalKind.BAD_COMPANION,
            "weights x.weight_packed U8 [4, 16] have a zero point x.weight_zero_point U8 [4, 1]; "
            "FP4 with zero points is not understood",
        )

    def test_packed_experts_whose_config_promises_a_scale_without_it(self) -> None:
        for code, method in (("I8", "fp8"), ("U8", "quark")):
            self.refuse(
                {"x.weight": (code, (4, 16))},
                RefusalKind.MISSING_COMPANION,
                f"weights x.weight {code} [4, 16] have no scale; looked for x.weight_scale_inv, "
                "x.weight_scale, x.scale_inv, x.scale, x.qscale_weight",
                {"quant_method": method},
            )
        name = "experts.gate_up_proj"
        self.refuse(
            {name: ("I8", (2, 4, 16))},
            RefusalKind.MISSING_COMPANION,
            f"weights {name} I8 [2, 4, 16] have no scale; looked for {name}_weight_scale_inv, "
            f"{name}_weight_scale, {name}_scale_inv, {name}_scale, {name}_qscale_weight",
            {"quant_method": "fp8"},
        )

    def test_a_config_that_names_no_method_promises_nothing(self) -> None:
        for method in (["fp8"], {"fp8": True}, 8, None):
            self.assertIsNone(
                self.claim({"x.weight": ("I8", (4, 16))}, {"quant_method": method}), method
            )

    def test_packed_experts_with_a_scale_of_floats(self) -> None:
        for code in ("F32", "F64", "I64", "BF16"):
            self.refuse(
                {"x.weight": ("I8", (4, 16)), "x.scale": (code, (4, 1))},
                RefusalKind.BAD_COMPANION,
                f"scale x.scale {code} [4, 1] does not fit weights x.weight I8 [4, 16], which "
                "would be FP4 with F8_E8M0 or U8 scales in groups of 32",
            )


if __name__ == "__main__":
    unittest.main()
