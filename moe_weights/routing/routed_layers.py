"""How does a capture say what any router did: sigmoid scores, biases, groups, weights, or nothing?

Builds raw/v0.2.0 events. Null and listed in `not_captured`: nobody recorded it. Null and not
listed: this router has no such thing. Neither is ever zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from moe_weights.errors import InvalidDataError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.builders import build_timing, check_text, sort_layers
from moe_weights.routing.layer_trace import check_integer, check_number, describe_distribution
from moe_weights.routing.probabilities import sigmoid, softmax, top_margin
from moe_weights.routing.router_layer_checks import ALWAYS_APPLY, DISTRIBUTION_FIELDS
from moe_weights.routing.vectors import Vector, to_floats, to_indices

RouterKind: TypeAlias = Literal["softmax", "sigmoid", "other"]
ScoreDtype: TypeAlias = Literal["float64", "float32", "bfloat16", "float16"]
Phase: TypeAlias = Literal["prefill", "decode"]

_MAY_NOT_APPLY = ("selection_bias", "selection_scores", "group_limit", "shared_expert_weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit:
    """The choice was limited to some groups of N / num_groups consecutive experts.

    Attributes:
        num_groups: Groups of the layer.
        num_selected_groups: Groups that experts may be chosen from.
        group_score: A group scores by its best expert ("max") or by the sum of its two best
            ("top2_sum"); None when not known.
        masked_score: Score that the experts of other groups got for the choice; None when they
            could not be chosen at all.
        selected_groups: The groups that were chosen from; None when not known.
    """

    num_groups: int
    num_selected_groups: int
    group_score: Literal["max", "top2_sum"] | None = None
    masked_score: float | None = None
    selected_groups: Vector | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoutedLayerInput:
    """What was captured of one MoE layer for one token; None is "not captured".

    Attributes:
        layer_index: Decoder layer, from 0 (not the ordinal among MoE layers).
        num_total_experts: N, routed experts.
        num_active_experts: k, routed experts chosen for the token.
        router_kind: How scores come from logits; "other" is not checked.
        router_logits: (N,) before `router_kind` is applied.
        router_probs: (N,) scores; leave it out when logits of a softmax or sigmoid router are
            given: it is then computed from them in float64.
        selection_bias: (N,) added to the scores for the choice alone; None when there is none.
        selection_scores: (N,) what the choice was made by, before groups are masked; None when that
            is the scores, with the bias added if there is one.
        score_dtype: dtype in which the model computed what it chose by.
        group_limit: None when the choice was not limited to groups.
        topk_indices: (k,) chosen experts in the model's order.
        topk_probs: (k,) their scores; leave it out when router_probs or the logits are given.
        combine_weights: (k,) what the experts' outputs are multiplied by before they are summed, in
            the order of topk_indices; a factor on the sum as a whole is not in it.
        combine_normalised: Whether they were divided by their sum, before `combine_scale`.
        combine_scale: Constant factor in them; 1.0 when there is none.
        combine_dtype: dtype in which they were computed or stored.
        num_shared_experts: Experts that every token passes.
        shared_expert_weights: One weight per shared expert; None when it is 1.
        not_captured: Names among selection_bias, selection_scores, group_limit and
            shared_expert_weights that are None because nobody recorded them.
    """

    layer_index: int
    num_total_experts: int
    num_active_experts: int
    router_kind: RouterKind | None = None
    router_logits: Vector | None = None
    router_probs: Vector | None = None
    selection_bias: Vector | None = None
    selection_scores: Vector | None = None
    score_dtype: ScoreDtype | None = None
    group_limit: GroupLimit | None = None
    topk_indices: Vector | None = None
    topk_probs: Vector | None = None
    combine_weights: Vector | None = None
    combine_normalised: bool | None = None
    combine_scale: float | None = None
    combine_dtype: ScoreDtype | None = None
    num_shared_experts: int | None = None
    shared_expert_weights: Vector | None = None
    not_captured: Collection[str] = ()


def build_routed_layer_trace(layer: RoutedLayerInput) -> JsonObject:
    """Build one layer of a raw/v0.2.0 event; `write_run_bundle` and `append` check it in full.

    Raises:
        InvalidDataError: logits and scores that say the same thing twice, an unknown name in
            `not_captured`, an unknown router kind or dtype, a number that is not finite, or an
            index or count that is negative.
        VectorError: a field that is not one row of numbers.
        TypeError: an index or count that is no integer, a number that is none.
    """
    check_integer(layer.layer_index, "layer_index", minimum=0)
    check_integer(layer.num_total_experts, "num_total_experts", minimum=1)
    check_integer(layer.num_active_experts, "num_active_experts", minimum=1)
    if layer.num_shared_experts is not None:
        check_integer(layer.num_shared_experts, "num_shared_experts", minimum=0)
    if layer.combine_scale is not None:
        check_number(layer.combine_scale, "combine_scale")
    for name, known in {
        "router_kind": RouterKind,
        "score_dtype": ScoreDtype,
        "combine_dtype": ScoreDtype,
    }.items():
        _check_word(getattr(layer, name), name, get_args(known))
    if not isinstance(layer.combine_normalised, bool | None):
        raise TypeError("combine_normalised must be True, False or None")
    logits = _floats(layer.router_logits, "router_logits")
    probs = _router_probs(layer, logits)
    chosen = None if layer.topk_indices is None else to_indices(layer.topk_indices, "topk_indices")
    chosen_probs = _chosen_probs(layer, chosen, probs)
    fields: JsonObject = {
        "layer_index": layer.layer_index,
        "layer_kind": "moe",
        "router_kind": layer.router_kind,
        "num_total_experts": layer.num_total_experts,
        "num_active_experts": layer.num_active_experts,
        "num_shared_experts": layer.num_shared_experts,
        "router_logits": logits,
        "router_probs": probs,
        "selection_bias": _floats(layer.selection_bias, "selection_bias"),
        "selection_scores": _floats(layer.selection_scores, "selection_scores"),
        "score_dtype": layer.score_dtype,
        "group_limit": _group_limit(layer.group_limit),
        "topk_indices": chosen,
        "topk_probs": chosen_probs,
        "combine_weights": _floats(layer.combine_weights, "combine_weights"),
        "combine_normalised": layer.combine_normalised,
        "combine_scale": layer.combine_scale,
        "combine_dtype": layer.combine_dtype,
        "shared_expert_weights": _floats(layer.shared_expert_weights, "shared_expert_weights"),
        **dict.fromkeys(DISTRIBUTION_FIELDS),
    }
    if layer.router_kind == "softmax" and probs is not None:
        fields |= describe_distribution(probs, chosen_probs or [max(probs)])
        fields["top1_top2_margin"] = top_margin(chosen_probs) if chosen_probs else None
    return {**fields, "not_captured": _not_captured(layer, fields)}


def build_routed_token_event(
    *,
    run_id: str,
    token_index: int,
    phase: Phase,
    layers: Iterable[RoutedLayerInput],
    token_id: int | None = None,
    token_text: str | None = None,
    context_length: int | None = None,
    pass_start_ms: float | None = None,
    pass_end_ms: float | None = None,
) -> JsonObject:
    """Build a raw/v0.2.0 event; whatever is None is listed as not captured.

    Args:
        run_id: That of the manifest.
        token_index: Position in the run, prompt first, from 0.
        phase: "prefill" for tokens of the prompt, "decode" for generated ones that were fed back.
        layers: One per MoE layer, in any order.
        token_id: Id in the tokenizer's vocabulary.
        token_text: The token, decoded.
        context_length: Tokens before this one.
        pass_start_ms: Start of the forward pass that the token was part of, milliseconds on any
            clock; the tokens of one prefill pass share it.
        pass_end_ms: Its end, on the same clock.

    Raises:
        InvalidDataError: a negative index, no layers, a layer twice, an end before its start, a
            start without an end, or a layer that `build_routed_layer_trace` refuses.
        UsageError: an empty run id.
        TypeError: an id, index or time of another type.
    """
    check_text(run_id, "run_id")
    check_integer(token_index, "token_index", minimum=0)
    _check_word(phase, "phase", get_args(Phase))
    if token_id is not None:
        check_integer(token_id, "token_id")
    if token_text is not None and not isinstance(token_text, str):
        raise TypeError(f"token_text must be text, got {type(token_text).__name__}")
    if context_length is not None:
        check_integer(context_length, "context_length", minimum=0)
    if (pass_start_ms is None) != (pass_end_ms is None):
        raise InvalidDataError(
            "pass_start_ms and pass_end_ms belong together; give both or neither"
        )
    timing = None
    if pass_start_ms is not None and pass_end_ms is not None:
        timing = build_timing(pass_start_ms, pass_end_ms)
    may_be_missing = {
        "token_id": token_id,
        "token_text": token_text,
        "context_length": context_length,
        "timing_ms": timing,
    }
    return {
        "event_type": "token_complete",
        "schema_version": "raw/v0.2.0",
        "run_id": run_id,
        "token_index": token_index,
        "phase": phase,
        **may_be_missing,
        "not_captured": sorted(name for name, value in may_be_missing.items() if value is None),
        "layers": sort_layers([build_routed_layer_trace(layer) for layer in layers]),
    }


def _router_probs(layer: RoutedLayerInput, logits: list[float] | None) -> list[float] | None:
    given = _floats(layer.router_probs, "router_probs")
    if logits is None or layer.router_kind not in {"softmax", "sigmoid"}:
        return given
    if given is not None:
        raise InvalidDataError(
            f"layer {layer.layer_index}: router_probs follow from router_logits of a "
            f"{layer.router_kind} router; leave them out"
        )
    return softmax(logits) if layer.router_kind == "softmax" else sigmoid(logits)


def _chosen_probs(
    layer: RoutedLayerInput, chosen: list[int] | None, probs: list[float] | None
) -> list[float] | None:
    given = _floats(layer.topk_probs, "topk_probs")
    if chosen is None or probs is None or given is not None:
        return given
    if any(not 0 <= expert < len(probs) for expert in chosen):
        raise InvalidDataError(
            f"layer {layer.layer_index}: topk_indices names an expert outside 0..{len(probs) - 1}"
        )
    return [probs[expert] for expert in chosen]


def _group_limit(limit: GroupLimit | None) -> JsonObject | None:
    if limit is None:
        return None
    groups = limit.selected_groups
    check_integer(limit.num_groups, "num_groups", minimum=1)
    check_integer(limit.num_selected_groups, "num_selected_groups", minimum=1)
    if limit.masked_score is not None:
        check_number(limit.masked_score, "masked_score")
    return {
        "num_groups": limit.num_groups,
        "num_selected_groups": limit.num_selected_groups,
        "group_score": limit.group_score,
        "masked_score": limit.masked_score,
        "selected_groups": None if groups is None else to_indices(groups, "selected_groups"),
    }


def _not_captured(layer: RoutedLayerInput, fields: JsonObject) -> list[str]:
    unknown = sorted(set(layer.not_captured) - {*_MAY_NOT_APPLY, *ALWAYS_APPLY})
    if unknown:
        raise InvalidDataError(
            f"layer {layer.layer_index}: not_captured names {unknown[0]!r}; known are "
            f"{', '.join(_MAY_NOT_APPLY)}"
        )
    missing = {name for name in ALWAYS_APPLY if fields[name] is None}
    if fields["router_kind"] == "softmax":
        missing |= {name for name in DISTRIBUTION_FIELDS if fields[name] is None}
    return sorted(missing | set(layer.not_captured))


def _check_word(value: str | None, name: str, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InvalidDataError(f"{name} is {value!r}; known are {', '.join(known)}")


def _floats(values: Vector | None, name: str) -> list[float] | None:
    return None if values is None else to_floats(values, name)
