"""How do the router logits of one token, by layer, become what a recorder takes?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.layer_trace import PyTorchMoELayerCaptureInput, check_integer
from moe_weights.routing.vectors import Vector, to_floats


def build_olmoe_layer_inputs(
    *, router_logits_by_layer: Mapping[int, Vector], num_active_experts: int
) -> list[PyTorchMoELayerCaptureInput]:
    """Return one layer input per layer, sorted by layer.

    Args:
        router_logits_by_layer: Decoder layer to its row of logits, (N,), tensor or sequence.
        num_active_experts: Experts that each router chooses.

    Raises:
        TypeError: not a mapping, a key or count that is no integer, or (VectorError) logits of a
            layer that are not one row of numbers.
        InvalidDataError: no layers, a negative layer, fewer than one active expert, or logits of a
            layer that are empty, not finite, or fewer than the active experts.
    """
    if not isinstance(router_logits_by_layer, Mapping):
        raise TypeError(
            "router_logits_by_layer must be a mapping of layer to logits, got "
            f"{type(router_logits_by_layer).__name__}"
        )
    if not router_logits_by_layer:
        raise InvalidDataError("router_logits_by_layer must not be empty; give at least one layer")
    check_integer(num_active_experts, "num_active_experts", minimum=1)
    for layer in router_logits_by_layer:
        check_integer(layer, "a key of router_logits_by_layer", minimum=0)
    for layer, logits in router_logits_by_layer.items():
        _check_logits(layer, logits, num_active_experts)
    return [
        PyTorchMoELayerCaptureInput(layer, logits, num_active_experts)
        for layer, logits in sorted(router_logits_by_layer.items(), key=lambda item: item[0])
    ]


def record_olmoe_generated_token(
    recorder: object,
    *,
    token_id: int,
    token_text: str,
    context_length: int,
    decode_start_ms: float,
    decode_end_ms: float,
    router_logits_by_layer: Mapping[int, Vector],
    num_active_experts: int,
) -> JsonObject:
    """Record one generated token from its router logits.

    Args:
        recorder: `PyTorchRunBundleRecorder`, or any object with its `record_generated_token`.
        token_id: Id in the tokenizer's vocabulary.
        token_text: The token, decoded.
        context_length: Tokens before this one.
        decode_start_ms: Start of the forward pass, milliseconds on any clock.
        decode_end_ms: Its end, on the same clock.
        router_logits_by_layer: See `build_olmoe_layer_inputs`.
        num_active_experts: Experts that each router chooses.

    Returns:
        What the recorder returns: the event.

    Raises:
        TypeError: the recorder cannot record, or the logits are no mapping; before it is called.
        InvalidDataError: see `build_olmoe_layer_inputs` and the recorder.
    """
    record: Any = getattr(recorder, "record_generated_token", None)
    if not callable(record):
        raise TypeError("recorder must implement record_generated_token")
    layer_inputs = build_olmoe_layer_inputs(
        router_logits_by_layer=router_logits_by_layer, num_active_experts=num_active_experts
    )
    event: JsonObject = record(
        token_id=token_id,
        token_text=token_text,
        context_length=context_length,
        decode_start_ms=decode_start_ms,
        decode_end_ms=decode_end_ms,
        layer_inputs=layer_inputs,
    )
    return event


def _check_logits(layer: int, logits: Vector, num_active_experts: int) -> None:
    shape = getattr(logits, "shape", None)
    told = "" if shape is None else f" of shape {tuple(shape)}"
    name = f"router_logits_by_layer[{layer}]{told}"
    n_experts = len(to_floats(logits, name))
    if num_active_experts > n_experts:
        raise InvalidDataError(
            f"{name} has {n_experts} experts, num_active_experts is {num_active_experts}; no more "
            "can be chosen than there are"
        )
