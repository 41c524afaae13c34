"""How did a router come from its logits to its choice and its weights?

Nothing is read off names: each rule that is known is recomputed in float64 and held against what
the model gave. A rule that does not give every choice and every weight is not claimed.

1. Which function of the logits, normalised or not and times which factor, gives the weights?
2. Which scores, with which bias and limited to which groups, give the choice?
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_weights.routing.capture_scores import (
    SCORE_FUNCTIONS,
    Array,
    GroupLimits,
    GroupScore,
    ScoreFunction,
    best_groups,
    is_top,
    mask_groups,
    row_errors,
    to_scores,
)
from moe_weights.routing.probabilities import EPSILON, TOLERANCE
from moe_weights.routing.routed_layers import RouterKind, ScoreDtype

# A weight passes a function, a sum, a division and a cast, each rounding it by half of epsilon;
# routers add up to 1e-6 to the sum that they divide by.
_ROUNDINGS = 4.0
_LEAST_TOLERANCE = 2e-5
_GROUP_RULES: tuple[tuple[GroupScore, float | None], ...] = (
    ("top2_sum", None), ("top2_sum", 0.0), ("max", 0.0), ("max", None),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterSample:
    """What a router computed for T tokens, as float64 or int64.

    Attributes:
        logits: (T, N).
        chosen: (T, k) experts.
        weights: (T, k) as given to the experts; None when that was not seen.
        probs: (T, N) probabilities that the router gave out; None when it did not.
        logits_dtype: In which the model computed the logits.
        weights_dtype: In which it stored the weights.
    """

    logits: Array
    chosen: Array
    weights: Array | None = None
    probs: Array | None = None
    logits_dtype: str = "float32"
    weights_dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterParts:
    """What a router module has that may be part of its rule.

    Attributes:
        biases: (N,) each: vectors that may be added for the choice.
        groups: (groups, groups to choose from); None without groups.
        scales: Factors that may be in the weights.
        normalises: What the module says of dividing by the sum; None when it says nothing.
    """

    biases: tuple[Array, ...] = ()
    groups: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)
    normalises: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterScheme:
    """The rule of a router, as far as it was established.

    Attributes:
        function: Scores from logits; None when not established.
        selects_by: What top-k is taken over; None when no known rule gives the choice.
        bias: (N,) added to that; None when nothing is.
        group_limit: (groups, groups to choose from, score of a group, score of the experts of the
            other groups or None); None when the choice is not limited.
        score_dtype: Precision that the choice agrees to; None with `selects_by`.
        normalised: Whether weights were divided by their sum; None when not established.
        scale: Factor in the weights after that; None when not established.
    """

    function: ScoreFunction | None = None
    selects_by: Literal["scores", "logits"] | None = None
    bias: Array | None = None
    group_limit: GroupLimits | None = None
    score_dtype: ScoreDtype | None = None
    normalised: bool | None = None
    scale: float | None = None

    @property
    def router_kind(self) -> RouterKind | None:
        """The event's word for `function`."""
        return "other" if self.function == "sqrtsoftplus" else self.function


def fit_scheme(sample: RouterSample, parts: RouterParts) -> RouterScheme:
    """Return the rule that gives every choice and every weight of a sample."""
    fits = {name: _fit_weights(name, sample, parts) for name in SCORE_FUNCTIONS}
    functions = _best_functions(fits, sample)
    found = [
        (function, choice)
        for function in functions or SCORE_FUNCTIONS
        for choice in [_fit_choice(function, sample, parts)]
        if choice is not None
    ]
    by_scores = [entry for entry in found if entry[1].selects_by == "scores"] or found
    # Without weights only a bias tells functions apart: top-k alone is the same for all of them.
    proven = len(functions) == 1 or (len(by_scores) == 1 and by_scores[0][1].bias is not None)
    if proven and by_scores:
        function, choice = by_scores[0]
    elif len(functions) == 1:
        function, choice = functions[0], RouterScheme()
    else:
        return _fit_choice(None, sample, parts) or RouterScheme()
    fit = fits[function]
    return RouterScheme(
        function=function,
        selects_by=choice.selects_by,
        bias=choice.bias,
        group_limit=choice.group_limit,
        score_dtype=choice.score_dtype,
        normalised=None if fit is None else fit[0],
        scale=None if fit is None else fit[1],
    )


def choice_holds(scheme: RouterScheme, sample: RouterSample) -> Array:
    """Return (T,) bool: whether the rule gives each token's choice; all False without a rule."""
    n_tokens = sample.logits.shape[0]
    scores = choice_scores(scheme, sample.logits)
    if scores is None:
        return np.zeros(n_tokens, dtype=bool)
    if scheme.group_limit is not None:
        scores = mask_groups(scores, scheme.group_limit)
    return is_top(scores, sample.chosen, _choice_tolerance(scheme.score_dtype or "float32"))


def weights_hold(scheme: RouterScheme, sample: RouterSample) -> Array:
    """Return (T,) bool: whether the rule gives each token's weights; all False without a rule."""
    if (
        sample.weights is None
        or scheme.function is None
        or scheme.normalised is None
        or scheme.scale is None
    ):
        return np.zeros(sample.logits.shape[0], dtype=bool)
    expected = scheme.scale * _unscaled_weights(scheme.function, sample, scheme.normalised)
    errors = row_errors(sample.weights, expected)
    holds: Array = errors <= _weight_tolerance(sample)
    return holds


