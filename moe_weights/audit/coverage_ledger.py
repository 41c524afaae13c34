"""What was found, held against config.json: `logs/coverage.json`."""

from __future__ import annotations

from collections import Counter

from moe_weights.atomic_files import JsonValue
from moe_weights.extract.account import Fate
from moe_weights.extract.coverage import Coverage
from moe_weights.findings import Finding, FindingKind


def coverage_json(coverage: Coverage) -> dict[str, JsonValue]:
    """Return `logs/coverage.json`."""
    # CONTRACT SURFACE: logs/coverage.json
    layers_by_stack: dict[str, list[JsonValue]] = {}
    for entry in coverage.entries:
        layers_by_stack.setdefault(entry.stack, []).append(
            {
                "layer": entry.layer,
                "proj": entry.proj,
                "expected_experts": entry.expected_experts,
                "found_experts": entry.found_experts,
                "expected_shape": entry.expected_shape,
                "found_shape": entry.found_shape,
                "status": str(entry.status),
            }
        )
    return {
        "complete": coverage.complete,
        "expected": {
            "stacks": [
                {
                    "stack": stack.stack,
                    "n_layers": stack.n_layers,
                    "moe_layers": stack.moe_layers,
                    "n_experts": stack.n_experts,
                    "n_experts_by_layer": stack.n_experts_by_layer,
                    "n_identity_experts": stack.n_identity_experts,
                    "hidden_size": stack.hidden_size,
                    "expert_widths": stack.expert_widths,
                }
                for stack in coverage.expectation.stacks
            ]
        },
        "stacks": [
            {"stack": stack, "layers": layers} for stack, layers in sorted(layers_by_stack.items())
        ],
        "unaccounted": [
            {"tensor": item.tensor, "fate": str(item.fate), "reason": item.detail}
            for item in coverage.of_fate(Fate.REFUSED, Fate.UNMATCHED)
        ],
        "lookalikes": [
            {"tensor": item.tensor, "kind": item.detail}
            for item in coverage.of_fate(Fate.LOOKALIKE)
        ],
        "bytes": coverage.nbytes,
    }


def coverage_summary(coverage: Coverage) -> dict[str, JsonValue]:
    """Return the block `coverage` of run_health.json."""
    statuses = Counter(str(entry.status) for entry in coverage.entries)
    return {
        "complete": coverage.complete,
        "statuses": dict(sorted(statuses.items())),
        "bytes": coverage.nbytes,
    }


def coverage_line(coverage: Coverage) -> str:
    """Return the verdict in one sentence."""
    if coverage.complete is None:
        return "coverage unknown: config.json declares no experts to hold the tensors against"
    if coverage.complete:
        return "coverage complete: every expert matrix that config.json declares will be measured"
    statuses = Counter(str(entry.status) for entry in coverage.problems)
    parts = [f"{status}: {count}" for status, count in sorted(statuses.items())]
    lost = coverage.of_fate(Fate.REFUSED, Fate.UNMATCHED)
    if lost:
        parts.append(f"tensors refused or unmatched: {len(lost)}, for example {lost[0].tensor}")
    return "coverage INCOMPLETE: " + "; ".join(parts or ["nothing was found"])


def coverage_findings(coverage: Coverage) -> list[Finding]:
    """Return one warning per status that keeps the ledger from being complete."""
    findings = []
    by_status: dict[str, list[str]] = {}
    for entry in coverage.problems:
        place = f"{entry.stack} layer {entry.layer} {entry.proj}"
        detail = (
            f"{place}: {entry.found_experts} of {entry.expected_experts} experts"
            if entry.found_shape is None or entry.found_shape == entry.expected_shape
            else f"{place}: {list(entry.found_shape)}"
        )
        by_status.setdefault(str(entry.status), []).append(detail)
    for status, details in sorted(by_status.items()):
        shown = "; ".join(details[:3]) + ("; ..." if len(details) > 3 else "")
        findings.append(
            Finding(
                kind=FindingKind.COVERAGE,
                message=f"[coverage] {status}: {len(details)} (layer, projection) pairs ({shown})",
                count=len(details),
                hint="all pairs are in logs/coverage.json",
            )
        )
    return findings
