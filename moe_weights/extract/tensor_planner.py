"""The decision about one tensor: measured how, or left out why."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe_weights.checkpoint.dtype_codes import dtype_bits, is_float_like
from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.schema import AnalysisConfig
from moe_weights.decode.encoding import encoding_for
from moe_weights.errors import ExtractionError, PackedSplitError
from moe_weights.extract.fallback import Fallback
from moe_weights.extract.names import NameReader, is_side_tensor
from moe_weights.extract.outcome import Matched, NoMatch, Refused, UnmatchedReason
from moe_weights.extract.projections import ProjectionAliases, UnresolvedProjection
from moe_weights.extract.rules import RuleApplier, RuleFinder, RuleMatch
from moe_weights.extract.shape_check import ShapeVerdict, judge_shape
from moe_weights.extract.work_unit import PlannedMatrix

VOID16 = "|V2"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmatchedTensor:
    """An expert-looking tensor that is not measured.

    Attributes:
        header: The tensor.
        reason: Why.
        is_refused: It may well be an expert matrix, but not one that is understood for certain.
    """

    header: TensorHeader
    reason: UnmatchedReason
    is_refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTensor:
    """What is decided about one tensor.

    Attributes:
        is_in_scope: It passes the expert filter.
        groups: Its matrices; empty when it is not measured.
        encoding: Name of the `decode` member.
        extracted_via: "rule:<name>", "fallback" or "fallback_after_packed_split".
        layout_evidence: See `WorkUnit`.
        expert_id_unknown: A routed expert is recorded as -1.
        shape_differs: A rule reads another shape than config.json says.
        other_projs: What the name of a tensor under a rule could mean besides.
        unmatched: Set when it looks like an expert and is not measured.
        refusal: Cause and hint of an unmatched tensor that deserves a warning.
        problems: Warning texts about rules and fallback.
        unresolved: Projection tokens that no alias explains.
        strict_error: A packed split that must end the run.
    """

    is_in_scope: bool = True
    groups: list[list[PlannedMatrix]] = field(default_factory=list)
    encoding: str = ""
    extracted_via: str = ""
    layout_evidence: str = ""
    expert_id_unknown: bool = False
    shape_differs: bool = False
    other_projs: tuple[str, ...] = ()
    unmatched: UnmatchedTensor | None = None
    refusal: Refused | None = None
    problems: tuple[str, ...] = ()
    unresolved: tuple[UnresolvedProjection, ...] = ()
    strict_error: PackedSplitError | None = None


class TensorPlanner:
    """Decides tensor by tensor, with everything the config says made ready once."""

    def __init__(self, config: AnalysisConfig, dimensions: ExpertDimensions) -> None:
        """Prepare the rules, the words and the fallback."""
        self._scan = config.scan
        self._strict_packed_split = config.parsing.strict_packed_split
        self._rules = RuleFinder(config.extract_rules)
        self._dimensions = dimensions
        self._names = NameReader(config.parsing)
        aliases = ProjectionAliases(config.parsing.proj_aliases)
        self._applier = RuleApplier(
            names=self._names,
            aliases=aliases,
            proj_group_strict=config.parsing.proj_group_strict,
        )
        self._fallback = Fallback(names=self._names, aliases=aliases, dimensions=dimensions)

    def plan(self, header: TensorHeader) -> PlannedTensor:
        """Decide about one tensor."""
        match = self._rules.find(header)
        if self._scan.experts_only and not self._is_wanted_expert(header, match):
            return PlannedTensor(is_in_scope=False)
        refused = _refuse_by_dtype_or_size(header)
        if refused is not None:
            return _refusal(header, refused)
        encoding = encoding_for(header.dtype_code)
        if encoding is None:  # integers: inventoried only
            return PlannedTensor()
        return self._plan_floats(header, match, encoding)

    def _is_wanted_expert(self, header: TensorHeader, match: RuleMatch | None) -> bool:
        if not self._names.looks_like_expert(header.name) and not _names_experts(match):
            return False
        return self._scan.include_shared_expert or not self._names.is_shared_expert(header.name)

    def _plan_floats(
        self, header: TensorHeader, match: RuleMatch | None, encoding: str
    ) -> PlannedTensor:
        problems: list[str] = []
        outcome: Matched | Refused | NoMatch = NoMatch()
        via = ""
        after_packed_split = False
        if match is not None:
            via = f"rule:{match.rule.name}"
            try:
                outcome = self._applier.apply(match, header)
            except PackedSplitError as error:
                if self._strict_packed_split:
                    return PlannedTensor(
                        strict_error=error,
                        unmatched=UnmatchedTensor(
                            header=header, reason=UnmatchedReason.PACKED_SPLIT_FAILED
                        ),
                    )
                problems.append(f"[extract] {error}")
                after_packed_split = True
            except ExtractionError as error:
                problems.append(f"[extract] rule application failed for {header.name}: {error}")
        if isinstance(outcome, NoMatch):
            via = "fallback_after_packed_split" if after_packed_split else "fallback"
            try:
                outcome = self._fallback.apply(header)
            except ExtractionError as error:
                problems.append(f"[extract] fallback failed for {header.name}: {error}")
        if isinstance(outcome, Matched):
            return PlannedTensor(
                groups=outcome.groups,
                encoding=encoding,
                extracted_via=via,
                layout_evidence=outcome.evidence,
                expert_id_unknown=outcome.expert_id_unknown,
                shape_differs=outcome.evidence == "rule" and self._shape_differs(outcome.groups),
                other_projs=outcome.other_projs,
                problems=tuple(problems),
                unresolved=outcome.unresolved,
            )
        refused = (
            outcome
            if isinstance(outcome, Refused)
            else Refused(reason=UnmatchedReason.NO_RULE_MATCH)
        )
        return _refusal(header, refused, problems=tuple(problems))

    def _shape_differs(self, groups: list[list[PlannedMatrix]]) -> bool:
        for matrix in groups[0]:  # all groups have the same shapes
            if matrix.is_shared_expert:
                continue
            view = matrix.view
            verdict = judge_shape(matrix.proj, view.rows, view.cols, self._dimensions)
            if verdict is ShapeVerdict.TRANSPOSED or verdict is ShapeVerdict.CONTRADICTED:
                return True
        return False


def _names_experts(match: RuleMatch | None) -> bool:
    """The rule that takes the tensor says that it holds experts, whatever the tensor's name."""
    return match is not None and (
        match.rule.layout.expert_axis is not None or match.rule.expert_group is not None
    )


