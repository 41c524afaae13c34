"""What an extraction rule of the config makes of one tensor.

1. The first rule whose pattern matches the start of the name and whose ndim fits decides.
2. Its layout says where the bank lies; a packed split cuts it into projections.
3. Otherwise the projection comes from a captured token, else from the whole name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.rules import ExtractRule, PackedSplitConfig
from moe_weights.errors import ExtractionError, PackedSplitError
from moe_weights.extract.expert_bank import (
    ExpertIdentity,
    ProjectionPart,
    has_unknown_expert_id,
    plan_matrices,
)
from moe_weights.extract.layout import BankView, Layout
from moe_weights.extract.names import NameReader, parse_id
from moe_weights.extract.outcome import Matched, NoMatch, Refused, UnmatchedReason
from moe_weights.extract.packed_split import split_bounds
from moe_weights.extract.projections import ProjectionAliases, UnresolvedProjection


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMatch:
    """The rule that decides about a tensor, its layout, and what its pattern captured."""

    rule: ExtractRule
    layout: Layout
    captured: re.Match[str]


class RuleFinder:
    """Finds the rule that decides about a tensor."""

    def __init__(self, rules: Sequence[ExtractRule]) -> None:
        """Keep the enabled rules, in order of precedence."""
        self._rules = [
            (rule, rule.ndim, rule.pattern.match, _layout_of(rule))
            for rule in rules
            if rule.enabled
        ]

    def find(self, header: TensorHeader) -> RuleMatch | None:
        """Return the first enabled rule that fits the tensor's name and ndim, or None."""
        ndim = header.ndim
        for rule, rule_ndim, match, layout in self._rules:
            if rule_ndim is not None and rule_ndim != ndim:
                continue
            captured = match(header.name)
            if captured is not None:
                return RuleMatch(rule=rule, layout=layout, captured=captured)
        return None


def _layout_of(rule: ExtractRule) -> Layout:
    return Layout(
        rows_axis=rule.layout.rows_axis,
        cols_axis=rule.layout.cols_axis,
        expert_axis=rule.layout.expert_axis,
        layer_axis=rule.layout.layer_axis,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleApplier:
    """Applies rules with the words and switches of `parsing`.

    Attributes:
        names: Reads ids out of names.
        aliases: Knows projection words.
        proj_group_strict: Drop tensors whose captured token means no known projection.
    """

    names: NameReader
    aliases: ProjectionAliases
    proj_group_strict: bool

    def apply(self, match: RuleMatch, header: TensorHeader) -> Matched | Refused | NoMatch:
        """Plan the matrices of `header` as its rule says.

        Raises:
            LayoutError: the rule's axes do not describe the tensor.
            PackedSplitError: the rule's split does not describe the fused axis.
            ExtractionError: a capture group took no part in the match.
        """
        rule = match.rule
        captured_id = None
        if rule.expert_group is not None:
            captured_id = parse_id(match.captured.group(rule.expert_group))
        identity = ExpertIdentity.from_name(header.name, self.names, captured_id=captured_id)
        other_projs: tuple[str, ...] = ()
        bank = match.layout.view(header.shape, fortran_order=header.fortran_order)
        if rule.packed_split is not None:
            parts, unresolved = self._split(rule.name, rule.packed_split, bank, header)
        else:
            named = self._name_projection(match, header)
            if named is None:
                return NoMatch()
            if isinstance(named, Refused):
                return named
            unresolved, other_projs = named.unresolved, named.other_projs
            parts = (
                ProjectionPart(
                    derived_tensor=f"{header.name}::{named.proj}", proj=named.proj, bank=bank
                ),
            )
        return Matched(
            groups=plan_matrices(parts, identity),
            evidence="rule",
            expert_id_unknown=has_unknown_expert_id(bank, identity),
            unresolved=unresolved,
            other_projs=other_projs,
        )

    def _name_projection(
        self, match: RuleMatch, header: TensorHeader
    ) -> _NamedProjection | Refused | None:
        rule = match.rule
        if rule.proj_group is None:
            found = self.aliases.infer_all(header.name)
            return _NamedProjection(proj=found[0], other_projs=found[1:]) if found else None
        token = match.captured.group(rule.proj_group)
        if token is None:
            raise ExtractionError(
                f"proj_group {rule.proj_group} of rule={rule.name} took no part in the match"
            )
        proj = self.aliases.resolve_token(token)
        if proj is not None:
            return _NamedProjection(proj=proj)
        event = UnresolvedProjection(
            context="proj_group",
            rule_name=rule.name,
            raw_proj=token,
            resolved_proj="" if self.proj_group_strict else token,
            action="dropped_strict" if self.proj_group_strict else "kept_raw",
            file=header.file,
            source_tensor=header.name,
            derived_tensor=header.name if self.proj_group_strict else f"{header.name}::{token}",
        )
        if not self.proj_group_strict:
            # Without any alias there is nothing a token could have been resolved to.
            unresolved = (event,) if self.aliases.aliases else ()
            return _NamedProjection(proj=token, unresolved=unresolved)
        reason = (
            UnmatchedReason.STRICT_UNMAPPED
            if self.aliases.aliases
            else UnmatchedReason.STRICT_NO_ALIAS_MAP
        )
        return Refused(reason=reason, unresolved=(event,))

    def _split(
        self, rule_name: str, split: PackedSplitConfig, bank: BankView, header: TensorHeader
    ) -> tuple[tuple[ProjectionPart, ...], tuple[UnresolvedProjection, ...]]:
        if len(split.projs) != len(split.splits):
            raise PackedSplitError(
                "packed_split projs and splits length mismatch for "
                f"rule={rule_name} tensor={header.name}"
            )
        length = bank.lengths[2 if split.axis == "rows" else 3]
        try:
            bounds = split_bounds(length, split.splits)
        except PackedSplitError as error:
            raise PackedSplitError(
                f"packed_split failed for rule={rule_name} tensor={header.name}: {error}"
            ) from error
        parts: list[ProjectionPart] = []
        unresolved = []
        for token, (start, stop) in zip(split.projs, bounds, strict=True):
            resolved = self.aliases.resolve_token(token)
            proj = token if resolved is None else resolved
            if any(part.proj == proj for part in parts):
                raise PackedSplitError(
                    f"packed_split failed for rule={rule_name} tensor={header.name}: projs name "
                    f"{proj} twice; give each slice its own projection"
                )
            derived_tensor = f"{header.name}::split[{split.axis}]::{proj}"
            parts.append(
                ProjectionPart(
                    derived_tensor=derived_tensor,
                    proj=proj,
                    bank=bank.part(split.axis, start, stop),
                )
            )
            if resolved is None and self.aliases.aliases:
                unresolved.append(
                    UnresolvedProjection(
                        context="packed_split",
                        rule_name=rule_name,
                        raw_proj=token,
                        resolved_proj=proj,
                        action="kept_raw",
                        file=header.file,
                        source_tensor=header.name,
                        derived_tensor=derived_tensor,
                    )
                )
        return tuple(parts), tuple(unresolved)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedProjection:
    proj: str
    unresolved: tuple[UnresolvedProjection, ...] = ()
    other_projs: tuple[str, ...] = ()
