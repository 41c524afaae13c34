"""What was an expert chosen by, when the choice was limited to some groups of experts?

Groups are runs of N / num_groups consecutive experts, as in DeepSeek-V2 (a group scores by its best
expert) and DeepSeek-V3 (by the sum of its two best).

Source: modeling_deepseek_v2.py and modeling_deepseek_v3.py of huggingface/transformers, 5.x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from moe_weights.routing.probabilities import total
from moe_weights.routing.softmax_layer_checks import Fault


def scores_for_choice(layer: dict[str, Any]) -> list[float] | None:
    """Return the N scores that top-k was taken over; None when the capture does not tell them."""
    scores = _unmasked_scores(layer)
    limit = layer["group_limit"]
    if scores is None or "group_limit" in layer["not_captured"]:
        return None
    if limit is None:
        return scores
    if limit["selected_groups"] is None or not _has_even_groups(layer):
        return None
    masked = limit["masked_score"]
    outside = -math.inf if masked is None else float(masked)
    size = len(scores) // limit["num_groups"]
    open_groups = set(limit["selected_groups"])
    return [
        score if expert // size in open_groups else outside for expert, score in enumerate(scores)
    ]


def find_group_faults(layer: dict[str, Any], tolerance: float) -> Iterator[Fault]:
    """Give (code, text) for each contradiction of `group_limit`.

    Args:
        layer: A raw/v0.2.0 layer whose lengths and indices are right and whose choice is captured.
        tolerance: How far scores may differ and still be a tie.
    """
    limit = layer["group_limit"]
    if limit is None:
        return
    n_groups, n_selected = limit["num_groups"], limit["num_selected_groups"]
    if not _has_even_groups(layer) or n_selected > n_groups:
        yield (
            "expert_group_count_mismatch",
            (
                f"{layer['num_total_experts']} experts cannot form {n_groups} equal groups of "
                f"which {n_selected} are chosen from"
            ),
        )
        return
    selected = limit["selected_groups"]
    if selected is None:
        return
    if len(set(selected)) != n_selected or len(selected) != n_selected or max(selected) >= n_groups:
        yield (
            "selected_groups_mismatch",
            (
                f"selected_groups is {selected[:8]}; expected {n_selected} different groups below "
                f"{n_groups}"
            ),
        )
        return
    size = layer["num_total_experts"] // n_groups
    outside = [expert for expert in layer["topk_indices"] if expert // size not in set(selected)]
    if outside and limit["masked_score"] is None:
        yield (
            "topk_outside_selected_groups",
            (
                f"expert {outside[0]} of group {outside[0] // size} was chosen, selected_groups is "
                f"{selected[:8]}"
            ),
        )
    yield from _find_selection_faults(layer, size, tolerance)


def _find_selection_faults(layer: dict[str, Any], size: int, tolerance: float) -> Iterator[Fault]:
    limit, scores = layer["group_limit"], _unmasked_scores(layer)
    if scores is None or limit["group_score"] is None:
        return
    n_best = 1 if limit["group_score"] == "max" else 2
    group_scores = [
        total(sorted(scores[start : start + size])[-n_best:])
        for start in range(0, len(scores), size)
    ]
    selected = set(limit["selected_groups"])
    left_out = [score for group, score in enumerate(group_scores) if group not in selected]
    worst = min(selected, key=group_scores.__getitem__)
    if left_out and group_scores[worst] < max(left_out) - n_best * tolerance:
        yield (
            "group_selection_mismatch",
            (
                f"group {worst} was selected with {group_scores[worst]}, one with {max(left_out)} "
                "was not"
            ),
        )


def _unmasked_scores(layer: dict[str, Any]) -> list[float] | None:
    scores: list[float] | None = layer["selection_scores"]
    if scores is not None:
        return scores
    hidden = {"selection_scores", "selection_bias"} & set(layer["not_captured"])
    probs: list[float] | None = layer["router_probs"]
    if hidden or probs is None or layer["router_kind"] not in {"softmax", "sigmoid"}:
        return None
    bias = layer["selection_bias"]
    if bias is None:
        return probs
    return [prob + shift for prob, shift in zip(probs, bias, strict=True)]


def _has_even_groups(layer: dict[str, Any]) -> bool:
    return int(layer["num_total_experts"]) % int(layer["group_limit"]["num_groups"]) == 0
