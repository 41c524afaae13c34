from __future__ import annotations

import unittest
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.decode.stored_tensor import StoredTensor
from tests.support.mlx_claims import X, claim
from tests.support.packed_codes import context_of, header_like, pack_stream

Quantized = dict[str, NDArray[Any]]


def claimed(arrays: Quantized, **settings: object) -> StoredTensor:
    headers = [header_like(f"{X}.{word}", array) for word, array in arrays.items()]
    tensor = claim(context_of(*headers, quantization=settings))
    assert isinstance(tensor, StoredTensor), tensor
    return tensor


def decode(tensor: StoredTensor, arrays: Quantized) -> NDArray[Any]:
    member = next(member for member in MLX_MEMBERS if member.name == tensor.encoding)
    roles = {header.name.rpartition(".")[2]: role for role, header in tensor.parts}
    return member.decode(tensor, {roles[word]: array for word, array in arrays.items()})


def to_numpy(array: mx.array) -> NDArray[Any]:
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


def quantized(values: mx.array, **settings: Any) -> Quantized:
    words = ("weight", "scales", "biases")
    return {
        word: to_numpy(array)
        for word, array in zip(words, mx.quantize(values, **settings), strict=False)
    }


def matrix(*shape: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> mx.array:
    """Weights of very different sizes: groups of zeros, of one value, with an outlier, tiny."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    flat = values.reshape(-1, 32)
    flat[::7] = 0.0
    flat[1::7] = -0.75
    flat[2::7, 3] = 1000.0
    flat[3::7] *= 1e-6
    return mx.array(values).astype(dtype)


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


class GoldenBytes(unittest.TestCase):
    def test_affine_codes_start_at_the_lowest_bits(self) -> None:
        # 4 bits: 0x76543210 holds 0, 1, ..., 7. Groups of 4: code * 0.5 - 1, code * 2 + 10.
        arrays: Quantized = {
            "weight": np.array([[0x76543210]], dtype=np.uint32),
            "scales": np.array([[0.5, 2.0]], dtype=np.float32),
            "biases": np.array([[-1.0, 10.0]], dtype=np.float32),
        }
        tensor = claimed(arrays, bits=4, group_size=4)
        self.assertEqual(tensor.shape, (1, 8))
        self.assertEqual(
            decode(tensor, arrays).tolist(), [[-1.0, -0.5, 0.0, 0.5, 18.0, 20.0, 22.0, 24.0]]
        )

    def test_three_bit_codes_cross_words(self) -> None:
        # Code 10 lies in bits 30 to 32: two bits of word 0 (0b01), one of word 1 (0b1): 5.
        arrays: Quantized = {
            "weight": np.array([[0x40000007, 0x00000001, 0xE0000000]], dtype=np.uint32),
            "scales": np.ones((1, 1), dtype=np.float16),
            "biases": np.zeros((1, 1), dtype=np.float16),
        }
        values = decode(claimed(arrays, bits=3, group_size=32), arrays)[0]
        expected = np.zeros(32)
        expected[[0, 10, 31]] = [7, 5, 7]
        self.assertEqual(values.tolist(), expected.tolist())

    def test_mxfp4_scales_are_powers_of_two(self) -> None:
        # Low nibble first: 1 -> 0.5, 9 -> -0.5, 7 -> 6, 0xf -> -6, ...; scale 2**(129 - 127) = 4.
        arrays: Quantized = {
            "weight": np.array([[0x00F79100 | 0x21, 0, 0, 0]], dtype=np.uint32),
            "scales": np.array([[129]], dtype=np.uint8),
        }
        values = decode(claimed(arrays, bits=4, group_size=32, mode="mxfp4"), arrays)
        self.assertEqual(values[0, :8].tolist(), [2.0, 4.0, 2.0, -2.0, 24.0, -24.0, 0.0, 0.0])

    def test_mxfp8_codes_are_e4m3(self) -> None:
        # 0x38 = 1, 0xc0 = -2, 0x7e = 448, 0x01 = 2**-9; scale 2**(126 - 127).
        arrays: Quantized = {
            "weight": np.array([[0x017EC038] + [0] * 7], dtype=np.uint32),
            "scales": np.array([[126]], dtype=np.uint8),
        }
        values = decode(claimed(arrays, bits=8, group_size=32, mode="mxfp8"), arrays)
        self.assertEqual(values[0, :4].tolist(), [0.5, -1.0, 224.0, 2.0**-10])

    def test_nvfp4_scales_are_e4m3_under_u8(self) -> None:
        # 0x3c = 1.5, 0x01 = 2**-9; codes 2 -> 1 and 0xd -> -3.
        arrays: Quantized = {
            "weight": np.array([[0xD2, 0, 0xD2, 0]], dtype=np.uint32),
            "scales": np.array([[0x3C, 0x01]], dtype=np.uint8),
        }
        values = decode(claimed(arrays, bits=4, group_size=16, mode="nvfp4"), arrays)[0]
        self.assertEqual(values[[0, 1, 16, 17]].tolist(), [1.5, -4.5, 2.0**-9, -3 * 2.0**-9])

    def test_a_global_scale_counts_in_units_of_the_largest_number(self) -> None:
        # 2688 = 6 * 448: 1.5 * (5376 / 2688) = 3.
        arrays: Quantized = {
            "weight": np.array([[[2, 0]]], dtype=np.uint32),
            "scales": np.array([[[0x3C]]], dtype=np.uint8),
            "global_scale": np.array([5376.0], dtype=np.float32),
        }
        values = decode(claimed(arrays, bits=4, group_size=16, mode="nvfp4"), arrays)
        self.assertEqual(values[0, 0, :2].tolist(), [3.0, 0.0])

    def test_an_infinite_global_scale_gives_what_it_gives_without_a_warning(self) -> None:
        # Codes 2 -> 1 and 0 -> 0 with scales of 1.5 and 0; 3e38 / 2688 * 448 is still finite.
        for total, expected in ((np.inf, [np.inf, np.nan, np.nan]), (3e38, [1.6741072e35, 0, 0])):
            arrays: Quantized = {
                "weight": np.array([[[2, 0, 2, 0]]], dtype=np.uint32),
                "scales": np.array([[[0x3C, 0]]], dtype=np.uint8),
                "global_scale": np.array([total], dtype=np.float32),
            }
            values = decode(claimed(arrays, bits=4, group_size=16, mode="nvfp4"), arrays)[0, 0]
            np.testing.assert_allclose(values[[0, 1, 16]], np.float32(expected), rtol=1e-6)

    def test_a_scale_of_not_a_number_is_one(self) -> None:
        arrays: Quantized = {
            "weight": np.array([[1, 0, 0, 0]], dtype=np.uint32),
            "scales": np.array([[255]], dtype=np.uint8),
        }
        values = decode(claimed(arrays, bits=4, group_size=32, mode="mxfp4"), arrays)
        self.assertTrue(np.isnan(values).all())


class SlowOracle(unittest.TestCase):
    def test_every_width_and_unusual_groups(self) -> None:
        random = np.random.default_rng(1)
        for bits in (1, 2, 3, 4, 5, 6, 8):
            for group_size, n_groups in ((8, 4), (32, 3), (96, 2), (160, 1)):
                n_columns = group_size * n_groups
                with self.subTest(bits=bits, group_size=group_size):
                    codes = random.integers(0, 1 << bits, size=(3, n_columns))
                    scales = random.normal(size=(3, n_groups)).astype(np.float32)
                    biases = random.normal(size=(3, n_groups)).astype(np.float32)
                    arrays: Quantized = {
                        "weight": pack_stream(codes, bits),
                        "scales": scales,
                        "biases": biases,
                    }
                    expected = np.empty((3, n_columns), dtype=np.float32)
                    for row in range(3):
                        for column in range(n_columns):
                            group = column // group_size
                            product = np.float32(codes[row, column]) * scales[row, group]
                            expected[row, column] = product + biases[row, group]
                    tensor = claimed(arrays, bits=bits, group_size=group_size)
                    assert_same_bits(decode(tensor, arrays), expected)


class AgainstMlx(unittest.TestCase):
    def test_affine_bit_for_bit(self) -> None:
        for bits in (1, 2, 3, 4, 5, 6, 8):
            for group_size in (32, 64, 128):
                for dtype in (mx.float32, mx.bfloat16, mx.float16):
                    with self.subTest(bits=bits, group_size=group_size, dtype=dtype):
                        weights = matrix(5, 3 * 128, seed=bits, dtype=dtype)
                        arrays = quantized(weights, bits=bits, group_size=group_size)
                        expected = mx.dequantize(
                            mx.array(arrays["weight"]),
                            mx.array(arrays["scales"].astype(np.float32)),
                            mx.array(arrays["biases"].astype(np.float32)),
                            bits=bits,
                            group_size=group_size,
                        )
                        tensor = claimed(arrays, bits=bits, group_size=group_size)
                        self.assertEqual(tensor.encoding, "mlx_affine")
                        assert_same_bits(decode(tensor, arrays), np.array(expected))

    def test_floating_modes_bit_for_bit(self) -> None:
        for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
            for shape in ((4, 64), (1, 32), (3, 5, 96)):
                with self.subTest(mode=mode, shape=shape):
                    arrays = quantized(matrix(*shape), mode=mode)
                    expected = mx.dequantize(
                        mx.array(arrays["weight"]),
                        mx.array(arrays["scales"]),
                        mode=mode,
                        dtype=mx.float32,
                    )
                    tensor = claimed(arrays, bits=bits, group_size=group_size, mode=mode)
                    self.assertEqual(tensor.encoding, f"mlx_{mode}")
                    self.assertEqual(tensor.shape, shape)
                    assert_same_bits(decode(tensor, arrays), np.array(expected))

    def test_every_code_under_every_scale_but_nan(self) -> None:
        for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
            n_scales = 128 if mode == "nvfp4" else 255
            with self.subTest(mode=mode):
                codes = np.arange(256, dtype=np.uint8)[None].repeat(n_scales, axis=0)
                scales = np.arange(n_scales, dtype=np.uint8)[:, None]
                n_groups = 256 * 8 // bits // group_size
                arrays: Quantized = {
                    "weight": codes.view(np.uint32),
                    "scales": scales.repeat(n_groups, axis=1),
                }
                expected = mx.dequantize(
                    mx.array(arrays["weight"]),
                    mx.array(arrays["scales"]),
                    mode=mode,
                    dtype=mx.float32,
                )
                tensor = claimed(arrays, bits=bits, group_size=group_size, mode=mode)
                np.testing.assert_array_equal(decode(tensor, arrays), np.array(expected))

    def test_global_scales_of_experts_bit_for_bit(self) -> None:
        weights = matrix(3, 4, 64)
        largest = mx.max(mx.abs(weights), axis=(-2, -1))
        experts = [mx.quantize(weights[e], mode="nvfp4", global_scale=largest[e]) for e in range(3)]
        arrays: Quantized = {
            "weight": np.stack([np.array(codes) for codes, _scales in experts]),
            "scales": np.stack([np.array(scales) for _codes, scales in experts]),
            "global_scale": np.array(largest),
        }
        expected = [
            np.array(
                mx.dequantize(*experts[e], mode="nvfp4", global_scale=largest[e], dtype=mx.float32)
            )
            for e in range(3)
        ]
        tensor = claimed(arrays, bits=4, group_size=16, mode="nvfp4")
        assert_same_bits(decode(tensor, arrays), np.stack(expected))


class Cuts(unittest.TestCase):
    def test_some_experts_decode_as_they_do_among_all(self) -> None:
        cases = (
            ({"bits": 3, "group_size": 32}, None),
            ({"bits": 4, "group_size": 16, "mode": "nvfp4"}, [1.0, 2.0, 3.0, 4.0]),
        )
        for settings, global_scale in cases:
            with self.subTest(settings=settings):
                arrays = quantized(matrix(4, 5, 64), **settings)
                if global_scale is not None:
                    arrays["global_scale"] = np.array(global_scale, dtype=np.float32)
                tensor = claimed(arrays, **settings)
                whole = decode(tensor, arrays)
                cut = {word: array[1:3] for word, array in arrays.items()}
                np.testing.assert_array_equal(decode(tensor, cut), whole[1:3])


if __name__ == "__main__":
    unittest.main()
