"""Checkpoints to measure speed on: the layout of Qwen3-MoE, random weights, any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

_N_EXPERTS = 8
_HIDDEN, _WIDTH = 4096, 1536
BYTES_PER_LAYER = _N_EXPERTS * 3 * _HIDDEN * _WIDTH * 2


def write_bf16(folder: Path, n_layers: int, *, seed: int = 0) -> Path:
    """Write one BF16 shard per layer of 288 MiB of normal weights; every matrix is different.

    Args:
        folder: Made when missing.
        n_layers: Layers of 8 experts with 4096 x 1536 projections.
        seed: Of the random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    normal = np.random.default_rng(seed).normal(scale=0.02, size=_HIDDEN * _WIDTH)
    base = (normal.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    _write_config(folder, n_layers, _N_EXPERTS, _HIDDEN, _WIDTH)
    for layer in range(n_layers):
        shapes = _shapes(layer, _N_EXPERTS, _HIDDEN, _WIDTH)
        with (folder / f"model-{layer:05d}.safetensors").open("wb") as stream:
            stream.write(_header(shapes))
            for position in range(len(shapes)):
                # Rolled by another amount each: as random as the first, and cheap.
                stream.write(np.roll(base, 7919 * (layer * len(shapes) + position)).tobytes())
    return folder


def first_layers(model: Path, folder: Path, n_layers: int) -> Path:
    """Make a checkpoint of another one's first layers; the shards are shared, not copied."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, n_layers, _N_EXPERTS, _HIDDEN, _WIDTH)
    for shard in sorted(model.glob("*.safetensors"))[:n_layers]:
        (folder / shard.name).hardlink_to(shard)
    return folder


def write_headers_only(folder: Path, n_tensors: int, *, n_files: int = 20) -> Path:
    """Write shards whose weights are holes in the file, for plans of many tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    n_experts, hidden, width = 256, 64, 32
    n_layers = -(-n_tensors // (3 * n_experts))
    _write_config(folder, n_layers, n_experts, hidden, width)
    everything: dict[str, list[int]] = {}
    for layer in range(n_layers):
        everything |= _shapes(layer, n_experts, hidden, width)
    names = list(everything)[:n_tensors]
    per_file = -(-len(names) // n_files)
    weight_map: dict[str, str] = {}
    for number, start in enumerate(range(0, len(names), per_file)):
        file = f"model-{number:05d}.safetensors"
        shapes = {name: everything[name] for name in names[start : start + per_file]}
        header = _header(shapes)
        nbytes = sum(rows * cols * 2 for rows, cols in shapes.values())
        with (folder / file).open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + nbytes)
        weight_map |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _shapes(layer: int, n_experts: int, hidden: int, width: int) -> dict[str, list[int]]:
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight": shape
        for expert in range(n_experts)
        for proj, shape in (
            ("gate_proj", [width, hidden]),
            ("up_proj", [width, hidden]),
            ("down_proj", [hidden, width]),
        )
    }


def _header(shapes: dict[str, list[int]]) -> bytes:
    entries, offset = {}, 0
    for name, (rows, cols) in shapes.items():
        stop = offset + rows * cols * 2
        entries[name] = {
            "dtype": "BF16",
            "shape": [rows, cols],
            "data_offsets": [offset, stop],
        }
        offset = stop
    encoded = json.dumps(entries).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def _write_config(folder: Path, n_layers: int, n_experts: int, hidden: int, width: int) -> None:
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "num_experts": n_experts,
        "num_experts_per_tok": 8,
        "num_hidden_layers": n_layers,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
