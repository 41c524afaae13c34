from __future__ import annotations

import unittest

from moe_weights.decode.fp8 import Fp8
from moe_weights.decode.stored_tensor import StoredTensor
from tests.support.claims import ClaimCase

BLOCK_128 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


class Fp8Case(ClaimCase):
    member = Fp8()


class NamesOfScales(Fp8Case):
    def test_every_name_that_writers_use_is_found(self) -> None:
        x = "a.b.w1"
        for weights, scale in (
            (f"{x}.weight", f"{x}.weight_scale_inv"),
            (f"{x}.weight", f"{x}.weight_scale"),
            (f"{x}.weight", f"{x}.scale"),
            (f"{x}.weight", f"{x}.qscale_weight"),
            ("e.gate_up_proj", "e.gate_up_proj_scale_inv"),
            ("e.gate_up_proj", "e.gate_up_proj_scale"),
            ("e.gate_up_proj", "e.gate_up_proj_weight_scale"),
            ("moe.down_proj.weight", "moe.down_proj.weight_scale_inv"),
            ("e.w13_weight", "e.w13_weight_scale"),
        ):
            claimed = self.claimed(
                {weights: ("F8_E4M3", (256, 128)), scale: ("F32", (2, 1))}, BLOCK_128
            )
            self.assertEqual(claimed.name, weights)
            self.assertEqual(claimed.encoding, "fp8")
            self.assertEqual([header.name for _role, header in claimed.companions], [scale])

    def test_scales_of_activations_are_explained_by_the_weights(self) -> None:
        claimed = self.claimed(
            {
                "x.weight": ("F8_E4M3", (4, 8)),
                "x.weight_scale": ("F32", ()),
                "x.input_scale": ("F32", (1,)),
                "x.output_scale": ("F32", ()),
                "x.pre_quant_scale": ("F32", (8,)),
                "y.input_scale": ("F32", ()),
            }
        )
        self.assertEqual(
            [(role, header.name) for role, header in claimed.companions],
            [
                ("scale", "x.weight_scale"),
                ("input_scale", "x.input_scale"),
                ("input_scale_2", "x.output_scale"),
                ("input_scale_3", "x.pre_quant_scale"),
            ],
        )

    def test_activation_scales_of_a_stack_must_be_cut_like_it(self) -> None:
        claimed = self.claimed(
            {
                "gate_up_proj": ("F8_E4M3", (4, 6, 8)),
                "gate_up_proj_scale": ("F32", (4,)),
                "gate_up_proj_input_scale": ("F32", (4,)),
                "gate_up_proj_pre_quant_scale": ("F32", (8,)),
            }
        )
        names = [header.name for _role, header in claimed.companions]
        self.assertEqual(names, ["gate_up_proj_scale", "gate_up_proj_input_scale"])


class OtherTensors(Fp8Case):
    def test_tensors_of_other_kinds_are_left_alone(self) -> None:
        for code, shape in (
            ("BF16", (4, 4)),
            ("U8", (4, 4)),
            ("F8_E8M0", (4, 4)),
            ("F8_E4M3", (4,)),
        ):
            self.assertIsNone(
                self.claim({"x.weight": (code, shape), "x.weight_scale": ("F32", ())})
            )

    def test_weights_without_elements_are_claimed_as_others_are(self) -> None:
        for shape, scale_shape in (((5, 0), (5, 0)), ((0, 5), (0, 1)), ((2, 0, 5), (2, 0, 1))):
            claimed = self.claim(
                {"x.weight": ("F8_E4M3", shape), "x.weight_scale": ("F32", scale_shape)}
            )
            assert isinstance(claimed, StoredTensor)
            self.assertEqual(claimed.shape, shape)

    def test_group_scales_of_fp4_weights_belong_to_those(self) -> None:
        for weights, scale in (
            ("x.weight", "x.weight_scale"),
            ("x.weight_packed", "x.weight_scale"),
            ("gate_up_proj", "gate_up_proj_weight_scale"),
        ):
            self.assertIsNone(self.claim({scale: ("F8_E4M3", (4, 2)), weights: ("U8", (4, 16))}))


class SchemesOfCompressedTensors(Fp8Case):
    def fits(self, shape: tuple[int, ...], scale: tuple[int, ...], *weights: object) -> object:
        claimed = self.claim(
            {"x.weight": ("F8_E4M3", shape), "x.weight_scale": ("BF16", scale)},
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    f"group_{n}": {"weights": scheme} for n, scheme in enumerate(weights)
                },
            },
        )
        return claimed.option("block") if isinstance(claimed, StoredTensor) else None

    def test_a_declared_strategy_is_the_only_one_that_fits(self) -> None:
        float8 = {"type": "float", "num_bits": 8}
        tensor, channel = float8 | {"strategy": "tensor"}, float8 | {"strategy": "channel"}
        block = float8 | {"strategy": "block", "block_structure": [128, 128]}
        group = float8 | {"strategy": "group", "group_size": 32}
        shape = (256, 192)
        self.assertEqual(self.fits(shape, (1,), tensor), shape)
        self.assertEqual(self.fits(shape, (), tensor), shape)
        self.assertEqual(self.fits((3, 4, 5), (3, 1, 1), tensor), (4, 5))
        self.assertEqual(self.fits((3, 4, 5), (3,), tensor), (4, 5))
        self.assertEqual(self.fits((3, 4, 5), (1,), tensor), (4, 5))
        self.assertEqual(self.fits(shape, (256, 1), channel), (1, 192))
        self.assertEqual(self.fits(shape, (256,), channel), (1, 192))
        self.assertEqual(self.fits(shape, (2, 2), block), (128, 128))
        self.assertEqual(self.fits(shape, (256, 6), group), (1, 32))
        self.assertEqual(self.fits(shape, (256, 1), tensor, channel), (1, 192))
        for scheme, fitting in (
            (tensor, (1,)),
            (channel, (256, 1)),
            (block, (2, 2)),
            (group, (256, 6)),
        ):
            for scale in {(1,), (256, 1), (2, 2), (256, 6), (2, 1)} - {fitting}:
                self.assertIsNone(self.fits(shape, scale, scheme), (scheme, scale))

    def test_schemes_of_other_types_leave_it_to_the_shapes(self) -> None:
        int4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32}
        unknown = {"type": "float", "num_bits": 8, "strategy": "attn_head"}
        nvfp4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group"}
        for schemes in ((), (int4,), (unknown,), (nvfp4,), (None,)):
            self.assertEqual(self.fits((256, 192), (256, 1), *schemes), (1, 192))


if __name__ == "__main__":
    unittest.main()
