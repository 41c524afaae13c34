"""Small stored tensors as MLX, GPTQ, AWQ and bitsandbytes write them."""

from __future__ import annotations

import json
import math

import numpy as np

from tests.support.encoded_form import (
    BF16,
    FUSED,
    EncodedForm,
    W,
    draw_bytes,
    draw_e4m3,
    draw_exponents,
    draw_floats,
    draw_words,
)


def mlx_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    module = "model.layers.0.mlp.switch_mlp.gate_proj"
    for bits in (1, 2, 3, 4, 5, 6, 8):
        forms[f"mlx affine {bits}"] = EncodedForm(
            encoding="mlx_affine",
            shape=(3, 10, 128),
            arrays={
                f"{module}.weight": draw_words(rng, 3, 10, 4 * bits),
                f"{module}.scales": draw_floats(rng, 3, 10, 2).astype(BF16),
                f"{module}.biases": -draw_floats(rng, 3, 10, 2).astype(BF16),
            },
            quantization={"bits": bits, "group_size": 64},
            has_columns=32 % bits == 0,
        )
    for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        arrays = {
            f"{module}.weight": draw_words(rng, 3, 10, 4 * bits),
            f"{module}.scales": draw_exponents(rng, 3, 10, 128 // group_size)
            if mode != "nvfp4"
            else draw_e4m3(rng, 3, 10, 8).view(np.uint8),
        }
        settings = {"bits": bits, "group_size": group_size, "mode": mode}
        form = EncodedForm(
            encoding=f"mlx_{mode}", shape=(3, 10, 128), arrays=arrays, quantization=settings
        )
        forms[f"mlx {mode}"] = form
    forms["mlx nvfp4 with a global scale"] = EncodedForm(
        encoding="mlx_nvfp4",
        shape=(3, 10, 128),
        arrays={**arrays, f"{module}.global_scale": draw_floats(rng, 3)},
        quantization=settings,
    )
    return forms


def gptq_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    module = W.removesuffix(".weight")
    for label, (rows, cols), bits, group_size, more in (
        ("", (40, 64), 4, 32, {}),
        (" version 2", (40, 64), 4, 32, {"checkpoint_format": "gptq_v2"}),
        (" in one group", (40, 64), 4, -1, {}),
        (" act-order", (40, 96), 4, 32, {"desc_act": True}),
        (" 2", (48, 80), 2, 32, {}),
        (" 3", (72, 70), 3, 32, {}),
        (" 8, ragged words", (39, 65), 8, 32, {}),
        (" 3 planar", (64, 96), 3, 32, {"checkpoint_format": "gptq_p"}),
        (" 5", (64, 96), 5, 32, {}),
        (" 7", (64, 96), 7, 32, {}),
    ):
        n_groups = 1 if group_size < 0 else -(-cols // group_size)
        groups = np.arange(cols) // (cols if group_size < 0 else group_size)
        if "desc_act" in more:
            groups = rng.permutation(groups)
        forms[f"gptq{label}"] = EncodedForm(
            encoding="gptq",
            shape=(rows, cols),
            arrays={
                f"{module}.qweight": draw_words(rng, -(-cols * bits // 32), rows).view(np.int32),
                f"{module}.qzeros": draw_words(rng, n_groups, -(-rows * bits // 32)).view(np.int32),
                f"{module}.scales": draw_floats(rng, n_groups, rows).astype(np.float16),
                f"{module}.g_idx": groups.astype(np.int32),
            },
            quantization={"quant_method": "gptq", "bits": bits, "group_size": group_size, **more},
            has_columns=False,
        )
    return forms


def awq_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    module = W.removesuffix(".weight")
    zeros = {f"{module}.qzeros": draw_words(rng, 2, 5).view(np.int32)}
    return {
        label: EncodedForm(
            encoding="awq",
            shape=(40, 128),
            arrays={
                f"{module}.qweight": draw_words(rng, 128, 5).view(np.int32),
                f"{module}.scales": draw_floats(rng, 2, 40).astype(np.float16),
            }
            | (zeros if has_zeros else {}),
            quantization={"quant_method": "awq", "bits": 4, "zero_point": has_zeros},
            has_columns=False,
        )
        for label, has_zeros in (("awq", True), ("awq symmetric", False))
    }


def bitsandbytes_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    for label, shape, block, is_nested in (
        ("rows of whole blocks", (10, 96), 32, False),
        ("stacked", (3, 10, 96), 32, False),
        ("nested", (10, 96), 32, True),
        ("stacked and nested", (3, 10, 96), 32, True),
        ("blocks over row ends", (10, 48), 32, False),
        ("odd", (3, 5), 4, False),
    ):
        name = FUSED if len(shape) > 2 else W
        count = math.prod(shape)
        n_blocks = -(-count // block)
        state: dict[str, object] = {"quant_type": "nf4", "blocksize": block, "shape": list(shape)}
        arrays = {
            name: draw_bytes(rng, -(-count // 2), 1),
            f"{name}.absmax": draw_bytes(rng, n_blocks)
            if is_nested
            else draw_floats(rng, n_blocks),
            f"{name}.quant_map": np.linspace(-1, 1, 16).astype(np.float32),
        }
        if is_nested:
            state |= {"nested_blocksize": 7, "nested_offset": 0.25}
            arrays[f"{name}.nested_absmax"] = draw_floats(rng, -(-n_blocks // 7))
            arrays[f"{name}.nested_quant_map"] = np.linspace(-1, 1, 256).astype(np.float32)
        described = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
        forms[f"bitsandbytes {label}"] = EncodedForm(
            encoding="bitsandbytes_4bit",
            shape=shape,
            arrays=arrays | {f"{name}.quant_state.bitsandbytes__nf4": described},
            is_cuttable=shape[-1] % block == 0,
            has_columns=False,
        )
    return forms
