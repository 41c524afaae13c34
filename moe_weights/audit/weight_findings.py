"""Weights that deserve a second look: not finite, all zero, constant, or the same twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from moe_weights.columns import Row
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
    findings = []
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
            findings.append(_finding(text, [rows[i] for i in found]))
    findings.extend(_identical_findings(rows, digests, order))
    return findings


def _identical_findings(
    rows: Sequence[Row], digests: Sequence[str], order: Sequence[int]
) -> list[Finding]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for i in order:
        row = rows[i]
        # The file stands in for nothing here: a second copy of a whole shard is a duplicate name.
        key = (row["layer"], row["proj"], row["rows"], row["cols"], row["dtype"], digests[i])
        groups.setdefault(key, []).append(row)
    return [
        _finding("identical weights in", members)
        for members in groups.values()
        if len({str(row["derived_tensor"]) + f"|{row['expert_id']}" for row in members}) > 1
    ]


def _finding(text: str, rows: Sequence[Row]) -> Finding:
    names = [_describe(row) for row in rows]
    return Finding(
        kind=FindingKind.WEIGHTS,
        message=f"[weights] {text} {name_some(names, 'matrix', plural='matrices')}",
        file=str(rows[0]["file"]),
        tensor=str(rows[0]["source_tensor"]),
        count=len(rows),
        hint="see the columns n_nan, n_inf, n_zero and std of data/matrix_stats",
    )


def _describe(row: Row) -> str:
    return f"{row['derived_tensor']} expert {row['expert_id']}"


def _has_only(row: Row, *counts: str) -> bool:
    """One of the counts is that of all elements."""
    size = _int(row, "rows") * _int(row, "cols")
    return any(row[count] == size for count in counts)


def _int(row: Row, name: str) -> int:
    value = row[name]
    return value if isinstance(value, int) else 0
