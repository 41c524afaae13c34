"""Everything that names, shapes and dtypes decide, before the first weight byte is read.

1. Rules, preset and fallback plan the matrices; what none understands is unmatched with a reason.
2. Matrices are cut into work units; every expert-looking tensor gets one entry in the ledger, also
   those of copies that were set apart.
3. What was found is held against config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moe_weights.checkpoint.expert_expectation import ModelExpectation
from moe_weights.checkpoint.name_ids import templates_of
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.preset import Preset
from moe_weights.config.schema import AnalysisConfig
from moe_weights.decode.stored_tensor import EncodingRefusal, Resolution, StoredTensor
from moe_weights.errors import PackedSplitError
from moe_weights.extract.account import Account, Fate
from moe_weights.extract.copies import copies_finding
from moe_weights.extract.coverage import Coverage, cover
from moe_weights.extract.plan_findings import PlanFindings, unknown_layer_findings
from moe_weights.extract.planned_tensor import PlannedTensor, UnmatchedTensor
from moe_weights.extract.precedents import Precedents, taken_by
from moe_weights.extract.projections import UnresolvedProjection
from moe_weights.extract.tensor_planner import TensorPlanner
from moe_weights.extract.work_unit import PLACE_ON_DISK, PlannedMatrix, WorkUnit, cut_into_units
from moe_weights.findings import Finding

_SHOWN_STRICT_ERRORS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionPlan:
    """What will be measured, what will not and why.

    Attributes:
        units: The work, in reading order.
        unmatched: Expert-looking tensors that are not measured, in scan order.
        findings: Facts for the warnings table.
        unresolved_projections: Projection tokens that no alias explains.
        rule_extracted: Names of tensors that a rule of the config matched, in scan order.
        preset_extracted: Names of tensors that the preset took, in scan order.
        fallback_extracted: Names of tensors that the fallback took, in scan order.
        fallback_after_packed_split: Those of them whose packed split had failed.
        accounts: The fate of every tensor that looks like an expert.
        coverage: What was found, held against config.json.
        in_scope: Names of the stored tensors that pass the expert filter, companions included.
        companions: Stored tensors that another one explains, to that one's name.
        strict_errors: Packed splits that fail although `parsing.strict_packed_split` is on.
    """

    units: tuple[WorkUnit, ...]
    unmatched: tuple[UnmatchedTensor, ...]
    findings: tuple[Finding, ...]
    unresolved_projections: tuple[UnresolvedProjection, ...]
    rule_extracted: tuple[str, ...]
    preset_extracted: tuple[str, ...]
    fallback_extracted: tuple[str, ...]
    fallback_after_packed_split: tuple[str, ...]
    accounts: tuple[Account, ...]
    coverage: Coverage
    in_scope: frozenset[str]
    companions: dict[str, str]
    strict_errors: tuple[PackedSplitError, ...]

    @property
    def matrices(self) -> list[PlannedMatrix]:
        """Every planned matrix, in reading order."""
        return [matrix for unit in self.units for matrix in unit.matrices]

    @property
    def has_several_stacks(self) -> bool:
        """The planned matrices belong to more than one stack of layers."""
        return len({matrix.stack for unit in self.units for matrix in unit.matrices}) > 1

    @property
    def nbytes(self) -> int:
        """Stored bytes that will be read."""
        return sum(unit.nbytes for unit in self.units)

    @property
    def measures_nothing_but_refused(self) -> bool:
        """Nothing is planned, and something that looks like an expert was refused."""
        return not self.units and any(item.fate is Fate.REFUSED for item in self.accounts)

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
    resolution: Resolution,
    config: AnalysisConfig,
    expectation: ModelExpectation,
    *,
    scanned: Sequence[TensorHeader],
    preset: Preset | None = None,
    copies: Sequence[TensorHeader] = (),
) -> ExtractionPlan:
    """Plan the whole checkpoint.

    Args:
        resolution: The tensors that count, codes and companions joined.
        config: The validated config.
        expectation: What config.json says about experts.
        scanned: The stored tensors that `resolution` was made of, in scan order.
        preset: Rules for the architecture, or None.
        copies: Tensors of second copies of the model, which are only accounted for.
    """
    planner = TensorPlanner(config, expectation, preset)
    findings = PlanFindings()
    units: list[WorkUnit] = []
    unmatched: list[UnmatchedTensor] = []
    unresolved: list[UnresolvedProjection] = []
    accounts: list[Account] = []
    in_scope: set[str] = set()
    not_experts: set[str] = set()
    taken: dict[str, list[str]] = {"rule": [], "preset": [], "fallback": []}
    after_packed_split: list[str] = []
    strict_errors: list[PackedSplitError] = []
    precedents = Precedents(config, expectation, preset)
    for source, template in _in_scan_order(resolution, scanned):
        precedent = precedents.by_template.get(template)
        if precedent is not None and isinstance(source, StoredTensor):
            covered = precedent.apply(source)
            if covered is not None:
                unit, account = covered
                units.append(unit)
                accounts.append(account)
                taken[precedent.taken_by].append(account.tensor)
                if precedent.is_noteworthy:
                    findings.add(source.header, precedent.decided)
                continue
        header = _header_of(source)
        decided = _decide(source, planner)
        findings.add(header, decided)
        unresolved.extend(decided.unresolved)
        if decided.is_in_scope:
            in_scope.add(header.name)
        if decided.account is not None:
            accounts.append(decided.account)
        elif decided.groups:
            not_experts.add(header.name)
        if decided.strict_error is not None:
            strict_errors.append(decided.strict_error)
        if decided.unmatched is not None:
            if config.scan.experts_only:
                unmatched.append(decided.unmatched)
        elif decided.groups and isinstance(source, StoredTensor):
            via = decided.extracted_via
            units.extend(
                cut_into_units(
                    source,
                    decided.groups,
                    extracted_via=via,
                    layout_evidence=decided.layout_evidence,
                )
            )
            taken[taken_by(via)].append(header.name)
            if via == "fallback_after_packed_split":
                after_packed_split.append(header.name)
            precedents.set(template, source, decided)
    for copy in copies:
        of_copy = planner.account_copy(copy)
        if of_copy is not None:
            accounts.append(of_copy)
            in_scope.add(copy.name)
    in_scope.update(*taken.values())
    in_scope.update(part for part, owner in resolution.companions.items() if owner in in_scope)
    ordered = tuple(sorted(units, key=PLACE_ON_DISK))
    of_experts: Sequence[WorkUnit] = ordered
    if not_experts:
        of_experts = [unit for unit in ordered if unit.source.header.name not in not_experts]
    projections = preset.projections if preset is not None else frozenset()
    coverage = cover(of_experts, accounts, expectation, projections)
    has_unknown_layers = any(entry.layer < 0 for entry in coverage.entries)
    return ExtractionPlan(
        units=ordered,
        unmatched=tuple(unmatched),
        findings=(
            *([copies_finding(copies)] if copies else ()),
            *findings.collect(),
            *(unknown_layer_findings(of_experts) if has_unknown_layers else ()),
        ),
        unresolved_projections=tuple(unresolved),
        rule_extracted=tuple(taken["rule"]),
        preset_extracted=tuple(taken["preset"]),
        fallback_extracted=tuple(taken["fallback"]),
        fallback_after_packed_split=tuple(after_packed_split),
        accounts=tuple(accounts),
        coverage=coverage,
        in_scope=frozenset(in_scope),
        companions=resolution.companions,
        strict_errors=tuple(strict_errors),
    )


_Source = StoredTensor | EncodingRefusal | TensorHeader


def _decide(source: _Source, planner: TensorPlanner) -> PlannedTensor:
    if isinstance(source, StoredTensor):
        return planner.plan(source)
    if isinstance(source, EncodingRefusal):
        return planner.plan_refused(source)
    return planner.plan_other(source)


def _in_scan_order(
    resolution: Resolution, scanned: Sequence[TensorHeader]
) -> Iterator[tuple[_Source, str]]:
    """Give every tensor and the name of its codes without ids, by place on disk."""
    templates = resolution.templates or templates_of(header.name for header in scanned)
    if len(resolution.tensors) == len(scanned):
        yield from zip(resolution.tensors, templates, strict=True)
        return
    rows: list[Iterator[_Source]] = [
        iter(resolution.tensors),
        iter(resolution.refusals),
        iter(resolution.others),
    ]
    heads = [next(row, None) for row in rows]
    for header, template in zip(scanned, templates, strict=True):
        for row, head in enumerate(heads):
            if head is not None and _header_of(head) == header:
                yield head, template
                heads[row] = next(rows[row], None)
                break


def _header_of(source: _Source) -> TensorHeader:
    return source if isinstance(source, TensorHeader) else source.header