def choice_scores(scheme: RouterScheme, logits: Array) -> Array | None:
    """Return what top-k is taken over, (T, N), before groups are masked; None without a rule."""
    if scheme.selects_by is None:
        return None
    if scheme.selects_by == "scores" and scheme.function is not None:
        logits = to_scores(scheme.function, logits)
    return logits if scheme.bias is None else logits + scheme.bias


def open_groups(scheme: RouterScheme, logits: Array) -> Array | None:
    """Return (T, groups to choose from): the groups that may be chosen from; None without."""
    scores = choice_scores(scheme, logits)
    if scores is None or scheme.group_limit is None:
        return None
    return best_groups(scores, scheme.group_limit)


def _best_functions(
    fits: dict[ScoreFunction, tuple[bool, float, float] | None], sample: RouterSample
) -> list[ScoreFunction]:
    """Return the functions that weights or given probabilities allow; empty when they say none."""
    if sample.probs is not None:
        same: list[ScoreFunction] = [
            name
            for name in SCORE_FUNCTIONS
            if np.allclose(to_scores(name, sample.logits), sample.probs, rtol=1e-3, atol=1e-5)
        ]
        if same:
            return same
    fitting = [(fit[2], name) for name, fit in fits.items() if fit is not None]
    if len(fitting) < 2:
        return [name for _error, name in fitting]
    fitting.sort()
    least = max(fitting[0][0], 1e-9)
    return [name for error, name in fitting if error <= 8.0 * least]


def _fit_weights(
    function: ScoreFunction, sample: RouterSample, parts: RouterParts
) -> tuple[bool, float, float] | None:
    """Return (normalised, scale, largest relative error) of the rule that gives the weights."""
    if sample.weights is None:
        return None
    tolerance = _weight_tolerance(sample)
    found: list[tuple[bool, float, float]] = []
    for normalised in (False, True):
        expected = _unscaled_weights(function, sample, normalised)
        norm = float((expected * expected).sum())
        if norm == 0.0 or not np.isfinite(norm):
            continue
        scale = float((expected * sample.weights).sum()) / norm
        known = [value for value in parts.scales if abs(value - scale) <= tolerance * abs(scale)]
        if not known and sample.logits.shape[0] < 2:
            continue  # one token's weights are always some multiple of anything's sum
        scale = min(known, key=lambda value: abs(value - scale)) if known else scale
        error = float(row_errors(sample.weights, scale * expected).max())
        if scale > 0.0 and error <= tolerance:
            found.append((normalised, scale, error))
    if len(found) == 2:  # one token, or all experts chosen: the sum is the same for all
        said = [fit for fit in found if fit[0] == parts.normalises]
        in_parts = [fit for fit in found if fit[1] in parts.scales]
        return (said or in_parts or found)[0]
    return found[0] if found else None


def _fit_choice(
    function: ScoreFunction | None, sample: RouterSample, parts: RouterParts
) -> RouterScheme | None:
    """Return a rule with the choice's part alone; None when no known one gives every choice."""
    for dtype in _precisions(sample.logits_dtype):
        for scheme in _choice_rules(function, sample, parts, dtype):
            if choice_holds(scheme, sample).all():
                return scheme
    return None


def _choice_rules(
    function: ScoreFunction | None, sample: RouterSample, parts: RouterParts, dtype: ScoreDtype
) -> Iterator[RouterScheme]:
    n_experts = sample.logits.shape[1]
    limits: list[GroupLimits | None] = []
    if parts.groups is not None and n_experts % parts.groups[0] == 0:
        limits += [(*parts.groups, *rule) for rule in _GROUP_RULES]
    limits.append(None)
    biases: list[Array | None] = [bias for bias in parts.biases if bias.shape == (n_experts,)]
    bases: tuple[Literal["scores", "logits"], ...] = ("scores", "logits")
    for limit, bias, base in itertools.product(limits, [*biases, None], bases):
        if base == "scores" and function is None:
            continue
        if base == "logits" and function is not None and bias is None and limit is None:
            continue  # the order of the scores
        yield RouterScheme(
            function=function, selects_by=base, bias=bias, group_limit=limit, score_dtype=dtype
        )


def _precisions(logits_dtype: str) -> tuple[ScoreDtype, ...]:
    """Return in which precision a choice may have been made, the finest first."""
    if logits_dtype == "float64":
        return ("float64",)
    if logits_dtype == "bfloat16":
        return ("float32", "bfloat16")
    if logits_dtype == "float16":
        return ("float32", "float16")
    return ("float32",)


def _unscaled_weights(function: ScoreFunction, sample: RouterSample, normalised: bool) -> Array:
    weights = np.take_along_axis(to_scores(function, sample.logits), sample.chosen, axis=1)
    if normalised:
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
    return weights


def _weight_tolerance(sample: RouterSample) -> float:
    epsilon = max(EPSILON.get(sample.weights_dtype, 0.0), EPSILON.get(sample.logits_dtype, 0.0))
    return max(_LEAST_TOLERANCE, _ROUNDINGS * epsilon)


def _choice_tolerance(dtype: str) -> float:
    """Two roundings, as the checks of a bundle take them."""
    return max(TOLERANCE, 2.0 * EPSILON[dtype])