def _refuse_by_dtype_or_size(header: TensorHeader) -> Refused | None:
    code = header.dtype_code
    if encoding_for(code) is None:
        return _refuse_by_dtype(header)
    if 0 in header.shape:
        return Refused(
            reason=UnmatchedReason.ZERO_SIZE, cause=f"shape {list(header.shape)} has no elements"
        )
    if not header.shape and not is_side_tensor(header.name):
        return Refused(reason=UnmatchedReason.UNSUPPORTED_NDIM, cause="a scalar has no axes")
    return None


def _refuse_by_dtype(header: TensorHeader) -> Refused | None:
    code = header.dtype_code
    if code != VOID16 and dtype_bits(code) is not None and not is_float_like(code):
        return None
    if is_side_tensor(header.name):
        return Refused(reason=UnmatchedReason.SIDE_TENSOR)
    hint = ""
    if code == VOID16:
        hint = 'if it holds bfloat16, set parsing.npz_void16 to "bfloat16"'
    return Refused(
        reason=UnmatchedReason.UNKNOWN_DTYPE, cause=f"dtype {code} is not decoded", hint=hint
    )


def _refusal(
    header: TensorHeader,
    refused: Refused,
    problems: tuple[str, ...] = (),
) -> PlannedTensor:
    could_be_weights = refused.reason is UnmatchedReason.AMBIGUOUS_LAYOUT or (
        # A dtype nobody knows is reported; one that is known but not decoded hides real weights.
        refused.reason is UnmatchedReason.UNKNOWN_DTYPE
        and (header.dtype_code == VOID16 or dtype_bits(header.dtype_code) is not None)
    )
    return PlannedTensor(
        unmatched=UnmatchedTensor(
            header=header, reason=refused.reason, is_refused=could_be_weights
        ),
        refusal=refused if refused.cause else None,
        problems=problems,
        unresolved=refused.unresolved,
    )
