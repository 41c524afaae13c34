"""The decision about one tensor: measured how, or left out why.

Who decides, first to last: the user's rules, the preset's, the template's, the fallback.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from moe_weights.checkpoint.expert_expectation import ModelExpectation
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.config.preset import Preset
from moe_weights.config.schema import AnalysisConfig
from moe_weights.config.template import is_template_rule
from moe_weights.decode.stored_tensor import EncodingRefusal, StoredTensor
from moe_weights.errors import ExtractionError, PackedSplitError
from moe_weights.extract.account import COPY, Account, Fate
from moe_weights.extract.fallback import Fallback
from moe_weights.extract.look_alikes import IDENTITY_EXPERT, LookAlikeFinder
from moe_weights.extract.names import NameReader
from moe_weights.extract.outcome import Matched, NoMatch, Refused, UnmatchedReason
from moe_weights.extract.planned_tensor import OUT_OF_SCOPE, PlannedTensor, UnmatchedTensor
from moe_weights.extract.preset_reading import PresetReader
from moe_weights.extract.projections import ProjectionAliases
from moe_weights.extract.refusals import (
    may_hide_weights,
    refuse_by_dtype,
    refuse_by_encoding,
    refuse_by_size,
)
from moe_weights.extract.rules import RuleApplier, RuleFinder, RuleMatch, names_experts
from moe_weights.extract.shape_check import ShapeVerdict, judge_shape
from moe_weights.extract.tensor_accounts import TensorAccounts
from moe_weights.extract.tensor_roles import TensorRole
from moe_weights.extract.work_unit import PlannedMatrix


class TensorPlanner:
    """Decides tensor by tensor, with everything the config says made ready once."""

    def __init__(
        self, config: AnalysisConfig, expectation: ModelExpectation, preset: Preset | None
    ) -> None:
        """Prepare the rules, the words and the fallback."""
        self._scan = config.scan
        self._strict_packed_split = config.parsing.strict_packed_split
        # Both are asked for each tensor, and there are a few stacks.
        self._declared = cache(expectation.of)
        self._dimensions = cache(expectation.dimensions)
        users = [rule for rule in config.extract_rules if not is_template_rule(rule)]
        generic = [rule for rule in config.extract_rules if is_template_rule(rule)]
        self._user_rules = RuleFinder(users)
        self._template_rules = RuleFinder(generic)
        main = expectation.stacks[0] if expectation.stacks else None
        self._names = NameReader(config.parsing, main.n_layers if main else None)
        self._aliases = ProjectionAliases(config.parsing.proj_aliases)
        self._applier = RuleApplier(
            names=self._names,
            aliases=self._aliases,
            proj_group_strict=config.parsing.proj_group_strict,
            expert_count=lambda stack: self._dimensions(stack).n_experts,
        )
        self._preset = PresetReader(preset, self._applier, self._dimensions) if preset else None
        self._lookalikes = LookAlikeFinder(
            (*config.parsing.lookalikes, *(preset.lookalikes if preset else ()))
        )
        self._fallback = Fallback(
            names=self._names, aliases=self._aliases, dimensions=self._dimensions
        )
        finders = [
            source.find_by_name
            for source in (self._user_rules, self._preset, self._template_rules)
            if source is not None
        ]
        self._accounts = TensorAccounts(self._names, self._aliases, self._applier, finders)

    def plan(self, tensor: StoredTensor) -> PlannedTensor:
        """Decide about one tensor with float values."""
        user = self._user_rules.find(tensor)
        declared = "" if user else self._lookalikes.declared_kind(tensor.name)
        by_preset: tuple[RuleMatch, ...] = ()
        if self._preset and not user and not declared:
            by_preset = self._preset.matches(tensor)
        generic = None if user or by_preset else self._template_rules.find(tensor)
        named_by_rule = bool(by_preset) or names_experts(user) or names_experts(generic)
        looks = self._names.looks_like_expert(tensor.name)
        owner = None
        if not (looks or named_by_rule or declared):
            owner = self._accounts.owner_match(tensor.name)
            looks = owner is not None
        if not (looks or named_by_rule or declared):
            if self._scan.experts_only:
                return OUT_OF_SCOPE
            # Measured where it can be, but the ledger is about experts.
            refused = refuse_by_size(tensor)
            decided = (
                self._refuse(tensor, refused)
                if refused is not None
                else self._apply_rules(tensor, user or generic)
            )
            return replace(decided, account=None)
        kind = declared
        if not kind and not user and not by_preset and looks:
            kind = self._general_kind(tensor)
        if kind:
            return PlannedTensor(account=self._accounts.entry(tensor, Fate.LOOKALIKE, kind))
        if self._is_excluded(tensor, user or owner):
            return self._exclude(tensor)
        refused = refuse_by_size(tensor)
        if refused is not None:
            return self._refuse(tensor, refused)
        if by_preset and self._preset:
            taken = self._apply_preset(tensor, self._preset, by_preset)
            if taken is not None:
                return taken
            generic = self._template_rules.find(tensor)
        decided = self._apply_rules(tensor, user or generic)
        is_routed = bool(decided.groups) and decided.groups[0][0].is_routed_expert
        if self._preset and not user and is_routed:
            return replace(decided, unknown_to_preset=self._preset.name)
        return decided

    def plan_refused(self, refusal: EncodingRefusal) -> PlannedTensor:
        """Decide about an encoded tensor that cannot be decoded."""
        tensor = StoredTensor(
            name=refusal.name,
            encoding="",
            header=refusal.header,
            shape=refusal.header.shape,
            companions=tuple(("", companion) for companion in refusal.companions),
        )
        return self._plan_unreadable(tensor, refuse_by_encoding(refusal))

    def plan_other(self, header: TensorHeader) -> PlannedTensor:
        """Decide about a stored tensor that no encoding claims: integers and unknown dtypes."""
        tensor = StoredTensor(name=header.name, encoding="", header=header, shape=header.shape)
        return self._plan_unreadable(tensor, refuse_by_dtype(header))

    def account_copy(self, header: TensorHeader) -> Account | None:
        """Return the entry of a tensor that lies in a second copy of the model."""
        tensor = StoredTensor(name=header.name, encoding="", header=header, shape=header.shape)
        if not (
            self._names.looks_like_expert(header.name)
            or self._is_named_by_rule(tensor)
            or self._accounts.owner_match(header.name)
        ):
            return None
        return self._accounts.entry(tensor, Fate.LOOKALIKE, COPY)

    def _plan_unreadable(self, tensor: StoredTensor, refused: Refused) -> PlannedTensor:
        looks = self._names.looks_like_expert(tensor.name)
        user = self._user_rules.find(tensor)
        kind = "" if user else self._lookalikes.declared_kind(tensor.name)
        owner = None
        if not looks and not kind and not self._is_named_by_rule(tensor):
            owner = self._accounts.owner_match(tensor.name)
            if owner is None:
                return PlannedTensor(is_in_scope=not self._scan.experts_only)
        if not kind and not user and not (self._preset and self._preset.matches(tensor)):
            kind = self._general_kind(tensor)
        if kind:
            return PlannedTensor(account=self._accounts.entry(tensor, Fate.LOOKALIKE, kind))
        if self._is_excluded(tensor, user or owner):
            return self._exclude(tensor)
        return self._refuse(tensor, refused)

    def _general_kind(self, tensor: StoredTensor) -> str:
        """Return what the name says that the tensor is instead of an expert, or ""."""
        name = tensor.name
        kind = self._lookalikes.general_kind(name)
        if kind == TensorRole.ROUTER and self._aliases.infer(name) is not None:
            # `gate` is also a word for gate_proj, and no router belongs to one expert.
            names = self._names
            if tensor.ndim > 2 or names.expert_id(name) is not None or names.is_shared_expert(name):
                return ""
        return kind

    def _exclude(self, tensor: StoredTensor) -> PlannedTensor:
        account = self._accounts.entry(tensor, Fate.EXCLUDED, "shared_expert")
        return PlannedTensor(account=account, is_in_scope=False)

    def _is_named_by_rule(self, tensor: StoredTensor) -> bool:
        return (
            names_experts(self._user_rules.find(tensor))
            or bool(self._preset and self._preset.matches(tensor))
            or names_experts(self._template_rules.find(tensor))
        )

    def _is_excluded(self, tensor: StoredTensor, match: RuleMatch | None) -> bool:
        if not self._scan.experts_only or self._scan.include_shared_expert:
            return False
        if match is None and self._preset:
            match = next(iter(self._preset.matches(tensor)), None)
        if match is not None and match.rule.is_shared_expert is not None:
            return match.rule.is_shared_expert
        return self._names.is_shared_expert(tensor.name)

    def _apply_preset(
        self, tensor: StoredTensor, preset: PresetReader, matches: tuple[RuleMatch, ...]
    ) -> PlannedTensor | None:
        outcome = preset.read(tensor, matches)
        if isinstance(outcome, Matched):
            return self._measure(tensor, outcome, f"preset:{preset.name}")
        return self._refuse(tensor, outcome) if isinstance(outcome, Refused) else None

    def _apply_rules(self, tensor: StoredTensor, match: RuleMatch | None) -> PlannedTensor:
        problems: list[str] = []
        outcome: Matched | Refused | NoMatch = NoMatch()
        name = tensor.header.name
        via, after_packed_split = "", False
        if match is not None:
            via = f"rule:{match.rule.name}"
            try:
                outcome = self._applier.apply(match, tensor)
            except PackedSplitError as error:
                if self._strict_packed_split:
                    refused = Refused(reason=UnmatchedReason.PACKED_SPLIT_FAILED)
                    return self._refuse(tensor, refused, strict_error=error)
                problems.append(f"[extract] {error}")
                after_packed_split = True
            except ExtractionError as error:
                problems.append(f"[extract] rule application failed for {name}: {error}")
        if isinstance(outcome, NoMatch):
            via = "fallback_after_packed_split" if after_packed_split else "fallback"
            try:
                outcome = self._fallback.apply(tensor)
            except ExtractionError as error:
                problems.append(f"[extract] fallback failed for {name}: {error}")
        if isinstance(outcome, Matched):
            return self._measure(tensor, outcome, via, tuple(problems))
        if isinstance(outcome, NoMatch):
            reason = UnmatchedReason.NO_RULE_MATCH
            if problems:
                reason = UnmatchedReason.EXTRACTION_FAILED
            if after_packed_split:
                reason = UnmatchedReason.PACKED_SPLIT_FAILED
            outcome = Refused(reason=reason)
        return self._refuse(tensor, outcome, tuple(problems))

    def _measure(
        self, tensor: StoredTensor, outcome: Matched, via: str, problems: tuple[str, ...] = ()
    ) -> PlannedTensor:
        groups = self._without_identity_experts(outcome.groups)
        if not groups:
            return PlannedTensor(
                account=self._accounts.entry(tensor, Fate.LOOKALIKE, IDENTITY_EXPERT)
            )
        return PlannedTensor(
            account=self._accounts.entry(tensor, Fate.MEASURED, ""),
            groups=groups,
            extracted_via=via,
            layout_evidence=outcome.evidence,
            expert_id_unknown=outcome.expert_id_unknown,
            shape_differs=outcome.evidence == "rule" and self._shape_differs(outcome.groups),
            other_projs=outcome.other_projs,
            problems=problems,
            unresolved=outcome.unresolved,
            matched=outcome,
        )

    def _without_identity_experts(
        self, groups: list[list[PlannedMatrix]]
    ) -> list[list[PlannedMatrix]]:
        """Leave out ids that stand for no weights, whatever is stored for them."""
        declared = self._declared(groups[0][0].stack)
        first = declared.first_identity_id if declared else None
        if first is None:
            return groups
        return [some for some in groups if some[0].is_shared_expert or some[0].expert_id < first]

    def _refuse(
        self,
        tensor: StoredTensor,
        refused: Refused,
        problems: tuple[str, ...] = (),
        strict_error: PackedSplitError | None = None,
    ) -> PlannedTensor:
        header = tensor.header
        is_refused = may_hide_weights(refused, header)
        fate = Fate.REFUSED if is_refused else Fate.UNMATCHED
        return PlannedTensor(
            account=self._accounts.entry(tensor, fate, str(refused.reason)),
            unmatched=UnmatchedTensor(header=header, reason=refused.reason, is_refused=is_refused),
            refusal=refused if refused.cause else None,
            problems=problems,
            unresolved=refused.unresolved,
            strict_error=strict_error,
        )

    def _shape_differs(self, groups: list[list[PlannedMatrix]]) -> bool:
        for matrix in groups[0]:  # all groups have the same shapes
            if matrix.is_shared_expert:
                continue
            dimensions = self._dimensions(matrix.stack)
            verdict = judge_shape(matrix.proj, matrix.view.rows, matrix.view.cols, dimensions)
            if verdict is ShapeVerdict.TRANSPOSED or verdict is ShapeVerdict.CONTRADICTED:
                return True
        return False
