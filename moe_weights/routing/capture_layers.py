"""How does what passed a MoE block become one layer of each token's event?

The block's rule is found once, from its first pass and from made-up tokens, and then held against
every token: whatever it does not give for one is listed as not captured for that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from moe_weights.routing.capture_blocks import MoeBlock
from moe_weights.routing.capture_readings import RouterReading
from moe_weights.routing.capture_scheme import (
    RouterSample,
    RouterScheme,
    choice_holds,
    choice_scores,
    fit_scheme,
    open_groups,
    weights_hold,
)
from moe_weights.routing.capture_scores import Array, to_scores
from moe_weights.routing.capture_taps import BlockTap
from moe_weights.routing.routed_layers import (
    GroupLimit,
    RoutedLayerInput,
    ScoreDtype,
    build_routed_layer_trace,
)
from moe_weights.routing.router_layer_checks import find_router_layer_faults

_DTYPES = get_args(ScoreDtype)
_CHOICE = ("selection_bias", "selection_scores", "group_limit")


class LayerReader:
    """Turns the passes of one block into layers of events.

    Attributes:
        block: What is observed.
        scheme: The rule of its router; None before the first pass.
    """

    def __init__(self, block: MoeBlock) -> None:
        """Observe a block; `remove` ends it."""
        self.block = block
        self.scheme: RouterScheme | None = None
        self._tap = BlockTap(block)

    def clear(self) -> None:
        """Forget the pass in progress."""
        self._tap.clear()

    def remove(self) -> None:
        """Stop observing."""
        self._tap.remove()

    def read_pass(self, n_tokens: int) -> list[RoutedLayerInput] | None:
        """Return the block's layer for each of the T tokens of the pass that just ended.

        Returns:
            None when the block did not run, or when neither its logits nor its choice can be told,
            or not how many experts it has or chooses.
        """
        reading = self._tap.read(n_tokens)
        if reading is None or (reading.logits is None and reading.chosen is None):
            return None
        if self.block.n_experts is None and reading.logits is None:
            return None  # the highest expert seen is not how many there are
        if reading.chosen is None and self.block.n_active is None:
            return None  # an event says how many experts are active, and nothing here does
        shared, shared_known = self._tap.shared_weights(n_tokens)
        sample = _to_sample(reading)
        if self.scheme is None:
            self.scheme = self._find_scheme(sample)
        layers = _to_layers(self.block, reading, sample, self.scheme)
        return [
            replace(
                layer,
                num_shared_experts=self.block.n_shared,
                shared_expert_weights=None if shared is None else shared[token],
                not_captured=(
                    *layer.not_captured,
                    *(() if shared_known else ("shared_expert_weights",)),
                ),
            )
            for token, layer in enumerate(layers)
        ]

    def _find_scheme(self, sample: RouterSample | None) -> RouterScheme:
        """Return the rule that holds for the real tokens and the made-up ones."""
        if sample is None:
            return RouterScheme()
        parts = self._tap.parts()
        probes = self._tap.read_probes()
        more = None if probes is None else _to_sample(probes)
        if more is not None and _fits(sample, more):
            scheme = fit_scheme(_join(sample, more), parts)
            if scheme.selects_by is not None or scheme.function is not None:
                return scheme
        return fit_scheme(sample, parts)


def _to_sample(reading: RouterReading) -> RouterSample | None:
    logits, chosen = reading.logits, reading.chosen
    if logits is None or chosen is None or not np.isfinite(logits).all():
        return None
    weights = reading.weights
    if weights is not None and not np.isfinite(weights).all():
        weights = None
    return RouterSample(
        logits=logits,
        chosen=chosen,
        weights=weights,
        probs=reading.probs,
        logits_dtype=reading.logits_dtype or "float32",
        weights_dtype=reading.weights_dtype or "float32",
    )


def _fits(sample: RouterSample, more: RouterSample) -> bool:
    return (
        sample.logits.shape[1] == more.logits.shape[1]
        and sample.chosen.shape[1] == more.chosen.shape[1]
        and (sample.weights is None) == (more.weights is None)
        and (sample.probs is None) == (more.probs is None)
    )


def _join(sample: RouterSample, more: RouterSample) -> RouterSample:
    return replace(
        sample,
        logits=np.concatenate([sample.logits, more.logits]),
        chosen=np.concatenate([sample.chosen, more.chosen]),
        weights=_join_rows(sample.weights, more.weights),
        probs=_join_rows(sample.probs, more.probs),
    )


def _join_rows(one: Array | None, other: Array | None) -> Array | None:
    return None if one is None or other is None else np.concatenate([one, other])


def _to_layers(
    block: MoeBlock, reading: RouterReading, sample: RouterSample | None, scheme: RouterScheme
) -> Iterator[RoutedLayerInput]:
    if sample is None:
        yield from _without_rule(block, reading)
        return
    choices, weights = choice_holds(scheme, sample), weights_hold(scheme, sample)
    groups = open_groups(scheme, sample.logits)
    scores = choice_scores(scheme, sample.logits)
    given_scores = None
    if scheme.function == "sqrtsoftplus":
        given_scores = to_scores("sqrtsoftplus", sample.logits)
    for token, logits in enumerate(sample.logits):
        layer = RoutedLayerInput(
            layer_index=block.layer,
            num_total_experts=int(sample.logits.shape[1]),
            num_active_experts=int(sample.chosen.shape[1]),
            router_kind=scheme.router_kind,
            router_logits=logits,
            router_probs=None if given_scores is None else given_scores[token],
            topk_indices=sample.chosen[token],
            **_combine_fields(reading, token),
        )
        if weights[token] and layer.combine_weights is not None:
            layer = replace(layer, combine_normalised=scheme.normalised, combine_scale=scheme.scale)
        if choices[token]:
            layer = replace(
                layer,
                **_choice_fields(
                    scheme,
                    None if scores is None else scores[token],
                    None if groups is None else groups[token],
                ),
            )
        else:
            layer = replace(layer, not_captured=_CHOICE)
        yield _without_faults(layer)


def _without_rule(block: MoeBlock, reading: RouterReading) -> Iterator[RoutedLayerInput]:
    """Give what was seen when logits and choice cannot be held against one another."""
    logits = reading.logits
    rows = reading.chosen if logits is None else logits
    assert rows is not None
    if logits is not None and not np.isfinite(logits).all():
        logits = None
    n_experts = block.n_experts or int(rows.shape[1])
    n_active = block.n_active if reading.chosen is None else int(reading.chosen.shape[1])
    assert n_active is not None
    for token in range(len(rows)):
        # A weight of exactly zero is how a router says that a slot was not used.
        is_used = reading.given_weights is None or bool(reading.given_weights[token].all())
        yield RoutedLayerInput(
            layer_index=block.layer,
            num_total_experts=n_experts,
            num_active_experts=n_active,
            router_logits=None if logits is None else logits[token],
            topk_indices=None if reading.chosen is None or not is_used else reading.chosen[token],
            **(_combine_fields(reading, token) if is_used else {}),
            not_captured=_CHOICE,
        )


def _combine_fields(reading: RouterReading, token: int) -> dict[str, Any]:
    given = reading.given_weights
    if given is None or not np.isfinite(given[token]).all():
        return {}
    dtype = reading.weights_dtype
    return {
        "combine_weights": given[token],
        "combine_dtype": dtype if dtype in _DTYPES else None,
    }


def _choice_fields(
    scheme: RouterScheme, scores: Array | None, groups: Array | None
) -> dict[str, Any]:
    fields: dict[str, Any] = {"score_dtype": scheme.score_dtype}
    if scheme.selects_by == "logits" or scheme.function is None:
        fields["selection_scores"] = scores
        if scheme.bias is not None:
            fields["not_captured"] = ("selection_bias",)  # it is added to logits, not to scores
    elif scheme.function == "sqrtsoftplus":
        fields["selection_scores"] = scores
        fields["selection_bias"] = scheme.bias
    elif scheme.bias is not None:
        fields["selection_bias"] = scheme.bias
    if scheme.group_limit is not None:
        n_groups, n_selected, group_score, masked = scheme.group_limit
        fields["group_limit"] = GroupLimit(
            num_groups=n_groups,
            num_selected_groups=n_selected,
            group_score=group_score,
            masked_score=masked,
            selected_groups=groups,
        )
    return fields


def _without_faults(layer: RoutedLayerInput) -> RoutedLayerInput:
    """Take back claims that the bundle's own checks would refuse, the weakest ones first.

    The rule holds within the model's precision; a bundle's tolerance may be the narrower one.
    """
    steps: tuple[dict[str, Any], ...] = (
        {"combine_normalised": None, "combine_scale": None},
        {
            "selection_bias": None,
            "selection_scores": None,
            "group_limit": None,
            "score_dtype": None,
            "not_captured": _CHOICE,
        },
    )
    for step in steps:
        if not any(True for _fault in find_router_layer_faults(build_routed_layer_trace(layer))):
            break
        layer = replace(layer, **step)
    return layer
