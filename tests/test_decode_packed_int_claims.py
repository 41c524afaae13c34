from __future__ import annotations

import unittest
from dataclasses import replace

import numpy as np

from moe_weights.decode.packed_int import PackedInt
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.encoded_tensors import EncodedTensors
from tests.support.packed_ints import PACKED, X, config, groups_of, scheme, stored


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
