from __future__ import annotations

import unittest

from moe_weights.decode.nvfp4 import Nvfp4
from moe_weights.decode.stored_tensor import RefusalKind
from tests.support.claims import ClaimCase


class Nvfp4Case(ClaimCase):
    member = Nvfp4()


class Companions(Nvfp4Case):
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
            claimed = self.claimed(tensors)
            self.assertEqual([header.name for _role, header in claimed.parts], list(tensors))
            self.assertEqual(claimed.parts[3][0], "input_scale")


class OtherTensors(Nvfp4Case):
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
            self.assertIsNone(self.claim(tensors), tensors)


class Refusals(Nvfp4Case):
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
        refusal = self.refused(
            {"x.weight_packed": ("U8", (4, 16)), "x.weight_scale": ("F32", (4, 1))}
        )
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
