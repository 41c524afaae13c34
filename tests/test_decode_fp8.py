from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.block_scale import block_shape_of
from moe_weights.decode.fp8 import Fp8
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.scaled_codes import (
    context_of,
    decode_all,
    decode_cut,
    e4m3,
    fill,
)

E4M3 = ml_dtypes.float8_e4m3fn
BLOCK_128 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
W, S = "m.experts.0.up_proj.weight", "m.experts.0.up_proj.weight_scale_inv"


def codes_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    codes = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x7E  # no NaN
    return codes


def scales_of(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1e-4, 1e-2, shape).astype(np.float32)


def claim(
    tensors: dict[str, tuple[str, tuple[int, ...]]], config: dict[str, object] | None = None
) -> StoredTensor | EncodingRefusal | None:
    context = context_of(tensors, config)
    return Fp8().claim(next(iter(context.by_name.values())), context)


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


class NamesOfScales(unittest.TestCase):
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
            claimed = claim({weights: ("F8_E4M3", (256, 128)), scale: ("F32", (2, 1))}, BLOCK_128)
            assert isinstance(claimed, StoredTensor)
            self.assertEqual(claimed.name, weights)
            self.assertEqual(claimed.encoding, "fp8")
            self.assertEqual([header.name for _role, header in claimed.companions], [scale])

    def test_scales_of_activations_are_explained_by_the_weights(self) -> None:
        claimed = claim(
            {
                "x.weight": ("F8_E4M3", (4, 8)),
                "x.weight_scale": ("F32", ()),
                "x.input_scale": ("F32", (1,)),
                "x.output_scale": ("F32", ()),
                "x.pre_quant_scale": ("F32", (8,)),
                "y.input_scale": ("F32", ()),
            }
        )
        assert isinstance(claimed, StoredTensor)
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
        claimed = claim(
            {
                "gate_up_proj": ("F8_E4M3", (4, 6, 8)),
                "gate_up_proj_scale": ("F32", (4,)),
                "gate_up_proj_input_scale": ("F32", (4,)),
                "gate_up_proj_pre_quant_scale": ("F32", (8,)),
            }
        )
        assert isinstance(claimed, StoredTensor)
        names = [header.name for _role, header in claimed.companions]
        self.assertEqual(names, ["gate_up_proj_scale", "gate_up_proj_input_scale"])


class OtherTensors(unittest.TestCase):
    def test_tensors_of_other_kinds_are_left_alone(self) -> None:
        for code, shape in (
            ("BF16", (4, 4)),
            ("U8", (4, 4)),
            ("F8_E8M0", (4, 4)),
            ("F8_E4M3", (4,)),
        ):
            self.assertIsNone(claim({"x.weight": (code, shape), "x.weight_scale": ("F32", ())}))

    def test_group_scales_of_fp4_weights_belong_to_those(self) -> None:
        for weights, scale in (
            ("x.weight", "x.weight_scale"),
            ("x.weight_packed", "x.weight_scale"),
            ("gate_up_proj", "gate_up_proj_weight_scale"),
        ):
            self.assertIsNone(claim({scale: ("F8_E4M3", (4, 2)), weights: ("U8", (4, 16))}))


class Refusals(unittest.TestCase):
    def refuse(
        self,
        tensors: dict[str, tuple[str, tuple[int, ...]]],
        kind: RefusalKind,
        cause: str,
        config: dict[str, object] | None = None,
    ) -> None:
        refusal = claim(tensors, config)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
        found = [name for name in tensors if name != refusal.header.name]
        self.assertEqual([header.name for header in refusal.companions], found)

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
                    refusal = claim(
                        {
                            "x.weight": ("F8_E4M3", shape),
                            "x.weight_scale_inv": ("F32", scale_shape),
                        },
                        BLOCK_128,
                    )
                    self.assertIsInstance(refusal, EncodingRefusal)

    def test_exponents_that_have_lost_columns_never_pass_for_wider_groups(self) -> None:
        for scale_shape in ((192, 5), (192, 3), (192, 20), (96, 5), (4, 10, 320)):
            refusal = claim(
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
                refusal = claim(
                    {"x.weight": ("F8_E4M3", shape), "x.weight_scale": ("F32", scale_shape)}
                )
                self.assertIsInstance(refusal, EncodingRefusal)

    def test_halves_of_a_fused_tensor_or_blocks(self) -> None:
        name = "m.experts.gate_up_proj"
        for shape, block in (((3, 160, 64), 128), ((3, 96, 48), 64), ((3, 48, 8), 32)):
            for config in ({}, {"quant_method": "fp8"}):
                refusal = claim(
                    {name: ("F8_E4M3", shape), f"{name}_scale_inv": ("F32", (3, 2, 1))}, config
                )
                assert isinstance(refusal, EncodingRefusal), refusal
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
            refusal = claim({name: ("F8_E4M3", shape), scale: ("F32", (3, 2, 1))})
            assert isinstance(refusal, EncodingRefusal), refusal
            self.assertEqual(
                refusal.cause,
                f"scale {scale} F32 [3, 2, 1] does not fit weights {name} F8_E4M3 {list(shape)}",
            )
            self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)


class SchemesOfCompressedTensors(unittest.TestCase):
    def fits(self, shape: tuple[int, ...], scale: tuple[int, ...], *weights: object) -> object:
        claimed = claim(
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
