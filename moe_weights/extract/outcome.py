"""What a rule or the fallback can say about one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from moe_weights.extract.expert_bank import ExpertIdentity
from moe_weights.extract.projections import UnresolvedProjection
from moe_weights.extract.work_unit import PlannedMatrix


class UnmatchedReason(StrEnum):
    """Why an expert-looking tensor is not measured; the closed list of the column `reason`."""

    NO_RULE_MATCH = "no_rule_match_or_proj_infer"
    STRICT_UNMAPPED = "proj_group_strict_unmapped"
    STRICT_NO_ALIAS_MAP = "proj_group_strict_no_alias_map"
    EXTRACTION_FAILED = "extraction_failed"
    PACKED_SPLIT_FAILED = "packed_split_failed"
    UNKNOWN_DTYPE = "unknown_dtype"
    ZERO_SIZE = "zero_size"
    UNSUPPORTED_NDIM = "unsupported_ndim"
    SIDE_TENSOR = "side_tensor"
    AMBIGUOUS_LAYOUT = "ambiguous_layout"
    MISSING_COMPANION = "missing_companion"
    BAD_COMPANION = "bad_companion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The tensor is understood.

    Attributes:
        groups: Its matrices, grouped by what shares bytes.
        evidence: Why the axes mean what the plan says.
        expert_id_unknown: The routed expert's id could not be told; it is recorded as -1.
        unresolved: Projection tokens kept as they are.
        other_projs: What the name could mean besides; the first in `parsing.proj_aliases` won.
        identity: What the name says about layer and expert; None when several rules were heard.
        words_at: Where in the name a rule captured the words for projection and stack.
    """

    groups: list[list[PlannedMatrix]]
    evidence: str
    expert_id_unknown: bool = False
    unresolved: tuple[UnresolvedProjection, ...] = ()
    other_projs: tuple[str, ...] = ()
    identity: ExpertIdentity | None = None
    words_at: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The tensor is deliberately not measured.

    Attributes:
        reason: For the unmatched table.
        cause: What is not understood, for a warning; "" when the reason says it all.
        hint: How to settle it.
        unresolved: The strict drop, when that is the reason.
    """

    reason: UnmatchedReason
    cause: str = ""
    hint: str = ""
    unresolved: tuple[UnresolvedProjection, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoMatch:
    """Nothing fits; the next way may be tried."""


def two_projections(found: Sequence[str]) -> Refused:
    """Return the refusal of a name that names more than one projection."""
    return Refused(
        reason=UnmatchedReason.AMBIGUOUS_LAYOUT,
        cause=f"the name means {' and '.join(found)}",
        hint="write a rule with proj_group for it, or shorten parsing.proj_aliases",
    )
