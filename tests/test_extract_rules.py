from __future__ import annotations

import unittest
from typing import Any

from moe_weights.extract.projections import UnresolvedProjection
from tests.support.extraction import (
    SHARD,
    keys_of,
    make_header,
    make_rule,
    messages_of,
    plan_headers,
    plan_one,
    reasons_of,
)

NAME = "model.layers.4.mlp.experts.7.up_proj.weight"
STRICT = {"parsing.proj_group_strict": True}
NO_ALIASES: dict[str, Any] = {"parsing.proj_aliases": {}}


def rules(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"extract_rules": list(rules)}


def via(changes: dict[str, Any], name: str = NAME, shape: tuple[int, ...] = (4, 6)) -> str:
    (unit,) = plan_one(name, shape, changes).units
    return unit.extracted_via


class Precedence(unittest.TestCase):
    ANY = make_rule(".*") | {"name": "any"}
    BANK = make_rule(".*", expert=0, rows=1, cols=2, ndim=3) | {"name": "bank"}

    def test_the_first_rule_that_matches_decides(self) -> None:
        other = self.ANY | {"name": "other"}
        self.assertEqual(via(rules(self.ANY, other)), "rule:any")
        self.assertEqual(via(rules(other, self.ANY)), "rule:other")

    def test_a_rule_of_another_ndim_is_skipped_and_later_ones_apply(self) -> None:
        self.assertEqual(via(rules(self.BANK, self.ANY)), "rule:any")
        bank = "experts.up_proj.weight"
        self.assertEqual(via(rules(self.BANK, self.ANY), bank, (2, 4, 6)), "rule:bank")

    def test_a_disabled_rule_is_skipped(self) -> None:
        off = self.ANY | {"name": "off", "enabled": False}
        self.assertEqual(via(rules(off, self.ANY)), "rule:any")
        self.assertEqual(via(rules(off)), "fallback")

    def test_a_pattern_is_anchored_at_the_start_only(self) -> None:
        for match, taken in {
            "model": True,
            r"model\.layers\.4": True,
            "layers": False,
            "mod$": False,
            r".*up_proj": True,
            r".*up_proj$": False,
        }.items():
            with self.subTest(match=match):
                expected = "rule:r" if taken else "fallback"
                self.assertEqual(via(rules(make_rule(match))), expected)

    def test_a_rule_that_decides_without_a_result_lets_no_later_rule_try(self) -> None:
        name = "experts.0.wi.weight"
        first = make_rule(".*") | {"name": "first"}
        second = make_rule(r".*\.(wi)\.", proj_group=1) | {"name": "second"}
        self.assertEqual(
            reasons_of(plan_one(name, (4, 6), rules(first, second))),
            {name: "no_rule_match_or_proj_infer"},
        )
        self.assertEqual(via(rules(second), name), "rule:second")


class LayoutOfARule(unittest.TestCase):
    def test_transposes_without_touching_anything_else(self) -> None:
        (matrix,) = plan_one(NAME, (6, 4), rules(make_rule(".*", rows=1, cols=0))).matrices
        view = matrix.view
        self.assertEqual((view.rows, view.cols, view.row_stride, view.col_stride), (4, 6, 1, 4))

    def test_with_layers_and_experts_counts_both_from_the_base_layer(self) -> None:
        rule = make_rule(".*", layer=0, expert=1, rows=2, cols=3)
        for name, base in (("layers.8.experts.w1", 8), ("experts.w1", 0)):
            with self.subTest(name=name):
                expected = [
                    (base + layer, expert, "gate_proj") for layer in (0, 1) for expert in (0, 1, 2)
                ]
                plan = plan_one(name, (2, 3, 4, 6), rules(rule))
                self.assertEqual(keys_of(plan), {name: expected})
                self.assertEqual(plan.findings, ())

    def test_with_layers_and_no_experts_iterates_the_layers(self) -> None:
        rule = make_rule(".*", layer=0, rows=1, cols=2)
        name = "layers.8.experts.5.w1"
        self.assertEqual(
            keys_of(plan_one(name, (2, 4, 6), rules(rule))),
            {name: [(8, 5, "gate_proj"), (9, 5, "gate_proj")]},
        )

    def test_with_layers_and_no_expert_id_writes_minus_one_and_says_so(self) -> None:
        rule = make_rule(".*", layer=0, rows=1, cols=2)
        plan = plan_one("experts.w1", (2, 4, 6), rules(rule))
        self.assertEqual(
            keys_of(plan), {"experts.w1": [(0, -1, "gate_proj"), (1, -1, "gate_proj")]}
        )
        self.assertEqual(messages_of(plan), ["[extract] expert id unknown for experts.w1"])

    def test_that_does_not_cover_the_axes_warns_and_falls_back(self) -> None:
        plan = plan_one(NAME, (4, 6), rules(make_rule(".*", expert=0, rows=1, cols=2)))
        self.assertEqual(
            messages_of(plan),
            [
                (
                    f"[extract] rule application failed for {NAME}: layout axes [0, 1, 2] do not "
                    "cover ndim=2; name each of the 2 axes of shape [4, 6] once"
                )
            ],
        )
        self.assertEqual([unit.extracted_via for unit in plan.units], ["fallback"])
        self.assertEqual((plan.rule_extracted, plan.fallback_extracted), ((), (NAME,)))

    def test_never_squeezes_an_axis_of_length_one(self) -> None:
        plan = plan_one("experts.0.w1", (1, 4, 6), rules(make_rule(".*")))
        self.assertEqual(
            messages_of(plan)[0],
            "[extract] rule application failed for experts.0.w1: layout axes [0, 1] do not cover "
            "ndim=3; name each of the 3 axes of shape [1, 4, 6] once",
        )


