"""Who decides about a tensor, and what a preset makes of it under config.json."""

from __future__ import annotations

import json
import unittest
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.config.load import parse_config
from moe_weights.config.template import TEMPLATE_RULES, is_template_rule
from moe_weights.extract.plan import ExtractionPlan
from tests.support.config_documents import make_config_document
from tests.support.extraction import (
    fates_of,
    keys_of,
    make_preset,
    make_rule,
    messages_of,
    plan_one,
    reasons_of,
    rules,
)

UP = "model.layers.0.mlp.experts.3.up_proj.weight"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.layers.0.mlp.experts.down_proj"


def sizes(hidden: int = 8, width: int = 6, n_experts: int = 4) -> dict[str, Any]:
    return {
        "model_type": "x",
        "hidden_size": hidden,
        "moe_intermediate_size": width,
        "num_experts": n_experts,
        "num_hidden_layers": 1,
    }


class UnknownToThePreset(unittest.TestCase):
    """A routed expert that the preset in use has no rule for is read all the same, and told of."""

    PRESET = make_preset(
        make_rule(r".*experts\.(\d+)\.(\w+)\.weight$", expert_group=1, proj_group=2)
    )

    def messages(
        self, name: str, *users: dict[str, Any], shape: Sequence[int] = (6, 8)
    ) -> list[str]:
        plan = plan_one(name, shape, rules(*users), model_config=sizes(), preset=self.PRESET)
        self.assertEqual(len(plan.matrices), 1)
        return messages_of(plan)

    def test_names_the_preset_and_what_read_it(self) -> None:
        renamed = f"{UP}_old"
        text = "[extract] preset p has no rule for the name, it was read by"
        self.assertEqual(self.messages(UP), [])
        self.assertEqual(self.messages(renamed), [f"{text} fallback: {renamed}"])
        rule = TEMPLATE_RULES[1]
        mute = make_preset(make_rule("other"))
        plan = plan_one(UP, (6, 8), rules(rule), model_config=sizes(), preset=mute)
        self.assertEqual(messages_of(plan), [f"{text} rule:generic_2d_per_expert_separate: {UP}"])
        self.assertEqual(
            plan.findings[0].hint,
            "check the name; a rule of your own for it in extract_rules says that it is right",
        )

    def test_says_nothing_of_what_the_user_has_a_rule_for(self) -> None:
        self.assertEqual(self.messages(f"{UP}_old", make_rule(".*")), [])

    def test_says_nothing_of_shared_experts_and_of_what_is_no_expert(self) -> None:
        self.assertEqual(self.messages("model.layers.0.mlp.shared_expert.up_proj.weight"), [])
        plan = plan_one(
            "model.layers.0.mlp.up_proj.weight",
            (6, 8),
            {"scan.experts_only": False},
            preset=self.PRESET,
        )
        self.assertEqual(
            messages_of(plan), [f"[extract] expert id unknown for {plan.units[0].source.name}"]
        )

    def test_says_nothing_without_a_preset(self) -> None:
        self.assertEqual(plan_one(f"{UP}_old", (6, 8), model_config=sizes()).findings, ())


class Precedence(unittest.TestCase):
    PRESET = make_preset(make_rule(r".*experts\.(\d+)\.(\w+)", expert_group=1, proj_group=2))

    def via(
        self, users: Sequence[dict[str, Any]], *, with_preset: bool = True, name: str = UP
    ) -> str:
        preset = self.PRESET if with_preset else None
        plan = plan_one(name, (6, 8), rules(*users), preset=preset)
        return ", ".join(unit.extracted_via for unit in plan.units)

    def test_is_user_then_preset_then_template_then_fallback(self) -> None:
        template = list(TEMPLATE_RULES)
        own = make_rule(".*") | {"name": "own"}
        self.assertEqual(self.via([*template, own]), "rule:own")
        self.assertEqual(self.via(template), "preset:p")
        generic = "rule:generic_2d_per_expert_separate"
        self.assertEqual(self.via(template, with_preset=False), generic)
        self.assertEqual(self.via([], with_preset=False), "fallback")
        self.assertEqual(self.via([]), "preset:p")

    def test_of_the_users_rules_holds_also_behind_those_of_the_template(self) -> None:
        own = make_rule(".*") | {"name": "own"}
        self.assertEqual(self.via([TEMPLATE_RULES[1], own], with_preset=False), "rule:own")

    def test_counts_an_edited_generic_rule_as_the_users(self) -> None:
        for change in (
            {"name": "other"},
            {"ndim": None},
            {"match": ".*experts.*(up_proj).weight$", "expert_group": None, "proj_group": 1},
            {"encodings": ["plain"]},
            {"stack": "text"},
        ):
            edited = TEMPLATE_RULES[1] | change
            with self.subTest(change=change):
                self.assertEqual(self.via([edited]), f"rule:{edited['name']}")

    def test_counts_a_template_rule_that_spells_out_defaults_as_the_templates(self) -> None:
        spelled = TEMPLATE_RULES[1] | {"packed_split": None, "stack": None, "proj_map": {}}
        self.assertEqual(self.via([spelled]), "preset:p")

    def test_passes_on_what_the_preset_does_not_fit_or_understand(self) -> None:
        template = list(TEMPLATE_RULES)
        shared = "model.layers.0.mlp.shared_experts.up_proj.weight"
        self.assertEqual(self.via(template, name=shared), "fallback")
        mute = make_preset(make_rule(".*(experts)"))
        mute_plan = plan_one("experts.0.odd", (6, 8), rules(), preset=mute)
        self.assertEqual(reasons_of(mute_plan), {"experts.0.odd": "no_rule_match_or_proj_infer"})
        named = {"parsing.proj_aliases": {}}
        plan = plan_one(UP, (6, 8), named, preset=mute)
        self.assertEqual(
            [unit.extracted_via for unit in plan.units], ["rule:generic_2d_per_expert_separate"]
        )

    def test_counts_what_each_took(self) -> None:
        plan = plan_one(UP, (6, 8), preset=self.PRESET)
        self.assertEqual(
            (plan.rule_extracted, plan.preset_extracted, plan.fallback_extracted), ((), (UP,), ())
        )

    def test_is_told_for_template_rules_whatever_else_was_asked_of_them(self) -> None:
        config = parse_config(make_config_document())
        for rule in config.extract_rules:
            self.assertTrue(rule.pattern.pattern)
            self.assertTrue(is_template_rule(rule))
        changed = parse_config(make_config_document({"extract_rules[2].enabled": True}))
        self.assertFalse(is_template_rule(changed.extract_rules[2]))


