from __future__ import annotations

import unittest
from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from moe_weights.decode.packed_int import PackedInt
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from moe_weights.errors import CheckpointError
from tests.support.encoded_tensors import EncodedTensors

X = "model.layers.0.mlp.experts.7.up_proj"
PACKED = f"{X}.weight_packed"


def scheme(bits: int, *, targets: tuple[str, ...] = ("Linear",), **weights: object) -> dict:
    settings = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True}
    return {"targets": list(targets), "weights": settings | weights}


def groups_of(size: int) -> dict[str, object]:
    return {"strategy": "group", "group_size": size}


def config(*groups: Mapping[str, object]) -> dict[str, object]:
    return {"config_groups": {f"group_{i}": entry for i, entry in enumerate(groups)}}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack unsigned codes along the last axis with one big integer per stream."""
    width = -(-codes.shape[-1] * bits // 32)
    streams = [
        sum(int(code) << (bits * position) for position, code in enumerate(row)).to_bytes(
            4 * width, "little"
        )
        for row in codes.reshape(-1, codes.shape[-1])
    ]
    return np.frombuffer(b"".join(streams), "<i4").reshape(*codes.shape[:-1], width)


def stored(
    codes: np.ndarray,
    bits: int,
    scale: np.ndarray,
    settings: Mapping[str, object] | None = None,
    name: str = X + ".weight",
    **companions: np.ndarray,
) -> EncodedTensors:
    arrays = {
        f"{name}_packed": pack(codes, bits),
        f"{name}_scale": scale,
        f"{name}_shape": np.array(codes.shape, dtype=np.int64),
    }
    arrays |= {f"{name}_{role}": array for role, array in companions.items()}
    return EncodedTensors(arrays=arrays, config=settings or {})


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


class Claims(unittest.TestCase):
    def setUp(self) -> None:
        codes = np.zeros((6, 96), dtype=np.int64)
        self.tensors = stored(
            codes, 4, np.ones((6, 3), np.float32), config(scheme(4, **groups_of(32)))
        )

    def claim(self, tensors: EncodedTensors) -> StoredTensor | EncodingRefusal | None:
        return tensors.claim(PackedInt(), PACKED)

    def assert_refused(self, tensors: EncodedTensors, kind: RefusalKind, cause: str) -> None:
        refusal = self.claim(tensors)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
        self.assertEqual(refusal.name, f"{X}.weight")

    def test_the_logical_name_is_that_of_plain_weights(self) -> None:
        tensor = self.claim(self.tensors)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual((tensor.name, tensor.shape), (f"{X}.weight", (6, 96)))
        self.assertEqual([role for role, _ in tensor.parts], ["weight", "scale", "shape"])
        self.assertEqual(tensor.option("bits"), 4)

    def test_activation_scales_are_explained(self) -> None:
        scale = np.ones(1, dtype=np.float32)
        tensor = self.claim(self.tensors.replaced(f"{X}.input_scale", scale))
        assert isinstance(tensor, StoredTensor)
        self.assertIn(f"{X}.input_scale", [header.name for _role, header in tensor.parts])

    def test_others_are_not_claimed(self) -> None:
        for name, array in (
            (PACKED, np.zeros((6, 12), dtype=np.uint8)),
            (f"{X}.weight_zero_point", np.zeros((6, 12), dtype=np.int32)),
            (PACKED, np.zeros(12, dtype=np.int32)),
            (PACKED, np.zeros((6, 0), dtype=np.int32)),
            (f"{X}.weight", np.zeros((6, 12), dtype=np.float32)),
        ):
            self.assertIsNone(EncodedTensors(arrays={name: array}).claim(PackedInt(), name))

    def test_missing_companions_are_named(self) -> None:
        scale, shape = f"{X}.weight_scale", f"{X}.weight_shape"
        codes = f"codes {PACKED} I32 [6, 12]"
        for gone, words in (
            ([scale], scale),
            ([shape], shape),
            ([scale, shape], f"{scale} and {shape}"),
        ):
            self.assert_refused(
                self.tensors.without(*gone),
                RefusalKind.MISSING_COMPANION,
                f"{codes} without {words}",
            )

    def test_a_missing_zero_point_is_named_where_the_config_demands_one(self) -> None:
        asymmetric = config(scheme(4, symmetric=False, **groups_of(32)))
        self.assert_refused(
            EncodedTensors(arrays=self.tensors.arrays, config=asymmetric),
            RefusalKind.MISSING_COMPANION,
            f"codes {PACKED} I32 [6, 12], asymmetric by config.json, without {X}.weight_zero_point",
        )

    def test_a_missing_group_index_is_named_where_the_config_reordered_columns(self) -> None:
        for order in ("group", "dynamic", "GROUP", True):
            settings = config(scheme(4, actorder=order, **groups_of(32)))
            reordered = EncodedTensors(arrays=self.tensors.arrays, config=settings)
            self.assert_refused(
                reordered,
                RefusalKind.MISSING_COMPANION,
                f"codes {PACKED} I32 [6, 12], whose columns were reordered by config.json "
                f"(actorder), without {X}.weight_g_idx",
            )
            index = np.arange(96, dtype=np.int32) // 32
            whole = reordered.replaced(f"{X}.weight_g_idx", index)
            self.assertIsInstance(self.claim(whole), StoredTensor)
        for order in ("weight", "static", None, False):
            settings = config(scheme(4, actorder=order, **groups_of(32)))
            tensors = EncodedTensors(arrays=self.tensors.arrays, config=settings)
            self.assertIsInstance(self.claim(tensors), StoredTensor)

    def test_of_two_schemes_that_differ_in_order_the_stored_index_counts(self) -> None:
        settings = config(
            scheme(4, targets=("a",), **groups_of(32)),
            scheme(4, targets=("b",), actorder="group", **groups_of(32)),
        )
        plain = EncodedTensors(arrays=self.tensors.arrays, config=settings)
        self.assertIsInstance(self.claim(plain), StoredTensor)

    def test_a_shape_too_large_to_be_read_is_refused(self) -> None:
        tensors = self.tensors
        context = replace(tensors.context(), read_metadata=lambda header: None)
        refusal = PackedInt().claim(tensors.header(PACKED), context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(
            refusal.cause,
            f"{X}.weight_shape I64 [2] is not the shape of weights with codes {PACKED} I32 [6, 12]",
        )

    def test_a_shape_that_contradicts_the_codes_is_refused(self) -> None:
        name = f"{X}.weight_shape"
        for array, words in (
            (np.array([96, 6]), "I64 [2]"),
            (np.array([6, 0]), "I64 [2]"),
            (np.array([6, 96, 1]), "I64 [3]"),
            (np.array([6, 96], dtype=np.float32), "F32 [2]"),
        ):
            self.assert_refused(
                self.tensors.replaced(name, array),
                RefusalKind.BAD_COMPANION,
                f"{name} {words} is not the shape of weights with codes {PACKED} I32 [6, 12]",
            )

    def test_a_scale_that_fits_no_group_of_the_config_is_refused(self) -> None:
        name = f"{X}.weight_scale"
        for array, words in (
            (np.ones((6, 2), np.float32), "F32 [6, 2]"),
            (np.ones((6, 1), np.float32), "F32 [6, 1]"),
            (np.ones((3, 3), np.float32), "F32 [3, 3]"),
            (np.ones((6, 3), np.int8), "I8 [6, 3]"),
        ):
            self.assert_refused(
                self.tensors.replaced(name, array),
                RefusalKind.BAD_COMPANION,
                f"codes {PACKED} I32 [6, 12] and scale {name} {words} do not fit weights [6, 96] "
                "as config.json describes them (4 bits, one scale per 1 rows x 32 columns)",
            )

    def test_codes_of_another_width_than_the_config_says_are_refused(self) -> None:
        tensors = self.tensors.replaced(PACKED, np.zeros((6, 24), dtype=np.int32))
        self.assert_refused(
            tensors,
            RefusalKind.BAD_COMPANION,
            f"codes {PACKED} I32 [6, 24] and scale {X}.weight_scale F32 [6, 3] do not fit weights "
            "[6, 96] as config.json describes them (4 bits, one scale per 1 rows x 32 columns)",
        )

    def test_a_zero_point_of_the_wrong_shape_is_refused(self) -> None:
        name = f"{X}.weight_zero_point"
        for array, words in (
            (np.zeros((6, 3), np.int32), "I32 [6, 3]"),
            (np.zeros((1, 2), np.int32), "I32 [1, 2]"),
            (np.zeros((6, 2), np.int8), "I8 [6, 2]"),
        ):
            self.assert_refused(
                self.tensors.replaced(name, array),
                RefusalKind.BAD_COMPANION,
                f"zero point {name} {words} does not fit scale {X}.weight_scale F32 [6, 3] and "
                "4 bits of weights [6, 96]",
            )

    def test_a_group_index_of_the_wrong_length_is_refused(self) -> None:
        index = np.zeros(95, dtype=np.int32)
        self.assert_refused(
            self.tensors.replaced(f"{X}.weight_g_idx", index),
            RefusalKind.BAD_COMPANION,
            f"group index {X}.weight_g_idx I32 [95] does not fit scale {X}.weight_scale "
            "F32 [6, 3] of weights [6, 96]",
        )

    def test_a_scheme_of_another_group_counts_where_the_own_does_not_fit(self) -> None:
        settings = config(
            scheme(8), scheme(4, targets=("re:.*other.*",), **groups_of(32)), scheme(3)
        )
        tensor = self.claim(EncodedTensors(arrays=self.tensors.arrays, config=settings))
        assert isinstance(tensor, StoredTensor)
        self.assertEqual((tensor.option("bits"), tensor.option("block")), (4, (1, 32)))

    def test_without_a_config_the_shapes_must_decide(self) -> None:
        clear = self.claim(EncodedTensors(arrays=self.tensors.arrays))
        assert isinstance(clear, StoredTensor)
        self.assertEqual((clear.option("bits"), clear.option("block")), (4, (1, 32)))
        # Eight columns fit into one word with 1, 2, 3 or 4 bits.
        narrow = stored(np.zeros((6, 8), dtype=np.int64), 4, np.ones((6, 1), np.float32))
        self.assert_refused(
            narrow,
            RefusalKind.AMBIGUOUS_ENCODING,
            f"codes {PACKED} I32 [6, 1] of weights [6, 8] can be read as 1 bits in blocks [1, 8] "
            "or 2 bits in blocks [1, 8] or 3 bits in blocks [1, 8] or 4 bits in blocks [1, 8]",
        )
        odd = stored(np.zeros((6, 96), dtype=np.int64), 4, np.ones((6, 5), np.float32))
        self.assert_refused(
            odd,
            RefusalKind.BAD_COMPANION,
            f"codes {PACKED} I32 [6, 12] and scale {X}.weight_scale F32 [6, 5] do not fit weights "
            "[6, 96]",
        )

    def test_of_two_schemes_that_differ_in_zero_points_the_stored_one_counts(self) -> None:
        settings = config(
            scheme(4, targets=("a",), **groups_of(32)),
            scheme(4, targets=("b",), symmetric=False, **groups_of(32)),
        )
        plain = EncodedTensors(arrays=self.tensors.arrays, config=settings)
        self.assertIsInstance(self.claim(plain), StoredTensor)


if __name__ == "__main__":
    unittest.main()
