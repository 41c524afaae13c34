"""Which scores, groups and orders do routers know? Rows of T tokens at once, in float64."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
ScoreFunction: TypeAlias = Literal["softmax", "sigmoid", "sqrtsoftplus"]
GroupScore: TypeAlias = Literal["max", "top2_sum"]
# Groups, groups to choose from, score of a group, score of the experts of the other groups: None
# when they cannot be chosen.
GroupLimits: TypeAlias = tuple[int, int, GroupScore, float | None]

SCORE_FUNCTIONS: tuple[ScoreFunction, ...] = ("softmax", "sigmoid", "sqrtsoftplus")


def to_scores(function: ScoreFunction, logits: Array) -> Array:
    """Return the scores of logits, (T, N) float64."""
    if function == "softmax":
        powers: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    if function == "sigmoid":
        return np.exp(-np.logaddexp(0.0, -logits))
    return np.sqrt(np.logaddexp(0.0, logits))


def is_top(scores: Array, chosen: Array, tolerance: float) -> Array:
    """Return (T,) bool: whether no expert that was left out is better than one that was chosen."""
    picked = np.take_along_axis(scores, chosen, axis=1).min(axis=1)
    left = scores.copy()
    np.put_along_axis(left, chosen, -np.inf, axis=1)
    finite = np.where(np.isfinite(scores), np.abs(scores), 0.0).max(axis=1)
    holds: Array = picked >= left.max(axis=1) - tolerance * np.maximum(1.0, finite)
    return holds & np.isfinite(picked)


def mask_groups(scores: Array, limit: GroupLimits) -> Array:
    """Return (T, N) scores, those of groups that are not chosen from replaced."""
    n_groups, _n_selected, _group_score, masked = limit
    is_open = np.zeros((scores.shape[0], n_groups), dtype=bool)
    np.put_along_axis(is_open, best_groups(scores, limit), values=True, axis=1)
    mask = np.repeat(is_open, scores.shape[1] // n_groups, axis=1)
    return np.where(mask, scores, -np.inf if masked is None else masked)


def best_groups(scores: Array, limit: GroupLimits) -> Array:
    """Return (T, groups to choose from): the best groups by index."""
    n_groups, n_selected, group_score, _masked = limit
    grouped = np.sort(scores.reshape(scores.shape[0], n_groups, -1), axis=2)
    best = grouped[:, :, -1:] if group_score == "max" else grouped[:, :, -2:]
    order = np.argsort(-best.sum(axis=2), axis=1, kind="stable")
    return np.sort(order[:, :n_selected], axis=1)


def row_errors(values: Array, expected: Array) -> Array:
    """Return (T,) largest difference of a row, relative to the row's largest value."""
    largest = np.maximum(np.abs(expected).max(axis=1), 1e-300)
    errors: Array = np.abs(values - expected).max(axis=1) / largest
    return errors
