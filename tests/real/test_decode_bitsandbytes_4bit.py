"""bitsandbytes quantises random matrices to NF4 and FP4; its dequantiser gives the values.

Held bit for bit, in float32, against the generic backend. The compiled CPU kernel is not used: in
0.50.2 it is wrong where the width is no multiple of the block (96 columns, blocks of 64).
"""

from __future__ import annotations

import unittest

import bitsandbytes
import ml_dtypes
import numpy as np
import torch
from bitsandbytes import functional
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from bitsandbytes.backends.utils import _get_4bit_code
from bitsandbytes.nn.parametrize import replace_parameter_4bit

from moe_weights.decode.bitsandbytes_4bit import Bitsandbytes4Bit
from tests.support.encoded_tensors import EncodedTensors

W = "model.layers.0.mlp.experts.7.up_proj.weight"


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def reference(packed: torch.Tensor, state: functional.QuantState) -> np.ndarray:
    """Dequantise with the generic code of the library, without compilation."""
    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    compute = getattr(_dequantize_4bit_compute, "__wrapped__", _dequantize_4bit_compute)
    values = compute(
        packed.contiguous().view(torch.uint8).reshape(-1),
        absmax,
        _get_4bit_code(state.quant_type, absmax.device),
        state.blocksize,
        state.shape,
        torch.float32,
    )
    return values.reshape(state.shape).numpy()


class AgainstTheLibrary(unittest.TestCase):
    def check(self, packed: torch.Tensor, state: functional.QuantState) -> np.ndarray:
        arrays = {W: to_numpy(packed)}
        arrays |= {f"{W}.{key}": to_numpy(t) for key, t in state.as_dict(packed=True).items()}
        values = EncodedTensors(arrays=arrays).decode(Bitsandbytes4Bit(), W)
        expected = reference(packed, state)
        np.testing.assert_array_equal(values.view(np.int32), expected.view(np.int32))
        return values

    def test_random_matrices(self) -> None:
        torch.manual_seed(0)
        for kind in ("nf4", "fp4"):
            for shape in ((64, 64), (10, 96), (7, 33), (3, 2, 50), (1, 3), (40, 500)):
                for nested in (False, True):
                    matrix = torch.randn(shape) * 0.05
                    packed, state = functional.quantize_4bit(
                        matrix, quant_type=kind, compress_statistics=nested, blocksize=64
                    )
                    with self.subTest(kind=kind, shape=shape, nested=nested):
                        values = self.check(packed, state)
                        self.assertLess(np.abs(values - matrix.numpy()).max(), 0.1)

    def test_every_block_size_and_input_type(self) -> None:
        torch.manual_seed(1)
        for blocksize in (32, 64, 128, 256, 512, 1024, 4096):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                matrix = torch.randn(48, 100, dtype=dtype)
                packed, state = functional.quantize_4bit(
                    matrix, quant_type="nf4", compress_statistics=True, blocksize=blocksize
                )
                with self.subTest(blocksize=blocksize, dtype=dtype):
                    self.check(packed, state)

    def test_every_storage_type(self) -> None:
        torch.manual_seed(2)
        matrix = torch.randn(24, 96)
        for storage in (torch.uint8, torch.bfloat16, torch.float16, torch.float32):
            packed, state = functional.quantize_4bit(
                matrix, quant_type="nf4", quant_storage=storage
            )
            with self.subTest(storage=storage):
                self.assertEqual(packed.dtype, storage)
                self.check(packed, state)

    def test_the_dequantiser_of_the_library_where_its_kernel_is_right(self) -> None:
        torch.manual_seed(3)
        for kind in ("nf4", "fp4"):
            matrix = torch.randn(16, 128)
            packed, state = functional.quantize_4bit(matrix, quant_type=kind)
            expected = functional.dequantize_4bit(packed, state).numpy()
            if kind == "nf4":
                np.testing.assert_array_equal(self.check(packed, state), expected)
            else:
                # The kernel's own table of FP4 has fewer digits than the stored one.
                np.testing.assert_allclose(self.check(packed, state), expected, rtol=1e-4)

    def test_what_a_layer_saves(self) -> None:
        torch.manual_seed(4)
        for nested in (False, True):
            layer = bitsandbytes.nn.Linear4bit(
                50, 24, bias=False, compress_statistics=nested, quant_type="nf4"
            )
            layer.weight.data.normal_()
            saved = layer.to("cpu").state_dict()
            name = "model.layers.0.mlp.experts.0.up_proj."
            arrays = {name + key: to_numpy(tensor) for key, tensor in saved.items()}
            self.assertGreater(len(arrays), 3)
            values = EncodedTensors(arrays=arrays).decode(Bitsandbytes4Bit(), f"{name}weight")
            expected = reference(layer.weight.data, layer.weight.quant_state)
            np.testing.assert_array_equal(values, expected)

    def test_what_fused_experts_save(self) -> None:
        torch.manual_seed(5)
        experts = torch.nn.Module()
        experts.gate_up_proj = torch.nn.Parameter(torch.randn(4, 6, 30))
        original = experts.gate_up_proj.detach().clone()
        replace_parameter_4bit(experts, "gate_up_proj", compress_statistics=True)
        arrays = {f"experts.{key}": to_numpy(t) for key, t in experts.state_dict().items()}

        values = EncodedTensors(arrays=arrays).decode(Bitsandbytes4Bit(), "experts.gate_up_proj")

        self.assertEqual(values.shape, (4, 6, 30))
        state = experts.parametrizations["gate_up_proj"][0].quant_state
        packed = experts.parametrizations["gate_up_proj"].original
        np.testing.assert_array_equal(values, reference(packed, state))
        self.assertLess(np.abs(values - original.numpy()).mean(), 0.2)


if __name__ == "__main__":
    unittest.main()
