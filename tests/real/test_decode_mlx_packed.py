"""Whole models quantised and saved by mlx-lm, every packed tensor against mlx.core.dequantize."""

from __future__ import annotations

import json
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3_moe
from mlx_lm.utils import quantize_model, save_config

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.mlx_packed import MLX_MEMBERS
from moe_weights.decode.stored_tensor import EncodingContext, EncodingRefusal, StoredTensor
from tests.support.packed_codes import context_of, header_like

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 384,
    "rms_norm_eps": 1e-6,
    "vocab_size": 64,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
    "norm_topk_prob": True,
}
Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]


def saved(
    folder: Path, dtype: mx.Dtype, predicate: Predicate | None = None, **settings: Any
) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Quantise a random model; return its tensors as saved, and config.json as saved."""
    mx.random.seed(0)
    model = qwen3_moe.Model(qwen3_moe.ModelArgs.from_dict(CONFIG))
    model.set_dtype(dtype)
    model, config = quantize_model(
        model,
        dict(CONFIG),
        settings.pop("group_size", None),
        settings.pop("bits", None),
        quant_predicate=predicate,
        **settings,
    )
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    save_config(config, folder / "config.json")
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    return tensors, json.loads((folder / "config.json").read_text())


def to_numpy(array: mx.array) -> np.ndarray:
    if array.dtype == mx.bfloat16:
        return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(array)


def dequantised(module: str, tensors: dict[str, mx.array], settings: dict[str, Any]) -> np.ndarray:
    """Return MLX's values in float32; it rounds to the dtype of affine scales, so widen them."""
    mode = settings.get("mode", "affine")
    scales, biases = tensors[f"{module}.scales"], tensors.get(f"{module}.biases")
    if mode == "affine":
        assert biases is not None
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    codes = tensors[f"{module}.weight"]
    form = {"group_size": settings["group_size"], "bits": settings["bits"], "mode": mode}
    global_scale = tensors.get(f"{module}.global_scale")
    if global_scale is None:
        return np.array(mx.dequantize(codes, scales, biases, dtype=mx.float32, **form))
    experts = [
        np.array(
            mx.dequantize(
                codes[e], scales[e], global_scale=global_scale[e], dtype=mx.float32, **form
            )
        )
        for e in range(codes.shape[0])
    ]
    return np.stack(experts)


def claim(header: TensorHeader, context: EncodingContext) -> StoredTensor | EncodingRefusal | None:
    claims = [member.claim(header, context) for member in MLX_MEMBERS]
    return next((claim for claim in claims if claim is not None), None)


class SavedModels(unittest.TestCase):
    def check(
        self, dtype: mx.Dtype, predicate: Predicate | None = None, **settings: Any
    ) -> dict[str, str]:
        """Compare every packed tensor; return module to encoding."""
        with tempfile.TemporaryDirectory() as name:
            tensors, config = saved(Path(name), dtype, predicate, **settings)
        arrays = {name: to_numpy(array) for name, array in tensors.items()}
        headers = [header_like(name, array) for name, array in arrays.items()]
        context = context_of(*headers, quantization=config["quantization"])
        encodings = {}
        for header in headers:
            tensor = claim(header, context)
            if tensor is None:
                self.assertNotEqual(header.dtype_code, "U32", header.name)
                continue
            assert isinstance(tensor, StoredTensor), tensor
            module = header.name.removesuffix(".weight")
            member = next(each for each in MLX_MEMBERS if each.name == tensor.encoding)
            values = member.decode(tensor, {role: arrays[part.name] for role, part in tensor.parts})
            block = config["quantization"]
            override = block.get(module, block)
            expected = dequantised(module, tensors, override)
            self.assertEqual(values.shape, tensor.shape)
            np.testing.assert_array_equal(
                values.view(np.uint32), expected.view(np.uint32), err_msg=header.name
            )
            encodings[module] = tensor.encoding
        return encodings

    def test_affine_at_every_width(self) -> None:
        for bits in (1, 2, 3, 4, 5, 6, 8):
            for group_size in (32, 64, 128):
                with self.subTest(bits=bits, group_size=group_size):
                    encodings = self.check(mx.bfloat16, bits=bits, group_size=group_size)
                    self.assertEqual(set(encodings.values()), {"mlx_affine"})
                    self.assertIn("model.layers.1.mlp.switch_mlp.down_proj", encodings)

    def test_affine_in_other_dtypes(self) -> None:
        for dtype in (mx.float32, mx.float16):
            with self.subTest(dtype=dtype):
                self.check(dtype, bits=4, group_size=64)

    def test_floating_modes_with_an_affine_router(self) -> None:
        for mode in ("mxfp4", "mxfp8", "nvfp4"):
            with self.subTest(mode=mode):
                encodings = self.check(mx.bfloat16, mode=mode)
                # mlx-lm itself gives the router 8 bits, without a mode.
                self.assertEqual(encodings["model.layers.0.mlp.gate"], "mlx_affine")
                self.assertEqual(encodings["model.layers.0.mlp.switch_mlp.up_proj"], f"mlx_{mode}")

    def test_nvfp4_with_a_scale_for_each_expert(self) -> None:
        encodings = self.check(mx.bfloat16, mode="nvfp4", global_scale=True)
        self.assertEqual(encodings["model.layers.0.mlp.switch_mlp.up_proj"], "mlx_nvfp4")

    def test_mixed_widths_and_plain_modules(self) -> None:
        def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
            if path.endswith("down_proj"):
                return {"bits": 6, "group_size": 64}
            if path.endswith("up_proj"):
                return {"bits": 8, "group_size": 32, "mode": "mxfp8"}
            return "gate" in path and "proj" in path

        encodings = self.check(mx.bfloat16, predicate, bits=3, group_size=128)
        self.assertEqual(
            {module.rpartition(".")[2]: encoding for module, encoding in encodings.items()},
            {"down_proj": "mlx_affine", "up_proj": "mlx_mxfp8", "gate_proj": "mlx_affine"},
        )


if __name__ == "__main__":
    unittest.main()
