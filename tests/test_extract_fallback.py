from __future__ import annotations

import unittest

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from tests.support.extraction import (
    UNKNOWN_DIMENSIONS,
    keys_of,
    messages_of,
    plan_one,
    reasons_of,
)

NO_RULES = {"extract_rules": []}
DIMENSIONS = ExpertDimensions(hidden_size=8, expert_widths=(6,), n_experts=3)
KNOWN = "config.json (hidden size 8, expert width 6, experts 3)"
HINT_3D = (
    "add a rule that matches it, with layout expert_axis 0 and either rows_axis 1, cols_axis 2 "
    "for (experts, out, in) or rows_axis 2, cols_axis 1 for (experts, in, out)"
)
HINT_2D = (
    "add a rule that matches it, with layout rows_axis 0, cols_axis 1 for (out, in) or "
    "rows_axis 1, cols_axis 0 for (in, out)"
)


class FallbackCase(unittest.TestCase):
    def assert_measured(
        self,
        name: str,
        shape: tuple[int, ...],
        evidence: str,
        dimensions: ExpertDimensions = DIMENSIONS,
    ) -> list[tuple[int, int, str]]:
        """Return the keys of a tensor that the fallback takes with this evidence."""
        plan = plan_one(name, shape, NO_RULES, dimensions)
        self.assertEqual({unit.extracted_via for unit in plan.units}, {"fallback"})
        self.assertEqual({unit.layout_evidence for unit in plan.units}, {evidence})
        return keys_of(plan)[name]

    def assert_refused(
        self,
        name: str,
        shape: tuple[int, ...],
        cause: str,
        hint: str,
        dimensions: ExpertDimensions = DIMENSIONS,
    ) -> None:
        """The tensor is unmatched, with a warning that says why and what to do."""
        plan = plan_one(name, shape, NO_RULES, dimensions)
        self.assertEqual(plan.units, ())
        self.assertEqual(reasons_of(plan), {name: "ambiguous_layout"})
        (finding,) = plan.findings
        self.assertEqual(
            finding.message,
            f"[extract] refused (ambiguous_layout): shape {list(shape)} {cause}: {name}",
        )
        self.assertEqual(finding.hint, hint)
        self.assertTrue(plan.measures_nothing_but_refused)


class ThreeAxes(FallbackCase):
    """Read as (E, R, C) unless config.json says otherwise."""

    def test_that_config_json_confirms_are_measured(self) -> None:
        for proj, shape in (("gate", (3, 6, 8)), ("up", (3, 6, 8)), ("down", (3, 8, 6))):
            keys = self.assert_measured(f"layers.2.experts.{proj}_proj", shape, "config")
            self.assertEqual(keys, [(2, expert, f"{proj}_proj") for expert in range(3)])

    def test_that_fit_only_when_transposed_are_refused(self) -> None:
        self.assert_refused(
            "experts.down_proj", (3, 6, 8), f"fits {KNOWN} only when transposed", HINT_3D
        )

    def test_that_fit_not_at_all_are_refused(self) -> None:
        for shape in ((3, 8, 7), (3, 9, 6), (3, 8, 8)):
            self.assert_refused("experts.down_proj", shape, f"does not fit {KNOWN}", HINT_3D)

    def test_that_fit_both_ways_are_refused(self) -> None:
        square = ExpertDimensions(hidden_size=8, expert_widths=(8,), n_experts=3)
        self.assert_refused(
            "experts.down_proj",
            (3, 8, 8),
            "fits (rows, cols) and (cols, rows) alike in config.json (hidden size 8, expert width "
            "8, experts 3)",
            HINT_3D,
            square,
        )

    def test_with_another_number_of_experts_are_refused(self) -> None:
        self.assert_refused(
            "experts.down_proj",
            (4, 8, 6),
            f"has another first axis than the experts of {KNOWN}",
            "add a rule for it whose layout says which axis counts the experts",
        )

    def test_may_have_any_of_several_widths(self) -> None:
        several = ExpertDimensions(hidden_size=8, expert_widths=(6, 7), n_experts=None)
        self.assert_measured("experts.down_proj", (5, 8, 7), "config", several)
        self.assert_refused(
            "experts.down_proj",
            (5, 8, 5),
            "does not fit config.json (hidden size 8, expert width 6 or 7, experts unknown)",
            HINT_3D,
            several,
        )

    def test_with_the_hidden_size_alone_are_held_against_it(self) -> None:
        hidden = ExpertDimensions(hidden_size=8, expert_widths=(), n_experts=None)
        self.assert_measured("experts.down_proj", (2, 8, 5), "config", hidden)
        known = "config.json (hidden size 8, expert width unknown, experts unknown)"
        self.assert_refused(
            "experts.down_proj", (2, 5, 8), f"fits {known} only when transposed", HINT_3D, hidden
        )

    def test_that_nothing_confirms_are_measured_by_convention_with_a_finding(self) -> None:
        name = "experts.down_proj"
        for dimensions in (
            UNKNOWN_DIMENSIONS,
            ExpertDimensions(hidden_size=None, expert_widths=(6,), n_experts=3),
        ):
            self.assert_measured(name, (3, 8, 6), "convention", dimensions)
            (finding,) = plan_one(name, (3, 8, 6), NO_RULES, dimensions).findings
            self.assertEqual(
                finding.message,
                "[extract] layout taken by convention (experts, rows, cols), nothing confirms it: "
                f"{name}",
            )
            self.assertEqual(
                finding.hint,
                "add a rule with this layout to extract_rules to say that it is right",
            )

    def test_of_a_shared_expert_are_not_held_against_routed_dimensions(self) -> None:
        keys = self.assert_measured("shared_experts.down_proj", (2, 8, 24), "convention")
        self.assertEqual(keys, [(-1, -1, "down_proj")] * 2)

    def test_behind_an_expert_id_contradict_it(self) -> None:
        name = "experts.1.down_proj"
        plan = plan_one(name, (3, 8, 6), NO_RULES)
        self.assertEqual(
            messages_of(plan),
            [
                (
                    f"[extract] fallback failed for {name}: the name says expert 1, the expert "
                    "axis holds 3; drop expert_axis from the rule's layout or mend "
                    "parsing.expert_regex"
                )
            ],
        )
        self.assertEqual(reasons_of(plan), {name: "extraction_failed"})


