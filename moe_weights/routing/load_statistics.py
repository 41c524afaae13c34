"""How evenly is a layer's load spread, are experts dead, does the router collapse?

Every formula is fixed; `LAYER_STATS` and `EXPERT_STATS` say them column by column. x is the number
of selections of each of the N experts of one layer; layers are never merged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moe_weights.columns import Column, Row, Table, TableSchema
from moe_weights.routing.layer_trace import check_integer
from moe_weights.routing.load_counts import LayerCounts, PhaseFilter

COLLAPSE_NATS = 0.5
OVERLOAD_FACTOR = 2.0
FAIRNESS_WARNING = 0.8
FAIRNESS_SEVERE = 0.5
# At even load, an expert is missed by chance in e^-10 = 0.00005 of all layers of that many tokens.
_EXPECTED_SELECTIONS = 10

EXPERT_STATS = TableSchema(
    "routing_expert_stats",
    (
        Column("layer", "int64", "decoder layer, from 0"),
        Column("expert_id", "int64", "routed expert, from 0"),
        Column("phase", "string", "tokens counted: all, prefill or decode"),
        Column("num_total_experts", "int64", "N: routed experts of the layer", "experts"),
        Column(
            "tokens",
            "int64",
            "routing decisions: tokens whose choice was captured; null: the source counts none",
            "tokens",
        ),
        Column("selections", "int64", "x: how often the expert was chosen", "selections"),
        Column("load_share", "float64", "x / sum of x; null without selections", "relative"),
        Column("load_over_mean", "float64", "x / mean of x; null without selections", "relative"),
        Column("utilisation", "float64", "x / tokens; null without tokens", "relative"),
        Column(
            "mean_router_prob",
            "float64",
            "mean of router_probs over the tokens that have them; null: not captured",
            "probability or score",
        ),
        Column(
            "mean_combine_weight",
            "float64",
            "mean of combine_weights over its selections that have one; null: none",
            "relative",
        ),
        Column(
            "combine_weight_sum",
            "float64",
            "sum of combine_weights over its selections that have one; null: none",
            "relative",
        ),
        Column("is_overloaded", "bool", "x > 2 * mean of x; null without selections"),
        Column(
            "is_dead",
            "bool",
            "x <= dead_threshold; null below dead_min_tokens, where it cannot be told",
        ),
    ),
)
LAYER_STATS = TableSchema(
    "routing_layer_stats",
    (
        Column("layer", "int64", "decoder layer, from 0"),
        Column("phase", "string", "tokens counted: all, prefill or decode"),
        Column("num_total_experts", "int64", "N: routed experts of the layer", "experts"),
        Column(
            "tokens",
            "int64",
            "routing decisions: tokens whose choice was captured; null: the source counts none",
            "tokens",
        ),
        Column(
            "tokens_not_captured",
            "int64",
            "tokens that passed the layer and whose choice nobody recorded; null: not known",
            "tokens",
        ),
        Column("selections", "int64", "sum of x", "selections"),
        Column(
            "avg_experts_per_token", "float64", "sum of x / tokens; null without tokens", "experts"
        ),
        Column(
            "jain_fairness",
            "float64",
            "(sum of x)^2 / (N * sum of x^2), 1 = even, 1/N = one expert; 0 for zero load; null: "
            "no choice captured",
            "relative",
        ),
        Column("fairness_level", "string", "severe below 0.5, warning below 0.8, else ok", ""),
        Column(
            "coefficient_of_variation",
            "float64",
            "population standard deviation of x / mean of x; null for mean 0",
            "relative",
        ),
        Column("max_load", "int64", "largest x", "selections"),
        Column("min_load", "int64", "smallest x", "selections"),
        Column("mean_load", "float64", "mean of x", "selections"),
        Column("overloaded_experts", "int64", "experts with x > 2 * mean of x", "experts"),
        Column(
            "dead_experts",
            "int64",
            "experts with x <= dead_threshold; null below dead_min_tokens",
            "experts",
        ),
        Column("dead_expert_ids", "list<int64>", "which they are; null below dead_min_tokens", ""),
        Column("dead_threshold", "int64", "x up to which an expert is dead", "selections"),
        Column(
            "dead_min_tokens",
            "int64",
            "tokens needed to call an expert dead; default ceil(10 * N / k)",
            "tokens",
        ),
        Column("entropy_tokens", "int64", "tokens with a captured entropy", "tokens"),
        Column(
            "mean_entropy",
            "float64",
            "mean of H = -sum p ln p over router_probs; null: the router has none, or not captured",
            "nats",
        ),
        Column("mean_normalized_entropy", "float64", "mean of H / ln N; 0 for N = 1", "relative"),
        Column("mean_confidence", "float64", "1 - mean of H / ln N", "relative"),
        Column("is_collapsed", "bool", "mean of H < 0.5 nats"),
        Column(
            "entropy_slope",
            "float64",
            "slope of the least-squares line through H in token order; null below 2 tokens",
            "nats per token",
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRule:
    """When is an expert called dead?

    Attributes:
        threshold: Selections up to which it is.
        min_tokens: Tokens needed to tell; None takes ceil(10 * N / k).

    Raises:
        InvalidDataError: a number is negative.
        TypeError: a number is no integer.
    """

    threshold: int = 0
    min_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are no counts."""
        check_integer(self.threshold, "threshold", minimum=0)
        if self.min_tokens is not None:
            check_integer(self.min_tokens, "min_tokens", minimum=0)


