from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np

from moe_weights.decode.int8 import Int8
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from moe_weights.errors import CheckpointError
from tests.support.encoded_tensors import EncodedTensors

X = "model.layers.0.mlp.experts.7.up_proj"
W = f"{X}.weight"
BF16 = ml_dtypes.bfloat16


def config(*, symmetric: bool = True, **weights: object) -> dict[str, object]:
    settings = {"num_bits": 8, "type": "int", "symmetric": symmetric} | weights
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": settings}}}


def stored(
    codes: np.ndarray, settings: dict[str, object] | None = None, **companions: np.ndarray
) -> EncodedTensors:
    """Companions by what follows `X.`: `weight_scale=`, `SCB=`."""
    arrays = {W: codes.astype(np.int8)}
    arrays |= {f"{X}.{word}": array for word, array in companions.items()}
    return EncodedTensors(arrays=arrays, config=settings or {})


class Values(unittest.TestCase):
    def test_a_scale_per_row_multiplies(self) -> None:
        # -128 * 0.5 = -64, 127 * 0.5 = 63.5; 3 * 2 = 6, -1 * 2 = -2.
        codes = np.array([[-128, 127], [3, -1]])
        scale = np.array([[0.5], [2]], dtype=BF16)
        for form in (scale, scale[:, 0]):
            values = stored(codes, weight_scale=form).decode(Int8(), W)
            self.assertEqual(values.dtype, np.float32)
            self.assertEqual(values.tolist(), [[-64, 63.5], [6, -2]])

    def test_a_zero_point_is_subtracted_first(self) -> None:
        # (-128 - 127) * 0.5 = -127.5: the difference leaves the range of INT8.
        codes, scale = np.array([[-128, 127]]), np.array([[0.5]], dtype=BF16)
        zeros = np.array([[127]], dtype=np.int8)
        settings = config(strategy="channel", symmetric=False)

        values = stored(codes, settings, weight_scale=scale, weight_zero_point=zeros).decode(
            Int8(), W
        )

        self.assertEqual(values.tolist(), [[-127.5, 0]])

    def test_row_maxima_stand_for_code_127(self) -> None:
        # Each product is rounded, then multiplied by 1 / 127: 127 * 3 / 127 = 3 to the last bit.
        codes = np.array([[127, -127, 0], [1, 2, -128]])
        row_maxima = np.array([3, 127], dtype=np.float32)
        layout = np.array(0, dtype=np.uint8)

        values = stored(codes, SCB=row_maxima, weight_format=layout).decode(Int8(), W)

        np.testing.assert_array_max_ulp(
            values, np.array([[3, -3, 0], [1, 2, -128]], dtype=np.float32), maxulp=1
        )

    def test_groups_blocks_and_whole_tensors_agree_with_a_loop(self) -> None:
        rng = np.random.default_rng(0)
        codes = rng.integers(-128, 128, (10, 48))
        for settings, block, companion in (
            (config(strategy="group", group_size=16), (1, 16), "weight_scale"),
            (config(strategy="group", group_size=32), (1, 32), "weight_scale"),
            (config(strategy="block", block_structure=[4, 32]), (4, 32), "weight_scale"),
            (config(strategy="tensor"), (10, 48), "weight_scale"),
            ({"weight_block_size": [8, 32]}, (8, 32), "weight_scale_inv"),
        ):
            grid = (-(-10 // block[0]), -(-48 // block[1]))
            scale = rng.normal(size=grid).astype(np.float32)
            expected = np.array(
                [
                    [
                        np.float32(codes[row, col]) * scale[row // block[0], col // block[1]]
                        for col in range(48)
                    ]
                    for row in range(10)
                ]
            )
            with self.subTest(block=block):
                tensors = stored(codes, settings, **{companion: scale})
                np.testing.assert_array_equal(tensors.decode(Int8(), W), expected)

    def test_a_group_index_names_the_group_of_each_column(self) -> None:
        codes, scale = np.ones((1, 4)), np.array([[1, 2]], dtype=np.float32)
        index = np.array([1, 0, 0, 1], dtype=np.int32)
        tensors = stored(
            codes,
            config(strategy="group", group_size=2),
            weight_scale=scale,
            weight_g_idx=index,
        )

        self.assertEqual(tensors.decode(Int8(), W).tolist(), [[2, 1, 1, 2]])
        with self.assertRaises(CheckpointError):
            tensors.replaced(f"{W}_g_idx", index + 1).decode(Int8(), W)

    def test_stacked_experts_are_decoded_a_few_at_a_time(self) -> None:
        rng = np.random.default_rng(1)
        name = "model.layers.0.mlp.experts.w13_weight"
        codes = rng.integers(-128, 128, (4, 6, 8)).astype(np.int8)
        scale = rng.normal(size=(4, 6, 1)).astype(np.float32)
        tensors = EncodedTensors(arrays={name: codes, f"{name}_scale": scale})

        part = tensors.decode(Int8(), name, cut=slice(2, 4))

        np.testing.assert_array_equal(part, codes[2:4].astype(np.float32) * scale[2:4])

    def test_damaged_scales_pass_without_a_warning(self) -> None:
        scale = np.array([[np.inf], [np.nan]], dtype=np.float32)
        values = stored(np.array([[0, 1], [0, 1]]), weight_scale=scale).decode(Int8(), W)
        self.assertEqual(np.isnan(values).tolist(), [[True, False], [True, True]])


class Claims(unittest.TestCase):
    CODES = np.zeros((6, 8))
    SCALE = np.ones((6, 1), dtype=BF16)

    def assert_refused(self, tensors: EncodedTensors, kind: RefusalKind, cause: str) -> None:
        refusal = tensors.claim(Int8(), W)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))

    def assert_unfit(self, cause: str, settings: dict[str, object] | None = None, **companions):
        self.assert_refused(
            stored(self.CODES, settings, **companions), RefusalKind.BAD_COMPANION, cause
        )

    def test_companions_are_parts(self) -> None:
        tensors = stored(self.CODES, weight_scale=self.SCALE, input_scale=np.ones(1, np.float32))
        tensor = tensors.claim(Int8(), W)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual((tensor.name, tensor.shape), (W, (6, 8)))
        self.assertEqual([role for role, _ in tensor.parts], ["weight", "scale", "input_scale"])

    def test_packed_fp4_is_left_to_others(self) -> None:
        exponents = np.ones((6, 1), dtype=ml_dtypes.float8_e8m0fnu)
        for companions in (
            {"scale": exponents},
            {"scale": np.ones((6, 1), np.float32)},
            {"weight_scale": exponents},
            {"weight_scale": exponents.view(np.uint8)},
            {"weight_scale_inv": exponents},
        ):
            self.assertIsNone(stored(self.CODES, **companions).claim(Int8(), W))

    def test_other_tensors_are_not_claimed(self) -> None:
        for name, array in (
            (W, np.zeros((6, 8), dtype=np.uint8)),
            (W, np.zeros(8, dtype=np.int8)),
            (W, np.zeros((0, 8), dtype=np.int8)),
            (f"{X}.weight_zero_point", np.zeros((6, 8), dtype=np.int8)),
            ("x.ids", np.zeros((6, 8), dtype=np.int8)),
        ):
            self.assertIsNone(EncodedTensors(arrays={name: array}).claim(Int8(), name))

    def test_weights_without_a_scale_are_refused(self) -> None:
        layout = np.array(0, dtype=np.uint8)
        self.assert_refused(
            stored(self.CODES, weight_format=layout),
            RefusalKind.MISSING_COMPANION,
            f"weights {W} I8 [6, 8] without a scale; looked for {W}_scale, {W}_scale_inv, "
            f"{X}.SCB, {X}.scale",
        )
        name = "experts.w2_weight"
        refusal = EncodedTensors(arrays={name: np.zeros((2, 6, 8), np.int8)}).claim(Int8(), name)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(
            refusal.cause,
            "weights experts.w2_weight I8 [2, 6, 8] without a scale; looked for "
            "experts.w2_weight_scale, experts.w2_weight_scale_inv",
        )

    def test_a_missing_zero_point_is_named_where_the_config_demands_one(self) -> None:
        self.assert_refused(
            stored(
                self.CODES, config(strategy="channel", symmetric=False), weight_scale=self.SCALE
            ),
            RefusalKind.MISSING_COMPANION,
            f"weights {W} I8 [6, 8], asymmetric by config.json, without {W}_zero_point",
        )

    def test_a_missing_group_index_is_named_where_the_config_reordered_columns(self) -> None:
        settings = config(strategy="group", group_size=4, actorder="group")
        scale = np.ones((6, 2), dtype=BF16)
        self.assert_refused(
            stored(self.CODES, settings, weight_scale=scale),
            RefusalKind.MISSING_COMPANION,
            f"weights {W} I8 [6, 8], whose columns were reordered by config.json (actorder), "
            f"without {W}_g_idx",
        )
        index = np.arange(8, dtype=np.int32) % 2
        whole = stored(self.CODES, settings, weight_scale=scale, weight_g_idx=index)
        self.assertIsInstance(whole.claim(Int8(), W), StoredTensor)

    def test_scales_that_do_not_fit_are_refused(self) -> None:
        for array, words in (
            (np.ones((5, 1), np.float32), "F32 [5, 1]"),
            (np.ones((8, 1), np.float32), "F32 [8, 1]"),
            (np.ones((6, 3), np.float32), "F32 [6, 3]"),
            (np.ones((6, 1), np.float64), "F64 [6, 1]"),
        ):
            cause = f"scale {W}_scale {words} does not fit weights {W} I8 [6, 8]"
            self.assert_unfit(cause, weight_scale=array)
            self.assert_unfit(cause, config(strategy="channel"), weight_scale=array)

    def test_companions_that_do_not_fit_are_refused(self) -> None:
        self.assert_unfit(
            f"zero point {W}_zero_point I8 [6] does not fit scale {W}_scale BF16 [6, 1]",
            weight_scale=self.SCALE,
            weight_zero_point=np.zeros(6, np.int8),
        )
        self.assert_unfit(
            f"group index {W}_g_idx I32 [7] does not fit weights {W} I8 [6, 8], scale "
            f"{W}_scale BF16 [6, 1]",
            weight_scale=self.SCALE,
            weight_g_idx=np.zeros(7, np.int32),
        )
        self.assert_unfit(
            f"offset {W}_offset F32 [6, 1] of weights {W} I8 [6, 8] has no known meaning",
            weight_scale=self.SCALE,
            weight_offset=np.zeros((6, 1), np.float32),
        )

    def test_groups_without_a_config_could_be_packed_int4(self) -> None:
        for n_groups in (1, 2):
            self.assert_refused(
                stored(self.CODES, weight_scale_inv=np.ones((6, n_groups), np.float32)),
                RefusalKind.AMBIGUOUS_ENCODING,
                f"weights {W} I8 [6, 8] with scale {W}_scale_inv F32 [6, {n_groups}] are INT8, or "
                "two INT4 in each byte; config.json has no compressed-tensors groups that would "
                "tell",
            )

    def test_row_maxima_that_do_not_fit_are_refused(self) -> None:
        self.assert_unfit(
            f"scale {X}.SCB F32 [8] does not fit weights {W} I8 [6, 8]",
            SCB=np.ones(8, np.float32),
        )
        self.assert_unfit(
            f"weights {W} I8 [6, 8] have two scales, {W}_scale BF16 [6, 1] and {X}.SCB F32 [6]",
            SCB=np.ones(6, np.float32),
            weight_scale=self.SCALE,
        )

    def test_two_scales_are_refused(self) -> None:
        self.assert_unfit(
            f"weights {W} I8 [6, 8] have two scales, {W}_scale BF16 [6, 1] and "
            f"{W}_scale_inv F32 [1, 1]",
            weight_scale=self.SCALE,
            weight_scale_inv=np.ones((1, 1), np.float32),
        )

    def test_row_maxima_beside_what_shifts_codes_are_refused(self) -> None:
        for word in ("zero_point", "offset"):
            self.assert_unfit(
                f"{W}_{word} I8 [6] has no known meaning beside {X}.SCB F32 [6] of weights {W} "
                "I8 [6, 8]",
                SCB=np.ones(6, np.float32),
                **{f"weight_{word}": np.ones(6, np.int8)},
            )

    def test_tiled_layouts_are_refused(self) -> None:
        self.assert_unfit(
            f"layout {X}.weight_format U8 [] of weights {W} I8 [6, 8] is not 0, rows as they are",
            SCB=np.ones(6, np.float32),
            weight_format=np.array(2, dtype=np.uint8),
        )

    def test_a_scheme_of_another_group_counts_where_the_own_does_not_fit(self) -> None:
        settings = config(strategy="group", group_size=2)
        settings["config_groups"]["other"] = config(strategy="channel")["config_groups"]["group_0"]
        settings["config_groups"]["other"]["targets"] = ["re:nothing"]
        tensor = stored(self.CODES, settings, weight_scale=self.SCALE).claim(Int8(), W)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual(tensor.option("block"), (1, 8))


if __name__ == "__main__":
    unittest.main()
