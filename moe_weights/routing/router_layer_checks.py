"""Does one layer of a v0.2.0 event say what its router can have done?

Only what was captured is held against what else was captured. Values that the model computed in
half precision are held to that precision, recomputed ones to 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from moe_weights.routing.group_checks import find_group_faults, scores_for_choice
from moe_weights.routing.probabilities import (
    EPSILON,
    TOLERANCE,
    is_close,
    normalized_entropy,
    sigmoid,
    softmax,
    total,
)
from moe_weights.routing.softmax_layer_checks import (
    Fault,
    find_choice_faults,
    find_chosen_value_faults,
    find_distribution_faults,
    find_selection_faults,
)

# Fields that every router has: null can only mean that nobody recorded them.
ALWAYS_APPLY = (
    "router_kind",
    "num_shared_experts",
    "router_logits",
    "router_probs",
    "score_dtype",
    "topk_indices",
    "topk_probs",
    "combine_weights",
    "combine_normalised",
    "combine_scale",
    "combine_dtype",
)
DISTRIBUTION_FIELDS = ("entropy", "normalized_entropy", "top1_prob", "top1_top2_margin")
_PER_EXPERT = ("router_logits", "router_probs", "selection_bias", "selection_scores")


def find_router_layer_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    """Give (code, text) for each contradiction of a raw/v0.2.0 layer."""
    yield from check_not_captured(layer, ALWAYS_APPLY)
    n_experts = layer["num_total_experts"]
    wrong = [name for name in _PER_EXPERT if layer[name] and len(layer[name]) != n_experts]
    for name in wrong:
        yield (
            f"{name}_length_mismatch",
            f"{name} has {len(layer[name])} numbers, num_total_experts is {n_experts}",
        )
    chosen = layer["topk_indices"]
    rows = {
        name: layer[name] for name in ("topk_probs", "combine_weights") if layer[name] is not None
    }
    choice_faults = list(
        find_choice_faults(n_experts, layer["num_active_experts"], rows, chosen)
        if chosen is not None
        else _find_rows_without_choice(n_experts, layer["num_active_experts"], rows)
    )
    yield from choice_faults
    yield from _find_shared_expert_faults(layer)
    yield from _find_entropy_faults(layer)
    if wrong:
        return
    yield from _find_score_faults(layer)
    if choice_faults or chosen is None:
        return
    if layer["router_probs"] is not None and layer["topk_probs"] is not None:
        yield from find_chosen_value_faults(chosen, layer["topk_probs"], layer["router_probs"])
    group_faults = list(find_group_faults(layer, _tolerance(layer, "score_dtype")))
    yield from group_faults
    scores = scores_for_choice(layer)
    if scores is not None and not group_faults:
        tolerance = _tolerance(layer, "score_dtype", scores)
        yield from find_selection_faults(chosen, scores, tolerance)
    yield from _find_weight_faults(layer)


def check_not_captured(payload: dict[str, Any], always_apply: Sequence[str]) -> Iterator[Fault]:
    """Give faults of `not_captured`: null and "not captured" must agree, and neither means 0."""
    listed = payload["not_captured"]
    for name in listed:
        if payload[name] is not None:
            yield (
                "not_captured_field_has_value",
                f"not_captured lists {name}, which has a value; take it off the list",
            )
    for name in always_apply:
        if payload[name] is None and name not in listed:
            yield (
                "missing_value_not_declared",
                f"{name} is null; it always exists, so add it to not_captured",
            )


def _find_rows_without_choice(
    n_experts: int, n_active: int, rows: dict[str, list[float]]
) -> Iterator[Fault]:
    if n_active > n_experts:
        yield (
            "num_active_experts_exceeds_num_total_experts",
            f"num_active_experts is {n_active}, num_total_experts is {n_experts}",
        )
    for name in rows:
        yield "topk_length_mismatch", f"{name} has values, topk_indices does not say whose"


def _find_shared_expert_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    weights, count = layer["shared_expert_weights"], layer["num_shared_experts"]
    if weights is not None and count is not None and len(weights) != count:
        yield (
            "shared_expert_weights_length_mismatch",
            f"shared_expert_weights has {len(weights)} numbers, num_shared_experts is {count}",
        )


def _find_entropy_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    """Give faults of entropies that are held against no probabilities."""
    kind, entropy, n_experts = layer["router_kind"], layer["entropy"], layer["num_total_experts"]
    if kind != "softmax":
        for name in DISTRIBUTION_FIELDS:
            if layer[name] is not None:
                yield (
                    "distribution_of_other_router",
                    (
                        f"{name} is {layer[name]}; it describes the probabilities of a softmax "
                        f"router, router_kind is {kind}: make it null"
                    ),
                )
    elif layer["router_probs"] is None and entropy is not None:
        most = math.log(n_experts)
        if entropy > most + TOLERANCE:
            yield "entropy_mismatch", f"entropy is {entropy}, {n_experts} experts allow {most} nats"
        relative, stated = normalized_entropy(entropy, n_experts), layer["normalized_entropy"]
        if stated is not None and not is_close(stated, relative):
            yield (
                "normalized_entropy_mismatch",
                f"normalized_entropy is {stated}, entropy / ln {n_experts} is {relative}",
            )


def _find_score_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    kind, probs, logits = layer["router_kind"], layer["router_probs"], layer["router_logits"]
    if probs is None:
        return
    if kind in {"softmax", "sigmoid"}:
        if max(probs) > 1.0:
            yield "router_prob_out_of_range", f"router_probs holds {max(probs)}, above 1"
        if logits is not None:
            expected = softmax(logits) if kind == "softmax" else sigmoid(logits)
            expert = _first_difference(probs, expected, TOLERANCE)
            if expert is not None:
                yield (
                    "router_probs_logits_mismatch",
                    (
                        f"router_probs gives expert {expert} {probs[expert]}, {kind} of "
                        f"router_logits {expected[expert]}"
                    ),
                )
        yield from _find_bias_faults(layer)
    if kind == "softmax":
        if not is_close(added := total(probs), 1.0):
            yield "router_probs_sum_mismatch", f"router_probs sum to {added}, not to 1"
        chosen_probs = layer["topk_probs"]
        for name in DISTRIBUTION_FIELDS[: 4 if chosen_probs is not None else 3]:
            if layer[name] is None and name not in layer["not_captured"]:
                yield (
                    "missing_value_not_declared",
                    f"{name} is null; router_probs of a softmax router gives it",
                )
        ranked = None if chosen_probs is None else sorted(chosen_probs, reverse=True)
        yield from find_distribution_faults({**layer, "topk_probs": ranked})


def _find_bias_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    bias, scores = layer["selection_bias"], layer["selection_scores"]
    if bias is None or scores is None:
        return
    expected = [prob + shift for prob, shift in zip(layer["router_probs"], bias, strict=True)]
    expert = _first_difference(scores, expected, _tolerance(layer, "score_dtype", scores))
    if expert is not None:
        yield (
            "selection_scores_mismatch",
            (
                f"selection_scores gives expert {expert} {scores[expert]}, router_probs + "
                f"selection_bias {expected[expert]}"
            ),
        )


def _find_weight_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    weights, normalised = layer["combine_weights"], layer["combine_normalised"]
    scale = layer["combine_scale"]
    if weights is None or normalised is None or scale is None or layer["router_kind"] == "other":
        return
    tolerance = max(
        _tolerance(layer, "combine_dtype", [scale, *weights]),
        _tolerance(layer, "score_dtype", [scale, *weights]),
    )
    if normalised and not is_close(added := total(weights), scale, tolerance * len(weights)):
        yield (
            "combine_weights_sum_mismatch",
            f"combine_weights sum to {added}; normalised ones sum to combine_scale, {scale}",
        )
    probs = layer["topk_probs"]
    divisor = total(probs or ()) if normalised else 1.0
    if probs is None or layer["router_kind"] is None or divisor <= 0.0:
        return
    expected = [prob / divisor * scale for prob in probs]
    slot = _first_difference(weights, expected, tolerance)
    if slot is not None:
        yield (
            "combine_weights_mismatch",
            (
                f"combine_weights gives expert {layer['topk_indices'][slot]} {weights[slot]}, "
                f"topk_probs {expected[slot]}"
            ),
        )


def _first_difference(
    left: Sequence[float], right: Sequence[float], tolerance: float
) -> int | None:
    for position, (one, other) in enumerate(zip(left, right, strict=True)):
        if not is_close(one, other, tolerance):
            return position
    return None


def _tolerance(layer: dict[str, Any], field: str, values: Sequence[float] = ()) -> float:
    """Two roundings of the largest value in the declared dtype, at least the format's own."""
    largest = max([1.0, *map(abs, values)])
    return max(TOLERANCE, 2.0 * EPSILON.get(layer[field], 0.0) * largest)
