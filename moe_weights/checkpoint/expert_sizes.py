"""How many experts does a stack have and how wide are they, by its part of config.json?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.expert_layer_rules import Scope
from moe_weights.checkpoint.model_config import to_integer

_COUNTS = (
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "moe_num_experts",
    "num_routed_experts",
    "num_moe_experts",
    "n_experts",
    "pyramid_num_routed",  # dots3 vision: one number per layer, -1 in dense ones
)
_IDENTITY_COUNT = "zero_expert_num"  # LongCat
# Width that experts read and write, the names that mean nothing else first.
_OUTER_WIDTHS = (
    "moe_latent_size",
    "moe_hidden_size",
    "hidden_size",
    "d_model",
    "n_embd",
    "embed_dim",
    "dim",
)
# Names that always mean an expert's width, then names that mean it where the first are absent.
_INNER_WIDTHS = (
    (
        "moe_intermediate_size",
        "expert_intermediate_size",
        "expert_ffn_hidden_size",
        "moe_ffn_hidden_size",
        "moe_ffn_dim",
        "expert_ffn_dim",
        "expert_hidden_dim",
        "moe_inter_dim",
    ),
    ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "n_inner", "hidden_dim"),
)
_HETEROGENEOUS = "block_configs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertCounts:
    """The experts of a stack.

    Attributes:
        n_experts: Routed experts of every layer; None when unknown or not the same in all.
        by_layer: Layer ids with their number of routed experts, where config.json counts by layer.
    """

    n_experts: int | None
    by_layer: tuple[tuple[int, int], ...] = ()


def read_expert_counts(scope: Scope, n_layers: int | None) -> ExpertCounts | None:
    """Return the numbers of routed experts, None when config.json states none.

    A number that is no count, or two that disagree, gives an unknown count: experts are declared.
    """
    stated = [scope[name] for name in _COUNTS if scope.get(name) is not None]
    if not stated:
        return None
    counts = {_as_count(value, n_layers) for value in stated}
    if counts == {0, 1}:
        counts = {1}
    if len(counts) > 1 or _HETEROGENEOUS in scope:
        return ExpertCounts(n_experts=None)
    count = counts.pop()
    overrides = {
        layer: n
        for layer, values in _layer_overrides(scope)
        for name in _COUNTS
        if (n := to_integer(values.get(name))) is not None
    }
    if isinstance(count, tuple):
        overrides = {**dict(enumerate(count)), **overrides}
        count = None
    if not overrides:
        return ExpertCounts(n_experts=count)
    by_layer = {layer: count for layer in range(n_layers or 0) if count is not None} | overrides
    return ExpertCounts(n_experts=None, by_layer=tuple(sorted(by_layer.items())))


def read_identity_count(scope: Scope) -> int:
    """Return how many ids beyond the routed experts stand for no weights."""
    return max(to_integer(scope.get(_IDENTITY_COUNT)) or 0, 0)


def read_outer_width(scope: Scope) -> int | None:
    """Return the width that experts read and write, elements, None when unknown."""
    return next(_positive(scope, _OUTER_WIDTHS), None)


def read_inner_widths(scope: Scope) -> tuple[int, ...]:
    """Return the widths that an expert may have, elements, each once; empty when unknown."""
    if _HETEROGENEOUS in scope:
        return ()
    for names in _INNER_WIDTHS:
        found = [*_positive(scope, names)]
        for _layer, values in _layer_overrides(scope):
            found += _positive(values, names)
        if found:
            return tuple(dict.fromkeys(found))
    return ()


def states_expert_width(scope: Scope) -> bool:
    """Tell whether a key holds a width that only experts have."""
    return any(True for _width in _positive(scope, _INNER_WIDTHS[0]))


def _as_count(value: JsonValue, n_layers: int | None) -> int | tuple[int, ...] | None:
    if not isinstance(value, list):
        count = to_integer(value)
        return count if count is None or count >= 0 else None
    counts = [to_integer(item) for item in value]
    whole = tuple(max(count, 0) for count in counts if count is not None)
    if not whole or len(whole) < len(counts):
        return None
    if len(set(whole)) == 1 and (n_layers is None or len(whole) in {1, n_layers}):
        return whole[0]
    return whole if len(whole) == n_layers else None


def _layer_overrides(scope: Scope) -> Iterator[tuple[int, Mapping[str, JsonValue]]]:
    layers = scope.get("per_layer_config")
    if isinstance(layers, Mapping):
        for name, values in layers.items():
            layer = to_integer(name)
            if layer is not None and isinstance(values, Mapping):
                yield layer, values


def _positive(scope: Scope, names: Sequence[str]) -> Iterator[int]:
    for name in names:
        value = scope.get(name)
        for item in value if isinstance(value, list) else [value]:
            width = to_integer(item)
            if width is not None and width > 0:
                yield width
