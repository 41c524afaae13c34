"""Do values that are fine alone fit together?

Works on the unvalidated JSON and steps over whatever has the wrong type, so that these faults are
reported together with those of single values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from moe_weights.atomic_files import JsonValue
from moe_weights.config.json_path import Fault, Location
from moe_weights.config.regexes import count_groups

_AXES = ("layer_axis", "expert_axis", "rows_axis", "cols_axis")
_NAMED_LISTS = {"extract_rules": "rule", "quant_schemes": "scheme", "delta_pairs": "pair"}


def check_together(document: dict[str, JsonValue]) -> Iterator[Fault]:
    """Give the faults of rule layouts, capture groups, projections and repeated names."""
    for key, noun in _NAMED_LISTS.items():
        yield from _check_unique_names(document, key, noun)
    for position, rule in _objects(document.get("extract_rules")):
        location: Location = ("extract_rules", position)
        layout = rule.get("layout")
        if isinstance(layout, dict):
            yield from _check_axes(layout, _integer(rule.get("ndim")), (*location, "layout"))
            yield from _check_stacked(layout, (*location, "layout", "stacked_experts_axis"))
        yield from _check_groups(rule, location)
        yield from _check_projection(rule, location)


def _check_unique_names(document: dict[str, JsonValue], key: str, noun: str) -> Iterator[Fault]:
    first_positions: dict[str, int] = {}
    for position, item in _objects(document.get(key)):
        name = item.get("name")
        if not isinstance(name, str) or not name:
            continue
        first = first_positions.setdefault(name, position)
        if first != position:
            yield Fault(
                (key, position, "name"),
                f"{json.dumps(name, ensure_ascii=False)} is already the name of {key}[{first}]; "
                f"give each {noun} its own name",
            )


def _check_axes(
    layout: dict[str, JsonValue], ndim: int | None, location: Location
) -> Iterator[Fault]:
    owners: dict[int, str] = {}
    for name in _AXES:
        axis = _integer(layout.get(name))
        if axis is None or axis < 0:
            continue
        if ndim is not None and 1 <= ndim <= axis:
            yield Fault(
                (*location, name),
                f"{axis} is out of range for ndim={ndim}; use {_choices(0, ndim - 1)}",
            )
        owner = owners.setdefault(axis, name)
        if owner != name:
            yield Fault(
                (*location, name), f"axis {axis} is already {owner}; each axis has one meaning"
            )


def _check_stacked(layout: dict[str, JsonValue], location: Location) -> Iterator[Fault]:
    stacked = _integer(layout.get("stacked_experts_axis"))
    sides = {_integer(layout.get(name)) for name in ("rows_axis", "cols_axis")}
    if stacked is None or None in sides:
        return
    if stacked not in sides:
        yield Fault(location, f"{stacked} is neither rows_axis nor cols_axis; experts lie on one")
    if _integer(layout.get("expert_axis")) is not None:
        yield Fault(location, "expert_axis says already where the experts are; keep one of both")


def _check_groups(rule: dict[str, JsonValue], location: Location) -> Iterator[Fault]:
    match = rule.get("match")
    n_groups = count_groups(match) if isinstance(match, str) else None
    if n_groups is None:
        return
    for name in ("proj_group", "expert_group", "layer_group", "stack_group"):
        group = _integer(rule.get(name))
        if group is None or group <= n_groups:
            continue
        if n_groups == 0:
            advice = "match has no capture group; put parentheses around what to capture"
        else:
            plural = "" if n_groups == 1 else "s"
            advice = f"match has {n_groups} capture group{plural}; use {_choices(1, n_groups)}"
        yield Fault((*location, name), f"there is no group {group}: {advice}")


def _check_projection(rule: dict[str, JsonValue], location: Location) -> Iterator[Fault]:
    # What is not used would leave other projections in the tables than the rule seems to say.
    has_group = rule.get("proj_group") is not None
    if rule.get("proj") and has_group:
        yield Fault(
            (*location, "proj"), "proj_group says already where the projection is; keep one of both"
        )
    if rule.get("proj_map") and not has_group:
        yield Fault(
            (*location, "proj_map"),
            "there is no proj_group to capture what it maps; give its capture group",
        )


def _objects(value: JsonValue) -> Iterator[tuple[int, dict[str, JsonValue]]]:
    if isinstance(value, list | tuple):
        for position, item in enumerate(value):
            if isinstance(item, dict):
                yield position, item


def _integer(value: JsonValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _choices(first: int, last: int) -> str:
    """Say `0`, `0 or 1`, `0, 1 or 2`; from eight on `0 to 7`."""
    if last - first >= 7:
        return f"{first} to {last}"
    *head, tail = [str(number) for number in range(first, last + 1)]
    return f"{', '.join(head)} or {tail}" if head else tail
