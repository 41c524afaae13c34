from __future__ import annotations

import unittest
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moe_weights.decode.awq import Awq
from moe_weights.decode.gptq import Gptq
from moe_weights.decode.row_cuts import cut_tensor
from moe_weights.decode.stored_tensor import EncodingRefusal, RefusalKind, StoredTensor
from tests.support.packed_codes import context_of, header_like, header_of
from tests.support.slow_integers import awq_values

X = "model.layers.0.mlp.experts.7.up_proj"
CONFIG: dict[str, object] = {
    "quant_method": "awq",
    "version": "gemm",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
}
ROLES = {"qweight": "weight", "qzeros": "zero_point", "scales": "scale"}
NIBBLE_OF_COLUMN = (0, 4, 1, 5, 2, 6, 3, 7)


def pack(codes: NDArray[Any]) -> NDArray[np.int32]:
    """Pack (n, out) codes of 4 bits into (n, out / 8) words, one nibble at a time."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            shift = 4 * NIBBLE_OF_COLUMN[column % 8]
            words[row, column // 8] |= np.uint32(int(codes[row, column]) << shift)
    return words.view(np.int32)


def claimed(arrays: dict[str, NDArray[Any]], **quantization: object) -> StoredTensor:
    headers = [header_like(f"{X}.{word}", array) for word, array in arrays.items()]
    tensor = Awq().claim(headers[0], context_of(*headers, quantization=quantization))
    assert isinstance(tensor, StoredTensor), tensor
    return tensor


def decoded(arrays: dict[str, NDArray[Any]], **quantization: object) -> NDArray[Any]:
    tensor = claimed(arrays, **quantization)
    values = Awq().decode(tensor, {ROLES[word]: array for word, array in arrays.items()})
    assert values.shape == tensor.shape
    assert values.dtype == np.float32
    return values


class Decode(unittest.TestCase):
    def test_outputs_lie_in_shuffled_nibbles(self) -> None:
        # One input, eight outputs. Nibbles of 0x76543210 from the low end are 0, 1, ..., 7; output
        # i is nibble (0, 4, 1, 5, 2, 6, 3, 7)[i]. Zero points alike: 0x11111112 has 2 in nibble 0.
        values = decoded(
            {
                "qweight": np.array([[0x76543210]], dtype=np.int32),
                "qzeros": np.array([[0x11111112]], dtype=np.int32),
                "scales": np.array([[1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]], dtype=np.float16),
            },
            quant_method="awq",
        )
        self.assertEqual(values.tolist(), [[-2.0], [3.0], [0.0], [4.0], [0.5], [2.5], [1.0], [3.0]])

    def test_the_highest_nibble_is_unsigned(self) -> None:
        values = decoded(
            {
                "qweight": np.array([[-1]], dtype=np.int32),
                "qzeros": np.array([[-0x10000000]], dtype=np.int32),
                "scales": np.ones((1, 8), dtype=np.float16),
            },
            quant_method="awq",
        )
        self.assertEqual(values[:, 0].tolist(), [15.0] * 7 + [0.0])

    def test_without_zero_points_codes_are_symmetric_around_eight(self) -> None:
        values = decoded(
            {
                "qweight": np.array([[0x76543210]], dtype=np.int32),
                "scales": np.ones((1, 8), dtype=np.float16),
            },
            quant_method="awq",
            zero_point=False,
        )
        self.assertEqual(values[:, 0].tolist(), [-8, -4, -7, -3, -6, -2, -5, -1])

    def test_a_slow_loop_agrees(self) -> None:
        random = np.random.default_rng(0)
        for rows, columns, group_size in ((64, 8, 32), (96, 24, 96), (40, 16, 8)):
            with self.subTest(rows=rows, columns=columns):
                groups = rows // group_size
                codes = random.integers(0, 16, size=(rows, columns))
                zeros = random.integers(0, 16, size=(groups, columns))
                scales = random.normal(size=(groups, columns)).astype(np.float16)
                values = decoded(
                    {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales},
                    **{**CONFIG, "group_size": group_size},
                )
                for row in range(rows):
                    for column in range(columns):
                        group = row // group_size
                        difference = np.float32(codes[row, column] - zeros[group, column])
                        self.assertEqual(
                            values[column, row], difference * np.float32(scales[group, column])
                        )

    def test_infinite_scales_pass_through(self) -> None:
        values = decoded(
            {
                "qweight": np.array([[1]], dtype=np.int32),
                "qzeros": np.zeros((1, 1), dtype=np.int32),
                "scales": np.full((1, 8), np.inf, dtype=np.float16),
            },
            quant_method="awq",
        )
        self.assertEqual(values[0, 0], np.inf)
        self.assertTrue(np.isnan(values[1, 0]))


class Rows(unittest.TestCase):
    @settings(max_examples=80, deadline=None)
    @given(
        n_words=st.integers(1, 12),
        groups=st.tuples(st.integers(1, 9), st.sampled_from([1, 3, 8, 32, 100])),
        has_zeros=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_of_any_words_are_those_of_the_whole_matrix(
        self, n_words: int, groups: tuple[int, int], has_zeros: bool, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        n_in = groups[0] * groups[1]

        def words(rows: int) -> NDArray[np.int32]:
            return rng.integers(0, 2**32, (rows, n_words), dtype=np.uint32).view(np.int32)

        arrays: dict[str, NDArray[Any]] = {
            "qweight": words(n_in),
            "scales": rng.normal(size=(groups[0], 8 * n_words)).astype(np.float16),
        }
        if has_zeros:
            arrays["qzeros"] = words(groups[0])
        tensor = claimed(arrays, quant_method="awq", zero_point=has_zeros)
        parts = {ROLES[word]: array for word, array in arrays.items()}
        expected = awq_values(tensor, parts).view(np.uint32)
        whole = Awq().decode(tensor, parts)
        np.testing.assert_array_equal(whole.view(np.uint32), expected)
        first, last = (8 * word for word in sorted(rng.integers(0, n_words + 1, 2).tolist()))
        cut = cut_tensor(tensor, (last - first, n_in), first)
        rows = Awq().decode(cut, parts)
        np.testing.assert_array_equal(rows.view(np.uint32), expected[first:last])


class Claims(unittest.TestCase):
    def claim(
        self,
        quantization: dict[str, object],
        *words: tuple[str, str, tuple[int, ...]],
    ) -> StoredTensor | EncodingRefusal | None:
        headers = [header_of(f"{X}.{word}", code, *shape) for word, code, shape in words]
        return Awq().claim(headers[0], context_of(*headers, quantization=quantization))

    def test_the_tensor_is_named_and_shaped_as_if_it_were_plain(self) -> None:
        for quantization in (CONFIG, {}, {"quant_method": "AWQ", "group_size": -1}):
            with self.subTest(quantization=quantization):
                groups = 1 if quantization.get("group_size") == -1 else 2
                tensor = self.claim(
                    quantization,
                    ("qweight", "I32", (64, 3)),
                    ("qzeros", "I32", (groups, 3)),
                    ("scales", "F16", (groups, 24)),
                )
                assert isinstance(tensor, StoredTensor)
                self.assertEqual((tensor.name, tensor.shape), (f"{X}.weight", (24, 64)))
                self.assertEqual(
                    [(role, header.file) for role, header in tensor.companions],
                    [("scale", "scales.safetensors"), ("zero_point", "qzeros.safetensors")],
                )

    def test_gptq_and_other_tensors_are_left_alone(self) -> None:
        gptq = (
            ("qweight", "I32", (8, 24)),
            ("qzeros", "I32", (2, 3)),
            ("scales", "F16", (2, 24)),
        )
        self.assertIsNone(self.claim({}, *gptq))
        self.assertIsNone(self.claim({"quant_method": "gptq"}, *gptq))
        self.assertIsNone(self.claim(CONFIG, ("weight", "BF16", (8, 24))))
        self.assertIsNone(self.claim(CONFIG, ("scales", "F16", (2, 24))))

    def test_one_family_claims_each_tensor(self) -> None:
        for method in ("awq", "gptq", "other", None):
            for words in (3, 24):
                headers = (
                    header_of(f"{X}.qweight", "I32", 64, words),
                    header_of(f"{X}.scales", "F16", 2, 24),
                )
                quantization = {} if method is None else {"quant_method": method}
                context = context_of(*headers, quantization=quantization)
                claims = [member.claim(headers[0], context) for member in (Awq(), Gptq())]
                with self.subTest(method=method, words=words):
                    self.assertEqual(claims.count(None), 1)

    def test_refusals_name_both_tensors(self) -> None:
        codes = ("qweight", "I32", (64, 3))
        zeros = ("qzeros", "I32", (2, 3))
        scales = ("scales", "F16", (2, 24))
        said = f"{X}.qweight I32 [64, 3]"
        misfit = f"does not fit AWQ codes {said}, which want BF16 or F16 or F32"
        cases: tuple[tuple[Any, tuple[Any, ...], RefusalKind, str], ...] = (
            (
                CONFIG,
                (codes, zeros),
                RefusalKind.MISSING_COMPANION,
                f"AWQ codes {said} without scales; looked for {X}.scales",
            ),
            (
                CONFIG,
                (codes, scales),
                RefusalKind.MISSING_COMPANION,
                f"AWQ codes {said} without qzeros; looked for {X}.qzeros",
            ),
            (
                CONFIG,
                (codes, zeros, ("scales", "F16", (1, 24))),
                RefusalKind.BAD_COMPANION,
                f"{X}.scales F16 [1, 24] {misfit} [2, 24] (groups of 32, config.json)",
            ),
            (
                CONFIG,
                (codes, zeros, ("scales", "I32", (2, 24))),
                RefusalKind.BAD_COMPANION,
                f"{X}.scales I32 [2, 24] {misfit} [2, 24] (groups of 32, config.json)",
            ),
            (
                {"quant_method": "awq"},
                (codes, zeros, ("scales", "F16", (3, 24))),
                RefusalKind.BAD_COMPANION,
                f"{X}.scales F16 [3, 24] {misfit} [groups, 24], the groups dividing 64 inputs",
            ),
            (
                {"quant_method": "awq", "group_size": -1},
                (codes, zeros, scales),
                RefusalKind.BAD_COMPANION,
                f"{X}.scales F16 [2, 24] {misfit} [1, 24]",
            ),
            (
                CONFIG,
                (codes, ("qzeros", "I32", (1, 3)), scales),
                RefusalKind.BAD_COMPANION,
                (
                    f"{X}.qzeros I32 [1, 3] does not fit AWQ codes {said}, which want I32 [2, 3] "
                    f"beside {X}.scales F16 [2, 24]"
                ),
            ),
            (
                {**CONFIG, "bits": 8},
                (codes, zeros, scales),
                RefusalKind.BAD_COMPANION,
                f"config.json gives AWQ codes {said} 8 bits; only 4 are known",
            ),
            (
                {**CONFIG, "version": "GEMV"},
                (codes, zeros, scales),
                RefusalKind.AMBIGUOUS_ENCODING,
                f"config.json gives AWQ codes {said} the version 'gemv'; only 'gemm' is known",
            ),
            (
                {**CONFIG, "version": 2},
                (codes, zeros, scales),
                RefusalKind.AMBIGUOUS_ENCODING,
                f"config.json gives AWQ codes {said} the version '2'; only 'gemm' is known",
            ),
            (
                CONFIG,
                (("qweight", "I16", (64, 3)), zeros, scales),
                RefusalKind.UNKNOWN_DTYPE,
                (
                    f"codes {X}.qweight I16 [64, 3] are not packed into I32, the only words "
                    "that are read"
                ),
            ),
            (
                CONFIG,
                (("qweight", "I32", (2, 64, 3)), zeros, scales),
                RefusalKind.BAD_COMPANION,
                f"codes {X}.qweight I32 [2, 64, 3] must have two axes, none of them empty",
            ),
        )
        for quantization, words, kind, cause in cases:
            with self.subTest(cause=cause):
                refusal = self.claim(quantization, *words)
                assert isinstance(refusal, EncodingRefusal)
                self.assertEqual((refusal.kind, refusal.cause), (kind, cause))
                self.assertEqual(refusal.name, f"{X}.weight")
                self.assertEqual(len(refusal.companions), len(words) - 1)


if __name__ == "__main__":
    unittest.main()
