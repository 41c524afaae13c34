"""What was found, held against config.json: `logs/coverage.json`."""

from __future__ import annotations

from collections import Counter

from moe_weights.atomic_files import JsonValue
from moe_weights.extract.account import Fate
from moe_weights.extract.coverage import (
    Coverage,
    CoverageEntry,
    CoverageStatus,
    counts_its_layers,
)
from moe_weights.extract.tensor_roles import MTP_STACK
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
        if not coverage.expectation.stacks:
            return "coverage unknown: config.json declares no experts to hold the tensors against"
        if not counts_its_layers(coverage.expectation):
            return "coverage unknown: config.json does not say which layers have experts"
        return "coverage unknown: config.json does not say how many experts each layer has"
    if coverage.complete:
        return "coverage complete: every expert matrix that config.json declares will be measured"
    statuses = Counter(str(entry.status) for entry in coverage.problems)
    parts = [f"{status}: {count}" for status, count in sorted(statuses.items())]
    lost = coverage.of_fate(Fate.REFUSED, Fate.UNMATCHED)
    if lost:
        parts.append(f"tensors refused or unmatched: {len(lost)}, for example {lost[0].tensor}")
    return "coverage INCOMPLETE: " + "; ".join(parts or ["nothing was found"])


def coverage_findings(coverage: Coverage) -> list[Finding]:
    """Return one warning per status that keeps the ledger from being complete, and three more.

    Multi-token-prediction layers that config.json counts and that are not there keep nothing from
    being complete: releases leave them out, and in some families their block is dense. Where
    config.json does not say how many experts there are, layers without any are named, and the
    projections of a layer are held against each other.
    """
    findings = [*_absent_mtp_findings(coverage), *_uncounted_layer_findings(coverage)]
    by_status: dict[str, list[str]] = {}
    for entry in coverage.problems:
        place = f"{entry.stack} layer {entry.layer} {entry.proj}"
        is_odd_shape = entry.status is CoverageStatus.WRONG_SHAPE and entry.found_shape is not None
        about = f"{list(entry.found_shape or ())}" if is_odd_shape else _count_text(entry)
        by_status.setdefault(str(entry.status), []).append(f"{place}: {about}")
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


def _count_text(entry: CoverageEntry) -> str:
    expected = entry.expected_experts
    counts = (
        f"{entry.found_experts}" if expected is None else f"{entry.found_experts} of {expected}"
    )
    # Without an id too many, what is extra are further matrices of the same experts.
    is_repeated = entry.status is CoverageStatus.EXTRA and (
        expected is None or entry.found_experts <= expected
    )
    return f"{counts} experts" + (", some more than once" if is_repeated else "")


def _absent_mtp_findings(coverage: Coverage) -> list[Finding]:
    declared = max((stack.n_mtp_layers or 0 for stack in coverage.expectation.stacks), default=0)
    found = {entry.layer for entry in coverage.entries if entry.stack == MTP_STACK}
    if len(found) >= declared:
        return []
    return [
        Finding(
            kind=FindingKind.COVERAGE,
            message=f"[coverage] config.json counts multi-token-prediction layers: {declared}; "
            f"with experts here: {len(found)}",
            hint="many releases leave these layers out, and in some families they are dense; if "
            "they should be here, look for a missing shard",
        )
    ]


def _uncounted_layer_findings(coverage: Coverage) -> list[Finding]:
    layers: dict[tuple[str, int], dict[str, int]] = {}
    for entry in coverage.entries:
        if entry.expected_experts is None:
            layers.setdefault((entry.stack, entry.layer), {})[entry.proj] = entry.found_experts
    empty = [
        f"{stack} layer {layer}"
        for (stack, layer), counts in layers.items()
        if not any(counts.values())
    ]
    ragged = [
        f"{stack} layer {layer}: " + ", ".join(f"{proj} {n}" for proj, n in counts.items())
        for (stack, layer), counts in layers.items()
        if len(set(counts.values())) > 1
    ]
    return [
        Finding(
            kind=FindingKind.COVERAGE,
            message=f"[coverage] {what}: {len(places)} "
            f"({'; '.join(places[:3])}{'; ...' if len(places) > 3 else ''})",
            count=len(places),
            hint="config.json does not say how many there should be; look for a missing shard or "
            "for names that no rule takes",
        )
        for what, places in (
            ("layers that have experts by config.json, of which none is measured", empty),
            ("layers whose projections have different numbers of experts", ragged),
        )
        if places
    ]
