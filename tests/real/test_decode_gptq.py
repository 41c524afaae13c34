"""GPTQ codes as GPTQModel itself packs them, against its own dequantisers."""

from __future__ import annotations

import importlib.util
import os
import unittest
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

if importlib.util.find_spec("gptqmodel") is None:
    raise unittest.SkipTest("needs gptqmodel, which is compiled on installation")

# Compiling the reader takes longer than the tests.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import FORMAT
    from gptqmodel.utils.model import (
        convert_gptq_v1_to_v2_format_module,
        convert_gptq_v2_to_v1_format_module,
    )

from moe_weights.decode.gptq import Gptq
from moe_weights.decode.stored_tensor import StoredTensor
from tests.support.packed_codes import context_of, header_like

X = "model.layers.0.mlp.experts.0.up_proj"
ROLES = {"qweight": "weight", "qzeros": "zero_point", "scales": "scale", "g_idx": "group_index"}


def packed(bits: int, n_in: int, n_out: int, group_size: int, form: str, *, act_order: bool) -> Any:
    """Let GPTQModel's layer pack random codes, zero points and scales."""
    generator = torch.Generator().manual_seed(bits * 1000 + n_in)
    size = n_in if group_size == -1 else group_size
    n_groups = -(-n_in // size)
    g_idx = torch.arange(n_in) // size
    if act_order:
        g_idx = g_idx[torch.randperm(n_in, generator=generator)]
    scales = (torch.rand(n_out, n_groups, generator=generator) * 0.1 + 0.001).half().float()
    zeros = torch.randint(0, 1 << bits, (n_out, n_groups), generator=generator).float()
    codes = torch.randint(0, 1 << bits, (n_out, n_in), generator=generator).float()
    linear = torch.nn.Linear(n_in, n_out, bias=False)
    linear.weight.data = (codes - zeros[:, g_idx]) * scales[:, g_idx]
    layer = TorchLinear(
        bits=bits,
        group_size=group_size,
        sym=False,
        desc_act=act_order,
        in_features=n_in,
        out_features=n_out,
        format=FORMAT(form),
    )
    layer.pack_original(linear, scales, zeros, g_idx.int())
    layer.qzero_format(format=2)
    return layer, codes, zeros, scales, g_idx


def to_version_1(layer: Any) -> None:
    settings = SimpleNamespace(bits=layer.bits, pack_dtype=torch.int32)
    convert_gptq_v2_to_v1_format_module(layer, settings)


def stored(layer: Any) -> dict[str, np.ndarray]:
    return {word: getattr(layer, word).contiguous().numpy().copy() for word in ROLES}


def decoded(arrays: dict[str, np.ndarray], **quantization: object) -> np.ndarray:
    headers = [header_like(f"{X}.{word}", array) for word, array in arrays.items()]
    tensor = Gptq().claim(
        headers[0], context_of(*headers, quantization={"quant_method": "gptq", **quantization})
    )
    assert isinstance(tensor, StoredTensor), tensor
    return Gptq().decode(tensor, {ROLES[word]: array for word, array in arrays.items()})


def dequantised(layer: Any) -> np.ndarray:
    """Return GPTQModel's own values, without rounding the products to its half precision."""
    layer.post_init()
    layer.scales = layer.scales.float()
    result: np.ndarray = layer.dequantize_weight().float().T.numpy()
    return result


SHAPES = ((64, 32, 32), (128, 96, -1), (96, 64, 16))


class GptqModel(unittest.TestCase):
    def test_version_2_bit_for_bit(self) -> None:
        for bits in (2, 3, 4, 8):
            for n_in, n_out, group_size in SHAPES:
                for act_order in (False, True):
                    with self.subTest(bits=bits, n_in=n_in, act_order=act_order):
                        layer, *_rest = packed(
                            bits, n_in, n_out, group_size, "gptq_v2", act_order=act_order
                        )
                        values = decoded(
                            stored(layer),
                            checkpoint_format="gptq_v2",
                            bits=bits,
                            group_size=group_size,
                        )
                        self.assertEqual(values.shape, (n_out, n_in))
                        np.testing.assert_array_equal(values, dequantised(layer))

    def test_version_1_bit_for_bit_with_zero_points_of_zero(self) -> None:
        for bits in (2, 3, 4, 8):
            for n_in, n_out, group_size in SHAPES:
                with self.subTest(bits=bits, n_in=n_in):
                    layer, codes, zeros, scales, g_idx = packed(
                        bits, n_in, n_out, group_size, "gptq", act_order=True
                    )
                    to_version_1(layer)
                    values = decoded(stored(layer), checkpoint_format="gptq")
                    convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
                    np.testing.assert_array_equal(values, dequantised(layer))
                    # And what went in, exactly.
                    expected = (codes - zeros[:, g_idx]) * scales[:, g_idx]
                    np.testing.assert_array_equal(values, expected.numpy())

    def test_planes_bit_for_bit(self) -> None:
        for bits in (2, 3, 4, 5, 6, 7, 8):
            for n_in, n_out, group_size in SHAPES:
                with self.subTest(bits=bits, n_in=n_in):
                    layer, *_rest = packed(bits, n_in, n_out, group_size, "gptq_p", act_order=True)
                    values = decoded(stored(layer), checkpoint_format="gptq_p")
                    np.testing.assert_array_equal(values, dequantised(layer))

    def test_ragged_groups_and_widths_bit_for_bit(self) -> None:
        for bits, n_in, n_out, group_size in ((4, 72, 40, 32), (8, 36, 12, -1), (2, 48, 48, 32)):
            with self.subTest(bits=bits, n_in=n_in):
                layer, *_rest = packed(bits, n_in, n_out, group_size, "gptq", act_order=False)
                to_version_1(layer)
                values = decoded(stored(layer), bits=bits, group_size=group_size)
                convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
                np.testing.assert_array_equal(values, dequantised(layer))

    def test_symmetric_four_bits_are_sevens_on_disk(self) -> None:
        layer, codes, _zeros, scales, g_idx = packed(4, 64, 32, 32, "gptq", act_order=False)
        layer.qzeros.fill_(-0x77777778)  # 0x88888888: 8 throughout
        to_version_1(layer)
        self.assertEqual(set(layer.qzeros.flatten().tolist()), {0x77777777})
        np.testing.assert_array_equal(
            decoded(stored(layer)), ((codes - 8) * scales[:, g_idx]).numpy()
        )


if __name__ == "__main__":
    unittest.main()
