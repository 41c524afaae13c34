"""One small stored tensor of every encoding and form, with random codes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.decode.resolve import resolve_encodings
from moe_weights.decode.stored_tensor import EncodingContext, StoredTensor
from tests.support.checkpoints import write_safetensors

E4M3 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
BF16 = ml_dtypes.bfloat16
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
FP8_WHOLE = {"quant_method": "fp8", "weight_block_size": None}
W = "model.layers.0.mlp.experts.0.gate_proj.weight"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


@dataclass(frozen=True, kw_only=True)
class EncodedForm:
    """A checkpoint of one tensor.

    Attributes:
        encoding: Member that must claim it.
        shape: Decoded shape.
        arrays: Stored arrays by name.
        quantization: Quantisation block of config.json.
        four_bit: Stored shape of the codes where their dtype is F4; the array holds bytes.
        is_cuttable: Rows can be decoded apart.
        has_columns: So can columns.
    """

    encoding: str
    shape: tuple[int, ...]
    arrays: dict[str, NDArray[Any]]
    quantization: Mapping[str, object] = field(default_factory=dict)
    four_bit: tuple[int, ...] | None = None
    is_cuttable: bool = True
    has_columns: bool = True

    def write(self, folder: Path) -> StoredTensor:
        """Write the shard `model.safetensors` and return the tensor as it is meant."""
        first = next(iter(self.arrays))
        path = write_safetensors(
            folder / "model.safetensors",
            self.arrays,
            dtype_codes={first: "F4"} if self.four_bit else None,
            shapes={first: self.four_bit} if self.four_bit else None,
        )
        headers = list(read_safetensors_headers(path, path.name).tensors)
        context = EncodingContext(
            by_name={header.name: header for header in headers},
            quantization=self.quantization,
            read_metadata=lambda header: self.arrays[header.name].tobytes(),
        )
        resolution = resolve_encodings(headers, context)
        assert not resolution.refusals, resolution.refusals
        (tensor,) = resolution.tensors
        assert tensor.encoding == self.encoding, tensor.encoding
        assert tensor.shape == self.shape, tensor.shape
        return tensor


def every_form() -> dict[str, EncodedForm]:
    """Return the forms by what sets them apart; the same numbers each time."""
    rng = np.random.default_rng(0)
    return {
        **_fp8(rng),
        **_mxfp4(rng),
        **_nvfp4(rng),
        **_mlx(rng),
        **_packed_int(rng),
        **_int8(rng),
        **_gptq(rng),
        **_awq(rng),
        **_bitsandbytes(rng),
    }


def _bytes(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _words(rng: np.random.Generator, *shape: int) -> NDArray[np.uint32]:
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def _floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.uniform(1e-3, 2, shape).astype(np.float32)


def _exponents(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(110, 140, shape, dtype=np.uint8)


def _e4m3(rng: np.random.Generator, *shape: int) -> NDArray[Any]:
    return rng.integers(1, 0x7E, shape, dtype=np.uint8).view(E4M3)


def _fp8(rng: np.random.Generator) -> dict[str, EncodedForm]:
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
                name: _bytes(rng, *shape).view(E4M3),
                f"{name}_scale" if name == FUSED else f"{W}_scale_inv": _floats(rng, *scale_shape),
            },
            quantization=config,
        )
    forms["fp8 mx group"] = EncodedForm(
        encoding="fp8",
        shape=(40, 96),
        arrays={
            W: _bytes(rng, 40, 96).view(ml_dtypes.float8_e5m2),
            f"{W}_scale": _exponents(rng, 40, 3),
        },
    )
    return forms


def _mxfp4(rng: np.random.Generator) -> dict[str, EncodedForm]:
    packed, scale = W.replace("weight", "weight_packed"), f"{W}_scale"
    name = "model.layers.0.mlp.experts.gate_up_proj"
    plain = {"encoding": "mxfp4"}
    return {
        "mxfp4 blocks": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                f"{name}_blocks": _bytes(rng, 3, 10, 3, 16),
                f"{name}_scales": _exponents(rng, 3, 10, 3),
            },
            **plain,
        ),
        "mxfp4 packed": EncodedForm(
            shape=(10, 80),
            arrays={packed: _bytes(rng, 10, 40), scale: _exponents(rng, 10, 3)},
            **plain,
        ),
        "mxfp4 int8": EncodedForm(
            shape=(10, 96),
            arrays={
                W: _bytes(rng, 10, 48).view(np.int8),
                W.replace("weight", "scale"): _exponents(rng, 10, 3).view(E8M0),
            },
            **plain,
        ),
        "mxfp4 F4": EncodedForm(
            shape=(10, 96),
            arrays={W: _bytes(rng, 10, 48), f"{W}_scale": _exponents(rng, 10, 3).view(E8M0)},
            four_bit=(10, 96),
            **plain,
        ),
        "mxfp4 along rows": EncodedForm(
            shape=(3, 72, 10),
            arrays={
                FUSED: _bytes(rng, 3, 36, 10),
                f"{FUSED}_weight_scale": _exponents(rng, 3, 3, 10),
            },
            **plain,
        ),
    }


def _nvfp4(rng: np.random.Generator) -> dict[str, EncodedForm]:
    packed, plain = W.replace("weight", "weight_packed"), {"encoding": "nvfp4"}
    scale, total = f"{FUSED}_weight_scale", f"{FUSED}_weight_scale_2"
    return {
        "nvfp4 multiplier": EncodedForm(
            shape=(10, 96),
            arrays={
                W: _bytes(rng, 10, 48),
                f"{W}_scale": _e4m3(rng, 10, 6),
                f"{W}_scale_2": _floats(rng),
            },
            **plain,
        ),
        "nvfp4 divisor": EncodedForm(
            shape=(10, 96),
            arrays={
                packed: _bytes(rng, 10, 48),
                f"{W}_scale": _e4m3(rng, 10, 6),
                f"{W}_global_scale": _floats(rng, 1),
            },
            **plain,
        ),
        "nvfp4 stacked": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                FUSED: _bytes(rng, 3, 10, 48),
                scale: _e4m3(rng, 3, 10, 6),
                total: _floats(rng, 3),
            },
            **plain,
        ),
        "nvfp4 halves": EncodedForm(
            shape=(3, 10, 96),
            arrays={
                FUSED: _bytes(rng, 3, 10, 48),
                scale: _e4m3(rng, 3, 10, 6),
                total: _floats(rng, 3, 2),
            },
            **plain,
        ),
        "nvfp4 along rows": EncodedForm(
            shape=(3, 40, 10),
            arrays={
                FUSED: _bytes(rng, 3, 20, 10),
                scale: _e4m3(rng, 3, 3, 10),
                total: _floats(rng, 3, 1, 1),
            },
            **plain,
        ),
        "nvfp4 halves along rows": EncodedForm(
            shape=(3, 40, 10),
            arrays={
                FUSED: _bytes(rng, 3, 20, 10),
                scale: _e4m3(rng, 3, 3, 10),
                total: _floats(rng, 3, 2),
            },
            **plain,
        ),
    }


def _mlx(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    module = "model.layers.0.mlp.switch_mlp.gate_proj"
    for bits in (1, 2, 3, 4, 5, 6, 8):
        forms[f"mlx affine {bits}"] = EncodedForm(
            encoding="mlx_affine",
            shape=(3, 10, 128),
            arrays={
                f"{module}.weight": _words(rng, 3, 10, 4 * bits),
                f"{module}.scales": _floats(rng, 3, 10, 2).astype(BF16),
                f"{module}.biases": -_floats(rng, 3, 10, 2).astype(BF16),
            },
            quantization={"bits": bits, "group_size": 64},
            has_columns=32 % bits == 0,
        )
    for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        arrays = {
            f"{module}.weight": _words(rng, 3, 10, 4 * bits),
            f"{module}.scales": _exponents(rng, 3, 10, 128 // group_size)
            if mode != "nvfp4"
            else _e4m3(rng, 3, 10, 8).view(np.uint8),
        }
        settings = {"bits": bits, "group_size": group_size, "mode": mode}
        form = EncodedForm(
            encoding=f"mlx_{mode}", shape=(3, 10, 128), arrays=arrays, quantization=settings
        )
        forms[f"mlx {mode}"] = form
    forms["mlx nvfp4 with a global scale"] = EncodedForm(
        encoding="mlx_nvfp4",
        shape=(3, 10, 128),
        arrays={**arrays, f"{module}.global_scale": _floats(rng, 3)},
        quantization=settings,
    )
    return forms


def _int_config(bits: int, **weights: object) -> dict[str, object]:
    settings = {"num_bits": bits, "type": "int", "strategy": "channel", "symmetric": True}
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": settings | weights}}}


def _packed_int(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    groups = {"strategy": "group", "group_size": 32}
    asymmetric = groups | {"symmetric": False}
    for label, shape, bits, scale_shape, more, config in (
        ("channel", (20, 96), 4, (20, 1), {}, {}),
        ("tensor", (20, 96), 4, (1,), {}, {"strategy": "tensor"}),
        ("group", (20, 96), 4, (20, 3), {}, groups),
        ("group, ragged words", (20, 70), 4, (20, 3), {}, groups),
        ("group, 3 bits", (20, 96), 3, (20, 3), {}, groups),
        ("group, 8 bits", (20, 96), 8, (20, 3), {}, groups),
        ("stacked group", (3, 20, 96), 4, (3, 20, 3), {}, groups),
        (
            "packed zero points",
            (20, 96),
            4,
            (20, 3),
            {"zero_point": _words(rng, 3, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "stacked packed zero points",
            (3, 20, 96),
            8,
            (3, 20, 3),
            {"zero_point": _words(rng, 3, 5, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "packed zero points, 3 bits",
            (96, 96),
            3,
            (96, 3),
            {"zero_point": _words(rng, 9, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "stacked packed zero points, 3 bits",
            (3, 32, 96),
            3,
            (3, 32, 3),
            {"zero_point": _words(rng, 3, 3, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "ragged packed zero points, 3 bits",
            (20, 96),
            3,
            (20, 3),
            {"zero_point": _words(rng, 2, 3).view(np.int32)},
            asymmetric,
        ),
        (
            "plain zero points",
            (20, 96),
            4,
            (20, 3),
            {"zero_point": _bytes(rng, 20, 3).view(np.int8) // 16},
            asymmetric,
        ),
        (
            "group index",
            (20, 96),
            4,
            (20, 3),
            {"g_idx": rng.integers(0, 3, 96).astype(np.int32)},
            groups,
        ),
        (
            "stacked group index",
            (3, 20, 96),
            4,
            (3, 20, 3),
            {"g_idx": rng.integers(0, 3, (3, 96)).astype(np.int32)},
            groups,
        ),
    ):
        n_words = -(-shape[-1] * bits // 32)
        arrays = {
            f"{W}_packed": _words(rng, *shape[:-1], n_words).view(np.int32),
            f"{W}_scale": _floats(rng, *scale_shape).astype(BF16),
            f"{W}_shape": np.array(shape, dtype=np.int64),
        }
        forms[f"packed int {label}"] = EncodedForm(
            encoding="packed_int",
            shape=shape,
            arrays=arrays | {f"{W}_{role}": array for role, array in more.items()},
            quantization=_int_config(bits, **config),
            is_cuttable=label != "ragged packed zero points, 3 bits",
            has_columns="index" not in label and 32 % bits == 0,
        )
    return forms


def _int8(rng: np.random.Generator) -> dict[str, EncodedForm]:
    forms = {}
    groups = {"strategy": "group", "group_size": 16}
    for label, shape, more, config in (
        ("channel", (20, 48), {"weight_scale": _floats(rng, 20, 1)}, {}),
        ("group", (20, 48), {"weight_scale": _floats(rng, 20, 3)}, groups),
        (
            "block",
            (20, 40),
            {"weight_scale": _floats(rng, 3, 3)},
            {"strategy": "block", "block_structure": [8, 16]},
        ),
        (
            "zero points",
            (20, 48),
            {
                "weight_scale": _floats(rng, 20, 3),
                "weight_zero_point": _bytes(rng, 20, 3).view(np.int8),
            },
            groups | {"symmetric": False},
        ),
        (
            "group index",
            (20, 48),
            {
                "weight_scale": _floats(rng, 20, 3),
                "weight_g_idx": rng.integers(0, 3, 48).astype(np.int32),
            },
            groups,
        ),
        ("row maxima", (20, 48), {"SCB": _floats(rng, 20)}, None),
        (
            "stacked",
            (3, 20, 48),
            {"weight_scale": _floats(rng, 3, 20, 3)},
            groups,
        ),
    ):
        module = W.removesuffix("weight")
        forms[f"int8 {label}"] = EncodedForm(
            encoding="int8",
            shape=shape,
            arrays={
                W: _bytes(rng, *shape).view(np.int8),
                **{f"{module}{word}": array for word, array in more.items()},
            },
            quantization={} if config is None else _int_config(8, **config),
            has_columns=label != "group index",
        )
    return forms


def _gptq(rng: np.random.Generator) -> dict[str, EncodedForm]:
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
                f"{module}.qweight": _words(rng, -(-cols * bits // 32), rows).view(np.int32),
                f"{module}.qzeros": _words(rng, n_groups, -(-rows * bits // 32)).view(np.int32),
                f"{module}.scales": _floats(rng, n_groups, rows).astype(np.float16),
                f"{module}.g_idx": groups.astype(np.int32),
            },
            quantization={"quant_method": "gptq", "bits": bits, "group_size": group_size, **more},
            has_columns=False,
        )
    return forms


def _awq(rng: np.random.Generator) -> dict[str, EncodedForm]:
    module = W.removesuffix(".weight")
    zeros = {f"{module}.qzeros": _words(rng, 2, 5).view(np.int32)}
    return {
        label: EncodedForm(
            encoding="awq",
            shape=(40, 128),
            arrays={
                f"{module}.qweight": _words(rng, 128, 5).view(np.int32),
                f"{module}.scales": _floats(rng, 2, 40).astype(np.float16),
            }
            | (zeros if has_zeros else {}),
            quantization={"quant_method": "awq", "bits": 4, "zero_point": has_zeros},
            has_columns=False,
        )
        for label, has_zeros in (("awq", True), ("awq symmetric", False))
    }


def _bitsandbytes(rng: np.random.Generator) -> dict[str, EncodedForm]:
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
            name: _bytes(rng, -(-count // 2), 1),
            f"{name}.absmax": _bytes(rng, n_blocks) if is_nested else _floats(rng, n_blocks),
            f"{name}.quant_map": np.linspace(-1, 1, 16).astype(np.float32),
        }
        if is_nested:
            state |= {"nested_blocksize": 7, "nested_offset": 0.25}
            arrays[f"{name}.nested_absmax"] = _floats(rng, -(-n_blocks // 7))
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
