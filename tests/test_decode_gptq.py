from __future__ import annotations

import unittest
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moe_weights.decode.gptq import Gptq
from moe_weights.decode.row_cuts import cut_tensor
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.errors import CheckpointError
from tests.support.gptq_configs import PLANAR, V1, V2, X
from tests.support.packed_codes import context_of, header_like, pack_stream
from tests.support.slow_integers import gptq_values

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


if __name__ == "__main__":
    unittest.main()
