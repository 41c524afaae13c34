"""What a rule can say besides layout and projection: ids, stacks, counts, encodings."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

from tests.support.extraction import (
    keys_of,
    make_header,
    make_rule,
    messages_of,
    plan_headers,
    plan_one,
    reasons_of,
    rules,
    stacks_of,
)

SWITCH = "decoder.block.11.layer.2.mlp.experts.expert_7.wi.weight"


class Ids(unittest.TestCase):
    def test_stand_behind_text_and_among_other_integers(self) -> None:
        rule = make_rule(
            r"(\w+)\.block\.(\d+)\.layer\.\d+\.mlp\.experts\.expert_(\d+)\.",
            stack_group=1,
            layer_group=2,
            expert_group=3,
            proj="up_proj",
        )
        plan = plan_one(SWITCH, (6, 8), rules(rule))
        self.assertEqual(keys_of(plan), {SWITCH: [(11, 7, "up_proj")]})
        self.assertEqual(stacks_of(plan), {SWITCH: {"decoder"}})

    def test_of_layers_come_from_the_config_where_the_rule_has_no_group_or_captures_none(
        self,
    ) -> None:
        name = "model.layers.4.experts.7.w1"
        for rule in (make_rule(".*"), make_rule(r"(block\.\d+)?.*", layer_group=1),
                     make_rule(r"(\w+)\.layers", layer_group=1)):  # fmt: skip
            self.assertEqual(
                keys_of(plan_one(name, (6, 8), rules(rule))), {name: [(4, 7, "gate_proj")]}
            )

    def test_of_layers_captured_by_the_rule_are_the_base_of_a_layer_axis(self) -> None:
        name = "block.8.experts.7.w1"
        rule = make_rule(r"block\.(\d+)", layer_group=1, layer=0, rows=1, cols=2)
        self.assertEqual(
            keys_of(plan_one(name, (2, 6, 8), rules(rule))),
            {name: [(8, 7, "gate_proj"), (9, 7, "gate_proj")]},
        )


class Projections(unittest.TestCase):
    def test_may_be_given_for_all_that_match(self) -> None:
        name = "experts.0.gate_proj.weight"
        plan = plan_one(name, (6, 8), rules(make_rule(".*", proj="down_proj")))
        self.assertEqual(keys_of(plan), {name: [(-1, 0, "down_proj")]})
        self.assertEqual((plan.findings, plan.unresolved_projections), ((), ()))

    def test_of_a_token_are_those_of_the_rules_own_map_before_any_alias(self) -> None:
        rule = make_rule(
            r".*\.(\w+)\.weight$", proj_group=1, proj_map={"w2": "up_proj", "fc1": "gate_proj"}
        )
        strict = {"parsing.proj_group_strict": True}
        for token, proj in (("w2", "up_proj"), ("fc1", "gate_proj"), ("w1", "gate_proj")):
            name = f"experts.0.{token}.weight"
            plan = plan_one(name, (6, 8), rules(rule) | strict)
            self.assertEqual(keys_of(plan), {name: [(-1, 0, proj)]})
            self.assertEqual(plan.unresolved_projections, ())

    def test_of_a_token_in_another_case_are_not_those_of_the_map(self) -> None:
        rule = make_rule(r".*\.(\w+)\.weight$", proj_group=1, proj_map={"fc1": "gate_proj"})
        name = "experts.0.FC1.weight"
        self.assertEqual(keys_of(plan_one(name, (6, 8), rules(rule))), {name: [(-1, 0, "FC1")]})


class Stacks(unittest.TestCase):
    NAME = "model.encoder.layers.1.experts.0.w1"

    def stack(self, name: str, **fields: Any) -> set[str]:
        plan = plan_one(name, (6, 8), rules(make_rule(r"(?:model\.(\w*)\.)?.*", **fields)))
        return stacks_of(plan)[name]

    def test_come_from_the_rule_then_its_group_then_the_name(self) -> None:
        self.assertEqual(self.stack(self.NAME, stack="vision", stack_group=1), {"vision"})
        self.assertEqual(self.stack(self.NAME.replace("en", "X"), stack_group=1), {"Xcoder"})
        self.assertEqual(self.stack(self.NAME), {"encoder"})
        self.assertEqual(self.stack("layers.1.experts.0.w1"), {"text"})

    def test_come_from_the_name_where_the_group_took_no_part_or_nothing(self) -> None:
        self.assertEqual(self.stack("decoder.layers.1.experts.0.w1", stack_group=1), {"decoder"})
        self.assertEqual(self.stack("model..experts.0.w1", stack_group=1), {"text"})


class SharedExperts(unittest.TestCase):
    def shared(self, name: str, **fields: Any) -> list[tuple[int, bool]]:
        plan = plan_one(name, (6, 8), rules(make_rule(".*", **fields)))
        return [(matrix.expert_id, matrix.is_shared_expert) for matrix in plan.matrices]

    def test_are_what_the_rule_says_and_else_what_the_name_says(self) -> None:
        self.assertEqual(self.shared("experts.3.w1", is_shared_expert=True), [(-1, True)])
        self.assertEqual(self.shared("shared_experts.w1"), [(-1, True)])
        self.assertEqual(self.shared("shared.experts.3.w1", is_shared_expert=False), [(3, False)])

    def test_that_a_rule_names_are_left_out_like_the_others(self) -> None:
        rule = make_rule(r"mlp\.common\.(\d)", expert_group=1, is_shared_expert=True)
        changes = rules(rule) | {"scan.include_shared_expert": False}
        plan = plan_one("mlp.common.0.w1", (6, 8), changes)
        self.assertEqual((plan.units, plan.unmatched, plan.in_scope), ((), (), frozenset()))
        self.assertEqual([str(item.fate) for item in plan.accounts], ["excluded"])
        kept = make_rule(r"shared_experts\.(\d)", expert_group=1, is_shared_expert=False)
        plan = plan_one("shared_experts.0.w1", (6, 8), changes | rules(kept))
        self.assertEqual(len(plan.units), 1)


class Encodings(unittest.TestCase):
    def test_choose_the_rule(self) -> None:
        name = "layers.0.experts.gate_up_proj"
        codes = rules(
            make_rule(r".*", expert=0, rows=1, cols=2, encodings=["mxfp4"], proj="a"),
            make_rule(r".*", expert=0, rows=2, cols=1, encodings=["plain", "fp8"], proj="b"),
        )
        headers = [
            make_header(f"{name}_blocks", (2, 6, 2, 16), "U8"),
            make_header(f"{name}_scales", (2, 6, 2), "U8"),
        ]
        (matrix, _) = plan_headers(headers, codes).matrices
        self.assertEqual((matrix.proj, matrix.view.rows, matrix.view.cols), ("a", 6, 64))
        (matrix, _) = plan_one(name, (2, 6, 8), codes).matrices
        self.assertEqual((matrix.proj, matrix.view.rows, matrix.view.cols), ("b", 8, 6))

    def test_that_do_not_fit_leave_the_tensor_to_later_rules(self) -> None:
        name = "experts.0.up_proj.weight"
        only = make_rule(".*", encodings=["mxfp4"]) | {"name": "packed"}
        (unit,) = plan_one(name, (6, 8), rules(only, make_rule(".*") | {"name": "any"})).units
        self.assertEqual(unit.extracted_via, "rule:any")


class StackedExperts(unittest.TestCase):
    NAME = "layers.0.experts.mlp.w1"
    CONFIG: Mapping[str, Any] = {
        "model_type": "x",
        "num_experts": 3,
        "hidden_size": 8,
        "moe_intermediate_size": 4,
        "num_hidden_layers": 1,
    }

    def test_are_as_many_as_the_rule_or_else_config_json_says(self) -> None:
        counted = make_rule(".*w1$", stacked=0, expert_count=2)
        for rule, n_experts in ((counted, 2), (make_rule(".*w1$", stacked=0), 3)):
            plan = plan_one(self.NAME, (12, 8), rules(rule), model_config=self.CONFIG)
            self.assertEqual(
                keys_of(plan),
                {self.NAME: [(0, expert, "gate_proj") for expert in range(n_experts)]},
            )

    def failure(self, rule: dict[str, Any], **options: Any) -> list[str]:
        plan = plan_one(self.NAME, (10, 8), rules(rule), **options)
        self.assertEqual(plan.rule_extracted, ())
        return messages_of(plan)

    def test_of_an_unknown_number_are_not_guessed(self) -> None:
        messages = self.failure(make_rule(".*w1$", stacked=0), model_config={})
        self.assertEqual(
            messages[0],
            f"[extract] rule application failed for {self.NAME}: how many experts lie on "
            "stacked_experts_axis is unknown; give the rule expert_count",
        )

    def test_that_do_not_divide_the_axis_are_refused(self) -> None:
        messages = self.failure(make_rule(".*w1$", stacked=0), model_config=self.CONFIG)
        self.assertEqual(
            messages[0],
            f"[extract] rule application failed for {self.NAME}: axis of length 10 does not hold "
            "3 experts of one size",
        )

    def test_make_a_tensor_look_like_experts_whatever_its_name(self) -> None:
        plan = plan_one("ffn.w1", (12, 8), rules(make_rule("ffn", stacked=0, expert_count=2)))
        self.assertEqual(plan.in_scope, {"ffn.w1"})


class FailedSplits(unittest.TestCase):
    NAME = "experts.0.w13"

    def failure(self, **split: Any) -> str:
        rule = make_rule(".*", packed_split={"axis": "rows", "projs": ["w1", "w3"], **split})
        plan = plan_one(self.NAME, (5, 6), rules(rule))
        (error,) = plan.strict_errors
        self.assertEqual(reasons_of(plan), {self.NAME: "packed_split_failed"})
        return str(error)

    def test_say_that_an_axis_has_no_equal_parts(self) -> None:
        self.assertEqual(
            self.failure(),
            f"packed_split failed for rule=r tensor={self.NAME}: an axis of 5 cannot be divided "
            "into 2 equal parts",
        )

    def test_say_that_interleaved_parts_are_equally_long(self) -> None:
        self.assertEqual(
            self.failure(splits=[2, 3], interleaved=True),
            f"packed_split failed for rule=r tensor={self.NAME}: interleaved slices are equally "
            "long, splits [2, 3] are not",
        )

    def test_say_that_more_parts_than_rows_are_too_many(self) -> None:
        self.assertIn(
            "an axis of 5 cannot be divided into 6 equal parts", self.failure(projs=list("abcdef"))
        )
