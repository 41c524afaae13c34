"""compressed-tensors and bitsandbytes write INT8; their own dequantisers give the values.

Both agree bit for bit in float32: compressed-tensors with scales widened first (with BF16 scales it
rounds the product to BF16, to which the decoded values then round as well), bitsandbytes as it is.
"""

from __future__ import annotations

import unittest

import bitsandbytes
import ml_dtypes
import numpy as np
import torch
from bitsandbytes import functional
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams

from moe_weights.decode.int8 import Int8
from tests.support.encoded_tensors import EncodedTensors

X = "model.layers.0.mlp.experts.7.up_proj"


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def stored(state: dict[str, torch.Tensor], config: dict[str, object]) -> EncodedTensors:
    arrays = {f"{X}.{name}": to_numpy(tensor) for name, tensor in state.items()}
    return EncodedTensors(arrays=arrays, config=config)


def share(matrix: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """Return the matrix with all that shares a scale along the last axis; ragged edges are 0."""
    rows, cols = matrix.shape
    if args.strategy == "tensor":
        return matrix.reshape(1, -1)
    if args.strategy == "channel":
        return matrix.reshape(rows, 1, cols)
    if args.strategy == "group":
        return matrix.reshape(rows, -1, args.group_size)
    height, width = args.block_structure
    padded = torch.nn.functional.pad(matrix, (0, -cols % width, 0, -rows % height))
    split = padded.reshape(padded.shape[0] // height, height, padded.shape[1] // width, width)
    return split.transpose(1, 2).flatten(2)


class CompressedTensors(unittest.TestCase):
    def check(self, matrix: torch.Tensor, dtype: torch.dtype, **weights: object) -> None:
        args = QuantizationArgs(type="int", **weights)
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        shared = share(matrix, args)
        scale, zero = calculate_qparams(shared.amin(-1), shared.amax(-1), args)
        plain = {
            "weight": matrix.to(dtype),
            "weight_scale": scale.to(dtype),
            "weight_zero_point": zero,
        }
        state = IntQuantizationCompressor.compress(plain, scheme)
        self.assertEqual(state["weight"].dtype, torch.int8)
        widened = state | {"weight_scale": state["weight_scale"].float()}
        exact = IntQuantizationCompressor.decompress(widened, scheme)["weight"].numpy()
        kept = to_numpy(IntQuantizationCompressor.decompress(state, scheme)["weight"])

        config = {"config_groups": {"group_0": scheme.model_dump(mode="json")}}
        values = stored(state, config).decode(Int8(), f"{X}.weight")

        np.testing.assert_array_equal(values.view(np.int32), exact.view(np.int32))
        np.testing.assert_array_equal(values.astype(kept.dtype), kept)

    def test_random_matrices_of_every_strategy(self) -> None:
        torch.manual_seed(0)
        for bits in (8, 4):
            for symmetric in (True, False):
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    for shape, weights in (
                        ((7, 33), {"strategy": "channel"}),
                        ((7, 33), {"strategy": "tensor"}),
                        ((5, 96), {"strategy": "group", "group_size": 32}),
                        ((20, 40), {"strategy": "block", "block_structure": [16, 16]}),
                    ):
                        weights = weights | {"num_bits": bits, "symmetric": symmetric}
                        with self.subTest(weights=weights, dtype=dtype):
                            self.check(torch.randn(shape) + 0.3, dtype, **weights)


class Bitsandbytes(unittest.TestCase):
    def check(self, state: dict[str, torch.Tensor]) -> None:
        expected = functional.int8_vectorwise_dequant(state["weight"], state["SCB"])
        values = stored(state, {}).decode(Int8(), f"{X}.weight")
        np.testing.assert_array_equal(values.view(np.int32), expected.numpy().view(np.int32))

    def test_random_matrices(self) -> None:
        torch.manual_seed(1)
        for shape in ((1, 1), (7, 33), (64, 96)):
            matrix = (torch.randn(shape) * 10 ** torch.randn(shape[0], 1)).half()
            codes, row_maxima, _outliers = functional.int8_vectorwise_quant(matrix)
            self.check({"weight": codes, "SCB": row_maxima})

    def test_what_a_layer_saves(self) -> None:
        torch.manual_seed(2)
        layer = bitsandbytes.nn.Linear8bitLt(40, 24, bias=False, has_fp16_weights=False)
        layer.weight.data.normal_()
        saved = layer.to("cpu").state_dict()
        if "SCB" not in saved:
            codes, row_maxima, _outliers = functional.int8_vectorwise_quant(layer.weight.half())
            saved = {"weight": codes, "SCB": row_maxima}
            saved["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        self.check(dict(saved))

    def test_adversarial_rows(self) -> None:
        codes = torch.arange(-128, 128, dtype=torch.int16).to(torch.int8).repeat(4, 1)
        row_maxima = torch.tensor([0.0, 1e-45, 3e38, float("inf")])
        self.check({"weight": codes, "SCB": row_maxima})


if __name__ == "__main__":
    unittest.main()
