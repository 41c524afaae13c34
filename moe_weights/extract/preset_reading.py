"""What a preset makes of a tensor, held against config.json.

1. All rules of the preset that fit the name are tried: some families have two axis orders under
   one name.
2. Readings whose shapes config.json contradicts are dropped.
3. Exactly one reading must remain; none or two are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.config.preset import Preset
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.errors import ExtractionError
from moe_weights.extract.outcome import Matched, NoMatch, Refused, UnmatchedReason
from moe_weights.extract.rules import RuleApplier, RuleFinder, RuleMatch
from moe_weights.extract.shape_check import ShapeVerdict, explain_verdict, judge_shape

_FITTING = frozenset({ShapeVerdict.CONFIRMED, ShapeVerdict.AMBIGUOUS, ShapeVerdict.SILENT})


class PresetReader:
    """Applies one preset.

    Attributes:
        name: Name of the preset.
    """

    def __init__(
        self,
        preset: Preset,
        applier: RuleApplier,
        dimensions: Callable[[str], ExpertDimensions],
    ) -> None:
        """Keep the preset's rules and what they are held against.

        Args:
            preset: The preset.
            applier: Applies its rules.
            dimensions: What config.json says about the shapes of a stack.
        """
        self.name = preset.name
        self._finder = RuleFinder(preset.rules)
        self._applier = applier
        self._dimensions = dimensions

    def matches(self, tensor: StoredTensor) -> tuple[RuleMatch, ...]:
        """Return the rules that fit the tensor's name, axes and encoding."""
        return tuple(self._finder.find_all(tensor))

    def find_by_name(self, name: str) -> RuleMatch | None:
        """Return the first rule whose pattern fits, whatever the tensor's form, or None."""
        return self._finder.find_by_name(name)

    def read(
        self, tensor: StoredTensor, matches: Sequence[RuleMatch]
    ) -> Matched | Refused | NoMatch:
        """Return the one reading that the preset and config.json allow, or why there is none.

        Args:
            tensor: The tensor.
            matches: The rules that fit it.
        """
        readings: list[tuple[RuleMatch, Matched]] = []
        causes: list[str] = []
        for match in matches:
            try:
                outcome = self._applier.apply(match, tensor)
            except ExtractionError as error:
                causes.append(f"{match.rule.name}: {error}")
                continue
            if not isinstance(outcome, Matched):
                return outcome
            verdict = self._judge(outcome)
            if verdict in _FITTING:
                reading = replace(
                    outcome,
                    evidence=_evidence(verdict),
                    # Other ids might lead to another rule.
                    identity=outcome.identity if len(matches) == 1 else None,
                )
                readings.append((match, reading))
            else:
                stack = outcome.groups[0][0].stack
                why = explain_verdict(verdict, self._dimensions(stack))
                causes.append(f"{match.rule.name}: {why}")
        first = readings[0][1] if readings else None
        if first and all(reading.groups == first.groups for _match, reading in readings[1:]):
            return first
        shape = list(tensor.shape)
        if not readings:
            return Refused(
                reason=UnmatchedReason.AMBIGUOUS_LAYOUT,
                cause=f"shape {shape} fits no reading of preset {self.name} ({'; '.join(causes)})",
                hint="add a rule of your own for it to extract_rules",
            )
        rules = [match.rule for match, _reading in readings]
        pasted = " or ".join(
            json.dumps(rule.model_dump(mode="json", exclude_defaults=True)) for rule in rules
        )
        return Refused(
            reason=UnmatchedReason.AMBIGUOUS_LAYOUT,
            cause=f"shape {shape} fits several readings of preset {self.name}: "
            + ", ".join(rule.name for rule in rules),
            hint=f"paste the right one into extract_rules: {pasted}",
        )

    def _judge(self, outcome: Matched) -> ShapeVerdict:
        """Return the worst verdict over the parts of one expert; all experts have one shape."""
        worst = ShapeVerdict.CONFIRMED
        for matrix in outcome.groups[0]:
            if matrix.is_shared_expert:
                return ShapeVerdict.SILENT  # config.json says too little about shared widths
            dimensions = self._dimensions(matrix.stack)
            verdict = judge_shape(matrix.proj, matrix.view.rows, matrix.view.cols, dimensions)
            if verdict not in _FITTING:
                return verdict
            if verdict is not ShapeVerdict.CONFIRMED:
                worst = verdict
        return worst


def _evidence(verdict: ShapeVerdict) -> str:
    return "config" if verdict is ShapeVerdict.CONFIRMED else "preset"
