"""Tiny checkpoints of the layout kinds, written by hand: every name, shape and code spelled out.

Sizes: hidden size H = 64, expert width I = 96, E = 3 experts, L = 2 layers. They are multiples of
32 for the block formats, and neither I == H nor 2I == H.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

HIDDEN, WIDTH, N_EXPERTS, N_LAYERS = 64, 96, 3, 2
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLayout:
    """One way in which experts lie on disk.

    Attributes:
        name: Of the layout.
        config: config.json.
        tensors: Stored name to array, layer by layer.
        experts: Names of the tensors that hold expert weights or codes.
        companions: Names of scales and other parts without which the codes mean nothing.
    """

    name: str
    config: Mapping[str, object]
    tensors: Tensors
    experts: tuple[str, ...]
    companions: tuple[str, ...] = field(default=())


def make_layouts() -> tuple[ExpertLayout, ...]:
    """Return all layouts."""
    return (
        _per_expert(),
        _w1_w2_w3(),
        _fused(),
        _fused_transposed(),
        _fused_interleaved(),
        _fp8_blocks(),
        _fp8_stacks(),
        _mxfp4(),
        _mlx_affine(),
    )


def _sizes(model_type: str, experts: str, width: str, **more: object) -> dict[str, object]:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "num_hidden_layers": N_LAYERS,
        "num_experts_per_tok": 2,
        experts: N_EXPERTS,
        width: WIDTH,
        **more,
    }


class _Values:
    """Numbers that are never the same twice."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normal(self, *shape: int, dtype: object = ml_dtypes.bfloat16) -> np.ndarray:
        scale = self._generator.uniform(0.02, 0.1)
        return (self._generator.standard_normal(shape) * scale).astype(dtype)  # type: ignore[call-overload] # ml_dtypes

    def codes(self, *shape: int, dtype: str = "uint8", low: int = 0, high: int = 256) -> np.ndarray:
        return self._generator.integers(low, high, shape, dtype=np.int64).astype(dtype)


def _build(
    name: str,
    config: Mapping[str, object],
    layer: Callable[[int, _Values], Tensors],
    companion_suffixes: tuple[str, ...] = (),
) -> ExpertLayout:
    values = _Values(len(name))
    tensors: Tensors = {"model.embed_tokens.weight": values.normal(20, HIDDEN)}
    experts: list[str] = []
    companions: list[str] = []
    for number in range(N_LAYERS):
        tensors[f"model.layers.{number}.input_layernorm.weight"] = values.normal(HIDDEN)
        for key, array in layer(number, values).items():
            tensors[key] = array
            if key.endswith(companion_suffixes):
                companions.append(key)
            elif (
                ("expert" in key and not key.endswith("_bias"))
                or "switch_mlp" in key
                or (".moe." in key and "_proj" in key)
            ):
                experts.append(key)
    return ExpertLayout(
        name=name,
        config=config,
        tensors=tensors,
        experts=tuple(experts),
        companions=tuple(companions),
    )


def _per_expert() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        tensors = {f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN)}
        for expert in range(N_EXPERTS):
            tensors[f"{at}.experts.{expert}.gate_proj.weight"] = values.normal(WIDTH, HIDDEN)
            tensors[f"{at}.experts.{expert}.up_proj.weight"] = values.normal(WIDTH, HIDDEN)
            tensors[f"{at}.experts.{expert}.down_proj.weight"] = values.normal(HIDDEN, WIDTH)
        return tensors

    return _build(
        "per_expert", _sizes("qwen3_moe", "num_experts", "moe_intermediate_size"), layer, ("?",)
    )


def _w1_w2_w3() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.block_sparse_moe"
        tensors = {f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN)}
        for expert in range(N_EXPERTS):
            tensors[f"{at}.experts.{expert}.w1.weight"] = values.normal(WIDTH, HIDDEN)
            tensors[f"{at}.experts.{expert}.w2.weight"] = values.normal(HIDDEN, WIDTH)
            tensors[f"{at}.experts.{expert}.w3.weight"] = values.normal(WIDTH, HIDDEN)
        return tensors

    return _build(
        "w1_w2_w3", _sizes("mixtral", "num_local_experts", "intermediate_size"), layer, ("?",)
    )


def _fused() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        return {
            f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN),
            f"{at}.experts.gate_up_proj": values.normal(N_EXPERTS, 2 * WIDTH, HIDDEN),
            f"{at}.experts.down_proj": values.normal(N_EXPERTS, HIDDEN, WIDTH),
        }

    return _build(
        "fused",
        _sizes("mistral4", "n_routed_experts", "moe_intermediate_size", first_k_dense_replace=0),
        layer,
        ("?",),
    )


def _fused_transposed() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.feed_forward"
        return {
            f"{at}.router.weight": values.normal(N_EXPERTS, HIDDEN),
            f"{at}.experts.gate_up_proj": values.normal(N_EXPERTS, HIDDEN, 2 * WIDTH),
            f"{at}.experts.down_proj": values.normal(N_EXPERTS, WIDTH, HIDDEN),
        }

    config = _sizes(
        "llama4_text", "num_local_experts", "intermediate_size", interleave_moe_layer_step=1
    )
    return _build("fused_transposed", config, layer, ("?",))


