"""What an extraction rule of the config, or of a preset, makes of one tensor.

1. A rule fits a tensor by the start of its name, its number of axes and its encoding.
2. Its layout says where the bank lies; a packed split cuts it into projections.
3. Otherwise the projection is the rule's own, or comes from a captured token, or from the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moe_weights.config.rules import ExtractRule, PackedSplitConfig
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.errors import ExtractionError, PackedSplitError
from moe_weights.extract.expert_bank import (
    ExpertIdentity,
    ProjectionPart,
    has_unknown_expert_id,
    plan_matrices,
)
from moe_weights.extract.layout import BankView, Layout
from moe_weights.extract.names import NameReader, found_id
from moe_weights.extract.outcome import Matched, NoMatch, Refused, UnmatchedReason
from moe_weights.extract.packed_split import equal_sizes, split_bounds
from moe_weights.extract.projections import ProjectionAliases, UnresolvedProjection


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMatch:
    """A rule that fits a tensor, its layout, and what its pattern captured."""

    rule: ExtractRule
    layout: Layout
    captured: re.Match[str]

    def text(self, group: int | None) -> str | None:
        """Return what a capture group took; None without a group or when it took no part."""
        return None if group is None else self.captured.group(group)


def names_experts(match: RuleMatch | None) -> bool:
    """The rule that takes the tensor says that it holds experts, whatever the tensor's name."""
    if match is None:
        return False
    layout = match.rule.layout
    return (
        layout.expert_axis is not None
        or layout.stacked_experts_axis is not None
        or match.rule.expert_group is not None
        or match.rule.is_shared_expert is not None
    )


class RuleFinder:
    """Finds the rules that fit a tensor."""

    def __init__(self, rules: Sequence[ExtractRule]) -> None:
        """Keep the enabled rules, in order of precedence."""
        self._rules = [
            (rule, rule.ndim, rule.encodings, rule.pattern.match, _layout_of(rule))
            for rule in rules
            if rule.enabled
        ]

    def find(self, tensor: StoredTensor) -> RuleMatch | None:
        """Return the first enabled rule that fits, or None."""
        return next(self.find_all(tensor), None) if self._rules else None

    def find_all(self, tensor: StoredTensor) -> Iterator[RuleMatch]:
        """Give every enabled rule that fits, in order."""
        name, ndim = tensor.name, len(tensor.shape)
        for rule, rule_ndim, encodings, match, layout in self._rules:
            if rule_ndim is not None and rule_ndim != ndim:
                continue
            if encodings is not None and tensor.encoding not in encodings:
                continue
            captured = match(name)
            if captured is not None:
                yield RuleMatch(rule=rule, layout=layout, captured=captured)

    def find_by_name(self, name: str) -> RuleMatch | None:
        """Return the first enabled rule whose pattern fits, whatever the tensor's form, or None."""
        for rule, _ndim, _encodings, match, layout in self._rules:
            captured = match(name)
            if captured is not None:
                return RuleMatch(rule=rule, layout=layout, captured=captured)
        return None


