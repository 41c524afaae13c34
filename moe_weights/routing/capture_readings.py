"""Which of the tensors that pass a MoE block are logits, choices and weights?

Told by shape, dtype and content, never by their place in a tuple: for T tokens, logits are floats
(T, N) that are neither probabilities nor zero but for a few; a choice is integers (T, k); weights
are floats of the choice's shape. What the experts were given goes before what the router returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moe_weights.routing.capture_scores import Array

_INTEGERS = {"int64", "int32", "int16", "int8", "uint8"}
_FLOATS = {"float64", "float32", "float16", "bfloat16"}
_NEAR_ONE = 0.02  # a row of half-precision probabilities sums to 1 within this


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RouterReading:
    """What was read of one block for T tokens; None is what could not be told.

    Attributes:
        logits: (T, N) float64, exactly as computed.
        probs: (T, N) float64, when the router gives probabilities out.
        chosen: (T, k) int64.
        weights: (T, k) float64, as the router gives them.
        given_weights: (T, k) float64, as the experts were given them.
        logits_dtype: Of the model's own tensor.
        weights_dtype: Of the model's own tensor.
    """

    logits: Array | None = None
    probs: Array | None = None
    chosen: Array | None = None
    weights: Array | None = None
    given_weights: Array | None = None
    logits_dtype: str | None = None
    weights_dtype: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    values: Array
    dtype: str


def read_router(
    output: object, inner_outputs: Iterable[object], n_tokens: int, n_experts: int | None
) -> RouterReading:
    """Read what a router returned.

    Args:
        output: A tensor or a tuple with tensors.
        inner_outputs: What the linear layers inside it returned.
        n_tokens: T.
        n_experts: N; None when the experts do not tell it.
    """
    outputs = output if isinstance(output, tuple | list) else (output,)
    rows = [row for item in outputs for row in _to_rows(item, n_tokens)]
    chosen = next((row for row in rows if _is_choice(row, n_experts)), None)
    floats = [row for row in rows if row.dtype in _FLOATS]
    weights = None
    if chosen is not None:
        matching = [row for row in floats if row.values.shape == chosen.values.shape]
        weights = matching[-1] if matching else None
    inner = [row for item in inner_outputs for row in _to_rows(item, n_tokens)]
    wide = [row for row in [*floats, *inner] if row is not weights and _is_wide(row, n_experts)]
    dense = next((row for row in wide if _is_sparse(row.values)), None)
    full = [row for row in wide if not _is_sparse(row.values)]
    probs = next((row for row in full if _is_distribution(row.values)), None)
    logits = next((row for row in full if not _is_distribution(row.values)), None)
    reading = RouterReading(
        logits=None if logits is None else logits.values,
        logits_dtype=None if logits is None else logits.dtype,
        probs=None if probs is None else probs.values,
        chosen=None if chosen is None else chosen.values,
        weights=None if weights is None else weights.values,
        weights_dtype=None if weights is None else weights.dtype,
    )
    if chosen is not None:
        return reading
    if dense is not None:
        return _read_dense(reading, dense)
    return _read_sorted_by_expert(reading, outputs, n_tokens)


def read_experts_call(reading: RouterReading, arguments: Iterable[object]) -> RouterReading:
    """Put the choice and the weights that the experts were given in a reading.

    Args:
        reading: Of the router, for T tokens.
        arguments: What the experts' module was called with.
    """
    items = list(arguments)
    n_tokens = next((count for item in items if (count := _token_count(item))), 0)
    rows = [row for item in items for row in _to_rows(item, n_tokens)]
    n_experts = None if reading.logits is None else reading.logits.shape[1]
    chosen = next((row for row in rows if _is_choice(row, n_experts)), None)
    if chosen is None:
        return reading
    given = [
        row for row in rows if row.dtype in _FLOATS and row.values.shape == chosen.values.shape
    ]
    if not given:
        return replace(reading, chosen=chosen.values)
    return replace(
        reading,
        chosen=chosen.values,
        weights=given[-1].values,
        given_weights=given[-1].values,
        weights_dtype=given[-1].dtype,
    )


def to_array(tensor: Any) -> Array:
    """Return a tensor as NumPy: floats as float64, which is exact; integers as int64."""
    tensor = tensor.detach().cpu()
    is_float = dtype_name(tensor) in _FLOATS
    values: Array = np.asarray((tensor.double() if is_float else tensor.long()).numpy())
    return values


def dtype_name(tensor: Any) -> str:
    """Return "float32" for `torch.float32`; "" for what is no tensor."""
    return str(getattr(tensor, "dtype", "")).removeprefix("torch.")


def is_tensor(item: object) -> bool:
    """Whether an argument is a tensor of numbers."""
    return hasattr(item, "detach") and dtype_name(item) in _FLOATS | _INTEGERS | {"bool"}


def _to_rows(item: object, n_tokens: int) -> Iterator[_Rows]:
    """Give a tensor as (T, last axis) when it has that many rows."""
    if not is_tensor(item):
        return
    tensor: Any = item
    shape = tuple(int(size) for size in tensor.shape)
    if len(shape) < 2 or n_tokens == 0:
        return
    count = 1
    for size in shape[:-1]:
        count *= size
    if count == n_tokens and shape[-1] > 0:
        yield _Rows(to_array(tensor).reshape(n_tokens, shape[-1]), dtype_name(tensor))


def _token_count(item: object) -> int:
    if not is_tensor(item) or dtype_name(item) not in _INTEGERS:
        return 0
    tensor: Any = item
    count = 1
    for size in tensor.shape[:-1]:
        count *= int(size)
    return count if len(tensor.shape) >= 2 else 0


def _is_choice(row: _Rows, n_experts: int | None) -> bool:
    if row.dtype not in _INTEGERS or row.values.min() < 0:
        return False
    if n_experts is not None and row.values.max() >= n_experts:
        return False
    ordered = np.sort(row.values, axis=1)
    return bool((ordered[:, 1:] != ordered[:, :-1]).all())


def _is_wide(row: _Rows, n_experts: int | None) -> bool:
    width = row.values.shape[1]
    right = width == n_experts if n_experts is not None else width > 1
    return row.dtype in _FLOATS and right


def _is_distribution(values: Array) -> bool:
    return bool((values >= 0.0).all() and (np.abs(values.sum(axis=1) - 1.0) < _NEAR_ONE).all())


def _is_sparse(values: Array) -> bool:
    """Whether every row is zero or -inf but for one number of places, fewer than all."""
    empty = (values == 0.0) | np.isneginf(values)
    counts = (~empty).sum(axis=1)
    return bool((counts == counts[0]).all() and 0 < counts[0] < values.shape[1])


def _read_dense(reading: RouterReading, dense: _Rows) -> RouterReading:
    """Read weights that stand in a row of all experts, zero for those not chosen."""
    order = np.argsort(-np.abs(np.nan_to_num(dense.values, neginf=0.0)), axis=1, kind="stable")
    n_active = int(((dense.values[0] != 0.0) & np.isfinite(dense.values[0])).sum())
    chosen = order[:, :n_active]
    return replace(
        reading,
        chosen=chosen,
        weights=np.take_along_axis(dense.values, chosen, axis=1),
        weights_dtype=dense.dtype,
    )


def _read_sorted_by_expert(
    reading: RouterReading, outputs: Iterable[object], n_tokens: int
) -> RouterReading:
    """Read a router that returns its slots sorted by expert, and how many each expert has."""
    items = list(outputs)
    sizes = [
        item
        for item in items
        if isinstance(item, list) and item and all(isinstance(size, int) for size in item)
    ]
    flat = [item for item in items if is_tensor(item) and len(getattr(item, "shape", ())) == 1]
    arrays = [(to_array(item), dtype_name(item)) for item in flat]
    n_slots = sum(sizes[0]) if sizes else 0
    orders = [
        values
        for values, dtype in arrays
        if dtype in _INTEGERS and np.array_equal(np.sort(values), np.arange(n_slots))
    ]
    if not n_slots or n_slots % n_tokens or not orders:
        return reading
    chosen = np.empty(n_slots, dtype=np.int64)
    chosen[orders[0]] = np.repeat(np.arange(len(sizes[0])), sizes[0])
    shape = (n_tokens, n_slots // n_tokens)
    found = replace(reading, chosen=chosen.reshape(shape))
    gates = [entry for entry in arrays if entry[1] in _FLOATS and entry[0].size == n_slots]
    if not gates:
        return found
    weights = np.empty(n_slots)
    weights[orders[0]] = gates[0][0]
    weights = weights.reshape(shape)
    return replace(found, weights=weights, given_weights=weights, weights_dtype=gates[0][1])
