"""Small stored tensors of FP8, MXFP4 and NVFP4."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.support.encoded_form import (
    E4M3,
    E8M0,
    FUSED,
    EncodedForm,
    W,
    draw_bytes,
    draw_e4m3,
    draw_exponents,
    draw_floats,
)

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
FP8_WHOLE = {"quant_method": "fp8", "weight_block_size": None}


def fp8_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    for label, shape, scale_shape, config in (
        ("tensor", (40, 56), (), {}),
        ("row", (40, 56), (40, 1), {}),
        ("block", (40, 56), (3, 4), FP8),
        ("block of modelopt", (3, 40, 56), (3, 3, 1, 4, 1), FP8),
        ("stacked block", (3, 40, 56), (3, 3, 4), FP8),
        ("stacked tensor", (3, 40, 56), (3,), {}),
        ("stacked, one for all", (3, 40, 56), (1,), {}),
        ("stacked row", (3, 40, 56), (3, 40, 1), {}),
        ("half", (3, 40, 56), (3, 2, 1), FP8_WHOLE),
        ("output of inputs in rows", (3, 40, 56), (3, 1, 56), {"quant_method": "fbgemm_fp8"}),
        ("layers of stacks", (2, 3, 40, 56), (2, 3, 3, 4), FP8),
    ):
        name = FUSED if len(shape) > 2 else W
        forms[f"fp8 {label}"] = EncodedForm(
            encoding="fp8",
            shape=shape,
            arrays={
                name: draw_bytes(rng, *shape).view(E4M3),
                f"{name}_scale" if name == FUSED else f"{W}_scale_inv": draw_floats(
                    rng, *scale_shape
                ),
            },
            quantization=config,
        )
    forms["fp8 mx group"] = EncodedForm(
        encoding="fp8",
        shape=(40, 96),
        arrays={
            W: draw_bytes(rng, 40, 96).view(ml_dtypes.float8_e5m2),
            f"{W}_scale": draw_exponents(rng, 40, 3),
        },
    )
    return forms


def mxfp4_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    packed, scale = W.replace("weight", "weight_packed"), f"{W}_scale"
    name = "model.layers.0.mlp.experts.gate_up_proj"
    plain = {"encoding": "mxfp4"}
    return {
        "mxfp4 blocks": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                f"{name}_blocks": draw_bytes(rng, 3, 10, 3, 16),
                f"{name}_scales": draw_exponents(rng, 3, 10, 3),
            },
            **plain,
        ),
        "mxfp4 packed": EncodedForm(
            shape=(10, 80),
            arrays={packed: draw_bytes(rng, 10, 40), scale: draw_exponents(rng, 10, 3)},
            **plain,
        ),
        "mxfp4 int8": EncodedForm(
            shape=(10, 96),
            arrays={
                W: draw_bytes(rng, 10, 48).view(np.int8),
                W.replace("weight", "scale"): draw_exponents(rng, 10, 3).view(E8M0),
            },
            **plain,
        ),
        "mxfp4 F4": EncodedForm(
            shape=(10, 96),
            arrays={
                W: draw_bytes(rng, 10, 48),
                f"{W}_scale": draw_exponents(rng, 10, 3).view(E8M0),
            },
            four_bit=(10, 96),
            **plain,
        ),
        "mxfp4 along rows": EncodedForm(
            shape=(3, 72, 10),
            arrays={
                FUSED: draw_bytes(rng, 3, 36, 10),
                f"{FUSED}_weight_scale": draw_exponents(rng, 3, 3, 10),
            },
            **plain,
        ),
    }


def nvfp4_forms(rng: np.random.Generator) -> dict[str, EncodedForm]:
    packed, plain = W.replace("weight", "weight_packed"), {"encoding": "nvfp4"}
    scale, total = f"{FUSED}_weight_scale", f"{FUSED}_weight_scale_2"
    return {
        "nvfp4 multiplier": EncodedForm(
            shape=(10, 96),
            arrays={
                W: draw_bytes(rng, 10, 48),
                f"{W}_scale": draw_e4m3(rng, 10, 6),
                f"{W}_scale_2": draw_floats(rng),
            },
            **plain,
        ),
        "nvfp4 divisor": EncodedForm(
            shape=(10, 96),
            arrays={
                packed: draw_bytes(rng, 10, 48),
                f"{W}_scale": draw_e4m3(rng, 10, 6),
                f"{W}_global_scale": draw_floats(rng, 1),
            },
            **plain,
        ),
        "nvfp4 stacked": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                FUSED: draw_bytes(rng, 3, 10, 48),
                scale: draw_e4m3(rng, 3, 10, 6),
                total: draw_floats(rng, 3),
            },
            **plain,
        ),
        "nvfp4 halves": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                FUSED: draw_bytes(rng, 3, 10, 48),
                scale: draw_e4m3(rng, 3, 10, 6),
                total: draw_floats(rng, 3, 2),
            },
            **plain,
        ),
        "nvfp4 along rows": EncodedForm(
            shape=(3, 40, 10),
            arrays={
                FUSED: draw_bytes(rng, 3, 20, 10),
                scale: draw_e4m3(rng, 3, 3, 10),
                total: draw_floats(rng, 3, 1, 1),
            },
            **plain,
        ),
        "nvfp4 halves along rows": EncodedForm(
            shape=(3, 40, 10),
            arrays={
                FUSED: draw_bytes(rng, 3, 20, 10),
                scale: draw_e4m3(rng, 3, 3, 10),
                total: draw_floats(rng, 3, 2),
            },
            **plain,
        ),
    }
