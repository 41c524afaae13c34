"""MXFP4 against the dequantisers of transformers, compressed-tensors and modelopt."""

from __future__ import annotations

import unittest
import warnings

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # modelopt warns of every newer transformers
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

from moe_weights.decode.mxfp4 import Mxfp4
from tests.support.scaled_codes import decode_all
from tests.support.torch_arrays import adversarial, to_array


def decode(arrays: dict[str, torch.Tensor]) -> np.ndarray:
    stored = {name: to_array(tensor) for name, tensor in arrays.items()}
    return decode_all(Mxfp4(), stored, next(iter(stored)))[1]


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(low, high, shape, dtype=torch.uint8, generator=generator)


class Transformers(unittest.TestCase):
    def test_blocks_of_gpt_oss_bit_for_bit(self) -> None:
        # Exponents 0 to 252: beyond, products overflow float32, and 255 is infinite there and NaN
        # in the standard.
        for shape in ((3, 10, 2, 16), (1, 4, 5, 16)):
            blocks, scales = random_bytes(*shape), random_bytes(*shape[:-1], high=253)
            expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            values = decode({"gate_up_proj_blocks": blocks, "gate_up_proj_scales": scales})
            # It turns rows into inputs.
            np.testing.assert_array_equal(values, expected.transpose(1, 2).numpy())

    def test_packed_experts_of_deepseek_bit_for_bit(self) -> None:
        for shape in ((8, 32), (6, 48), (2, 8, 32)):
            codes = random_bytes(*shape).view(torch.int8)
            scale = random_bytes(*shape[:-1], shape[-1] // 16, low=40, high=200)
            expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
            for stored in (scale, scale.view(torch.float8_e8m0fnu)):
                for names in (("x.weight", "x.scale"), ("gate_up_proj", "gate_up_proj_scale_inv")):
                    values = decode(dict(zip(names, (codes, stored), strict=True)))
                    np.testing.assert_array_equal(values, expected.numpy())


class CompressedTensors(unittest.TestCase):
    """Its reader answers in bfloat16, which holds code * 2**exponent exactly."""

    def test_its_own_weights(self) -> None:
        args = QuantizationArgs(
            num_bits=4, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry("mxfp4-pack-quantized")
        for shape in ((16, 96), (5, 32)):
            weights = adversarial(shape).to(torch.bfloat16)
            groups = weights.unflatten(-1, (-1, 32))
            scale, _zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
            state = compressor.compress({"weight": weights, "weight_scale": scale}, scheme)
            expected = compressor.decompress(state, scheme)["weight"]
            values = decode(
                {f"x.{name}": state[name] for name in ("weight_packed", "weight_scale")}
            )
            np.testing.assert_array_equal(values, expected.float().numpy())


class ModelOpt(unittest.TestCase):
    def test_its_own_weights_bit_for_bit(self) -> None:
        for shape in ((16, 96), (3, 5, 64)):
            packed, scale = MXFP4QTensor.quantize(adversarial(shape), block_size=32)
            expected = packed.dequantize(torch.float32, scale=scale, block_sizes={-1: 32})
            scale = scale.reshape(*shape[:-1], -1)
            for names in (("x.weight", "x.weight_scale"), ("down_proj", "down_proj_weight_scale")):
                arrays = dict(zip(names, (packed._quantized_data, scale), strict=True))
                np.testing.assert_array_equal(decode(arrays), expected.numpy())


if __name__ == "__main__":
    unittest.main()
