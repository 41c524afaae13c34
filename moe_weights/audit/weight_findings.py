"""Weights that deserve a second look: not finite, all zero, constant, or the same twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set

from moe_weights.columns import Cell, Row
from moe_weights.findings import Finding, FindingKind, name_some


def weight_findings(
    rows: Sequence[Row], digests: Sequence[str], constant: Sequence[bool]
) -> list[Finding]:
    """Return what the measured matrices show.

    Args:
        rows: Rows of matrix_stats, in any order.
        digests: One per row; equal digests mean equal values, element by element.
        constant: One per row; all elements have the same bits.
    """
    order = sorted(
        range(len(rows)),
        key=lambda i: (
            str(rows[i]["proj"]), _int(rows[i], "layer"), _int(rows[i], "expert_id"),
            str(rows[i]["derived_tensor"]), str(rows[i]["file"]),
        ),
    )  # fmt: skip
    told: list[tuple[str, list[Row]]] = []
    checks: list[tuple[str, Callable[[int], bool]]] = [
        (
            "NaN or Inf in",
            lambda i: bool(_int(rows[i], "n_nan") or _int(rows[i], "n_inf")),
        ),
        ("all weights are zero in", lambda i: _has_only(rows[i], "n_zero")),
        (
            "all weights are equal in",
            lambda i: constant[i] and not _has_only(rows[i], "n_zero", "n_nan"),
        ),
    ]
    for text, holds in checks:
        found = [i for i in order if holds(i)]
        if found:
            told.append((text, [rows[i] for i in found]))
    told += [("identical weights in", members) for members in _twins(rows, digests, order)]
    layered = _names_in_several_layers(rows) if told else frozenset()
    return [_finding(text, members, layered) for text, members in told]


def _twins(
    rows: Sequence[Row], digests: Sequence[str], order: Sequence[int]
) -> Iterator[list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for i in order:
        row = rows[i]
        place = (row["stack"], row["layer"], row["proj"])
        key = (*place, row["rows"], row["cols"], row["dtype"], digests[i])
        groups.setdefault(key, []).append(row)
    for members in groups.values():
        # The file stands in for nothing here: a second copy of a whole shard is a duplicate name.
        if len({(row["derived_tensor"], row["expert_id"]) for row in members}) > 1:
            yield members


def _names_in_several_layers(rows: Sequence[Row]) -> Set[Cell]:
    """Return the names of matrices that do not tell their layer: of tensors that hold several."""
    layer_of: dict[Cell, Cell] = {}
    return {
        row["derived_tensor"]
        for row in rows
        if layer_of.setdefault(row["derived_tensor"], row["layer"]) != row["layer"]
    }


def _finding(text: str, rows: Sequence[Row], layered: Set[Cell]) -> Finding:
    names = [_describe(row, layered) for row in rows]
    return Finding(
        kind=FindingKind.WEIGHTS,
        message=f"[weights] {text} {name_some(names, 'matrix', plural='matrices')}",
        file=str(rows[0]["file"]),
        tensor=str(rows[0]["source_tensor"]),
        count=len(rows),
        hint="see the columns n_nan, n_inf, n_zero and std of data/matrix_stats",
    )


def _describe(row: Row, layered: Set[Cell]) -> str:
    name = row["derived_tensor"]
    layer = f" layer {row['layer']}" if name in layered else ""
    return f"{name}{layer} expert {row['expert_id']}"


def _has_only(row: Row, *counts: str) -> bool:
    """One of the counts is that of all elements."""
    size = _int(row, "rows") * _int(row, "cols")
    return any(row[count] == size for count in counts)


def _int(row: Row, name: str) -> int:
    value = row[name]
    return value if isinstance(value, int) else 0
