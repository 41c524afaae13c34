from __future__ import annotations

import unittest

from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.mlx_claims import X, claim
from tests.support.packed_codes import context_of, header_of


class Claims(unittest.TestCase):
    def test_companions_of_other_shards_are_found(self) -> None:
        context = context_of(
            header_of(f"{X}.biases", "BF16", 4, 8, 2),
            header_of(f"{X}.weight", "U32", 4, 8, 8),
            header_of(f"{X}.scales", "BF16", 4, 8, 2),
            quantization={"bits": 4, "group_size": 32},
        )
        tensor = claim(context)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual((tensor.name, tensor.shape), (f"{X}.weight", (4, 8, 64)))
        self.assertEqual(
            [(role, header.file) for role, header in tensor.parts],
            [
                ("weight", "weight.safetensors"),
                ("scale", "scales.safetensors"),
                ("bias", "biases.safetensors"),
            ],
        )
        self.assertEqual(tensor.options, (("bits", 4), ("group_size", 32)))

    def test_other_tensors_are_left_alone(self) -> None:
        others = (
            header_of(f"{X}.weight", "BF16", 8, 64),
            header_of(f"{X}.weight", "I32", 8, 64),
            header_of(f"{X}.weight", "U32", 8),
            header_of(f"{X}.weight_packed", "U32", 8, 64),
            header_of(f"{X}.scales", "U8", 8, 2),
        )
        for header in others:
            context = context_of(header, quantization={"bits": 4, "group_size": 32})
            for member in MLX_MEMBERS:
                with self.subTest(header=header, member=member.name):
                    self.assertIsNone(member.claim(header, context))

    def test_an_override_decides_for_its_module(self) -> None:
        gate = "model.layers.0.mlp.gate"
        context = context_of(
            header_of(f"{gate}.weight", "U32", 4, 16),
            header_of(f"{gate}.scales", "BF16", 4, 1),
            header_of(f"{gate}.biases", "BF16", 4, 1),
            quantization={
                "bits": 4,
                "group_size": 32,
                "mode": "mxfp4",
                gate: {"bits": 8, "group_size": 64},
            },
        )
        tensor = claim(context, f"{gate}.weight")
        assert isinstance(tensor, StoredTensor)
        self.assertEqual((tensor.encoding, tensor.shape), ("mlx_affine", (4, 64)))


