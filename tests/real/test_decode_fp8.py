"""FP8 against the dequantisers of transformers, compressed-tensors and modelopt."""

from __future__ import annotations

import unittest
import warnings
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    maybe_pad_tensor_for_block_quant,
)
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, FP8Experts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # modelopt warns of every newer transformers
    from modelopt.torch.quantization.qtensor import FP8QTensor, MXFP8QTensor

from moe_weights.decode.fp8 import Fp8
from tests.support.scaled_codes import decode_all
from tests.support.torch_arrays import adversarial, to_array

W = "experts.0.up_proj.weight"


def decode(arrays: dict[str, torch.Tensor], config: dict[str, object] | None = None) -> np.ndarray:
    stored = {name: to_array(tensor) for name, tensor in arrays.items()}
    return decode_all(Fp8(), stored, next(iter(stored)), config)[1]


def random_codes(shape: tuple[int, ...]) -> torch.Tensor:
    codes = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    codes[codes & 0x7F == 0x7F] = 0x7E
    return codes.view(torch.float8_e4m3fn)


class Transformers(unittest.TestCase):
    """Its block is rows // scale_rows, so that only whole blocks can be held against it."""

    def check(self, weights: torch.Tensor, scale: torch.Tensor, name: str, suffix: str) -> None:
        expected = Fp8Dequantize(None)._dequantize_one(weights, scale, torch.float32)
        values = decode({name: weights, suffix: scale}, {"weight_block_size": [128, 128]})
        np.testing.assert_array_equal(values, expected.numpy())

    def test_blocks_of_128_bit_for_bit(self) -> None:
        for shape in ((256, 384), (128, 128), (3, 256, 128)):
            scale = torch.rand(*shape[:-2], shape[-2] // 128, shape[-1] // 128) + 1e-3
            for kind in (torch.float32, torch.bfloat16, torch.float16):
                self.check(random_codes(shape), scale.to(kind), W, f"{W}_scale_inv")
            self.check(random_codes(shape), scale, "gate_up_proj", "gate_up_proj_scale_inv")

    def test_fused_experts_without_blocks_have_a_scale_per_half(self) -> None:
        """Its own module says the shapes; `weight_block_size` is null, or not there."""
        for rows, cols, config in (
            (64, 40, {"quant_method": "fp8", "weight_block_size": None}),
            (160, 64, {"quant_method": "fp8", "weight_block_size": None}),
            (300, 200, {}),
        ):
            settings = SimpleNamespace(
                hidden_size=cols,
                moe_intermediate_size=rows // 2,
                num_experts=3,
                hidden_act="silu",
            )
            experts = FP8Experts(settings)
            scale = torch.rand(experts.gate_up_proj_scale_inv.shape) + 1e-3
            self.assertEqual(tuple(scale.shape), (3, 2, 1))
            codes = random_codes(tuple(experts.gate_up_proj.shape))
            expected = Fp8Dequantize(None)._dequantize_one(codes, scale, torch.float32)
            arrays = {"gate_up_proj": codes, "gate_up_proj_scale_inv": scale}
            np.testing.assert_array_equal(decode(arrays, config), expected.numpy())

    def test_exponents_of_every_block_bit_for_bit(self) -> None:
        weights = random_codes((64, 96))
        for scale_shape in ((64, 3), (2, 3)):
            codes = torch.randint(60, 180, scale_shape, dtype=torch.uint8)
            for scale in (codes, codes.view(torch.float8_e8m0fnu)):
                self.check(weights, scale, W, W.replace("weight", "scale"))


class CompressedTensors(unittest.TestCase):
    """Its own writer; its reader keeps the dtype of the scale, float32 or bfloat16."""

    def check(
        self,
        weights: torch.Tensor,
        scale: torch.Tensor,
        form: str = "float-quantized",
        **args: object,
    ) -> None:
        scheme = QuantizationScheme(
            targets=["Linear"], weights=QuantizationArgs(num_bits=8, type="float", **args)
        )
        compressor = BaseCompressor.get_value_from_registry(form)
        state = compressor.compress(
            {"weight": weights.to(scale.dtype), "weight_scale": scale}, scheme
        )
        padded = dict(state)
        if scheme.weights.strategy == "block":
            padded["weight"] = maybe_pad_tensor_for_block_quant(
                state["weight"].float(), (128, 128)
            ).to(torch.float8_e4m3fn)
        expected = compressor.decompress(padded, scheme)["weight"]
        expected = expected[: weights.shape[0], : weights.shape[1]]
        config = {
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": {"weights": scheme.weights.model_dump(mode="json")}},
        }
        arrays = {f"x.{name}": tensor for name, tensor in state.items()}
        values = decode({"x.weight": arrays.pop("x.weight"), **arrays}, config)
        if expected.dtype == torch.bfloat16:
            values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(values, expected.float().numpy())

    def test_per_tensor_and_per_channel(self) -> None:
        weights = adversarial((48, 40))
        for kind in (torch.float32, torch.bfloat16):
            largest = weights.abs().amax(dim=1, keepdim=True).clamp(min=1e-6) / 448
            self.check(weights, largest.to(kind), strategy="channel")
            self.check(weights, largest.amax().reshape(1).to(kind), strategy="tensor")

    def test_blocks_with_ragged_edges(self) -> None:
        for shape in ((256, 128), (160, 200), (130, 129), (100, 300)):
            scale = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) * 1e-2 + 1e-3
            for kind in (torch.float32, torch.bfloat16):
                self.check(
                    adversarial(shape), scale.to(kind), strategy="block", block_structure=[128, 128]
                )

    def test_mxfp8(self) -> None:
        weights = adversarial((32, 96)).to(torch.bfloat16)
        args = QuantizationArgs(
            num_bits=8, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8
        )
        groups = weights.unflatten(-1, (3, 32))
        scale, _zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        self.check(
            weights,
            scale.to(torch.bfloat16),
            form="mxfp8-quantized",
            strategy="group",
            group_size=32,
            scale_dtype=torch.uint8,
        )


class ModelOpt(unittest.TestCase):
    def test_mxfp8_bit_for_bit(self) -> None:
        weights = adversarial((48, 160))
        packed, scale = MXFP8QTensor.quantize(weights)
        expected = packed.dequantize(torch.float32, scale=scale)
        values = decode({"x.weight": packed._quantized_data, "x.weight_scale": scale})
        np.testing.assert_array_equal(values, expected.numpy())

    def test_per_tensor_bit_for_bit(self) -> None:
        weights = adversarial((48, 40))
        packed, scale = FP8QTensor.quantize(weights)
        expected = packed.dequantize(torch.float32, scale=scale)
        values = decode({"x.weight": packed._quantized_data, "x.weight_scale": scale})
        np.testing.assert_array_equal(values, expected.numpy())

    def test_blocks_bit_for_bit_also_with_ragged_edges(self) -> None:
        for shape in ((256, 128), (160, 200), (130, 129)):
            sizes = {-1: 128, -2: 128}
            packed, scale = FP8QTensor.quantize(adversarial(shape), block_sizes=sizes)
            expected = packed.dequantize(torch.float32, scale=scale, block_sizes=sizes)
            codes = packed._quantized_data[: shape[0], : shape[1]]
            for stored in (scale, scale[:, None, :, None]):
                values = decode({"x.weight": codes, "x.weight_scale": stored})
                np.testing.assert_array_equal(values, expected.numpy())


if __name__ == "__main__":
    unittest.main()
