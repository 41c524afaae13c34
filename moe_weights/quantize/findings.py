"""Schemes that failed, gathered so that a thousand matrices make one line."""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.columns import Row
from moe_weights.findings import Finding, FindingKind, name_some


def failure_findings(rows: Sequence[Row]) -> list[Finding]:
    """Return one warning per scheme and cause.

    Args:
        rows: Rows of quant_sim, in any order; rows without numbers because of the weights
            themselves (`NonFiniteWeights`) are left to the warning about those weights.
    """
    failed: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cause = row["error"]
        if cause is not None and not str(cause).startswith("NonFiniteWeights:"):
            failed.setdefault((str(row["scheme"]), str(cause)), []).append(row)
    findings = []
    for (scheme, cause), members in sorted(failed.items()):
        names = sorted(str(row["derived_tensor"]) for row in members)
        findings.append(
            Finding(
                kind=FindingKind.QUANT_SIM,
                message=f"[quant_sim] scheme={scheme} failed: {cause} "
                f"[{name_some(names, 'matrix', plural='matrices')}]",
                file=str(members[0]["file"]),
                tensor=str(members[0]["source_tensor"]),
                count=len(members),
                hint="the rows stand in data/quant_sim with this text in the column error",
            )
        )
    return findings
