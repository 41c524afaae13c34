"""Routing bundles made in code, and written without any check."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_weights.routing import (
    GroupLimit,
    MoELayerCaptureInput,
    RoutedLayerInput,
    build_layer_grid_layout,
    build_manifest,
    build_routed_token_event,
    build_token_complete_event,
    derive_bundle_artifacts,
)

CREATED_AT = "2026-03-21T12:00:00Z"
LOGITS = ([2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 2.0], [2.0, 1.0, 0.0, -1.0])
SIGMOID_LOGITS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def make_manifest(run_id: str = "run-001", **changes: Any) -> dict[str, Any]:
    """Return a manifest; keyword arguments replace those of `build_manifest`."""
    arguments: dict[str, Any] = {
        "run_id": run_id,
        "created_at": CREATED_AT,
        "model_id": "org/model",
        "tokenizer_id": "org/model",
        "prompt_text": "hello",
        "derivation_version": "motifs/v0.1.0-alpha",
        "derivation_config_id": "motifs/default-alpha",
    }
    return build_manifest(**{**arguments, **changes})


def make_event(token_index: int = 0, run_id: str = "run-001", **changes: Any) -> dict[str, Any]:
    """Return a v0.1.0 event: layer 0 of 4 experts (2 chosen), layer 1 of 2 (1 chosen)."""
    arguments: dict[str, Any] = {
        "run_id": run_id,
        "token_index": token_index,
        "token_id": 40 + token_index,
        "token_text": " word",
        "context_length": 5 + token_index,
        "decode_start_ms": 10.0,
        "decode_end_ms": 25.0 + token_index,
        "layer_inputs": [
            MoELayerCaptureInput(1, [1.0, 0.0], 1),
            MoELayerCaptureInput(0, LOGITS[token_index % 3], 2),
        ],
    }
    return build_token_complete_event(**{**arguments, **changes})


def make_layout(
    run_id: str = "run-001", counts: Iterable[tuple[int, int]] = ((0, 4), (1, 2))
) -> dict[str, Any]:
    """Return a grid layout."""
    return build_layer_grid_layout(
        run_id=run_id, layout_id="default-grid", layer_expert_counts=counts
    )


def make_bundle(n_tokens: int = 3, *, derived: bool = True) -> dict[str, Any]:
    """Return the payloads of a v0.1.0 bundle, as `load_run_bundle` would."""
    bundle: dict[str, Any] = {
        "manifest": make_manifest(),
        "raw_events": [make_event(number) for number in range(n_tokens)],
        "layout": make_layout(),
    }
    artifacts = derive_bundle_artifacts(bundle)
    if not derived:
        artifacts = dict.fromkeys(artifacts)
    return copy.deepcopy({**bundle, **artifacts})


def softmax_layer(**changes: Any) -> RoutedLayerInput:
    """Return a Mixtral-like layer: softmax, renormalised weights; 4 experts, 2 chosen."""
    fields: dict[str, Any] = {
        "layer_index": 0,
        "num_total_experts": 4,
        "num_active_experts": 2,
        "router_kind": "softmax",
        "router_logits": [2.0, 1.0, 0.0, -1.0],
        "score_dtype": "float32",
        "topk_indices": [0, 1],
        "combine_weights": [0.7310585786300049, 0.2689414213699951],
        "combine_normalised": True,
        "combine_scale": 1.0,
        "combine_dtype": "float32",
        "num_shared_experts": 0,
    }
    return RoutedLayerInput(**{**fields, **changes})


def sigmoid_layer(**changes: Any) -> RoutedLayerInput:
    """Return a DeepSeek-V3-like layer: sigmoid, bias, 2 of 4 groups of 2, scaled weights."""
    fields: dict[str, Any] = {
        "layer_index": 3,
        "num_total_experts": 8,
        "num_active_experts": 2,
        "router_kind": "sigmoid",
        "router_logits": SIGMOID_LOGITS,
        "selection_bias": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        "score_dtype": "float32",
        "group_limit": GroupLimit(
            num_groups=4,
            num_selected_groups=2,
            group_score="top2_sum",
            masked_score=0.0,
            selected_groups=[0, 3],
        ),
        "topk_indices": [0, 7],
        "combine_weights": [2.5 * 0.52497918747894 / 1.2149536686060526,
                            2.5 * 0.6899744811276125 / 1.2149536686060526],
        "combine_normalised": True,
        "combine_scale": 2.5,
        "combine_dtype": "float32",
        "num_shared_experts": 1,
    }  # fmt: skip
    return RoutedLayerInput(**{**fields, **changes})


def make_routed_event(
    token_index: int = 0, *layers: RoutedLayerInput, **changes: Any
) -> dict[str, Any]:
    """Return a v0.2.0 event; without layers a softmax one and a sigmoid one."""
    arguments: dict[str, Any] = {
        "run_id": "run-001",
        "token_index": token_index,
        "phase": "decode" if token_index else "prefill",
        "layers": layers or (softmax_layer(), sigmoid_layer()),
        "token_id": 7,
        "token_text": "x",
        "context_length": token_index,
        "pass_start_ms": 1.0,
        "pass_end_ms": 3.0,
    }
    return build_routed_token_event(**{**arguments, **changes})


def make_routed_bundle(n_tokens: int = 3) -> dict[str, Any]:
    """Return the payloads of a v0.2.0 bundle: one prompt token, then generated ones."""
    return {
        "manifest": make_manifest(bundle_version="v0.2.0"),
        "raw_events": [make_routed_event(number) for number in range(n_tokens)],
        "layout": make_layout(counts=((0, 4), (3, 8))),
        "derived_events": None,
        "motif_ledger": None,
        "contingency": None,
    }


def write_unchecked(root: Path, bundle: Mapping[str, Any]) -> Path:
    """Write the files of a bundle as they are, NaN and all; return the folder."""
    folder = root / "run-001"
    folder.mkdir(parents=True)
    names = {
        "manifest": "manifest.json",
        "layout": "layout.json",
        "motif_ledger": "motif_ledger.json",
        "contingency": "contingency.json",
        "raw_events": "raw_trace.ndjson",
        "derived_events": "derived.ndjson",
    }
    for key, name in names.items():
        payload = bundle[key]
        if payload is not None:
            lines = payload if key.endswith("events") else [payload]
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            (folder / name).write_text(text, encoding="utf-8")
    return folder
