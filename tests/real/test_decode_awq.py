"""AWQ codes as AutoAWQ itself packs them, against its own dequantiser and two other readers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter

from moe_weights.decode.awq import Awq
from moe_weights.decode.stored_tensor import StoredTensor
from tests.support.packed_codes import context_of, header_like

X = "model.layers.0.mlp.experts.0.up_proj"
ROLES = {"qweight": "weight", "qzeros": "zero_point", "scales": "scale"}


def import_autoawq(*names: str) -> list[Any]:
    """Import modules of AutoAWQ without its packages, which want libraries for training."""
    spec = importlib.util.find_spec("awq")
    if spec is None:
        raise unittest.SkipTest("needs autoawq, which is compiled on installation")
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    for package in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        module = types.ModuleType(package)
        module.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
        sys.modules[package] = module
    return [importlib.import_module(name) for name in names]


GEMM, PACKING = import_autoawq("awq.modules.linear.gemm", "awq.utils.packing_utils")


def written(n_in: int, n_out: int, group_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Quantise a random matrix and let AutoAWQ's layer pack it."""
    generator = torch.Generator().manual_seed(seed)
    linear = torch.nn.Linear(n_in, n_out, bias=False)
    weights = torch.randn(n_out, n_in, generator=generator) * 10.0 ** (seed % 5 - 3)
    weights[0, : n_in // 2] = 0.25  # constant groups
    weights[-1, 0] = 30.0  # an outlier
    groups = weights.reshape(n_out, -1, n_in if group_size == -1 else group_size)
    highest, lowest = groups.amax(dim=-1), groups.amin(dim=-1)
    scales = ((highest - lowest) / 15).clamp(min=1e-4).half().float()
    zeros = (-torch.round(lowest / scales)).clamp(0, 15)
    linear.weight.data = (
        (
            (torch.round(groups / scales[..., None]) + zeros[..., None]).clamp(0, 15)
            - zeros[..., None]
        )
        .mul(scales[..., None])
        .reshape(n_out, n_in)
    )
    layer = GEMM.WQLinear_GEMM.from_linear(
        linear, 4, groups.shape[-1], scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
    )
    return {word: layer.state_dict()[word].contiguous() for word in ROLES}


def decoded(tensors: dict[str, torch.Tensor], **quantization: object) -> np.ndarray:
    arrays = {word: tensor.numpy() for word, tensor in tensors.items()}
    headers = [header_like(f"{X}.{word}", array) for word, array in arrays.items()]
    tensor = Awq().claim(
        headers[0], context_of(*headers, quantization={"quant_method": "awq", **quantization})
    )
    assert isinstance(tensor, StoredTensor), tensor
    return Awq().decode(tensor, {ROLES[word]: array for word, array in arrays.items()})


class AutoAwq(unittest.TestCase):
    def test_values_are_those_of_autoawq_bit_for_bit(self) -> None:
        shapes = ((128, 32, 128), (64, 96, 32), (96, 64, -1), (160, 32, 16), (256, 160, 64))
        for seed, (n_in, n_out, group_size) in enumerate(shapes):
            with self.subTest(n_in=n_in, n_out=n_out, group_size=group_size):
                tensors = written(n_in, n_out, group_size, seed)
                expected = PACKING.dequantize_gemm(
                    tensors["qweight"],
                    tensors["qzeros"],
                    tensors["scales"].float(),  # F16 would round the product
                    4,
                    n_in if group_size == -1 else group_size,
                )
                values = decoded(tensors, version="gemm", bits=4, group_size=group_size)
                self.assertEqual(values.shape, (n_out, n_in))
                np.testing.assert_array_equal(values, expected.T.numpy())

    def test_arbitrary_words_mean_the_same(self) -> None:
        generator = torch.Generator().manual_seed(9)
        words = {
            word: torch.randint(-(2**31), 2**31 - 1, shape, generator=generator).int()
            for word, shape in (("qweight", (64, 5)), ("qzeros", (4, 5)))
        }
        words["scales"] = torch.randn(4, 40, generator=generator).half()
        expected = PACKING.dequantize_gemm(
            words["qweight"], words["qzeros"], words["scales"].float(), 4, 16
        )
        np.testing.assert_array_equal(decoded(words), expected.T.numpy())


class OtherReaders(unittest.TestCase):
    def test_compressed_tensors_converts_to_the_same_numbers(self) -> None:
        for zero_point in (True, False):
            with self.subTest(zero_point=zero_point):
                tensors = written(64, 96, 32, 1)
                if not zero_point:
                    del tensors["qzeros"]
                converter = AutoAWQConverter(group_size=32, zero_point=zero_point)
                weight, scale, zeros = converter._convert_gemm_module(
                    tensors["qweight"], tensors["scales"], tensors.get("qzeros")
                )
                difference = weight.float() - (
                    0 if zeros is None else zeros.float().repeat_interleave(32, dim=1)
                )
                expected = difference * scale.float().repeat_interleave(32, dim=1)
                values = decoded(tensors, zero_point=zero_point, group_size=32)
                np.testing.assert_array_equal(values, expected.numpy())


if __name__ == "__main__":
    unittest.main()
