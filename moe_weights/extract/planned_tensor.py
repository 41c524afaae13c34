"""What was decided about one tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.errors import PackedSplitError
from moe_weights.extract.account import Account
from moe_weights.extract.outcome import Matched, Refused, UnmatchedReason
from moe_weights.extract.projections import UnresolvedProjection
from moe_weights.extract.work_unit import PlannedMatrix


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
        account: Its entry in the ledger; None when it does not look like an expert.
        is_in_scope: It passes the expert filter.
        groups: Its matrices; empty when it is not measured.
        extracted_via: "rule:<name>", "preset:<name>", "fallback" or "fallback_after_packed_split".
        layout_evidence: See `WorkUnit`.
        expert_id_unknown: A routed expert is recorded as -1.
        shape_differs: A rule reads another shape than config.json says.
        unknown_to_preset: Name of the preset in use, which has no rule for this routed expert; ""
            where it has one, or where the user has.
        other_projs: What the name of a tensor under a rule could mean besides.
        unmatched: Set when it looks like an expert and is not measured.
        refusal: Cause and hint of an unmatched tensor that deserves a warning.
        problems: Warning texts about rules and fallback.
        unresolved: Projection tokens that no alias explains.
        strict_error: A packed split that must end the run.
        matched: What the groups come from.
    """

    account: Account | None = None
    is_in_scope: bool = True
    groups: list[list[PlannedMatrix]] = field(default_factory=list)
    extracted_via: str = ""
    layout_evidence: str = ""
    expert_id_unknown: bool = False
    shape_differs: bool = False
    unknown_to_preset: str = ""
    other_projs: tuple[str, ...] = ()
    unmatched: UnmatchedTensor | None = None
    refusal: Refused | None = None
    problems: tuple[str, ...] = ()
    unresolved: tuple[UnresolvedProjection, ...] = ()
    strict_error: PackedSplitError | None = None
    matched: Matched | None = None


OUT_OF_SCOPE = PlannedTensor(is_in_scope=False)