def _fused_interleaved() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        return {
            f"{at}.router.weight": values.normal(N_EXPERTS, HIDDEN),
            f"{at}.router.bias": values.normal(N_EXPERTS),
            f"{at}.experts.gate_up_proj": values.normal(N_EXPERTS, HIDDEN, 2 * WIDTH),
            f"{at}.experts.gate_up_proj_bias": values.normal(N_EXPERTS, 2 * WIDTH),
            f"{at}.experts.down_proj": values.normal(N_EXPERTS, WIDTH, HIDDEN),
            f"{at}.experts.down_proj_bias": values.normal(N_EXPERTS, HIDDEN),
        }

    config = _sizes("gpt_oss", "num_local_experts", "intermediate_size")
    return _build("fused_interleaved", config, layer, ("?",))


def _fp8_blocks() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        tensors = {f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN)}
        for expert in range(N_EXPERTS):
            for proj, rows, cols in (
                ("gate_proj", WIDTH, HIDDEN),
                ("up_proj", WIDTH, HIDDEN),
                ("down_proj", HIDDEN, WIDTH),
            ):
                name = f"{at}.experts.{expert}.{proj}.weight"
                tensors[name] = values.normal(rows, cols, dtype=ml_dtypes.float8_e4m3fn)
                scales = values.normal(rows // 32, cols // 32, dtype=np.float32)
                tensors[f"{name}_scale_inv"] = np.abs(scales) + np.float32(0.01)
        return tensors

    config = _sizes(
        "deepseek_v3",
        "n_routed_experts",
        "moe_intermediate_size",
        first_k_dense_replace=0,
        quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]},
    )
    return _build("fp8_blocks", config, layer, ("_scale_inv",))


def _fp8_stacks() -> ExpertLayout:
    """Stacks and scales in a module whose name does not say expert."""

    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.moe"
        tensors = {f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN)}
        for proj, rows, cols in (
            ("gate_proj", WIDTH, HIDDEN),
            ("up_proj", WIDTH, HIDDEN),
            ("down_proj", HIDDEN, WIDTH),
        ):
            name = f"{at}.{proj}.weight"
            tensors[name] = values.normal(N_EXPERTS, rows, cols, dtype=ml_dtypes.float8_e4m3fn)
            scales = values.normal(N_EXPERTS, rows // 32, cols // 32, dtype=np.float32)
            tensors[f"{name}_scale_inv"] = np.abs(scales) + np.float32(0.01)
        return tensors

    config = _sizes(
        "step3p5",
        "moe_num_experts",
        "moe_intermediate_size",
        first_k_dense_replace=0,
        quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]},
    )
    return _build("fp8_stacks", config, layer, ("_scale_inv",))


def _mxfp4() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        tensors = {
            f"{at}.router.weight": values.normal(N_EXPERTS, HIDDEN),
            f"{at}.router.bias": values.normal(N_EXPERTS),
        }
        for proj, rows, cols in (
            ("gate_up_proj", 2 * WIDTH, HIDDEN),
            ("down_proj", HIDDEN, WIDTH),
        ):
            name = f"{at}.experts.{proj}"
            tensors[f"{name}_blocks"] = values.codes(N_EXPERTS, rows, cols // 32, 16)
            scales = values.codes(N_EXPERTS, rows, cols // 32, low=118, high=124)
            tensors[f"{name}_scales"] = scales
            tensors[f"{name}_bias"] = values.normal(N_EXPERTS, rows)
        return tensors

    config = _sizes(
        "gpt_oss",
        "num_local_experts",
        "intermediate_size",
        quantization_config={"quant_method": "mxfp4"},
    )
    return _build("mxfp4", config, layer, ("_scales",))


def _mlx_affine() -> ExpertLayout:
    def layer(number: int, values: _Values) -> Tensors:
        at = f"model.layers.{number}.mlp"
        tensors = {f"{at}.gate.weight": values.normal(N_EXPERTS, HIDDEN)}
        for proj, rows, cols in (
            ("gate_proj", WIDTH, HIDDEN),
            ("up_proj", WIDTH, HIDDEN),
            ("down_proj", HIDDEN, WIDTH),
        ):
            name = f"{at}.switch_mlp.{proj}"
            tensors[f"{name}.weight"] = values.codes(
                N_EXPERTS, rows, cols // 8, dtype="uint32", high=2**32
            )
            tensors[f"{name}.scales"] = values.normal(N_EXPERTS, rows, cols // 32)
            tensors[f"{name}.biases"] = values.normal(N_EXPERTS, rows, cols // 32)
        return tensors

    quantization = {"group_size": 32, "bits": 4, "mode": "affine"}
    config = _sizes("qwen3_moe", "num_experts", "moe_intermediate_size", quantization=quantization)
    return _build("mlx_affine", config, layer, (".scales", ".biases"))
