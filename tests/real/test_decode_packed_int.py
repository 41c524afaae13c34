"""compressed-tensors packs random matrices; its own decompression gives the expected values.

With float32 scales the two agree bit for bit. With BF16 and F16 scales the library rounds the
product to the dtype of the scale: it agrees with the decoded values rounded the same way, and, its
scales widened first, with the decoded values themselves.
"""

from __future__ import annotations

import unittest

import ml_dtypes
import numpy as np
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from moe_weights.decode.packed_int import PackedInt
from tests.support.encoded_tensors import EncodedTensors

X = "model.layers.0.mlp.experts.7.up_proj"
# The library cannot unpack 4-bit zero points of fewer than 9 rows in several groups: their one row
# of words keeps, transposed, a stride that its view refuses.
SHAPES = ((13, 96), (33, 64), (1, 32), (70, 160))
NUMPY_OF = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def scheme_of(**weights: object) -> QuantizationScheme:
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**{"type": "int", **weights})
    )


def ranges(matrix: torch.Tensor, args: QuantizationArgs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and largest value of what shares a scale, in the scale's own shape."""
    if args.strategy == "tensor":
        grouped = matrix.reshape(1, -1)
        return grouped.amin(-1), grouped.amax(-1)
    size = args.group_size if args.strategy == "group" else matrix.shape[1]
    grouped = matrix.reshape(matrix.shape[0], -1, size)
    return grouped.amin(-1), grouped.amax(-1)


def quantise(
    matrix: torch.Tensor, scheme: QuantizationScheme, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return what the library writes for a matrix."""
    scale, zero = calculate_qparams(*ranges(matrix, scheme.weights), scheme.weights)
    state = {
        "weight": matrix.to(dtype),
        "weight_scale": scale.to(dtype),
        "weight_zero_point": zero,
    }
    return PackedQuantizationCompressor.compress(state, scheme)


def stored(state: dict[str, torch.Tensor], scheme: QuantizationScheme | None) -> EncodedTensors:
    arrays = {f"{X}.{name}": to_numpy(tensor) for name, tensor in state.items()}
    groups = (
        {} if scheme is None else {"config_groups": {"group_0": scheme.model_dump(mode="json")}}
    )
    return EncodedTensors(arrays=arrays, config=groups)


class AgainstTheLibrary(unittest.TestCase):
    def assert_decodes(
        self, state: dict[str, torch.Tensor], scheme: QuantizationScheme, *, by_shape: bool
    ) -> None:
        dtype = state["weight_scale"].dtype
        widened = state | {"weight_scale": state["weight_scale"].float()}
        exact = PackedQuantizationCompressor.decompress(widened, scheme)["weight"].numpy()
        kept = PackedQuantizationCompressor.decompress(state, scheme)["weight"]

        for config in (scheme, None) if by_shape else (scheme,):
            values = stored(state, config).decode(PackedInt(), f"{X}.weight_packed")
            np.testing.assert_array_equal(values.view(np.int32), exact.view(np.int32))
            np.testing.assert_array_equal(values.astype(NUMPY_OF[dtype]), to_numpy(kept))

    def test_random_matrices_of_every_width_and_strategy(self) -> None:
        torch.manual_seed(0)
        for bits in range(1, 9):
            for strategy in ("group", "channel", "tensor"):
                for symmetric in (True, False):
                    for at, dtype in enumerate(NUMPY_OF):
                        matrix = torch.randn(SHAPES[(bits + at) % len(SHAPES)]) + 0.3
                        size = 32 if strategy == "group" else None
                        scheme = scheme_of(
                            num_bits=bits,
                            strategy=strategy,
                            group_size=size,
                            symmetric=symmetric,
                        )
                        with self.subTest(scheme=scheme.weights, dtype=dtype):
                            state = quantise(matrix, scheme, dtype)
                            self.assert_decodes(state, scheme, by_shape=symmetric)

    def test_widths_that_fill_no_word(self) -> None:
        torch.manual_seed(1)
        for bits in (2, 3, 4, 5, 6, 7, 8):
            for cols in (1, 7, 33, 100):
                for symmetric in (True, False):
                    scheme = scheme_of(num_bits=bits, strategy="channel", symmetric=symmetric)
                    with self.subTest(bits=bits, cols=cols, symmetric=symmetric):
                        state = quantise(torch.randn(9, cols), scheme, torch.float32)
                        self.assert_decodes(state, scheme, by_shape=False)

    def test_adversarial_scales_and_codes(self) -> None:
        scheme = scheme_of(num_bits=4, strategy="group", group_size=32, symmetric=False)
        scale = torch.tensor([[0.0, 1e-45], [3e38, -1.0], [float("inf"), float("nan")]])
        scale = scale.repeat(3, 1)
        matrix = torch.tensor([-8.0, 7.0, 0.0, 3.0]).repeat(9, 16)
        # Codes as they come from scales of 1; the scales are exchanged afterwards.
        ones = {"weight": matrix, "weight_scale": torch.ones(9, 2)}
        zero = torch.tensor([[-8, 7], [0, 1], [-1, 5]], dtype=torch.int8).repeat(3, 1)
        state = PackedQuantizationCompressor.compress(ones | {"weight_zero_point": zero}, scheme)
        self.assert_decodes(state | {"weight_scale": scale}, scheme, by_shape=False)

    def test_random_bits(self) -> None:
        rng = np.random.default_rng(2)
        for bits in range(1, 9):
            words = rng.integers(-(2**31), 2**31, (9, 3 * bits)).astype(np.int32)
            zeros = rng.integers(-(2**31), 2**31, (-(-9 * bits // 32), 3)).astype(np.int32)
            state = {
                "weight_packed": torch.from_numpy(words),
                "weight_zero_point": torch.from_numpy(zeros),
                "weight_scale": torch.randn(9, 3),
                "weight_shape": torch.tensor([9, 96]),
            }
            scheme = scheme_of(num_bits=bits, strategy="group", group_size=32, symmetric=False)
            with self.subTest(bits=bits):
                self.assert_decodes(state, scheme, by_shape=True)

    def test_stacked_matrices(self) -> None:
        from compressed_tensors.compressors.pack_quantized.helpers import (
            pack_to_int32,
            unpack_from_int32,
        )

        torch.manual_seed(3)
        for bits in (3, 4, 8):
            half = 2 ** (bits - 1)
            codes = torch.randint(-half, half, (3, 10, 40), dtype=torch.int8)
            zeros = torch.randint(-half, half, (3, 10, 2), dtype=torch.int8)
            state = {
                "weight_packed": pack_to_int32(codes, bits),
                "weight_scale": torch.randn(3, 10, 2),
                "weight_shape": torch.tensor([3, 10, 40]),
                "weight_zero_point": torch.stack([pack_to_int32(z, bits, 0) for z in zeros]),
            }
            scheme = scheme_of(num_bits=bits, strategy="group", group_size=20, symmetric=False)
            values = stored(state, scheme).decode(PackedInt(), f"{X}.weight_packed")
            back = unpack_from_int32(state["weight_packed"], bits, torch.Size((3, 10, 40)))
            self.assertTrue(torch.equal(back, codes))
            spread = [t.repeat_interleave(20, -1) for t in (zeros, state["weight_scale"])]
            expected = (codes.float() - spread[0].float()) * spread[1]
            np.testing.assert_array_equal(values, expected.numpy())


if __name__ == "__main__":
    unittest.main()
