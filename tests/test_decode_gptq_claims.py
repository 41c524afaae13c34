from __future__ import annotations

import unittest

from moe_weights.decode.gptq import Gptq
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.gptq_configs import PLANAR, V1, X
from tests.support.packed_codes import context_of, header_of


class Claims(unittest.TestCase):
    CODES = ("qweight", "I32", (8, 24))
    ZEROS = ("qzeros", "I32", (2, 3))
    SCALES = ("scales", "F16", (2, 24))
    INDEX = ("g_idx", "I32", (64,))
    SAID = f"{X}.qweight I32 [8, 24]"

    def claim(
        self, quantization: dict[str, object], *words: tuple[str, str, tuple[int, ...]]
    ) -> StoredTensor | EncodingRefusal | None:
        headers = [header_of(f"{X}.{word}", code, *shape) for word, code, shape in words]
        return Gptq().claim(headers[0], context_of(*headers, quantization=quantization))

    def assert_refused(
        self,
        quantization: dict[str, object],
        words: tuple[tuple[str, str, tuple[int, ...]], ...],
        kind: RefusalKind,
        cause: str,
    ) -> None:
        refusal = self.claim(quantization, *words)
        assert isinstance(refusal, EncodingRefusal), refusal
        self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
        self.assertEqual(refusal.name, f"{X}.weight")
        self.assertEqual(len(refusal.companions), len(words) - 1)

    def test_the_tensor_is_named_and_shaped_as_if_it_were_plain(self) -> None:
        for more in ({}, {"bits": 4, "group_size": 32}):
            with self.subTest(more=more):
                tensor = self.claim({**V1, **more}, self.CODES, self.INDEX, self.ZEROS, self.SCALES)
                assert isinstance(tensor, StoredTensor)
                self.assertEqual((tensor.name, tensor.shape), (f"{X}.weight", (24, 64)))
                self.assertEqual(tensor.option("bits"), 4)
                self.assertEqual(
                    [(role, header.file) for role, header in tensor.companions],
                    [
                        ("scale", "scales.safetensors"),
                        ("zero_point", "qzeros.safetensors"),
                        ("group_index", "g_idx.safetensors"),
                    ],
                )

    def test_one_group_covers_all_inputs(self) -> None:
        words = (self.CODES, self.INDEX, ("qzeros", "I32", (1, 3)), ("scales", "F16", (1, 24)))
        self.assertIsInstance(self.claim({**V1, "group_size": -1}, *words), StoredTensor)
        self.assertIsInstance(self.claim({**V1, "group_size": 100}, *words), StoredTensor)

    def test_modules_with_their_own_settings_are_settled_by_shapes(self) -> None:
        config = {**V1, "bits": 8, "group_size": 128, "dynamic": {"+:.*up_proj": {"bits": 4}}}
        tensor = self.claim(config, self.CODES, self.INDEX, self.ZEROS, self.SCALES)
        assert isinstance(tensor, StoredTensor)
        self.assertEqual(tensor.option("bits"), 4)

    def test_other_tensors_are_left_alone(self) -> None:
        self.assertIsNone(self.claim(V1, ("weight", "BF16", (8, 24))))
        self.assertIsNone(self.claim(V1, self.ZEROS))

    def test_missing_companions(self) -> None:
        for word in ("scales", "qzeros", "g_idx"):
            words = tuple(
                each
                for each in (self.CODES, self.ZEROS, self.SCALES, self.INDEX)
                if each[0] != word
            )
            with self.subTest(word=word):
                self.assert_refused(
                    V1,
                    words,
                    RefusalKind.MISSING_COMPANION,
                    f"GPTQ codes {self.SAID} without {word}; looked for {X}.{word}",
                )

    def test_scales_of_the_wrong_dtype_or_shape(self) -> None:
        config = {**V1, "bits": 4, "group_size": 32}
        for code, shape in (("I32", (2, 24)), ("F16", (1, 24)), ("F16", (2, 20)), ("F16", (24,))):
            with self.subTest(code=code, shape=shape):
                self.assert_refused(
                    config,
                    (self.CODES, self.ZEROS, ("scales", code, shape), self.INDEX),
                    RefusalKind.BAD_COMPANION,
                    f"{X}.scales {code} {list(shape)} does not fit GPTQ codes {self.SAID}, which "
                    "want BF16 or F16 or F32 [2, 24] for 64 inputs",
                )

    def test_zero_points_that_differ_from_the_scales(self) -> None:
        for more, width in (({}, "one width of 2 to 8 bits"), ({"bits": 4}, "4 bits")):
            for code, shape in (("I32", (1, 3)), ("I32", (2, 6)), ("F16", (2, 3))):
                with self.subTest(more=more, code=code, shape=shape):
                    self.assert_refused(
                        {**V1, **more},
                        (self.CODES, ("qzeros", code, shape), self.SCALES, self.INDEX),
                        RefusalKind.BAD_COMPANION,
                        f"{X}.qzeros {code} {list(shape)} and {X}.g_idx I32 [64] do not fit GPTQ "
                        f"codes {self.SAID} with {X}.scales F16 [2, 24] at {width}",
                    )

    def test_bits_of_the_config_that_the_shapes_deny(self) -> None:
        self.assert_refused(
            {**V1, "bits": 8},
            (self.CODES, self.ZEROS, self.SCALES, self.INDEX),
            RefusalKind.BAD_COMPANION,
            f"{X}.qzeros I32 [2, 3] and {X}.g_idx I32 [64] do not fit GPTQ codes {self.SAID} with "
            f"{X}.scales F16 [2, 24] at 8 bits",
        )

    def test_bits_that_no_code_has_although_the_shapes_fit(self) -> None:
        for bits in (1, 16):
            words = (("qweight", "I32", (2 * bits, 32)), ("qzeros", "I32", (2, bits)),
                     ("scales", "F16", (2, 32)), self.INDEX)  # fmt: skip
            with self.subTest(bits=bits):
                self.assert_refused(
                    {**V1, "bits": bits},
                    words,
                    RefusalKind.BAD_COMPANION,
                    f"{X}.qzeros I32 [2, {bits}] and {X}.g_idx I32 [64] do not fit GPTQ codes "
                    f"{X}.qweight I32 [{2 * bits}, 32] with {X}.scales F16 [2, 32] at {bits} bits",
                )

    def test_a_group_index_of_the_wrong_dtype_or_shape(self) -> None:
        for code, shape in (("F32", (64,)), ("I32", (2, 32)), ("I32", (0,))):
            with self.subTest(code=code, shape=shape):
                self.assert_refused(
                    V1,
                    (self.CODES, self.ZEROS, self.SCALES, ("g_idx", code, shape)),
                    RefusalKind.BAD_COMPANION,
                    f"{X}.g_idx {code} {list(shape)} does not fit GPTQ codes {self.SAID}, which "
                    "want I32 [64]",
                )

    def test_a_group_index_of_another_length_than_the_codes_is_the_one_that_is_blamed(self) -> None:
        # 8 words of 32 bits hold 64 codes of 4 bits; the scales and zero points are right.
        for length in (56, 65, 100, 1):
            for more in ({"bits": 4, "group_size": 32}, {"bits": 4}, {"dynamic": {"x": {}}}):
                with self.subTest(length=length, more=more):
                    self.assert_refused(
                        {**V1, **more},
                        (self.CODES, self.ZEROS, self.SCALES, ("g_idx", "I32", (length,))),
                        RefusalKind.BAD_COMPANION,
                        f"{X}.g_idx I32 [{length}] does not fit GPTQ codes {self.SAID}, which want "
                        "I32 [64]",
                    )

    def test_a_group_index_that_lost_a_few_entries_is_told_by_the_widths_of_the_config(
        self,
    ) -> None:
        shapes = (self.CODES, self.ZEROS, self.SCALES, ("g_idx", "I32", (63,)))
        headers = [header_of(f"{X}.{word}", code, *shape) for word, code, shape in shapes]
        config = {**V1, "bits": 4, "group_size": 32}
        for hidden_sizes in ((), (96,), (63, 64)):
            context = context_of(*headers, quantization=config, hidden_sizes=hidden_sizes)
            tensor = Gptq().claim(headers[0], context)
            assert isinstance(tensor, StoredTensor)  # the last word of the codes is padded
            self.assertEqual(tensor.shape, (24, 63))
        context = context_of(*headers, quantization=config, hidden_sizes=(64, 24))
        refusal = Gptq().claim(headers[0], context)
        assert isinstance(refusal, EncodingRefusal)
        self.assertEqual(refusal.kind, RefusalKind.BAD_COMPANION)
        self.assertEqual(
            refusal.cause,
            f"{X}.g_idx I32 [63] does not fit GPTQ codes {self.SAID}, which want I32 [64]",
        )

    def test_a_damaged_group_index_beside_zero_points_that_do_not_tell_the_width(self) -> None:
        self.assert_refused(
            V1,
            (self.CODES, ("qzeros", "I32", (2, 7)), self.SCALES, ("g_idx", "F32", (64,))),
            RefusalKind.BAD_COMPANION,
            f"{X}.g_idx F32 [64] does not fit GPTQ codes {self.SAID}, which want I32 [in]",
        )

    def test_widths_that_shapes_do_not_tell_apart(self) -> None:
        self.assert_refused(
            V1,
            (
                ("qweight", "I32", (1, 4)),
                ("qzeros", "I32", (1, 1)),
                ("scales", "F16", (1, 4)),
                ("g_idx", "I32", (8,)),
            ),
            RefusalKind.AMBIGUOUS_ENCODING,
            f"GPTQ codes {X}.qweight I32 [1, 4] may have 2 or 3 or 4 bits, and config.json does "
            "not settle it",
        )

    def test_planes_that_are_not_whole(self) -> None:
        self.assert_refused(
            {**PLANAR, "bits": 3},
            (
                ("qweight", "I32", (6, 16)),
                ("qzeros", "I32", (1, 2)),
                ("scales", "F16", (1, 16)),
                ("g_idx", "I32", (64,)),
            ),
            RefusalKind.BAD_COMPANION,
            f"planar GPTQ codes {X}.qweight I32 [6, 16] for 64 inputs and 16 outputs; both must "
            "be multiples of 32",
        )

    def test_codes_of_another_dtype_or_rank(self) -> None:
        self.assert_refused(
            V1,
            (("qweight", "I16", (8, 24)),),
            RefusalKind.UNKNOWN_DTYPE,
            f"codes {X}.qweight I16 [8, 24] are not packed into I32, the only words that are read",
        )
        self.assert_refused(
            V1,
            (("qweight", "I32", (8, 0)),),
            RefusalKind.BAD_COMPANION,
            f"codes {X}.qweight I32 [8, 0] must have two axes, none of them empty",
        )

    def test_configs_that_leave_the_zero_points_open(self) -> None:
        unknown = "known are gptq, gptq_v2, gptq_p, without is_marlin_format"
        cases: tuple[tuple[dict[str, object], str], ...] = (
            (
                {},
                (
                    "config.json does not say whether zero points are stored minus one; add its "
                    "quantization_config with quant_method and checkpoint_format"
                ),
            ),
            (
                {"quant_method": "auto-round"},
                (
                    "config.json names quant_method 'auto-round'; how it stores zero points is "
                    "not known (known are awq and gptq)"
                ),
            ),
            (
                {"quant_method": ["gptq"]},
                (
                    "config.json names quant_method \"['gptq']\"; how it stores zero points is "
                    "not known (known are awq and gptq)"
                ),
            ),
            (
                {"quant_method": "gptq", "checkpoint_format": "marlin"},
                f"config.json gives them the format 'marlin'; {unknown}",
            ),
            (
                {"quant_method": "gptq", "checkpoint_format": 2},
                f"config.json gives them the format '2'; {unknown}",
            ),
            (
                {"quant_method": "gptq", "checkpoint_format": "gptq", "format": "gptq_v2"},
                f"config.json gives them the format 'gptq and gptq_v2'; {unknown}",
            ),
            (
                {"quant_method": "gptq", "is_marlin_format": True},
                f"config.json gives them the format 'gptq'; {unknown}",
            ),
        )
        for quantization, cause in cases:
            with self.subTest(quantization=quantization):
                self.assert_refused(
                    quantization,
                    (self.CODES, self.ZEROS, self.SCALES, self.INDEX),
                    RefusalKind.AMBIGUOUS_ENCODING,
                    f"codes {self.SAID}, but {cause}",
                )


if __name__ == "__main__":
    unittest.main()
