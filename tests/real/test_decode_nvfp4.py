"""NVFP4 against the dequantisers of modelopt and compressed-tensors, which differ in one sense."""

from __future__ import annotations

import unittest
import warnings
from types import SimpleNamespace

import ml_dtypes
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from mlx_lm.models import muse_spark

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


class MuseSpark(unittest.TestCase):
    """What mlx-lm makes of gate and up with a scale each, as modelopt stores them."""

    LAYER = "model.language_model.layers.0.mlp.experts."

    def sanitized(self, arrays: dict[str, np.ndarray]) -> dict[str, mx.array]:
        model = SimpleNamespace(
            args=SimpleNamespace(vision=object(), text=SimpleNamespace(head_dim=8))
        )
        weights = {
            self.LAYER + name: mx.array(
                array.view(np.uint8) if array.dtype == ml_dtypes.float8_e4m3fn else array
            )
            for name, array in arrays.items()
        }
        return muse_spark.Model.sanitize(model, weights)

    def test_gate_and_up_bit_for_bit(self) -> None:
        n_experts, rows, cols = 3, 12, 64
        rng = np.random.default_rng(4)
        scales = rng.integers(1, 0x7E, (n_experts, rows, cols // 16), dtype=np.uint8)
        for totals in (
            (2.0 ** rng.integers(-9, 3, (n_experts, 2))).astype(np.float32),
            (rng.uniform(1e-3, 1e-1, (n_experts, 2))).astype(np.float32),
        ):
            arrays = {
                "gate_up_proj": rng.integers(0, 256, (n_experts, rows, cols // 2), dtype=np.uint8),
                "gate_up_proj_weight_scale": scales.view(ml_dtypes.float8_e4m3fn),
                "gate_up_proj_weight_scale_2": totals,
            }
            values = decode_all(Nvfp4(), arrays, "gate_up_proj")[1]
            sanitized = self.sanitized(arrays)
            for half, name in enumerate(("gate_proj", "up_proj")):
                stem = f"{self.LAYER}{name}."
                for expert in range(n_experts):
                    expected = mx.dequantize(
                        sanitized[f"{stem}weight"][expert],
                        sanitized[f"{stem}scales"][expert],
                        group_size=16,
                        bits=4,
                        mode="nvfp4",
                        global_scale=sanitized[f"{stem}global_scale"][expert],
                        dtype=mx.float32,
                    )
                    mine = values[expert, half * rows // 2 : (half + 1) * rows // 2]
                    # It stores the scale times 2688 and divides again: at most two roundings more.
                    np.testing.assert_array_almost_equal_nulp(mine, np.array(expected), nulp=4)
                    if (np.frexp(totals)[0] == 0.5).all():
                        np.testing.assert_array_equal(mine, np.array(expected))


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
