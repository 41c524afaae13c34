"""Everything that names, shapes and dtypes decide, before the first weight byte is read.

1. Tensors that do not look like experts, or are no floats, are left to the inventory.
2. Rules, then the fallback, plan the matrices; what neither understands is unmatched with a reason.
3. Matrices are cut into work units; equal inputs give equal plans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.schema import AnalysisConfig
from moe_weights.errors import PackedSplitError
from moe_weights.extract.plan_findings import PlanFindings
from moe_weights.extract.projections import UnresolvedProjection
from moe_weights.extract.tensor_planner import PlannedTensor, TensorPlanner, UnmatchedTensor
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit, cut_into_units
from moe_weights.findings import Finding

_SHOWN_STRICT_ERRORS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """What will be measured, what will not and why.

    Attributes:
        units: The work, in reading order.
        unmatched: Expert-looking tensors that are not measured.
        findings: Facts for the warnings table.
        unresolved_projections: Projection tokens that no alias explains.
        rule_extracted: Names of tensors that a rule matched, in scan order.
        fallback_extracted: Names of tensors that the fallback took, in scan order.
        fallback_after_packed_split: Those of them whose packed split had failed.
        in_scope: Names of tensors that pass the expert filter.
        strict_errors: Packed splits that fail although `parsing.strict_packed_split` is on.
    """

    units: tuple[WorkUnit, ...]
    unmatched: tuple[UnmatchedTensor, ...]
    findings: tuple[Finding, ...]
    unresolved_projections: tuple[UnresolvedProjection, ...]
    rule_extracted: tuple[str, ...]
    fallback_extracted: tuple[str, ...]
    fallback_after_packed_split: tuple[str, ...]
    in_scope: frozenset[str]
    strict_errors: tuple[PackedSplitError, ...]

    @property
    def matrices(self) -> list[PlannedMatrix]:
        """Every planned matrix, in reading order."""
        return [matrix for unit in self.units for matrix in unit.matrices]

    @property
    def nbytes(self) -> int:
        """Weight bytes that will be read."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def measures_nothing_but_refused(self) -> bool:
        """Nothing is planned, and something that looks like an expert was refused."""
        return not self.units and any(tensor.is_refused for tensor in self.unmatched)

    def raise_strict_errors(self) -> None:
        """End the run when the config is strict and a packed split failed.

        Raises:
            PackedSplitError: naming the first failures and their number.
        """
        if not self.strict_errors:
            return
        shown = [str(error) for error in self.strict_errors[:_SHOWN_STRICT_ERRORS]]
        if len(self.strict_errors) > len(shown):
            shown.append(f"... and {len(self.strict_errors) - len(shown)} more tensors")
        shown.append(
            "fix extract_rules[].packed_split, or set parsing.strict_packed_split to false to "
            "warn and fall back"
        )
        raise PackedSplitError("\n".join(shown))


def plan_extraction(
    headers: Iterable[TensorHeader],
    config: AnalysisConfig,
    dimensions: ExpertDimensions,
) -> ExtractionPlan:
    """Plan the whole checkpoint.

    Args:
        headers: The tensors that count, in scan order.
        config: The validated config.
        dimensions: What config.json says about shapes.
    """
    planner = TensorPlanner(config, dimensions)
    findings = PlanFindings()
    units: list[WorkUnit] = []
    unmatched: list[UnmatchedTensor] = []
    unresolved: list[UnresolvedProjection] = []
    by_rule: list[str] = []
    by_fallback: list[str] = []
    after_packed_split: list[str] = []
    in_scope: set[str] = set()
    strict_errors: list[PackedSplitError] = []
    for header in headers:
        decided = planner.plan(header)
        findings.add(header, decided)
        unresolved.extend(decided.unresolved)
        if decided.is_in_scope:
            in_scope.add(header.name)
        if decided.strict_error is not None:
            strict_errors.append(decided.strict_error)
        if decided.unmatched is not None:
            if config.scan.experts_only:
                unmatched.append(decided.unmatched)
        elif decided.groups:
            units.extend(_cut(header, decided))
            (by_rule if decided.extracted_via.startswith("rule:") else by_fallback).append(
                header.name
            )
            if decided.extracted_via == "fallback_after_packed_split":
                after_packed_split.append(header.name)
    return ExtractionPlan(
        units=tuple(sorted(units, key=lambda unit: unit.sort_key)),
        unmatched=tuple(unmatched),
        findings=findings.collect(),
        unresolved_projections=tuple(unresolved),
        rule_extracted=tuple(by_rule),
        fallback_extracted=tuple(by_fallback),
        fallback_after_packed_split=tuple(after_packed_split),
        in_scope=frozenset(in_scope),
        strict_errors=tuple(strict_errors),
    )


def _cut(header: TensorHeader, decided: PlannedTensor) -> list[WorkUnit]:
    return cut_into_units(
        header,
        decided.groups,
        encoding=decided.encoding,
        extracted_via=decided.extracted_via,
        layout_evidence=decided.layout_evidence,
    )
