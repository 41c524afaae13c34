"""Facts about a plan that are worth a warning, gathered so that a thousand layers make one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from moe_weights.checkpoint.name_ids import without_ids
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.extract.outcome import Refused, UnmatchedReason
from moe_weights.extract.planned_tensor import PlannedTensor
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.findings import Finding, FindingKind, name_some

_LISTED_ONE_BY_ONE = 20
_SHAPE_OR_NUMBER = re.compile(r"\[[^\]]*\]|[0-9]+")


class PlanFindings:
    """Collects what the planner notices, tensor by tensor."""

    def __init__(self) -> None:
        """Start empty."""
        self._problems: dict[str, list[tuple[str, TensorHeader]]] = {}
        self._refusals: dict[tuple[str, str, str], tuple[Refused, list[TensorHeader]]] = {}
        self._unknown_ids: list[TensorHeader] = []
        self._by_convention: list[TensorHeader] = []
        self._other_shape: list[TensorHeader] = []
        self._unknown_to_preset: dict[tuple[str, str], list[TensorHeader]] = {}
        self._first_of: dict[tuple[str, ...], list[TensorHeader]] = {}

    def add(self, header: TensorHeader, decided: PlannedTensor) -> None:
        """Take note of one tensor's decision."""
        for text in decided.problems:
            self._problems.setdefault(_without_numbers(text), []).append((text, header))
        refused = decided.refusal
        if refused is not None:
            # Some causes name the tensor and what belongs to it.
            kind = str(refused.reason), refused.hint, without_ids(refused.cause)
            self._refusals.setdefault(kind, (refused, []))[1].append(header)
        if decided.expert_id_unknown:
            self._unknown_ids.append(header)
        if decided.layout_evidence == "convention" and header.ndim > 2:
            self._by_convention.append(header)
        if decided.shape_differs:
            self._other_shape.append(header)
        if decided.unknown_to_preset:
            key = decided.unknown_to_preset, decided.extracted_via
            self._unknown_to_preset.setdefault(key, []).append(header)
        if decided.other_projs:
            projs = (decided.groups[0][0].proj, *decided.other_projs)
            self._first_of.setdefault(projs, []).append(header)

    def collect(self) -> tuple[Finding, ...]:
        """Return the findings, in a fixed order."""
        findings = self._problem_findings()
        findings.extend(self._unknown_id_findings())
        findings.extend(
            _grouped(_refusal_text(refused), headers, refused.hint, _refusal_kind(refused))
            for refused, headers in self._refusals.values()
        )
        if self._by_convention:
            findings.append(
                _grouped(
                    "layout taken by convention (experts, rows, cols), nothing confirms it",
                    self._by_convention,
                    "add a rule with this layout to extract_rules to say that it is right",
                )
            )
        if self._other_shape:
            findings.append(
                _grouped(
                    "a rule reads another shape than config.json says",
                    self._other_shape,
                    "check rows_axis and cols_axis of the rule",
                )
            )
        findings.extend(
            _grouped(
                f"preset {preset} has no rule for the name, it was read by {via}",
                headers,
                "check the name; a rule of your own for it in extract_rules says that it is right",
            )
            for (preset, via), headers in self._unknown_to_preset.items()
        )
        findings.extend(
            _grouped(
                f"the name means {' and '.join(projs)}; a rule takes it as {projs[0]}, the first "
                "in parsing.proj_aliases",
                headers,
                "give the rule a proj_group, or shorten parsing.proj_aliases",
            )
            for projs, headers in self._first_of.items()
        )
        return tuple(findings)

    def _problem_findings(self) -> list[Finding]:
        findings: list[Finding] = []
        for problems in self._problems.values():
            findings += [
                Finding(
                    kind=FindingKind.EXTRACT, message=text, file=header.file, tensor=header.name
                )
                for text, header in problems[:_LISTED_ONE_BY_ONE]
            ]
            rest = [header for _text, header in problems[_LISTED_ONE_BY_ONE:]]
            if rest:
                what = problems[0][0].removeprefix("[extract] ").partition(" for ")[0]
                findings.append(_grouped(f"{what} for further tensors", rest, ""))
        return findings

    def _unknown_id_findings(self) -> list[Finding]:
        shown = self._unknown_ids[:_LISTED_ONE_BY_ONE]
        hint = "mend parsing.expert_regex or give the rule an expert_group"
        findings = [
            Finding(
                kind=FindingKind.EXTRACT,
                message=f"[extract] expert id unknown for {header.name}",
                file=header.file,
                tensor=header.name,
                hint=hint,
            )
            for header in shown
        ]
        rest = self._unknown_ids[_LISTED_ONE_BY_ONE:]
        if rest:
            findings.append(_grouped("expert id unknown for further tensors", rest, hint))
        return findings


def unknown_layer_findings(units: Iterable[WorkUnit]) -> tuple[Finding, ...]:
    """Return the warning about tensors whose unknown layers may be several, if there are any.

    Args:
        units: Of experts.
    """
    headers_of: dict[tuple[str, str, int], dict[str, TensorHeader]] = {}
    for unit in units:
        for matrix in unit.matrices:
            # Shared experts and those of unknown id are -1 alike, also within one layer.
            if matrix.layer < 0 <= matrix.expert_id:
                key = matrix.stack, matrix.proj, matrix.expert_id
                header = unit.source.header
                headers_of.setdefault(key, {})[header.name] = header
    merged = {
        name: header
        for headers in headers_of.values()
        if len(headers) > 1
        for name, header in headers.items()
    }
    if not merged:
        return ()
    finding = _grouped(
        "layer unknown, several tensors have the same expert of layer -1",
        [merged[name] for name in sorted(merged)],
        "mend parsing.layer_regex or give the rule a layer_group",
    )
    return (finding,)


def is_noteworthy(header: TensorHeader, decided: PlannedTensor) -> bool:
    """A decision leads to a finding."""
    findings = PlanFindings()
    findings.add(header, decided)
    return bool(findings.collect())


def _without_numbers(text: str) -> str:
    """Return what texts about tensors of one shape have in common, whatever their ids."""
    return _SHAPE_OR_NUMBER.sub(lambda found: found[0] if found[0][0] == "[" else "0", text)


def _refusal_kind(refused: Refused) -> FindingKind:
    ambiguous = refused.reason is UnmatchedReason.AMBIGUOUS_LAYOUT
    return FindingKind.EXTRACT if ambiguous else FindingKind.READ


def _refusal_text(refused: Refused) -> str:
    return f"refused ({refused.reason}): {refused.cause}"


def _grouped(
    text: str, headers: list[TensorHeader], hint: str, kind: FindingKind = FindingKind.EXTRACT
) -> Finding:
    names = [header.name for header in headers]
    return Finding(
        kind=kind,
        message=f"[{kind}] {text}: {name_some(names, 'tensor')}",
        file=headers[0].file,
        tensor=names[0],
        count=len(names),
        hint=hint,
    )
