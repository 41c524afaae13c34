"""Which checkpoints does docs/new_architecture.md describe, and which rules read them?

Tiny ones whose experts are stored in ways that no preset and no generic rule knows, or that can be
read in two ways.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

N_LAYERS, N_EXPERTS, HIDDEN, WIDTH = 2, 4, 96, 64
SIZES = {
    "hidden_size": HIDDEN,
    "moe_intermediate_size": WIDTH,
    "num_experts": N_EXPERTS,
    "num_hidden_layers": N_LAYERS,
}

FUSED_RULE: dict[str, Any] = {
    "name": "fused_gate_up",
    "match": r".*\.experts\.gate_up_proj$",
    "ndim": 3,
    "layout": {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2},
    "packed_split": {
        "axis": "rows",
        "splits": [WIDTH, WIDTH],
        "projs": ["gate_proj", "up_proj"],
    },
}
TRANSPOSED_RULE: dict[str, Any] = {
    "name": "transposed_down",
    "match": r".*\.experts\.down_proj$",
    "ndim": 3,
    "layout": {"expert_axis": 0, "rows_axis": 2, "cols_axis": 1},
}
TRANSPOSED_FUSED_RULE: dict[str, Any] = {
    **FUSED_RULE,
    "name": "transposed_fused_gate_up",
    "layout": {"expert_axis": 0, "rows_axis": 2, "cols_axis": 1},
}


# One half of this model has a tensor per expert, the other has fused and stacked ones.
UNUSUAL_RULES: tuple[dict[str, Any], ...] = (
    {
        "name": "reader_alpha_beta",
        "match": r"reader\.block_(\d+)\.pool\.unit_(\d+)\.(alpha|beta)$",
        "layout": {"rows_axis": 0, "cols_axis": 1},
        "layer_group": 1,
        "expert_group": 2,
        "proj_group": 3,
        "proj_map": {"alpha": "gate_proj", "beta": "up_proj"},
        "stack": "encoder",
    },
    {
        "name": "reader_omega",
        "match": r"reader\.block_(\d+)\.pool\.unit_(\d+)\.omega$",
        "layout": {"rows_axis": 1, "cols_axis": 0},
        "layer_group": 1,
        "expert_group": 2,
        "proj": "down_proj",
        "stack": "encoder",
    },
    {
        "name": "writer_alpha_beta",
        "match": r"writer\.block_(\d+)\.pool\.alpha_beta$",
        "ndim": 3,
        "layout": {"expert_axis": 0, "rows_axis": 2, "cols_axis": 1},
        "packed_split": {"axis": "rows", "interleaved": True, "projs": ["gate_proj", "up_proj"]},
        "layer_group": 1,
        "stack": "decoder",
    },
    {
        "name": "writer_omega",
        "match": r"writer\.block_(\d+)\.pool\.omega$",
        "ndim": 2,
        "layout": {"rows_axis": 1, "cols_axis": 0, "stacked_experts_axis": 0},
        "layer_group": 1,
        "proj": "down_proj",
        "stack": "decoder",
    },
)
UNUSUAL_LOOKALIKES: tuple[dict[str, str], ...] = (
    {"match": r"(reader|writer)\.block_\d+\.pool\.chooser$", "kind": "router"},
)
_PROJS = ("gate_proj", "up_proj", "down_proj")


def example_matrices() -> dict[tuple[int, str, int], np.ndarray]:
    """Return every expert matrix (R, C) of an example by (layer, projection, expert).

    All examples hold the same ones; that with unusual names holds them in both of its halves.
    """
    generator = np.random.default_rng(0)
    shapes = {
        "gate_proj": (WIDTH, HIDDEN),
        "up_proj": (WIDTH, HIDDEN),
        "down_proj": (HIDDEN, WIDTH),
    }
    return {
        (layer, proj, expert): generator.normal(size=shape).astype(ml_dtypes.bfloat16)
        for layer in range(N_LAYERS)
        for proj, shape in shapes.items()
        for expert in range(N_EXPERTS)
    }


def write_fused_checkpoint(folder: Path) -> None:
    """Write the matrices with gate and up fused along the rows: (E, 2I, H) and (E, H, I)."""
    tensors = {}
    for layer in range(N_LAYERS):
        gate, up, down = _banks(layer)
        prefix = f"model.layers.{layer}.mlp.experts"
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{prefix}.down_proj"] = down
    _write(folder, tensors)


def write_transposed_checkpoint(folder: Path) -> None:
    """Write the same with every matrix transposed: (E, H, 2I) and (E, I, H)."""
    tensors = {}
    for layer in range(N_LAYERS):
        gate, up, down = _banks(layer)
        prefix = f"model.layers.{layer}.feed_forward.experts"
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([gate, up], axis=1).swapaxes(1, 2)
        tensors[f"{prefix}.down_proj"] = down.swapaxes(1, 2)
    _write(folder, tensors)


def write_unusual_checkpoint(folder: Path) -> None:
    """Write the matrices twice, under names that say nothing, as `UNUSUAL_RULES` describe them."""
    matrices = example_matrices()
    tensors: dict[str, np.ndarray] = {}
    for layer in range(N_LAYERS):
        reader, writer = f"reader.block_{layer}.pool", f"writer.block_{layer}.pool"
        for expert in range(N_EXPERTS):
            gate, up, down = (matrices[layer, proj, expert] for proj in _PROJS)
            unit = f"{reader}.unit_{expert}"
            tensors |= {f"{unit}.alpha": gate, f"{unit}.beta": up, f"{unit}.omega": down.T}
        gates, ups, downs = _banks(layer)
        alternating = np.stack([gates, ups], axis=2).reshape(N_EXPERTS, 2 * WIDTH, HIDDEN)
        tensors[f"{writer}.alpha_beta"] = alternating.swapaxes(1, 2)
        tensors[f"{writer}.omega"] = downs.swapaxes(1, 2).reshape(N_EXPERTS * WIDTH, HIDDEN)
        for half in (reader, writer):
            tensors[f"{half}.chooser"] = gates[:, 0]
    halves = {"encoder": SIZES, "decoder": SIZES}
    _write(folder, tensors, {"model_type": "unheard_of", "hidden_size": HIDDEN, **halves})


def write_ambiguous_checkpoint(folder: Path) -> None:
    """Write a Qwen3-VL-MoE whose fused gate and up are square, so that no size tells their axes."""
    generator = np.random.default_rng(1)
    prefix = "model.language_model.layers.0.mlp.experts"
    tensors = {
        f"{prefix}.{name}": generator.normal(size=shape).astype(ml_dtypes.bfloat16)
        for name, shape in (("gate_up_proj", (2, 64, 64)), ("down_proj", (2, 64, 32)))
    }
    sizes = {
        "hidden_size": 64,
        "moe_intermediate_size": 32,
        "num_experts": 2,
        "num_hidden_layers": 1,
    }
    _write(folder, tensors, {"model_type": "qwen3_vl_moe", "text_config": sizes})


def _banks(layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrices = example_matrices()
    gate, up, down = (
        np.stack([matrices[layer, proj, expert] for expert in range(N_EXPERTS)]) for proj in _PROJS
    )
    return gate, up, down


def _write(
    folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None
) -> None:
    folder.mkdir(parents=True)
    stored = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or SIZES), encoding="utf-8")