class TwoOrders(unittest.TestCase):
    """One name with two orders of axes, as in Qwen3-VL-MoE."""

    HALVES: Mapping[str, Any] = {"axis": "rows", "splits": None, "projs": ["gate_proj", "up_proj"]}
    PRESET = make_preset(
        make_rule(".*gate_up_proj$", expert=0, rows=1, cols=2, packed_split=HALVES)
        | {"name": "out_in"},
        make_rule(".*gate_up_proj$", expert=0, rows=2, cols=1, packed_split=HALVES)
        | {"name": "in_out"},
        make_rule(".*down_proj$", expert=0, rows=1, cols=2, proj="down_proj")
        | {"name": "down_out_in"},
        make_rule(".*down_proj$", expert=0, rows=2, cols=1, proj="down_proj")
        | {"name": "down_in_out"},
    )

    def plan(
        self, name: str, shape: tuple[int, ...], config: dict[str, Any] | None
    ) -> ExtractionPlan:
        return plan_one(name, shape, preset=self.PRESET, model_config=config or {})

    def test_are_told_apart_by_config_json(self) -> None:
        for name, shape, first in (
            (FUSED, (4, 12, 8), (6, 8, 8, 1)),
            (FUSED, (4, 8, 12), (6, 8, 1, 12)),
            (DOWN, (4, 8, 6), (8, 6, 6, 1)),
            (DOWN, (4, 6, 8), (8, 6, 1, 8)),
        ):
            plan = self.plan(name, shape, sizes())
            view = plan.matrices[0].view
            with self.subTest(shape=shape):
                self.assertEqual((view.rows, view.cols, view.row_stride, view.col_stride), first)
                self.assertEqual({unit.layout_evidence for unit in plan.units}, {"config"})
                self.assertEqual({unit.extracted_via for unit in plan.units}, {"preset:p"})

    def assert_two_fit(
        self, name: str, shape: tuple[int, ...], config: dict[str, Any] | None, readings: str
    ) -> None:
        """Refused, with both rules in a form that the config takes."""
        plan = self.plan(name, shape, config)
        self.assertEqual(plan.units, ())
        self.assertEqual(reasons_of(plan), {name: "ambiguous_layout"})
        self.assertEqual(fates_of(plan), {name: ("refused", "ambiguous_layout")})
        (finding,) = [item for item in plan.findings if "refused" in item.message]
        self.assertEqual(
            finding.message,
            f"[extract] refused (ambiguous_layout): shape {list(shape)} fits several readings of "
            f"preset p: {readings}: {name}",
        )
        introduction, _, pasted = (finding.hint or "").partition(": ")
        self.assertEqual(introduction, "paste the right one into extract_rules")
        for text, rule_name in zip(pasted.split(" or "), readings.split(", "), strict=True):
            rule = json.loads(text)
            self.assertEqual(rule["name"], rule_name)
            config_with_it = parse_config(make_config_document({"extract_rules": [rule]}))
            self.assertEqual(len(config_with_it.extract_rules), 1)
            settled = plan_one(name, shape, {"extract_rules": [rule]}, preset=self.PRESET,
                               model_config=config or {})  # fmt: skip
            self.assertEqual({unit.extracted_via for unit in settled.units}, {f"rule:{rule_name}"})

    def test_that_both_fit_are_refused_with_both_rules_to_paste(self) -> None:
        self.assert_two_fit(DOWN, (4, 8, 8), sizes(width=8), "down_out_in, down_in_out")

    def test_are_refused_without_a_config_json(self) -> None:
        self.assert_two_fit(FUSED, (4, 12, 8), None, "out_in, in_out")

    def test_that_none_fits_are_refused_with_every_cause(self) -> None:
        plan = self.plan(DOWN, (4, 9, 6), sizes())
        self.assertEqual(reasons_of(plan), {DOWN: "ambiguous_layout"})
        known = "config.json (hidden size 8, expert width 6, experts 4)"
        (finding,) = [item for item in plan.findings if "refused" in item.message]
        self.assertEqual(
            finding.message,
            "[extract] refused (ambiguous_layout): shape [4, 9, 6] fits no reading of preset p "
            f"(down_out_in: does not fit {known}; down_in_out: does not fit {known}): {DOWN}",
        )
        self.assertEqual(finding.hint, "add a rule of your own for it to extract_rules")

    def test_whose_split_fails_are_no_reading(self) -> None:
        plan = self.plan(FUSED, (4, 9, 8), sizes())
        (finding,) = [item for item in plan.findings if "refused" in item.message]
        self.assertIn("out_in: packed_split failed for rule=out_in", finding.message)
        self.assertEqual(plan.strict_errors, ())