class TwoAxes(FallbackCase):
    """Read as (R, C) of the expert in the name."""

    def test_that_config_json_confirms_say_so(self) -> None:
        keys = self.assert_measured("layers.2.experts.1.down_proj", (8, 6), "config")
        self.assertEqual(keys, [(2, 1, "down_proj")])

    def test_of_one_expert_stand_by_convention_where_config_json_does_not_fit(self) -> None:
        self.assert_measured("experts.1.down_proj", (8, 7), "convention")
        self.assert_measured("experts.1.down_proj", (8, 6), "convention", UNKNOWN_DIMENSIONS)
        square = ExpertDimensions(hidden_size=8, expert_widths=(8,), n_experts=3)
        self.assert_measured("experts.1.down_proj", (8, 8), "convention", square)

    def test_by_convention_need_no_finding(self) -> None:
        self.assertEqual(plan_one("experts.1.down_proj", (8, 6), NO_RULES).findings, ())

    def test_that_fit_only_when_transposed_are_refused(self) -> None:
        self.assert_refused(
            "experts.1.down_proj", (6, 8), f"fits {KNOWN} only when transposed", HINT_2D
        )

    def test_without_an_expert_id_must_fit_config_json(self) -> None:
        self.assert_refused("experts.down_proj", (8, 7), f"does not fit {KNOWN}", HINT_2D)
        keys = self.assert_measured("experts.down_proj", (8, 6), "config")
        self.assertEqual(keys, [(-1, -1, "down_proj")])

    def test_without_an_expert_id_are_recorded_as_minus_one_with_a_warning(self) -> None:
        plan = plan_one("experts.down_proj", (8, 6), NO_RULES)
        self.assertEqual(keys_of(plan), {"experts.down_proj": [(-1, -1, "down_proj")]})
        self.assertEqual(messages_of(plan), ["[extract] expert id unknown for experts.down_proj"])
        self.assertEqual([m.is_routed_expert for m in plan.matrices], [True])

    def test_of_a_dense_block_are_not_held_against_experts(self) -> None:
        name = "layers.0.mlp.down_proj.weight"
        plan = plan_one(name, (8, 24), {"scan.experts_only": False}, DIMENSIONS)
        self.assertEqual(keys_of(plan), {name: [(0, -1, "down_proj")]})
        self.assertEqual(messages_of(plan), [f"[extract] expert id unknown for {name}"])


class Names(FallbackCase):
    def test_without_a_projection_fit_nothing(self) -> None:
        name = "experts.0.norm.weight"
        plan = plan_one(name, (8, 6), NO_RULES)
        self.assertEqual(reasons_of(plan), {name: "no_rule_match_or_proj_infer"})
        self.assertEqual(plan.findings, ())

    def test_with_two_projections_are_refused(self) -> None:
        name = "experts.0.gate_proj.up_proj"
        plan = plan_one(name, (8, 6), NO_RULES)
        self.assertEqual(reasons_of(plan), {name: "ambiguous_layout"})
        (finding,) = plan.findings
        self.assertEqual(
            finding.message,
            f"[extract] refused (ambiguous_layout): the name means gate_proj and up_proj: {name}",
        )
        self.assertEqual(
            finding.hint, "write a rule with proj_group for it, or shorten parsing.proj_aliases"
        )

    def test_of_side_tensors_are_told_before_their_shape(self) -> None:
        for shape in ((), (3,), (3, 6), (3, 6, 8), (2, 3, 6, 8)):
            name = "experts.down_proj.scales"
            plan = plan_one(name, shape, NO_RULES)
            self.assertEqual(reasons_of(plan), {name: "side_tensor"})

    def test_with_one_or_four_axes_are_not_read(self) -> None:
        for shape in ((6,), (2, 3, 8, 6)):
            plan = plan_one("experts.down_proj", shape, NO_RULES)
            self.assertEqual(reasons_of(plan), {"experts.down_proj": "unsupported_ndim"})
            self.assertEqual(plan.findings, ())

    def test_with_a_dotted_word_count_as_experts_where_an_id_or_an_axis_says_so(self) -> None:
        for name, shape, keys in (
            ("experts.1.gate.weight", (6, 8), [(-1, 1, "gate_proj")]),
            ("experts.gate.weight", (1, 6, 8), [(-1, 0, "gate_proj")]),
            ("shared_expert.gate.weight", (6, 8), [(-1, -1, "gate_proj")]),
        ):
            self.assertEqual(keys_of(plan_one(name, shape, NO_RULES)), {name: keys})