class ExpertIds(unittest.TestCase):
    def test_come_from_the_captured_group(self) -> None:
        rule = make_rule(r".*layers\.(\d+)", expert_group=1)
        self.assertEqual(keys_of(plan_one(NAME, (4, 6), rules(rule))), {NAME: [(4, 4, "up_proj")]})

    def test_come_from_the_name_where_the_rule_has_no_group(self) -> None:
        plan = plan_one(NAME, (4, 6), rules(make_rule(".*")))
        self.assertEqual(keys_of(plan), {NAME: [(4, 7, "up_proj")]})
        self.assertEqual(plan.findings, ())

    def test_come_from_the_name_where_the_captured_text_is_no_number(self) -> None:
        for match in (r".*(layers)", r"(nothing)?.*"):
            plan = plan_one(NAME, (4, 6), rules(make_rule(match, expert_group=1)))
            self.assertEqual(keys_of(plan), {NAME: [(4, 7, "up_proj")]})

    def test_are_minus_one_and_reported_where_nothing_says_them(self) -> None:
        name = "model.layers.0.experts.up_proj.weight"
        for changes in (rules(make_rule(r".*(experts)", expert_group=1)), rules()):
            plan = plan_one(name, (4, 6), changes)
            self.assertEqual(keys_of(plan), {name: [(0, -1, "up_proj")]})
            self.assertEqual(messages_of(plan), [f"[extract] expert id unknown for {name}"])
            self.assertTrue(all(m.is_routed_expert for m in plan.matrices))

    def test_of_a_bank_of_one_are_those_of_the_name(self) -> None:
        rule = rules(make_rule(".*", expert=0, rows=1, cols=2))
        self.assertEqual(keys_of(plan_one(NAME, (1, 4, 6), rule)), {NAME: [(4, 7, "up_proj")]})
        name = "experts.up_proj"
        self.assertEqual(keys_of(plan_one(name, (1, 4, 6), rule)), {name: [(-1, 0, "up_proj")]})

    def test_in_the_name_and_on_an_axis_as_well_are_refused(self) -> None:
        plan = plan_one(NAME, (2, 4, 6), rules(make_rule(".*", expert=0, rows=1, cols=2)))
        cause = (
            "the name says expert 7, the expert axis holds 2; drop expert_axis from the rule's "
            "layout or mend parsing.expert_regex"
        )
        self.assertEqual(
            messages_of(plan),
            [
                f"[extract] rule application failed for {NAME}: {cause}",
                f"[extract] fallback failed for {NAME}: {cause}",
            ],
        )
        self.assertEqual(reasons_of(plan), {NAME: "extraction_failed"})

    def test_of_a_shared_bank_are_minus_one_and_the_names_stay_distinct(self) -> None:
        name = "layers.3.shared_experts.up_proj.weight"
        plan = plan_one(name, (2, 4, 6))
        self.assertEqual(
            [(m.expert_id, m.is_shared_expert, m.derived_tensor) for m in plan.matrices],
            [
                (-1, True, f"{name}::up_proj::shared[0]"),
                (-1, True, f"{name}::up_proj::shared[1]"),
            ],
        )
        self.assertEqual(plan.findings, ())


