"""Does one layer of a v0.1.0 event say what a softmax router can have done?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moe_weights.routing.probabilities import (
    TOLERANCE,
    entropy_nats,
    is_close,
    normalized_entropy,
    total,
)

Fault = tuple[str, str]


def find_softmax_layer_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    """Give (code, text) for each contradiction of a raw/v0.1.0 layer."""
    n_experts, n_active = layer["num_total_experts"], layer["num_active_experts"]
    probs, chosen, chosen_probs = (
        layer["router_probs"],
        layer["topk_indices"],
        layer["topk_probs"],
    )
    if len(probs) != n_experts:
        yield (
            "router_probs_length_mismatch",
            f"router_probs has {len(probs)} numbers, num_total_experts is {n_experts}",
        )
    elif not is_close(added := total(probs), 1.0):
        yield "router_probs_sum_mismatch", f"router_probs sum to {added}, not to 1"
    if n_active < 1:
        yield (
            "num_active_experts_must_be_positive",
            f"num_active_experts is {n_active}; a MoE layer chooses at least one expert",
        )
    yield from find_choice_faults(n_experts, n_active, {"topk_probs": chosen_probs}, chosen)
    yield from find_chosen_value_faults(chosen, chosen_probs, probs)
    yield from find_distribution_faults(layer)
    if len(set(chosen)) == len(chosen) == n_active:
        yield from find_selection_faults(chosen, probs, TOLERANCE)


def find_choice_faults(
    n_experts: int, n_active: int, rows: dict[str, list[float]], chosen: list[int]
) -> Iterator[Fault]:
    """Give faults of counts and indices: too many active, wrong lengths, repeated, unknown."""
    if n_active > n_experts:
        yield (
            "num_active_experts_exceeds_num_total_experts",
            f"num_active_experts is {n_active}, num_total_experts is {n_experts}",
        )
    lengths = {"topk_indices": len(chosen)} | {name: len(row) for name, row in rows.items()}
    if set(lengths.values()) != {n_active}:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        yield "topk_length_mismatch", f"{told} items, num_active_experts is {n_active}"
    repeated = sorted({expert for expert in chosen if chosen.count(expert) > 1})
    if repeated:
        yield "duplicate_topk_index", f"topk_indices repeats expert {repeated[0]}"
    outside = [expert for expert in chosen if not 0 <= expert < n_experts]
    if outside:
        yield (
            "topk_index_out_of_bounds",
            f"topk_indices names expert {outside[0]}, the layer has {n_experts} (from 0)",
        )


def find_chosen_value_faults(
    chosen: list[int], chosen_probs: list[float], probs: list[float]
) -> Iterator[Fault]:
    """Give a fault when topk_probs is not router_probs at topk_indices."""
    for expert, value in zip(chosen, chosen_probs, strict=False):
        if 0 <= expert < len(probs) and not is_close(value, probs[expert]):
            yield (
                "topk_prob_mismatch",
                f"topk_probs gives expert {expert} {value}, router_probs {probs[expert]}",
            )
            return


def find_distribution_faults(layer: dict[str, Any]) -> Iterator[Fault]:
    """Give faults of the four numbers that describe router_probs; those that are null pass."""
    probs, chosen_probs = layer["router_probs"], layer["topk_probs"]
    n_experts = layer["num_total_experts"]
    entropy = entropy_nats(probs)
    largest = max(probs)
    if _differs(layer["top1_prob"], largest):
        yield (
            "top1_prob_mismatch",
            f"top1_prob is {layer['top1_prob']}, the largest of router_probs is {largest}",
        )
    if chosen_probs is not None and len(chosen_probs) >= 2:
        margin = chosen_probs[0] - chosen_probs[1]
        if _differs(layer["top1_top2_margin"], margin):
            yield (
                "top1_top2_margin_mismatch",
                (
                    f"top1_top2_margin is {layer['top1_top2_margin']}, topk_probs[0] - "
                    f"topk_probs[1] is {margin}"
                ),
            )
    if n_experts > 1:
        if _differs(layer["entropy"], entropy):
            yield (
                "entropy_mismatch",
                f"entropy is {layer['entropy']}, router_probs give {entropy} nats",
            )
        relative = normalized_entropy(entropy, n_experts)
        if _differs(layer["normalized_entropy"], relative):
            yield (
                "normalized_entropy_mismatch",
                (
                    f"normalized_entropy is {layer['normalized_entropy']}, entropy / ln "
                    f"{n_experts} is {relative}"
                ),
            )


def find_selection_faults(
    chosen: list[int], scores: list[float], tolerance: float
) -> Iterator[Fault]:
    """Give a fault when the chosen experts are not among the best; ties may fall either way."""
    picked = set(chosen)
    if not picked or not all(0 <= expert < len(scores) for expert in picked):
        return
    left_out = [score for expert, score in enumerate(scores) if expert not in picked]
    worst = min(picked, key=scores.__getitem__)
    if left_out and scores[worst] < max(left_out) - tolerance:
        yield (
            "topk_selection_mismatch",
            f"expert {worst} was chosen with {scores[worst]}, one with {max(left_out)} was not",
        )


def _differs(stated: float | None, computed: float) -> bool:
    return stated is not None and not is_close(stated, computed)