class ClaimsWithoutConfig(unittest.TestCase):
    def test_one_width_that_the_config_names_settles_bits_and_group(self) -> None:
        context = context_of(
            header_of(f"{X}.weight", "U32", 4, 8, 12),
            header_of(f"{X}.scales", "F16", 4, 8, 2),
            header_of(f"{X}.biases", "F16", 4, 8, 2),
            hidden_sizes=(64, 512),
        )
        tensor = claim(context)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual(tensor.options, (("bits", 6), ("group_size", 32)))

    def test_codes_of_a_floating_mode_are_settled_alike(self) -> None:
        for words, groups, width, encoding in (
            (8, 2, 64, "mlx_mxfp4"),
            (16, 2, 64, "mlx_mxfp8"),
            (8, 4, 64, "mlx_nvfp4"),
        ):
            with self.subTest(encoding=encoding):
                context = context_of(
                    header_of(f"{X}.weight", "U32", 8, words),
                    header_of(f"{X}.scales", "U8", 8, groups),
                    quantization={"quant_method": "mxfp4"},
                    hidden_sizes=(width,),
                )
                tensor = claim(context)
                assert isinstance(tensor, StoredTensor)
                self.assertEqual((tensor.encoding, tensor.shape), (encoding, (8, width)))

    def test_two_widths_that_the_config_names_are_ambiguous(self) -> None:
        context = context_of(
            header_of(f"{X}.weight", "U32", 8, 16),
            header_of(f"{X}.scales", "BF16", 8, 2),
            header_of(f"{X}.biases", "BF16", 8, 2),
            hidden_sizes=(64, 128),
        )
        refusal = claim(context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.AMBIGUOUS_ENCODING)
        self.assertEqual(
            refusal.cause,
            f"codes {X}.weight U32 [8, 16] with scales {X}.scales BF16 [8, 2]: config.json does "
            "not say how MLX packed them, and of the columns they may have, 256 (mode affine, 2 "
            "bits, groups of 128), 128 (mode affine, 4 bits, groups of 64), 64 (mode affine, 8 "
            "bits, groups of 32), 2 are widths of expert matrices by config.json; add its "
            "`quantization` block",
        )
        self.assertEqual(len(refusal.companions), 2)

    def test_no_width_that_the_config_names_is_ambiguous(self) -> None:
        context = context_of(
            header_of(f"{X}.weight", "U32", 8, 8),
            header_of(f"{X}.scales", "U8", 8, 2),
            hidden_sizes=(96,),
        )
        refusal = claim(context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(
            refusal.cause,
            f"codes {X}.weight U32 [8, 8] with scales {X}.scales U8 [8, 2]: config.json does not "
            "say how MLX packed them, and of the columns they may have, 64 (mode mxfp4, 4 bits, "
            "groups of 32), none are widths of expert matrices by config.json; add its "
            "`quantization` block",
        )

    def test_shapes_of_no_form_are_bad_companions(self) -> None:
        context = context_of(
            header_of(f"{X}.weight", "U32", 8, 8),
            header_of(f"{X}.scales", "U8", 8, 3),
            hidden_sizes=(64,),
        )
        refusal = claim(context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"codes {X}.weight U32 [8, 8] with scales {X}.scales U8 [8, 3]: config.json does not "
            "say how MLX packed them, and no form of MLX has these shapes",
        )


class Refusals(unittest.TestCase):
    def refused(
        self, quantization: dict[str, object], *words: tuple[str, str, tuple[int, ...]]
    ) -> EncodingRefusal:
        headers = [header_of(f"{X}.{word}", code, *shape) for word, code, shape in words]
        refusal = claim(context_of(*headers, quantization=quantization))
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual(list(refusal.companions), headers[1:])
        return refusal

    def test_codes_without_scales(self) -> None:
        refusal = self.refused({"bits": 4, "group_size": 32}, ("weight", "U32", (8, 8)))
        self.assertEqual(refusal.kind, RefusalKind.MISSING_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"codes {X}.weight U32 [8, 8] without scales; looked for {X}.scales",
        )

    def test_affine_codes_without_biases(self) -> None:
        refusal = self.refused(
            {"bits": 4, "group_size": 32},
            ("weight", "U32", (8, 8)),
            ("scales", "BF16", (8, 2)),
        )
        self.assertEqual(refusal.kind, RefusalKind.MISSING_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"affine codes {X}.weight U32 [8, 8] without biases; looked for {X}.biases",
        )

    def test_scales_of_the_wrong_dtype_or_shape(self) -> None:
        affine, mxfp4 = (
            {"bits": 4, "group_size": 32},
            {
                "bits": 4,
                "group_size": 32,
                "mode": "mxfp4",
            },
        )
        cases: tuple[tuple[dict[str, object], str, tuple[int, ...], str], ...] = (
            (affine, "U8", (8, 2), "affine"),
            (affine, "BF16", (8, 3), "affine"),
            (affine, "BF16", (4, 2), "affine"),
            (affine, "BF16", (2,), "affine"),
            (mxfp4, "BF16", (8, 2), "mxfp4"),
            (mxfp4, "U8", (8, 1), "mxfp4"),
        )
        for quantization, code, shape, mode in cases:
            with self.subTest(code=code, shape=shape):
                refusal = self.refused(
                    quantization, ("weight", "U32", (8, 8)), ("scales", code, shape)
                )
                want = "U8" if mode == "mxfp4" else "BF16 or F16 or F32"
                self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
                self.assertEqual(
                    refusal.cause,
                    f"scales {X}.scales {code} {list(shape)} do not fit codes {X}.weight U32 "
                    f"[8, 8] in mode {mode}, 4 bits, groups of 32, which want {want} [8, 2]",
                )

    def test_rows_that_hold_no_whole_groups(self) -> None:
        refusal = self.refused(
            {"bits": 3, "group_size": 32},
            ("weight", "U32", (8, 8)),
            ("scales", "BF16", (8, 2)),
        )
        self.assertEqual(
            refusal.cause,
            f"scales {X}.scales BF16 [8, 2] do not fit codes {X}.weight U32 [8, 8] in mode "
            "affine, 3 bits, groups of 32, which want BF16 or F16 or F32 whole groups (256 bits "
            "a row are none)",
        )

    def test_biases_that_differ_from_the_scales(self) -> None:
        for code, shape in (("BF16", (8, 1)), ("U8", (8, 2))):
            with self.subTest(code=code):
                refusal = self.refused(
                    {"bits": 4, "group_size": 32},
                    ("weight", "U32", (8, 8)),
                    ("scales", "BF16", (8, 2)),
                    ("biases", code, shape),
                )
                self.assertEqual(
                    refusal.cause,
                    f"biases {X}.biases {code} {list(shape)} do not fit scales {X}.scales BF16 "
                    "[8, 2]: both want a float dtype and the same shape",
                )

    def test_biases_beside_a_floating_mode(self) -> None:
        refusal = self.refused(
            {"bits": 4, "group_size": 32, "mode": "mxfp4"},
            ("weight", "U32", (8, 8)),
            ("scales", "U8", (8, 2)),
            ("biases", "BF16", (8, 2)),
        )
        self.assertEqual(
            refusal.cause,
            f"mxfp4 codes have no biases, but {X}.biases BF16 [8, 2] lies beside them",
        )

    def test_codes_that_the_config_calls_plain(self) -> None:
        refusal = self.refused(
            {"bits": 4, "group_size": 32, X: False},
            ("weight", "U32", (8, 8)),
            ("scales", "BF16", (8, 2)),
            ("biases", "BF16", (8, 2)),
        )
        self.assertEqual(
            refusal.cause,
            f"codes {X}.weight U32 [8, 8] with scales {X}.scales BF16 [8, 2], but config.json "
            f"says under {X} that it is not quantised",
        )

    def test_a_global_scale_of_the_wrong_mode_dtype_or_shape(self) -> None:
        cases = (
            ("mxfp4", 32, "F32", (4,)),
            ("nvfp4", 16, "BF16", (4,)),
            ("nvfp4", 16, "F32", (3,)),
            ("nvfp4", 16, "F32", ()),
        )
        for mode, group_size, code, shape in cases:
            with self.subTest(mode=mode, code=code, shape=shape):
                refusal = self.refused(
                    {"bits": 4, "group_size": group_size, "mode": mode},
                    ("weight", "U32", (4, 8, 8)),
                    ("scales", "U8", (4, 8, 64 // group_size)),
                    ("global_scale", code, shape),
                )
                self.assertEqual(
                    refusal.cause,
                    f"global scale {X}.global_scale {code} {list(shape)} does not fit {mode} "
                    f"codes {X}.weight U32 [4, 8, 8]: nvfp4 wants F32 [4]",
                )

    def test_a_global_scale_that_is_announced_and_missing(self) -> None:
        refusal = self.refused(
            {X: {"bits": 4, "group_size": 16, "mode": "nvfp4", "global_scale": True}},
            ("weight", "U32", (4, 8, 8)),
            ("scales", "U8", (4, 8, 4)),
        )
        self.assertEqual(refusal.kind, RefusalKind.MISSING_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"config.json announces a global scale; looked for {X}.global_scale",
        )


if __name__ == "__main__":
    unittest.main()
