"""NVFP4 against the dequantisers of modelopt and compressed-tensors, which differ in one sense."""

from __future__ import annotations

import unittest
import warnings

import ml_dtypes
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # modelopt warns of every newer transformers
    from modelopt.torch.export.quant_utils import (
        maybe_transpose_expert_weight_dimensions,
        to_quantized_weight,
    )
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

from moe_weights.decode.nvfp4 import Nvfp4
from tests.support.scaled_codes import decode_all
from tests.support.torch_arrays import adversarial, to_array


def decode(arrays: dict[str, torch.Tensor]) -> np.ndarray:
    stored = {name: to_array(tensor) for name, tensor in arrays.items()}
    return decode_all(Nvfp4(), stored, next(iter(stored)))[1]


class ModelOpt(unittest.TestCase):
    def test_its_own_weights_bit_for_bit(self) -> None:
        for seed, shape in enumerate(((16, 96), (5, 16), (64, 64))):
            packed, scale, total = NVFP4QTensor.quantize(adversarial(shape, seed), 16)
            expected = packed.dequantize(
                torch.float32, scale=scale, double_scale=total, block_sizes={-1: 16}
            )
            values = decode(
                {
                    "x.weight": packed._quantized_data,
                    "x.weight_scale": scale,
                    "x.weight_scale_2": total,
                    "x.input_scale": torch.tensor(0.5),
                }
            )
            np.testing.assert_array_equal(values, expected.numpy())

    def test_stacked_experts_whose_rows_are_inputs_bit_for_bit(self) -> None:
        # As its export treats Llama-4: turned, quantised along the inputs, turned back.
        stored = adversarial((3, 48, 10))
        weights, _none = maybe_transpose_expert_weight_dimensions(stored)
        for total in (
            NVFP4QTensor.get_weights_scaling_factor_2(weights),
            weights.abs().amax(dim=(1, 2)) / (6 * 448),
        ):
            per_expert = total.reshape(-1, 1, 1) if total.ndim else total
            scale, _total = NVFP4QTensor.get_weights_scaling_factor(weights, 16, per_expert)
            codes = to_quantized_weight(weights.contiguous(), scale, "nvfp4", total, 16)
            packed = NVFP4QTensor(weights.shape, torch.float32, codes)
            expected = packed.dequantize(
                torch.float32, scale=scale, double_scale=per_expert, block_sizes={-1: 16}
            )
            codes, scale = maybe_transpose_expert_weight_dimensions(codes, scale)
            values = decode(
                {
                    "gate_up_proj": codes,
                    "gate_up_proj_weight_scale": scale,
                    "gate_up_proj_weight_scale_2": total,
                }
            )
            self.assertEqual(values.shape, tuple(stored.shape))
            np.testing.assert_array_equal(values, expected.transpose(1, 2).numpy())


class CompressedTensors(unittest.TestCase):
    def test_its_own_weights(self) -> None:
        args = QuantizationArgs(
            num_bits=4,
            type="float",
            strategy="tensor_group",
            group_size=16,
            scale_dtype=torch.float8_e4m3fn,
        )
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry("nvfp4-pack-quantized")
        for seed, shape in enumerate(((16, 96), (5, 16), (64, 64))):
            weights = adversarial(shape, seed).to(torch.bfloat16)
            total = generate_gparam(weights.float().amin(), weights.float().amax())
            groups = weights.float().unflatten(-1, (-1, 16))
            scale, _zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, total)
            state = compressor.compress(
                {"weight": weights, "weight_scale": scale, "weight_global_scale": total}, scheme
            )
            values = decode(
                {
                    f"x.{name}": state[name]
                    for name in ("weight_packed", "weight_scale", "weight_global_scale")
                }
            )
            # Its reader keeps bfloat16; the same function keeps float32 where codes and scales are.
            kept = compressor.decompress(state, scheme)["weight"]
            rounded = values.astype(ml_dtypes.bfloat16).astype(np.float32)
            np.testing.assert_array_equal(rounded, kept.float().numpy())
            exact = dequantize(
                x_q=unpack_fp4_from_uint8(state["weight_packed"], *shape, torch.float32),
                scale=state["weight_scale"].float(),
                args=args,
                global_scale=total,
                dtype=torch.float32,
            )
            np.testing.assert_array_equal(values, exact.numpy())


if __name__ == "__main__":
    unittest.main()