def _layout_of(rule: ExtractRule) -> Layout:
    return Layout(
        rows_axis=rule.layout.rows_axis,
        cols_axis=rule.layout.cols_axis,
        expert_axis=rule.layout.expert_axis,
        layer_axis=rule.layout.layer_axis,
        stacked_experts_axis=rule.layout.stacked_experts_axis,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleApplier:
    """Applies rules with the words and switches of `parsing`.

    Attributes:
        names: Reads ids out of names.
        aliases: Knows projection words.
        proj_group_strict: Drop tensors whose captured token means no known projection.
        expert_count: Experts per layer of a stack, as config.json says; None when unknown.
    """

    names: NameReader
    aliases: ProjectionAliases
    proj_group_strict: bool
    expert_count: Callable[[str], int | None]

    def apply(self, match: RuleMatch, tensor: StoredTensor) -> Matched | Refused | NoMatch:
        """Plan the matrices of `tensor` as its rule says.

        Raises:
            LayoutError: the rule's axes do not describe the tensor.
            PackedSplitError: the rule's split does not describe the fused axis.
            ExtractionError: a capture group took no part in the match.
        """
        rule = match.rule
        identity = self.identify(match, tensor)
        n_stacked = None
        if rule.layout.stacked_experts_axis is not None:
            n_stacked = rule.expert_count or self.expert_count(identity.stack)
        bank = match.layout.view(
            tensor.shape, fortran_order=tensor.header.fortran_order, n_stacked=n_stacked
        )
        other_projs: tuple[str, ...] = ()
        if rule.packed_split is not None:
            parts, unresolved = self._split(rule.name, rule.packed_split, bank, tensor)
        else:
            named = self._name_projection(match, tensor)
            if named is None:
                return NoMatch()
            if isinstance(named, Refused):
                return named
            unresolved, other_projs = named.unresolved, named.other_projs
            derived_tensor = f"{tensor.header.name}::{named.proj}"
            parts = (ProjectionPart(derived_tensor=derived_tensor, proj=named.proj, bank=bank),)
        return Matched(
            groups=plan_matrices(parts, identity),
            evidence="rule",
            expert_id_unknown=has_unknown_expert_id(bank, identity),
            unresolved=unresolved,
            other_projs=other_projs,
            identity=identity,
            words_at=tuple(
                match.captured.span(group)
                for group in (rule.proj_group, rule.stack_group)
                if group is not None
            ),
        )

    def identify(self, match: RuleMatch, tensor: StoredTensor) -> ExpertIdentity:
        """Return which layer, expert and stack the rule and the name give."""
        rule = match.rule
        return self.names.identity(
            tensor.name,
            layer=found_id(match.captured, rule.layer_group),
            expert=found_id(match.captured, rule.expert_group),
            is_shared_expert=rule.is_shared_expert,
            stack=rule.stack or match.text(rule.stack_group) or None,
        )

    def _name_projection(
        self, match: RuleMatch, tensor: StoredTensor
    ) -> _NamedProjection | Refused | None:
        rule = match.rule
        if rule.proj is not None:
            return _NamedProjection(proj=rule.proj)
        if rule.proj_group is None:
            found = self.aliases.infer_all(tensor.name)
            return _NamedProjection(proj=found[0], other_projs=found[1:]) if found else None
        token = match.captured.group(rule.proj_group)
        if token is None:
            raise ExtractionError(
                f"proj_group {rule.proj_group} of rule={rule.name} took no part in the match"
            )
        proj = rule.proj_map.get(token) or self.aliases.resolve_token(token)
        if proj is not None:
            return _NamedProjection(proj=proj)
        name = tensor.header.name
        event = UnresolvedProjection(
            context="proj_group",
            rule_name=rule.name,
            raw_proj=token,
            resolved_proj="" if self.proj_group_strict else token,
            action="dropped_strict" if self.proj_group_strict else "kept_raw",
            file=tensor.header.file,
            source_tensor=name,
            derived_tensor=name if self.proj_group_strict else f"{name}::{token}",
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
        self, rule_name: str, split: PackedSplitConfig, bank: BankView, tensor: StoredTensor
    ) -> tuple[tuple[ProjectionPart, ...], tuple[UnresolvedProjection, ...]]:
        name = tensor.header.name
        banks = _cut_bank(rule_name, split, bank, name)
        parts: list[ProjectionPart] = []
        unresolved = []
        for token, part in zip(split.projs, banks, strict=True):
            resolved = self.aliases.resolve_token(token)
            proj = token if resolved is None else resolved
            if any(other.proj == proj for other in parts):
                raise PackedSplitError(
                    f"packed_split failed for rule={rule_name} tensor={name}: projs name "
                    f"{proj} twice; give each slice its own projection"
                )
            derived_tensor = f"{name}::split[{split.axis}]::{proj}"
            parts.append(ProjectionPart(derived_tensor=derived_tensor, proj=proj, bank=part))
            if resolved is None and self.aliases.aliases:
                unresolved.append(
                    UnresolvedProjection(
                        context="packed_split",
                        rule_name=rule_name,
                        raw_proj=token,
                        resolved_proj=proj,
                        action="kept_raw",
                        file=tensor.header.file,
                        source_tensor=name,
                        derived_tensor=derived_tensor,
                    )
                )
        return tuple(parts), tuple(unresolved)


def _cut_bank(
    rule_name: str, split: PackedSplitConfig, bank: BankView, name: str
) -> list[BankView]:
    """Cut a fused bank into one bank per projection, contiguous or interleaved."""
    n_parts = len(split.projs)
    if split.splits is not None and n_parts != len(split.splits):
        raise PackedSplitError(
            f"packed_split projs and splits length mismatch for rule={rule_name} tensor={name}"
        )
    length = bank.lengths[2 if split.axis == "rows" else 3]
    try:
        sizes = equal_sizes(length, n_parts) if split.splits is None else split.splits
        bounds = split_bounds(length, sizes)
        if split.interleaved and len(set(sizes)) > 1:
            raise PackedSplitError(
                f"interleaved slices are equally long, splits {list(sizes)} are not"
            )
    except PackedSplitError as error:
        raise PackedSplitError(
            f"packed_split failed for rule={rule_name} tensor={name}: {error}"
        ) from error
    if split.interleaved:
        return [
            bank.part(split.axis, position, sizes[0], step=n_parts) for position in range(n_parts)
        ]
    return [bank.part(split.axis, start, stop - start) for start, stop in bounds]


@dataclass(frozen=True, slots=True, kw_only=True)
class _NamedProjection:
    proj: str
    unresolved: tuple[UnresolvedProjection, ...] = ()
    other_projs: tuple[str, ...] = ()