def to_expert_table(
    counts: Iterable[LayerCounts], rule: DeadRule, phase: PhaseFilter = "all"
) -> Table:
    """Return one row per layer and expert, by layer and expert."""
    rows = [row for layer in counts for row in _expert_rows(layer, rule, phase)]
    return Table.from_rows(EXPERT_STATS, rows)


def to_layer_table(
    counts: Iterable[LayerCounts], rule: DeadRule, phase: PhaseFilter = "all"
) -> Table:
    """Return one row per layer."""
    return Table.from_rows(LAYER_STATS, [_layer_row(layer, rule, phase) for layer in counts])


def jain_fairness(loads: Sequence[int]) -> float:
    """Return (Σx)² / (n·Σx²), in [1/n, 1]; 0 for zero load."""
    squares = sum(load * load for load in loads)
    return sum(loads) ** 2 / (len(loads) * squares) if squares else 0.0


def coefficient_of_variation(loads: Sequence[int]) -> float | None:
    """Return population standard deviation / mean, dimensionless; None for mean 0."""
    total, n_loads = sum(loads), len(loads)
    if total == 0:
        return None
    # n * sum of x^2 - (sum of x)^2 is exact in integers.
    return math.sqrt(n_loads * sum(load * load for load in loads) - total * total) / total


def _expert_rows(counts: LayerCounts, rule: DeadRule, phase: PhaseFilter) -> Iterable[Row]:
    total, n_experts = sum(counts.selections), counts.num_total_experts
    dead = _dead_experts(counts, rule)
    for expert, load in enumerate(counts.selections):
        n_weights = counts.weight_counts[expert]
        weights = counts.weight_sums[expert]
        yield {
            "layer": counts.layer,
            "expert_id": expert,
            "phase": phase,
            "num_total_experts": n_experts,
            "tokens": counts.tokens,
            "selections": load if _has_choices(counts) else None,
            "load_share": load / total if total else None,
            "load_over_mean": load * n_experts / total if total else None,
            "utilisation": load / counts.tokens if counts.tokens else None,
            "mean_router_prob": (
                counts.prob_sums[expert] / counts.prob_tokens if counts.prob_tokens else None
            ),
            "mean_combine_weight": weights / n_weights if n_weights else None,
            "combine_weight_sum": weights if n_weights else None,
            "is_overloaded": load * n_experts > OVERLOAD_FACTOR * total if total else None,
            "is_dead": None if dead is None else expert in dead,
        }


def _layer_row(counts: LayerCounts, rule: DeadRule, phase: PhaseFilter) -> Row:
    loads, n_experts = counts.selections, counts.num_total_experts
    total, is_known = sum(counts.selections), _has_choices(counts)
    dead = _dead_experts(counts, rule)
    fairness = jain_fairness(loads) if is_known else None
    has_entropy = counts.entropies.count > 0
    relative = counts.normalized_entropies
    normalized = relative.mean if relative.count > 0 else None
    overloaded = sum(load * n_experts > OVERLOAD_FACTOR * total for load in loads)
    return {
        "layer": counts.layer,
        "phase": phase,
        "num_total_experts": n_experts,
        "tokens": counts.tokens,
        "tokens_not_captured": counts.tokens_not_captured,
        "selections": total if is_known else None,
        "avg_experts_per_token": total / counts.tokens if counts.tokens else None,
        "jain_fairness": fairness,
        "fairness_level": None if fairness is None else _fairness_level(fairness),
        "coefficient_of_variation": coefficient_of_variation(loads),
        "max_load": max(loads) if is_known else None,
        "min_load": min(loads) if is_known else None,
        "mean_load": total / n_experts if is_known else None,
        "overloaded_experts": overloaded if is_known else None,
        "dead_experts": None if dead is None else len(dead),
        "dead_expert_ids": None if dead is None else tuple(dead),
        "dead_threshold": rule.threshold,
        "dead_min_tokens": _min_tokens(counts, rule),
        "entropy_tokens": counts.entropies.count,
        "mean_entropy": counts.entropies.mean if has_entropy else None,
        "mean_normalized_entropy": normalized,
        "mean_confidence": None if normalized is None else 1.0 - normalized,
        "is_collapsed": counts.entropies.mean < COLLAPSE_NATS if has_entropy else None,
        "entropy_slope": counts.entropies.slope,
    }


def _has_choices(counts: LayerCounts) -> bool:
    """Whether a zero means "never chosen" and not "nobody looked"."""
    return counts.tokens is None or counts.tokens > 0


def _dead_experts(counts: LayerCounts, rule: DeadRule) -> list[int] | None:
    tokens, needed = counts.tokens, _min_tokens(counts, rule)
    if tokens is None and counts.num_active_experts:
        tokens = sum(counts.selections) // counts.num_active_experts
    if tokens is None or needed is None or tokens < max(needed, 1):
        return None
    return [expert for expert, load in enumerate(counts.selections) if load <= rule.threshold]


def _min_tokens(counts: LayerCounts, rule: DeadRule) -> int | None:
    if rule.min_tokens is not None:
        return rule.min_tokens
    if not counts.num_active_experts:
        return None
    return math.ceil(_EXPECTED_SELECTIONS * counts.num_total_experts / counts.num_active_experts)


def _fairness_level(fairness: float) -> str:
    if fairness < FAIRNESS_SEVERE:
        return "severe"
    return "warning" if fairness < FAIRNESS_WARNING else "ok"
