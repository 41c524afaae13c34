"""Projection tokens that no alias explains: the report and the warning lines that point at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from moe_weights.columns import Row, Table
from moe_weights.extract.projections import ProjectionAliases, UnresolvedProjection
from moe_weights.findings import Finding, FindingKind
from moe_weights.tables.projection_report import PROJECTION_REPORT_SCHEMA

_DecisionKey: TypeAlias = tuple[str, str, str, str, str]


def projection_report_table(
    unresolved: Sequence[UnresolvedProjection], aliases: ProjectionAliases
) -> Table:
    """Return one row per distinct decision, with its count, first example and a suggestion."""
    counts: Counter[_DecisionKey] = Counter()
    first: dict[_DecisionKey, UnresolvedProjection] = {}
    for event in unresolved:
        key: _DecisionKey = (
            event.context,
            event.rule_name,
            event.raw_proj,
            event.resolved_proj,
            event.action,
        )
        counts[key] += 1
        first.setdefault(key, event)
    rows: list[Row] = []
    for key in sorted(counts):
        event = first[key]
        suggested_proj, suggested_match = aliases.suggest(event.raw_proj)
        rows.append(
            {
                "context": event.context,
                "rule_name": event.rule_name,
                "raw_proj": event.raw_proj,
                "resolved_proj": event.resolved_proj,
                "action": event.action,
                "count": counts[key],
                "example_file": event.file,
                "example_source_tensor": event.source_tensor,
                "example_derived_tensor": event.derived_tensor,
                "suggested_proj": suggested_proj,
                "suggested_match": suggested_match,
            }
        )
    return Table.from_rows(PROJECTION_REPORT_SCHEMA, rows)


def projection_findings(
    unresolved: Sequence[UnresolvedProjection], report_path: str
) -> list[Finding]:
    """Return at most one line about tokens kept raw and one about strict drops.

    Args:
        unresolved: All decisions of the run.
        report_path: The report, relative to the run directory.
    """
    findings = []
    kept = [event for event in unresolved if event.action == "kept_raw"]
    dropped = [event for event in unresolved if event.action == "dropped_strict"]
    if kept:
        in_split = sum(event.context == "packed_split" for event in kept)
        findings.append(
            Finding(
                kind=FindingKind.PROJ,
                message=(
                    "[proj] unmapped proj tokens kept raw: "
                    f"packed_split={in_split}, proj_group={len(kept) - in_split} "
                    f"(unique={_count_unique(kept)}, occurrences={len(kept)}). See {report_path}"
                ),
                count=len(kept),
                hint="add the tokens to parsing.proj_aliases",
            )
        )
    if dropped:
        findings.append(
            Finding(
                kind=FindingKind.PROJ,
                message=(
                    "[proj] strict proj_group dropped tensors due to unmapped proj tokens: "
                    f"occurrences={len(dropped)} (unique={_count_unique(dropped)}). "
                    f"See {report_path}"
                ),
                count=len(dropped),
                hint="add the tokens to parsing.proj_aliases, or set parsing.proj_group_strict "
                "to false",
            )
        )
    return findings


def empty_alias_finding(n_dropped: int, unmatched_path: str | None) -> Finding:
    """Return the line about strict drops that an empty alias map made unavoidable.

    Args:
        n_dropped: Tensors dropped.
        unmatched_path: The unmatched table, relative to the run directory; None when not written.
    """
    advice = (
        "Enable debug.dump_unmatched_tensors=true to write unmatched_tensors.*."
        if unmatched_path is None
        else f"See {unmatched_path} for details."
    )
    return Finding(
        kind=FindingKind.CONFIG,
        message=(
            "[config] parsing.proj_group_strict=true but parsing.proj_aliases is empty; strict "
            f"proj_group drops occurred (occurrences={n_dropped}). {advice}"
        ),
        count=n_dropped,
        hint="fill parsing.proj_aliases",
    )


def _count_unique(events: Sequence[UnresolvedProjection]) -> int:
    return len({(event.context, event.rule_name, event.raw_proj) for event in events})
