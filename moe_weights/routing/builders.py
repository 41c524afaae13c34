"""How does a program make the payloads of a bundle: manifest, v0.1.0 event, layout?"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing.artifacts import (
    BUNDLE_VERSIONS,
    LAYOUT_VERSION,
    BundleVersion,
    JsonObject,
    artifact_versions,
)
from moe_weights.routing.layer_trace import (
    MoELayerCaptureInput,
    PyTorchMoELayerCaptureInput,
    build_moe_layer_trace,
    check_integer,
    check_number,
)
from moe_weights.routing.run_ids import check_run_id
from moe_weights.routing.timestamps import is_rfc3339


def build_manifest(
    *,
    run_id: str,
    created_at: str,
    model_id: str,
    tokenizer_id: str,
    prompt_text: str,
    derivation_version: str,
    derivation_config_id: str,
    seed: int | None = None,
    generation_config: Mapping[str, Any] | None = None,
    capture_config: Mapping[str, Any] | None = None,
    bundle_version: BundleVersion = "v0.1.0",
) -> JsonObject:
    """Build a manifest.

    Args:
        run_id: Path of the bundle below the folder of bundles, see `check_run_id`.
        created_at: RFC 3339 date-time with offset, for example 2026-03-21T12:00:00Z.
        model_id: The model, as its publisher names it.
        tokenizer_id: The tokenizer, likewise.
        prompt_text: The prompt; may be empty.
        derivation_version: Version of the derivation, also when nothing is derived.
        derivation_config_id: Settings of the derivation, likewise.
        seed: Seed of sampling.
        generation_config: Free JSON object; copied; None becomes {}.
        capture_config: The same for the capture.
        bundle_version: "v0.2.0" for a bundle of raw/v0.2.0 events.

    Raises:
        UsageError: an empty id, a run id that is no plain path, a `created_at` that is not
            RFC 3339, text that is no Unicode, or an unknown version.
        TypeError: a seed that is no integer.
    """
    identities = {
        "run_id": run_id,
        "created_at": created_at,
        "model_id": model_id,
        "tokenizer_id": tokenizer_id,
        "derivation_version": derivation_version,
        "derivation_config_id": derivation_config_id,
    }
    for name, value in identities.items():
        check_text(value, name)
    check_text(prompt_text, "prompt_text", may_be_empty=True)
    check_run_id(run_id)
    if seed is not None:
        check_integer(seed, "seed")
    if bundle_version not in BUNDLE_VERSIONS:
        raise UsageError(
            f"bundle_version is {bundle_version!r}; known are {', '.join(BUNDLE_VERSIONS)}"
        )
    if not is_rfc3339(created_at):
        raise UsageError(
            f"created_at {created_at!r} is not an RFC 3339 date-time with an offset; write it "
            "like 2026-03-21T12:00:00Z"
        )
    for name, config in {
        "generation_config": generation_config, "capture_config": capture_config,
    }.items():  # fmt: skip
        if config is not None and not isinstance(config, Mapping):
            raise UsageError(f"{name} must be a mapping, got {type(config).__name__}")
    return {
        "schema_version": f"manifest/{bundle_version}",
        "run_id": run_id,
        "created_at": created_at,
        "model_id": model_id,
        "tokenizer_id": tokenizer_id,
        "prompt": {"text": prompt_text},
        "seed": seed,
        "generation_config": copy.deepcopy(dict(generation_config or {})),
        "capture_config": copy.deepcopy(dict(capture_config or {})),
        "artifact_versions": artifact_versions(bundle_version),
        "derivation_version": derivation_version,
        "derivation_config_id": derivation_config_id,
    }


def build_token_complete_event(
    *,
    run_id: str,
    token_index: int,
    token_id: int,
    token_text: str,
    context_length: int,
    decode_start_ms: float,
    decode_end_ms: float,
    layer_inputs: Iterable[MoELayerCaptureInput | PyTorchMoELayerCaptureInput],
) -> JsonObject:
    """Build a raw/v0.1.0 event: one generated token of a model with softmax routers.

    Args:
        run_id: That of the manifest.
        token_index: Position in the run, from 0.
        token_id: Id in the tokenizer's vocabulary; may be negative.
        token_text: The token, decoded.
        context_length: Tokens before this one.
        decode_start_ms: Start of the forward pass, milliseconds on any clock.
        decode_end_ms: Its end, on the same clock.
        layer_inputs: One per MoE layer, in any order; the event's layers are sorted.

    Raises:
        InvalidDataError: a negative index or context, an end before its start or a time that is not
            finite, no layers, a layer given twice, or a layer that `build_moe_layer_trace` refuses.
        UsageError: an empty run id.
    """
    check_text(run_id, "run_id")
    check_integer(token_index, "token_index", minimum=0)
    check_integer(token_id, "token_id")
    if not isinstance(token_text, str):
        raise TypeError(f"token_text must be text, got {type(token_text).__name__}")
    check_integer(context_length, "context_length", minimum=0)
    timing = build_timing(decode_start_ms, decode_end_ms)
    layers = [
        build_moe_layer_trace(
            layer.layer_index,
            layer.router_logits,
            num_active_experts=layer.num_active_experts,
        )
        for layer in layer_inputs
    ]
    return {
        "event_type": "token_complete",
        "schema_version": "raw/v0.1.0",
        "run_id": run_id,
        "token_index": token_index,
        "token_id": token_id,
        "token_text": token_text,
        "context_length": context_length,
        "timing_ms": timing,
        "layers": sort_layers(layers),
    }


def build_layer_grid_layout(
    *,
    run_id: str,
    layout_id: str,
    layer_expert_counts: Iterable[tuple[int, int]],
    layout_kind: str = "layer-grid",
) -> JsonObject:
    """Build a layout in which each layer is a square grid of its experts, one plane per layer.

    Args:
        run_id: That of the manifest.
        layout_id: Name of the layout.
        layer_expert_counts: (layer index, number of routed experts), in the order to keep.
        layout_kind: How the positions were made.

    Returns:
        x = expert mod ceil(sqrt(count)), y = expert div it, z = layer; free unit.

    Raises:
        InvalidDataError: no layers, a layer twice, a negative layer, or a count below 1.
        UsageError: an empty id.
    """
    for name, value in {
        "run_id": run_id, "layout_id": layout_id, "layout_kind": layout_kind,
    }.items():  # fmt: skip
        check_text(value, name)
    layers = []
    for layer_index, count in layer_expert_counts:
        check_integer(layer_index, "layer_index", minimum=0)
        check_integer(count, f"the expert count of layer {layer_index}", minimum=1)
        columns = math.isqrt(count - 1) + 1
        positions = [
            {
                "expert_index": expert,
                "x": expert % columns,
                "y": expert // columns,
                "z": layer_index,
            }
            for expert in range(count)
        ]
        layers.append({"layer_index": layer_index, "positions": positions})
    _check_layers(layers)
    return {
        "schema_version": LAYOUT_VERSION,
        "run_id": run_id,
        "layout_id": layout_id,
        "layout_kind": layout_kind,
        "layers": layers,
    }


def build_timing(start_ms: float, end_ms: float) -> JsonObject:
    """Return `timing_ms` of an event.

    Raises:
        InvalidDataError: a time is not finite, or the end is before the start.
        TypeError: a time is no number.
    """
    for name, value in {"decode_start_ms": start_ms, "decode_end_ms": end_ms}.items():
        check_number(value, name)
    if end_ms < start_ms:
        raise InvalidDataError(
            f"decode_end_ms is {end_ms}, before decode_start_ms, {start_ms}; give both in "
            "milliseconds on one clock"
        )
    return {
        "decode_start": start_ms,
        "decode_end": end_ms,
        "decode_duration": end_ms - start_ms,
    }


def sort_layers(layers: list[JsonObject]) -> list[JsonObject]:
    """Return an event's layers by index.

    Raises:
        InvalidDataError: there are none, or one is given twice.
    """
    _check_layers(layers)
    return sorted(layers, key=lambda layer: int(layer["layer_index"]))


def check_text(value: object, name: str, *, may_be_empty: bool = False) -> None:
    """Refuse what is not text, or text that no file can hold.

    Raises:
        UsageError: naming the argument; empty text too, unless it may be.
    """
    if not isinstance(value, str):
        raise UsageError(f"{name} must be text, got {type(value).__name__}")
    if not value and not may_be_empty:
        raise UsageError(f"{name} must be text of at least one character, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{name}: character {error.start} is no Unicode text; give it as UTF-8"
        ) from error


def _check_layers(layers: list[JsonObject]) -> None:
    if not layers:
        raise InvalidDataError("there are no layers; give at least one MoE layer")
    seen: set[int] = set()
    for layer in layers:
        index = layer["layer_index"]
        if index in seen:
            raise InvalidDataError(f"layer {index} is given twice; give each layer once")
        seen.add(index)
