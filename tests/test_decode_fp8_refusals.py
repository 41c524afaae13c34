from __future__ import annotations

import unittest

from moe_weights.decode.fp8 import Fp8
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind
from tests.support.claims import ClaimCase

BLOCK_128 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


class Refusals(ClaimCase):
    member = Fp8()

    def test_no_scale(self) -> None:
        self.refuse(
            {"x.weight": ("F8_E4M3", (4, 4))},
            RefusalKind.MISSING_COMPANION,
            "weights x.weight F8_E4M3 [4, 4] have no scale; looked for x.weight_scale_inv, "
            "x.weight_scale, x.scale_inv, x.scale, x.qscale_weight",
        )

    def test_scales_that_have_lost_their_weights(self) -> None:
        self.refuse(
            {"x.weight_scale": ("F8_E4M3", (4, 4))},
            RefusalKind.MISSING_COMPANION,
            "scales x.weight_scale F8_E4M3 [4, 4] have no weights; looked for x.weight, "
            "x.weight_packed",
        )

    def test_two_scales(self) -> None:
        self.refuse(
            {
                "x.weight": ("F8_E4M3", (4, 4)),
                "x.weight_scale_inv": ("F32", ()),
                "x.scale": ("F32", ()),
            },
            RefusalKind.BAD_COMPANION,
            "weights x.weight F8_E4M3 [4, 4] have several scales: x.weight_scale_inv F32 [], "
            "x.scale F32 []; which one counts is not known",
        )

    def test_a_zero_point(self) -> None:
        self.refuse(
            {
                "x.weight": ("F8_E4M3", (4, 4)),
                "x.weight_scale": ("F32", ()),
                "x.weight_zero_point": ("F8_E4M3", ()),
            },
            RefusalKind.BAD_COMPANION,
            "weights x.weight F8_E4M3 [4, 4] have a zero point x.weight_zero_point F8_E4M3 []; "
            "FP8 with zero points is not understood",
        )

    def test_a_scale_of_no_scale_type(self) -> None:
        self.refuse(
            {"x.weight": ("F8_E4M3", (4, 4)), "x.weight_scale": ("I32", ())},
            RefusalKind.BAD_COMPANION,
            "scale x.weight_scale I32 [] does not fit weights x.weight F8_E4M3 [4, 4]",
        )

    def test_a_scale_of_the_wrong_shape_names_the_right_one(self) -> None:
        self.refuse(
            {"x.weight": ("F8_E4M3", (2, 300, 140)), "x.weight_scale_inv": ("F32", (2, 2, 2))},
            RefusalKind.BAD_COMPANION,
            "scale x.weight_scale_inv F32 [2, 2, 2] does not fit weights x.weight F8_E4M3 "
            "[2, 300, 140]; weight_block_size [128, 128] of config.json asks for [2, 3, 2]",
            BLOCK_128,
        )

    def test_scales_that_have_lost_entries_never_pass_for_coarser_ones(self) -> None:
        for shape, scale_shapes in (
            ((256, 256), [(1, 1), (1,), (), (1, 2), (2, 1), (3, 2), (2,), (256,)[:0]]),
            ((256, 512), [(4, 2), (2, 3), (1, 4), (2, 2), (1, 1)]),
            ((384, 384), [(2, 2), (3, 2), (1, 1)]),
            ((512, 512), [(2, 2), (1, 1), (3, 4), (16,)]),
            ((64, 512), [(1, 1), (1, 2), (1,)]),
            ((4, 256, 128), [(4, 1, 1), (4,), (), (1,), (3, 2, 1), (1, 2, 1), (4, 1, 2), (2, 1)]),
            ((4, 128, 128), [(1,), (), (1, 1, 1), (3, 1, 1), (3,)]),
        ):
            for scale_shape in scale_shapes:
                with self.subTest(shape=shape, scale_shape=scale_shape):
                    refusal = self.claim(
                        {
                            "x.weight": ("F8_E4M3", shape),
                            "x.weight_scale_inv": ("F32", scale_shape),
                        },
                        BLOCK_128,
                    )
                    self.assertIsInstance(refusal, EncodingRefusal)

    def test_exponents_that_have_lost_columns_never_pass_for_wider_groups(self) -> None:
        for scale_shape in ((192, 5), (192, 3), (192, 20), (96, 5), (4, 10, 320)):
            refusal = self.claim(
                {
                    "x.weight": ("F8_E4M3", (192, 320)),
                    "x.weight_scale": ("U8", scale_shape),
                }
            )
            self.assertIsInstance(refusal, EncodingRefusal, scale_shape)

    def test_shapes_that_fit_two_readings_or_none(self) -> None:
        for shape, scale_shape in (
            ((3, 5, 5), (3, 5)),  # rows or columns?
            ((3, 6, 5), (3, 2)),  # one for gate, one for up?
            ((3, 6, 5), (3, 5, 1)),
            ((3, 6, 5), (2,)),
            ((6, 5), (5,)),
            ((6, 5), (1, 5)),
            ((256, 512), (4, 2)),  # 64 x 256
            ((256, 256), (2, 2, 1)),
        ):
            with self.subTest(shape=shape, scale_shape=scale_shape):
                refusal = self.claim(
                    {"x.weight": ("F8_E4M3", shape), "x.weight_scale": ("F32", scale_shape)}
                )
                self.assertIsInstance(refusal, EncodingRefusal)

    def test_halves_of_a_fused_tensor_or_blocks(self) -> None:
        name = "m.experts.gate_up_proj"
        for shape, block in (((3, 160, 64), 128), ((3, 96, 48), 64), ((3, 48, 8), 32)):
            for config in ({}, {"quant_method": "fp8"}):
                refusal = self.refused(
                    {name: ("F8_E4M3", shape), f"{name}_scale_inv": ("F32", (3, 2, 1))}, config
                )
                self.assertEqual(refusal.kind, RefusalKind.AMBIGUOUS_ENCODING)
                self.assertEqual(
                    refusal.cause,
                    f"scale {name}_scale_inv F32 [3, 2, 1] of weights {name} F8_E4M3 "
                    f"{list(shape)} is one for each half of the rows, or one for each block "
                    f"of [{block}, {block}]; weight_block_size in the quantization_config of "
                    "config.json would tell (null means halves)",
                )

    def test_halves_of_what_has_no_known_halves(self) -> None:
        for name, shape in (
            ("m.experts.gate_up_proj", (3, 7, 4)),
            ("m.experts.down_proj", (3, 8, 4)),
            ("m.experts.w13_weight", (3, 8, 4)),
        ):
            scale = f"{name.removesuffix('_weight')}_scale_inv"
            refusal = self.refused({name: ("F8_E4M3", shape), scale: ("F32", (3, 2, 1))})
            self.assertEqual(
                refusal.cause,
                f"scale {scale} F32 [3, 2, 1] does not fit weights {name} F8_E4M3 {list(shape)}",
            )
            self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)


if __name__ == "__main__":
    unittest.main()
