"""What does a softmax router's row of logits become in a v0.1.0 event?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.probabilities import (
    entropy_nats,
    normalized_entropy,
    rank_experts,
    softmax,
    top_margin,
)
from moe_weights.routing.vectors import Vector, to_floats


@dataclass(frozen=True, slots=True)
class MoELayerCaptureInput:
    """What was captured of one MoE layer for one token.

    Attributes:
        layer_index: Decoder layer, from 0.
        router_logits: (N,) numbers, one per routed expert, before the softmax.
        num_active_experts: Experts that the router chooses, 1 to N.
    """

    layer_index: int
    router_logits: Vector
    num_active_experts: int


@dataclass(frozen=True, slots=True)
class PyTorchMoELayerCaptureInput:
    """The same with logits in a tensor, (N,), any float dtype, on any device.

    Attributes:
        layer_index: Decoder layer, from 0.
        router_logits: A tensor (N,), or anything with `tolist`, or a sequence of numbers.
        num_active_experts: Experts that the router chooses, 1 to N.
    """

    layer_index: int
    router_logits: Vector
    num_active_experts: int


def build_moe_layer_trace(
    layer_index: int, router_logits: Vector, *, num_active_experts: int
) -> JsonObject:
    """Build one layer of a v0.1.0 event from a row of logits.

    Softmax over all N experts in float64; the chosen experts are the most probable, the lower index
    first among equals.

    Args:
        layer_index: Decoder layer, from 0.
        router_logits: (N,) finite numbers.
        num_active_experts: k, 1 to N.

    Returns:
        A layer that satisfies raw/v0.1.0; entropy in nats, `normalized_entropy` in [0, 1].

    Raises:
        InvalidDataError: a negative layer, logits that are empty or not finite, or k outside 1..N.
        VectorError: logits that are not one row of numbers.
        TypeError: a layer or k that is no integer.
    """
    check_integer(layer_index, "layer_index", minimum=0)
    logits = to_floats(router_logits, "router_logits")
    check_integer(num_active_experts, "num_active_experts", minimum=1)
    if num_active_experts > len(logits):
        raise InvalidDataError(
            f"num_active_experts is {num_active_experts}, layer {layer_index} has {len(logits)} "
            "router_logits; no more experts can be chosen than there are"
        )
    probs = softmax(logits)
    chosen = rank_experts(probs, num_active_experts)
    chosen_probs = [probs[expert] for expert in chosen]
    return {
        "layer_index": layer_index,
        "layer_kind": "moe",
        "num_total_experts": len(probs),
        "num_active_experts": num_active_experts,
        "router_probs": probs,
        "topk_indices": chosen,
        "topk_probs": chosen_probs,
        **describe_distribution(probs, chosen_probs),
    }


def describe_distribution(probs: list[float], chosen_probs: list[float]) -> JsonObject:
    """Return the four numbers that describe probabilities over all experts.

    Args:
        probs: (N,) probabilities that sum to 1.
        chosen_probs: (k,) those of the chosen experts.
    """
    entropy = entropy_nats(probs)
    return {
        "entropy": entropy,
        "normalized_entropy": normalized_entropy(entropy, len(probs)),
        "top1_prob": max(probs),
        "top1_top2_margin": top_margin(chosen_probs),
    }


def check_integer(value: object, name: str, *, minimum: int | None = None) -> None:
    """Refuse what is no integer, or one below `minimum`.

    Raises:
        TypeError: not an int; booleans are none.
        InvalidDataError: below the minimum.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if minimum is not None and value < minimum:
        raise InvalidDataError(f"{name} is {value}; it must be at least {minimum}")


def check_number(value: object, name: str) -> None:
    """Refuse what is no finite number.

    Raises:
        TypeError: not an int or float; booleans are none.
        InvalidDataError: not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        is_finite = math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        is_finite = False
    if not is_finite:
        shown = value if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        raise InvalidDataError(f"{name} is {shown}; it must be finite")
