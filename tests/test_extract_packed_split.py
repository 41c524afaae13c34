from __future__ import annotations

import unittest
from typing import Any

from moe_weights.extract.projections import UnresolvedProjection
from tests.support.extraction import (
    SHARD,
    keys_of,
    make_rule,
    messages_of,
    plan_one,
    reasons_of,
)

STRICT = {"parsing.proj_group_strict": True}
LAX = {"parsing.strict_packed_split": False}
NO_ALIASES: dict[str, Any] = {"parsing.proj_aliases": {}}


def rules(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"extract_rules": list(rules)}


class PackedSplits(unittest.TestCase):
    NAME = "layers.1.experts.w13"

    def rule(self, axis: str, splits: list[int], projs: list[str]) -> dict[str, Any]:
        split = {"axis": axis, "splits": splits, "projs": projs}
        return rules(make_rule(".*", expert=0, rows=1, cols=2, packed_split=split))

    def test_cut_rows_into_projections_named_after_the_split(self) -> None:
        plan = plan_one(self.NAME, (2, 5, 6), self.rule("rows", [2, 3], ["w1", "UP_PROJ"]))
        found = [
            (m.derived_tensor, m.expert_id, m.view.offset, m.view.rows, m.view.cols)
            for m in plan.matrices
        ]
        gate, up = (f"{self.NAME}::split[rows]::{proj}" for proj in ("gate_proj", "up_proj"))
        self.assertEqual(
            found, [(gate, 0, 0, 2, 6), (up, 0, 12, 3, 6), (gate, 1, 30, 2, 6), (up, 1, 42, 3, 6)]
        )
        self.assertEqual(plan.unresolved_projections, ())

    def test_cut_columns_of_the_canonical_matrix(self) -> None:
        split = {"axis": "cols", "splits": [1, 4], "projs": ["a", "w2"]}
        rule = make_rule(".*", expert=0, rows=2, cols=1, packed_split=split)
        plan = plan_one(self.NAME, (1, 5, 6), rules(rule))
        found = [(m.derived_tensor, m.view.offset, m.view.rows, m.view.cols) for m in plan.matrices]
        self.assertEqual(
            found,
            [
                (f"{self.NAME}::split[cols]::a", 0, 6, 1),
                (f"{self.NAME}::split[cols]::down_proj", 6, 6, 4),
            ],
        )

    def test_keep_unknown_tokens_and_note_them_also_under_strict(self) -> None:
        changes = self.rule("rows", [2, 3], ["left", "up_proj"]) | STRICT
        plan = plan_one(self.NAME, (2, 5, 6), changes)
        derived = f"{self.NAME}::split[rows]::left"
        self.assertEqual(
            plan.unresolved_projections,
            (
                UnresolvedProjection(
                    context="packed_split",
                    rule_name="r",
                    raw_proj="left",
                    resolved_proj="left",
                    action="kept_raw",
                    file=SHARD,
                    source_tensor=self.NAME,
                    derived_tensor=derived,
                ),
            ),
        )
        self.assertEqual({m.proj for m in plan.matrices}, {"left", "up_proj"})

    def test_without_any_alias_pass_tokens_through_unnoted(self) -> None:
        changes = self.rule("rows", [2, 3], ["w1", "Up_Proj"]) | NO_ALIASES
        plan = plan_one(self.NAME, (1, 5, 6), changes)
        self.assertEqual([m.proj for m in plan.matrices], ["w1", "Up_Proj"])
        self.assertEqual(plan.unresolved_projections, ())


class FailedSplits(unittest.TestCase):
    NAME = "experts.0.w1.w13"
    SPLIT = make_rule(".*", packed_split={"axis": "rows", "splits": [2, 2], "projs": ["w1", "w3"]})
    TEXT = f"packed_split failed for rule=r tensor={NAME}: splits [2, 2] sum to 4, the axis has 5"

    def failure(self, shape: tuple[int, int] = (5, 6), **split: object) -> str:
        rule = self.SPLIT | {"packed_split": self.SPLIT["packed_split"] | split}
        (error,) = plan_one(self.NAME, shape, rules(rule)).strict_errors
        return str(error)

    def test_say_rule_tensor_and_cause(self) -> None:
        self.assertEqual(self.failure(), self.TEXT)

    def test_say_when_projections_and_sizes_differ_in_number(self) -> None:
        self.assertEqual(
            self.failure(projs=["w1"]),
            f"packed_split projs and splits length mismatch for rule=r tensor={self.NAME}",
        )

    def test_say_when_two_slices_have_one_projection(self) -> None:
        self.assertEqual(
            self.failure((4, 6), projs=["w1", "gate_proj"]),
            f"packed_split failed for rule=r tensor={self.NAME}: projs name gate_proj twice; give "
            "each slice its own projection",
        )

    def test_under_strict_leave_the_tensor_unmatched_and_warn_of_nothing_else(self) -> None:
        plan = plan_one(self.NAME, (5, 6), rules(self.SPLIT))
        self.assertEqual((plan.units, plan.findings), ((), ()))
        self.assertEqual(reasons_of(plan), {self.NAME: "packed_split_failed"})

    def test_otherwise_warn_and_fall_back_and_mark_the_tensor(self) -> None:
        plan = plan_one(self.NAME, (5, 6), rules(self.SPLIT) | LAX)
        self.assertEqual(messages_of(plan), [f"[extract] {self.TEXT}"])
        self.assertEqual(keys_of(plan), {self.NAME: [(-1, 0, "gate_proj")]})
        self.assertEqual(
            [unit.extracted_via for unit in plan.units], ["fallback_after_packed_split"]
        )
        self.assertEqual(plan.fallback_after_packed_split, (self.NAME,))
        self.assertEqual(plan.fallback_extracted, (self.NAME,))
        self.assertEqual((plan.rule_extracted, plan.strict_errors), ((), ()))

    def test_otherwise_stay_unmatched_where_the_fallback_knows_nothing(self) -> None:
        name = "experts.0.fused"
        plan = plan_one(name, (5, 6), rules(self.SPLIT) | LAX)
        self.assertEqual(reasons_of(plan), {name: "packed_split_failed"})
        self.assertEqual(plan.fallback_after_packed_split, ())
