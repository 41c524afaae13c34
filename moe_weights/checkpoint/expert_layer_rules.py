"""Which layers do the keys of config.json that select layers leave to the experts?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.model_config import to_integer

Scope = Mapping[str, JsonValue]
_Rule = Callable[[int], bool]

_DENSE_PREFIXES = (
    "first_k_dense_replace",
    "num_dense_layers",
    "n_dense_layers",
    "dense_mlp_idx",  # Inkling
    "moe_layer_num_skipped",  # Hunyuan
)
# Layers whose id plus one is a multiple.
_STEPS = (
    "decoder_sparse_step",
    "interleave_moe_layer_step",
    "moe_layer_frequency",
    "moe_layer_interval",
)
_FREQUENCIES = ("moe_layer_freq", "route_every_n")
_SPARSE_KINDS = frozenset({"sparse", "moe", "hash_moe"})
_DENSE_KINDS = frozenset({"dense", "mlp"})
_KNOWN = frozenset(
    {
        *_DENSE_PREFIXES,
        *_STEPS,
        *_FREQUENCIES,
        "encoder_sparse_step",
        "expert_layer_offset",
        "expert_layer_period",
        "mlp_only_layers",
        "moe_every_n_layers",
        "moe_layer_end_index",
        "moe_layer_start_index",
        "num_sparse_decoder_layers",
        "num_sparse_encoder_layers",
    }
)
_SELECTION_SUBJECT = re.compile(r"moe|expert|sparse|dense|mlp")
_SELECTION_OF_LAYERS = re.compile(r"layers?(?!_?norm)|freq|interval|every|period|skip|step")
_NO_SELECTION = re.compile(r"^mtp|atten|attn|index_|window|rope|router|loss|norm|shared|head")


def select_layers(scope: Scope, n_layers: int) -> tuple[tuple[int, ...] | None, bool]:
    """Apply every key that selects layers; a layer has experts if all of them allow it.

    Args:
        scope: The part of config.json that describes the stack.
        n_layers: Layers of the stack.

    Returns:
        The ids, None when a selecting key or its value is not understood; and whether there is
        any such key.
    """
    rules = _selecting_rules(scope, n_layers)
    understood = [rule for rule in rules if rule is not None]
    if len(understood) < len(rules) or _has_unknown_selection(scope):
        return None, True
    layers = tuple(i for i in range(n_layers) if all(rule(i) for rule in understood))
    return layers, bool(rules)


def layers_of_kinds(kinds: Sequence[JsonValue], n_layers: int | None) -> tuple[int, ...] | None:
    """Return the ids of the layers with experts out of a list with the kind of every layer.

    Args:
        kinds: Words ("sparse", "moe", "dense" …) or flags; entries past the last layer, which
            describe multi-token-prediction layers, do not count.
        n_layers: None when unknown.

    Returns:
        None when the list is too short or an entry is not understood.
    """
    if n_layers is not None and len(kinds) < n_layers:
        return None
    sparse = [_has_experts(kind) for kind in kinds[:n_layers]]
    return None if None in sparse else tuple(i for i, has in enumerate(sparse) if has)


def _has_experts(kind: JsonValue) -> bool | None:
    if isinstance(kind, bool):
        return kind
    if isinstance(kind, str) and kind in _SPARSE_KINDS | _DENSE_KINDS:
        return kind in _SPARSE_KINDS
    flag = to_integer(kind)
    return bool(flag) if flag in {0, 1} else None


def _has_unknown_selection(scope: Scope) -> bool:
    return any(
        value not in (None, False, "", [], {})
        and name not in _KNOWN
        and _SELECTION_SUBJECT.search(name) is not None
        and _SELECTION_OF_LAYERS.search(name) is not None
        and _NO_SELECTION.search(name) is None
        for name, value in scope.items()
    )


def _selecting_rules(scope: Scope, n_layers: int) -> list[_Rule | None]:
    """Return a test of layer ids for every selecting key, None for a value not understood."""
    rules = [_from(to_integer(scope[name])) for name in _present(scope, *_DENSE_PREFIXES)]
    rules += [_every(to_integer(scope[name])) for name in _present(scope, *_STEPS)]
    rules += [_frequency(scope[name], n_layers) for name in _present(scope, *_FREQUENCIES)]
    rules += [_all_but(scope[name]) for name in _present(scope, "mlp_only_layers")]
    for name in _present(scope, "expert_layer_period"):
        rules.append(_period(to_integer(scope[name]), to_integer(scope.get("expert_layer_offset"))))
    for name in _present(scope, "moe_every_n_layers"):
        rules.append(_nomic(to_integer(scope[name])))
    # ERNIE-VL has one number each for text and vision; a layer within either has experts.
    for name in _present(scope, "moe_layer_start_index"):
        rules.append(_from(min(_integers(scope[name]), default=None)))
    for name in _present(scope, "moe_layer_end_index"):
        rules.append(_up_to([i if i >= 0 else n_layers - 1 for i in _integers(scope[name])]))
    return rules


def _present(scope: Scope, *names: str) -> list[str]:
    return [name for name in names if scope.get(name) is not None]


def _integers(value: JsonValue) -> list[int]:
    found = [to_integer(item) for item in (value if isinstance(value, list) else [value])]
    return [item for item in found if item is not None] if None not in found else []


def _from(start: int | None) -> _Rule | None:
    return None if start is None else lambda layer: layer >= start


def _up_to(ends: list[int]) -> _Rule | None:
    return (lambda layer: layer <= max(ends)) if ends else None


def _every(step: int | None) -> _Rule | None:
    if step is None or step < 0:
        return None
    return lambda layer: step > 0 and (layer + 1) % step == 0


def _all_but(layers: JsonValue) -> _Rule | None:
    dense = _integers(layers)
    if not isinstance(layers, list) or len(dense) < len(layers):
        return None
    dense_layers = frozenset(dense)
    return lambda layer: layer not in dense_layers


def _frequency(value: JsonValue, n_layers: int) -> _Rule | None:
    if isinstance(value, list):
        sparse = layers_of_kinds(value, n_layers)
        sparse_layers = frozenset(sparse or ())
        return None if sparse is None else lambda layer: layer in sparse_layers
    step = to_integer(value)
    return None if step is None or step < 1 else lambda layer: layer % step == 0


def _period(period: int | None, offset: int | None) -> _Rule | None:
    if period is None or period < 1 or offset is None:
        return None
    return lambda layer: layer % period == offset


def _nomic(step: int | None) -> _Rule | None:
    # A step of 1 selects no layer in Nomic's code and every layer in other people's.
    if step is None or step < 0 or step == 1:
        return None
    return lambda layer: step > 0 and layer % step == 1