class ProjectionGroups(unittest.TestCase):
    NAME = "experts.0.Linear_V.weight"
    RULE = make_rule(r".*\.(\w+)\.weight$", proj_group=1)

    def test_a_canonical_name_counts_in_any_case_and_an_alias_is_resolved(self) -> None:
        for token, proj in (("UP_Proj", "up_proj"), ("w2", "down_proj"), ("W3", "up_proj")):
            name = f"experts.0.{token}.weight"
            plan = plan_one(name, (4, 6), rules(self.RULE))
            self.assertEqual(keys_of(plan), {name: [(-1, 0, proj)]})
            self.assertEqual([m.derived_tensor for m in plan.matrices], [f"{name}::{proj}"])
            self.assertEqual(plan.unresolved_projections, ())

    def test_an_unknown_token_is_kept_as_written_and_noted(self) -> None:
        plan = plan_one(self.NAME, (4, 6), rules(self.RULE))
        self.assertEqual(keys_of(plan), {self.NAME: [(-1, 0, "Linear_V")]})
        self.assertEqual(
            plan.unresolved_projections,
            (
                UnresolvedProjection(
                    context="proj_group",
                    rule_name="r",
                    raw_proj="Linear_V",
                    resolved_proj="Linear_V",
                    action="kept_raw",
                    file=SHARD,
                    source_tensor=self.NAME,
                    derived_tensor=f"{self.NAME}::Linear_V",
                ),
            ),
        )

    def test_strict_drops_an_unknown_token_and_blocks_the_fallback(self) -> None:
        name = "experts.0.w1.token.weight"  # the fallback would find w1
        plan = plan_one(name, (4, 6), rules(self.RULE) | STRICT)
        self.assertEqual(plan.units, ())
        self.assertEqual(reasons_of(plan), {name: "proj_group_strict_unmapped"})
        self.assertEqual(
            plan.unresolved_projections,
            (
                UnresolvedProjection(
                    context="proj_group",
                    rule_name="r",
                    raw_proj="token",
                    resolved_proj="",
                    action="dropped_strict",
                    file=SHARD,
                    source_tensor=name,
                    derived_tensor=name,
                ),
            ),
        )

    def test_without_any_alias_strict_drops_all(self) -> None:
        name = "experts.0.up_proj.weight"
        plan = plan_one(name, (4, 6), rules(self.RULE) | STRICT | NO_ALIASES)
        self.assertEqual(reasons_of(plan), {name: "proj_group_strict_no_alias_map"})
        self.assertEqual(
            [event.action for event in plan.unresolved_projections], ["dropped_strict"]
        )

    def test_without_any_alias_tokens_pass_through_unnoted(self) -> None:
        name = "experts.0.Up.weight"
        plan = plan_one(name, (4, 6), rules(self.RULE) | NO_ALIASES)
        self.assertEqual(keys_of(plan), {name: [(-1, 0, "Up")]})
        self.assertEqual(plan.unresolved_projections, ())

    def test_a_group_that_took_no_part_warns_and_falls_back(self) -> None:
        plan = plan_one(NAME, (4, 6), rules(make_rule(r"(nothing)?.*", proj_group=1)))
        self.assertEqual(
            messages_of(plan),
            [
                (
                    f"[extract] rule application failed for {NAME}: proj_group 1 of rule=r took no "
                    "part in the match"
                )
            ],
        )
        self.assertEqual([unit.extracted_via for unit in plan.units], ["fallback"])


class ProjectionFromTheName(unittest.TestCase):
    def test_of_two_meanings_the_first_in_the_map_wins_and_it_is_said(self) -> None:
        names = [f"experts.{expert}.gate_proj.up_proj.weight" for expert in (0, 1)]
        plan = plan_headers([make_header(name, (4, 6)) for name in names], rules(make_rule(".*")))
        self.assertEqual(
            keys_of(plan), {names[0]: [(-1, 0, "gate_proj")], names[1]: [(-1, 1, "gate_proj")]}
        )
        (finding,) = plan.findings
        self.assertEqual(
            finding.message,
            "[extract] the name means gate_proj and up_proj; a rule takes it as gate_proj, the "
            f"first in parsing.proj_aliases: 2 tensors ({names[0]}, {names[1]})",
        )
        self.assertEqual(
            finding.hint, "give the rule a proj_group, or shorten parsing.proj_aliases"
        )