class OneReading(unittest.TestCase):
    PRESET = make_preset(
        make_rule(r".*(down|up)_proj$", expert=0, rows=2, cols=1, proj_group=1,
                  proj_map={"down": "down_proj", "up": "up_proj"}),
        make_rule(r".*odd$", expert=0, rows=1, cols=2, proj="odd"),
        make_rule(r".*shared_experts\.(\w+)$", is_shared_expert=True, proj_group=1),
        make_rule(r".*\.token\.(\w+)$", expert=0, rows=1, cols=2, proj_group=1),
    )  # fmt: skip

    def evidence(
        self, name: str, shape: tuple[int, ...], config: dict[str, Any] | None = None
    ) -> set[str]:
        plan = plan_one(name, shape, preset=self.PRESET, model_config=config or {})
        self.assertEqual(plan.unmatched, ())
        self.assertTrue(all(unit.extracted_via == "preset:p" for unit in plan.units))
        return {unit.layout_evidence for unit in plan.units}

    def test_that_config_json_confirms_says_so(self) -> None:
        self.assertEqual(self.evidence(DOWN, (4, 6, 8), sizes()), {"config"})

    def test_that_config_json_leaves_open_stands_by_the_preset(self) -> None:
        self.assertEqual(self.evidence(DOWN, (4, 8, 8), sizes(width=8)), {"preset"})
        self.assertEqual(self.evidence(DOWN, (4, 6, 8)), {"preset"})
        self.assertEqual(self.evidence("experts.odd", (4, 5, 5), sizes()), {"preset"})

    def test_that_two_rules_give_alike_is_one(self) -> None:
        rule = make_rule(".*down_proj$", expert=0, rows=1, cols=2, proj="down_proj")
        preset = make_preset(rule, rule | {"name": "again", "match": ".*experts"})
        plan = plan_one(DOWN, (4, 8, 8), preset=preset, model_config=sizes(width=8))
        self.assertEqual(len(plan.units), 1)
        self.assertEqual(reasons_of(plan), {})
        self.assertEqual(messages_of(plan), [])

    def test_of_a_shared_expert_is_not_held_against_routed_sizes(self) -> None:
        name = "mlp.shared_experts.up_proj"
        self.assertEqual(self.evidence(name, (24, 8), sizes()), {"preset"})

    def test_that_config_json_contradicts_is_refused(self) -> None:
        plan = plan_one(DOWN, (4, 8, 6), preset=self.PRESET, model_config=sizes())
        self.assertEqual(reasons_of(plan), {DOWN: "ambiguous_layout"})
        self.assertEqual(plan.matrices, [])
        self.assertIn("only when transposed", messages_of(plan)[0])

    def test_of_shared_experts_is_left_out_with_them(self) -> None:
        left_out = {"scan.include_shared_expert": False}
        for code in ("BF16", "I32"):
            plan = plan_one("mlp.shared_experts.up_proj", (6, 8), left_out, dtype_code=code,
                            preset=self.PRESET)  # fmt: skip
            self.assertEqual([str(item.fate) for item in plan.accounts], ["excluded"])
            self.assertEqual(plan.in_scope, frozenset())

    def test_with_an_unknown_token_is_dropped_where_the_config_is_strict(self) -> None:
        name = "experts.token.wat"
        changes = {"parsing.proj_group_strict": True}
        plan = plan_one(name, (4, 6, 8), changes, preset=self.PRESET)
        self.assertEqual(reasons_of(plan), {name: "proj_group_strict_unmapped"})

    def test_keeps_expert_ids_beyond_those_of_config_json(self) -> None:
        plan = plan_one(DOWN, (5, 6, 8), preset=self.PRESET, model_config=sizes())
        self.assertEqual(keys_of(plan)[DOWN][-1], (0, 4, "down_proj"))
        self.assertEqual(
            {str(entry.status) for entry in plan.coverage.entries}, {"extra", "missing"}
        )
