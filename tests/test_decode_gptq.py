from __future__ import annotations

import unittest
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moe_weights.decode.gptq import Gptq
from moe_weights.decode.row_cuts import cut_tensor
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from moe_weights.errors import CheckpointError
from tests.support.packed_codes import context_of, header_like, header_of, pack_stream
from tests.support.slow_integers import gptq_values

X = "model.layers.0.mlp.experts.7.up_proj"
V1: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq"}
V2: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
PLANAR: dict[str, object] = {"quant_method": "gptq", "checkpoint_format": "gptq_p"}
ROLES = {"qweight": "weight", "qzeros": "zero_point", "scales": "scale", "g_idx": "group_index"}
Arrays = dict[str, NDArray[Any]]

# Lowest bit and width of each plane, as GPTQModel documents them.
PLANES = {
    3: ((0, 2), (2, 1)),
    5: ((0, 4), (4, 1)),
    6: ((0, 4), (4, 2)),
    7: ((0, 4), (4, 2), (6, 1)),
}


def pack_planes(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Pack each 32 codes of the last axis plane by plane."""
    blocks = codes.reshape(*codes.shape[:-1], -1, 32)
    planes = [
        pack_stream(blocks >> lowest & ((1 << width) - 1), width) for lowest, width in PLANES[bits]
    ]
    return np.concatenate(planes, axis=-1).reshape(*codes.shape[:-1], -1)


def claimed(arrays: Arrays, quantization: dict[str, object]) -> StoredTensor:
    headers = [header_like(f"{X}.{word}", array) for word, array in arrays.items()]
    tensor = Gptq().claim(headers[0], context_of(*headers, quantization=quantization))
    assert isinstance(tensor, StoredTensor), tensor
    return tensor


def decoded(arrays: Arrays, quantization: dict[str, object]) -> NDArray[Any]:
    tensor = claimed(arrays, quantization)
    values = Gptq().decode(tensor, {ROLES[word]: array for word, array in arrays.items()})
    assert values.shape == tensor.shape
    assert values.dtype == np.float32
    return values


def stored(
    codes: NDArray[Any],
    zeros: NDArray[Any],
    scales: NDArray[Any],
    g_idx: NDArray[Any],
    bits: int,
    *,
    planar: bool = False,
) -> Arrays:
    """Pack codes (in, out) and zero points (groups, out) as they are."""
    pack = pack_planes if planar else pack_stream
    return {
        "qweight": np.ascontiguousarray(pack(codes.T, bits).T).view(np.int32),
        "qzeros": pack(zeros, bits).view(np.int32),
        "scales": scales,
        "g_idx": g_idx.astype(np.int32),
    }


class ZeroPoints(unittest.TestCase):
    def zero_points(self, word: int, quantization: dict[str, object]) -> list[float]:
        """Decode codes of 0 with scales of -1 at 4 bits: the values are the zero points."""
        arrays: Arrays = {
            "qweight": np.zeros((1, 8), dtype=np.int32),
            "qzeros": np.array([[word]], dtype=np.uint32).view(np.int32),
            "scales": np.full((1, 8), -1.0, dtype=np.float16),
            "g_idx": np.zeros(8, dtype=np.int32),
        }
        column: list[float] = decoded(arrays, {**quantization, "bits": 4})[:, 0].tolist()
        return column

    def test_version_1_stores_them_minus_one(self) -> None:
        for quantization in (
            V1,
            {"quant_method": "gptq"},
            {"format": "gptq"},
            {"quant_method": "GPTQ", "checkpoint_format": "gptq", "format": "gptq"},
        ):
            with self.subTest(quantization=quantization):
                self.assertEqual(self.zero_points(0x77777777, quantization), [8.0] * 8)

    def test_version_2_and_planar_store_them_as_they_are(self) -> None:
        for quantization in (V2, PLANAR, {"format": "gptq_v2"}):
            with self.subTest(quantization=quantization):
                self.assertEqual(
                    self.zero_points(0x76543210, quantization), [0, 1, 2, 3, 4, 5, 6, 7]
                )

    def test_a_zero_point_of_zero_borrowed_from_its_neighbour(self) -> None:
        # Zero points 0, 8, 8, ... are 0x88888880; minus 0x11111111 it is 0x7777776f.
        self.assertEqual(self.zero_points(0x7777776F, V1), [0.0] + [8.0] * 7)
        # Zero points of 0 throughout: 0 - 0x11111111 = 0xeeeeeeef in 32 bits.
        self.assertEqual(self.zero_points(0xEEEEEEEF, V1), [0.0] * 8)

    def test_three_bits_lose_the_one_each_alone(self) -> None:
        arrays: Arrays = {
            "qweight": np.zeros((3, 32), dtype=np.int32),
            "qzeros": np.full((1, 3), -1, dtype=np.int32),  # 7 throughout, that is 0 - 1
            "scales": np.full((1, 32), -1.0, dtype=np.float16),
            "g_idx": np.zeros(32, dtype=np.int32),
        }
        self.assertEqual(decoded(arrays, V1).tolist(), np.zeros((32, 32)).tolist())
        self.assertEqual(decoded(arrays, V2).tolist(), np.full((32, 32), 7.0).tolist())


class Codes(unittest.TestCase):
    def test_they_are_packed_along_the_inputs(self) -> None:
        # Two outputs, eight inputs of 4 bits: word j holds the inputs of output j, low end first.
        # qzeros 0x77 is 8 and 8; values (code - 8) * scale.
        arrays: Arrays = {
            "qweight": np.array([[0x76543210, 0x0FEDCBA9]], dtype=np.int32),
            "qzeros": np.array([[0x77]], dtype=np.int32),
            "scales": np.array([[1.0, 0.5]], dtype=np.float16),
            "g_idx": np.zeros(8, dtype=np.int32),
        }
        self.assertEqual(
            decoded(arrays, {**V1, "bits": 4}).tolist(),
            [
                [-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0],
                [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, -4.0],
            ],
        )

    def test_the_group_of_an_input_is_looked_up(self) -> None:
        arrays: Arrays = {
            "qweight": np.array([[0x11111111] * 4], dtype=np.int32),
            "qzeros": np.zeros((2, 1), dtype=np.int32),
            "scales": np.array([[1.0] * 4, [16.0] * 4], dtype=np.float16),
            "g_idx": np.array([1, 0, 1, 0, 0, 1, 1, 0], dtype=np.int32),
        }
        self.assertEqual(
            decoded(arrays, {**V2, "bits": 4})[3].tolist(),
            [16.0, 1.0, 16.0, 1.0, 1.0, 16.0, 16.0, 1.0],
        )

    def test_a_slow_loop_agrees_at_every_width(self) -> None:
        random = np.random.default_rng(0)
        cases = [
            (bits, rows, columns, quantization)
            for bits in (2, 3, 4, 8)
            for rows, columns in ((64, 32), (40, 12))
            for quantization in (V1, V2)
        ]
        cases += [(bits, 64, 32, PLANAR) for bits in range(2, 9)]
        cases += [(bits, 64, 32, V1) for bits in (5, 6, 7)]
        for bits, n_in, n_out, quantization in cases:
            with self.subTest(bits=bits, n_in=n_in, n_out=n_out, quantization=quantization):
                codes = random.integers(0, 1 << bits, size=(n_in, n_out))
                zeros = random.integers(1, 1 << bits, size=(3, n_out))
                scales = random.normal(size=(3, n_out)).astype(np.float16)
                g_idx = random.integers(0, 3, size=n_in)
                minus_one = quantization is V1 and bits not in (5, 6, 7)
                planar = bits in (5, 6, 7) or (quantization is PLANAR and bits == 3)
                arrays = stored(codes, zeros - int(minus_one), scales, g_idx, bits, planar=planar)
                if minus_one:
                    # The padding behind the last zero point lost its ones as well.
                    arrays["qzeros"] = self.version_1(zeros, bits)
                values = decoded(arrays, {**quantization, "bits": bits})
                for row in range(n_out):
                    for column in range(n_in):
                        group = g_idx[column]
                        difference = np.float32(codes[column, row] - zeros[group, row])
                        self.assertEqual(
                            values[row, column], difference * np.float32(scales[group, row])
                        )

    def version_1(self, zeros: NDArray[Any], bits: int) -> NDArray[np.int32]:
        if bits == 3:
            return pack_stream(zeros - 1, bits).view(np.int32)
        ones = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}[bits]
        return (pack_stream(zeros, bits) - np.uint32(ones)).view(np.int32)

    def test_groups_may_be_unused(self) -> None:
        for index in ([0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [2] * 8, [1, 1, 1, 1, 2, 2, 2, 2]):
            arrays: Arrays = {
                "qweight": np.full((1, 8), 0x11111111, dtype=np.int32),
                "qzeros": np.zeros((3, 1), dtype=np.int32),
                "scales": np.repeat(np.float16([[1], [16], [256]]), 8, axis=1),
                "g_idx": np.array(index, dtype=np.int32),
            }
            with self.subTest(index=index):
                row = decoded(arrays, {**V2, "bits": 4})[5].tolist()
                self.assertEqual(row, [16.0**group for group in index])

    def test_group_indices_out_of_range_are_an_error(self) -> None:
        for index in (-1, 2):
            arrays: Arrays = {
                "qweight": np.zeros((1, 8), dtype=np.int32),
                "qzeros": np.zeros((2, 1), dtype=np.int32),
                "scales": np.ones((2, 8), dtype=np.float16),
                "g_idx": np.array([0, 0, 0, 0, 1, 1, 1, index], dtype=np.int32),
            }
            with self.subTest(index=index), self.assertRaises(CheckpointError) as caught:
                decoded(arrays, {**V2, "bits": 4})
            self.assertEqual(
                str(caught.exception),
                f"{X}.g_idx: group indices run from {min(index, 0)} to {max(index, 1)}, there are "
                "2 groups; write the checkpoint again",
            )


class Rows(unittest.TestCase):
    @settings(max_examples=150, deadline=None)
    @given(
        form=st.sampled_from([*((b, V1) for b in range(2, 9)), *((b, V2) for b in (2, 3, 4, 8)),
                              (3, PLANAR)]),
        n_out=st.integers(1, 80),
        n_in=st.integers(1, 200),
        group_size=st.sampled_from([-1, 8, 32, 128]),
        order=st.sampled_from(["consecutive", "act-order", "any"]),
        seed=st.integers(0, 2**32 - 1),
    )  # fmt: skip
    def test_of_any_words_are_those_of_the_whole_matrix(
        self,
        form: tuple[int, dict[str, object]],
        n_out: int,
        n_in: int,
        group_size: int,
        order: str,
        seed: int,
    ) -> None:
        rng = np.random.default_rng(seed)
        bits, config = form
        if bits in (5, 6, 7) or config is PLANAR:
            n_out, n_in = -(-n_out // 32) * 32, -(-n_in // 32) * 32
        size = n_in if group_size < 0 else group_size
        n_groups = -(-n_in // size)
        groups = np.arange(n_in) // size
        if order == "act-order":
            groups = rng.permutation(groups)
        elif order == "any":
            groups = rng.integers(0, n_groups, n_in)

        def words(*shape: int) -> NDArray[np.int32]:
            return rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.int32)

        arrays = {
            "qweight": words(-(-n_in * bits // 32), n_out),
            "qzeros": words(n_groups, -(-n_out * bits // 32)),
            "scales": rng.normal(size=(n_groups, n_out)).astype(np.float16),
            "g_idx": groups.astype(np.int32),
        }
        tensor = claimed(arrays, {**config, "bits": bits, "group_size": group_size})
        parts = {ROLES[word]: array for word, array in arrays.items()}
        expected = gptq_values(tensor, parts).view(np.uint32)
        whole = Gptq().decode(tensor, parts)
        np.testing.assert_array_equal(whole.view(np.uint32), expected)
        first, last = sorted(rng.integers(0, n_out + 1, 2).tolist())
        cut = cut_tensor(tensor, (last - first, n_in), first)
        rows = Gptq().decode(cut, parts)
        np.testing.assert_array_equal(rows.view(np.uint32), expected[first:last])


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
