from __future__ import annotations

import unittest
from dataclasses import FrozenInstanceError

from moe_weights.checkpoint.expert_dimensions import ExpertDimensions
from moe_weights.errors import ExitCode, PackedSplitError
from tests.support.extraction import (
    keys_of,
    make_header,
    make_headers,
    make_rule,
    messages_of,
    plan_headers,
    plan_one,
    reasons_of,
)

UP = "layers.0.experts.0.up_proj.weight"
EVERYTHING = {"scan.experts_only": False}


class Dtypes(unittest.TestCase):
    def test_sixteen_to_sixty_four_bit_floats_are_measured(self) -> None:
        for code, width in (("BF16", 2), ("F16", 2), ("F32", 4), ("F64", 8)):
            (unit,) = plan_one(UP, (4, 6), dtype_code=code).units
            self.assertEqual(unit.source.encoding, "plain")
            self.assertEqual(unit.nbytes, 24 * width)

    def test_integers_that_no_encoding_claims_are_refused_as_codes_without_their_scales(
        self,
    ) -> None:
        for code in ("U8", "I8", "U32", "I32", "I64", "BOOL", "C64"):
            plan = plan_one(UP, (4, 6), dtype_code=code)
            self.assertEqual(plan.units, ())
            self.assertEqual(reasons_of(plan), {UP: "missing_companion"})
            self.assertIn("[read] refused (missing_companion): ", messages_of(plan)[0])
            self.assertTrue(plan.measures_nothing_but_refused)
            self.assertEqual(plan.in_scope, {UP})

    def test_vectors_of_integers_describe_something_else(self) -> None:
        for code in ("I64", "U8", "BOOL"):
            name = "layers.0.experts.0.up_proj.weight_shape"
            plan = plan_one(name, (2,), dtype_code=code)
            self.assertEqual(reasons_of(plan), {name: "side_tensor"})
            self.assertEqual(plan.findings, ())
            ids = "layers.0.experts.hot_ids"
            self.assertEqual(reasons_of(plan_one(ids, (2,), dtype_code=code)), {ids: "side_tensor"})

    def test_small_floats_without_a_scale_are_refused_with_the_names_looked_for(self) -> None:
        for code in ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F4"):
            plan = plan_one(UP, (4, 6), dtype_code=code)
            self.assertEqual(reasons_of(plan), {UP: "missing_companion"})
            (message,) = messages_of(plan)
            self.assertTrue(message.startswith("[read] refused (missing_companion): "), message)
            self.assertIn(f"weights {UP} {code} [4, 6]", message)
            self.assertIn(f"looked for {UP}_scale", message)
            self.assertTrue(plan.measures_nothing_but_refused)

    def test_small_floats_of_no_known_encoding_are_refused_as_weights_that_stay_hidden(
        self,
    ) -> None:
        for code in ("F8_E8M0", "F6_E2M3", "F6_E3M2"):
            plan = plan_one(UP, (4, 6), dtype_code=code)
            self.assertEqual(reasons_of(plan), {UP: "unknown_dtype"})
            self.assertEqual(
                messages_of(plan),
                [f"[read] refused (unknown_dtype): dtype {code} is not decoded: {UP}"],
            )
            self.assertTrue(plan.measures_nothing_but_refused)

    def test_unknown_dtypes_are_reported_and_hide_nothing_for_certain(self) -> None:
        for code in ("F3_NEW", ">f4", "<U4", "|V4"):
            plan = plan_one(UP, (4, 6), dtype_code=code)
            self.assertEqual(reasons_of(plan), {UP: "unknown_dtype"})
            self.assertEqual(
                messages_of(plan),
                [f"[read] refused (unknown_dtype): dtype {code} is not decoded: {UP}"],
            )
            self.assertFalse(plan.measures_nothing_but_refused)

    def test_two_byte_void_is_refused_with_the_key_that_settles_it(self) -> None:
        plan = plan_one(UP, (4, 6), dtype_code="|V2")
        (finding,) = plan.findings
        self.assertEqual(
            finding.message, f"[read] refused (unknown_dtype): dtype |V2 is not decoded: {UP}"
        )
        self.assertEqual(finding.hint, 'if it holds bfloat16, set parsing.npz_void16 to "bfloat16"')
        self.assertTrue(plan.measures_nothing_but_refused)

    def test_scales_in_a_dtype_that_is_not_decoded_are_side_tensors_without_a_warning(self) -> None:
        name = "experts.0.up_proj.weight_scale"
        plan = plan_one(name, (4, 6), dtype_code="F8_E8M0")
        self.assertEqual(reasons_of(plan), {name: "side_tensor"})
        self.assertEqual(plan.findings, ())


class EmptyTensors(unittest.TestCase):
    def test_without_elements_are_unmatched_with_a_warning(self) -> None:
        for shape in ((0, 6), (4, 0), (0,)):
            plan = plan_one(UP, shape)
            self.assertEqual(reasons_of(plan), {UP: "zero_size"})
            self.assertEqual(
                messages_of(plan),
                [f"[read] refused (zero_size): shape {list(shape)} has no elements: {UP}"],
            )
            self.assertFalse(plan.measures_nothing_but_refused)

    def test_without_axes_are_unmatched_with_a_warning(self) -> None:
        plan = plan_one(UP, ())
        self.assertEqual(reasons_of(plan), {UP: "unsupported_ndim"})
        self.assertEqual(
            messages_of(plan), [f"[read] refused (unsupported_ndim): a scalar has no axes: {UP}"]
        )


class Scope(unittest.TestCase):
    def test_is_what_looks_like_an_expert(self) -> None:
        plan = plan_headers(make_headers({UP: (4, 6), "layers.0.mlp.up_proj.weight": (4, 6)}))
        self.assertEqual(plan.in_scope, {UP})
        self.assertEqual(list(keys_of(plan)), [UP])

    def test_is_everything_without_experts_only_and_shared_is_then_not_asked(self) -> None:
        names = (UP, "layers.0.mlp.norm", "shared_expert.up_proj", "layers.0.mlp.up_proj")
        plan = plan_headers(
            make_headers(dict.fromkeys(names, (4, 6))),
            EVERYTHING | {"scan.include_shared_expert": False},
        )
        self.assertEqual(plan.in_scope, set(names))
        self.assertEqual(set(keys_of(plan)), set(names) - {"layers.0.mlp.norm"})
        self.assertEqual(plan.unmatched, ())

    def test_of_integers_beside_experts_is_the_same(self) -> None:
        header = make_header("model.position_ids", (1, 8), "I64")
        plan = plan_headers([header])
        self.assertEqual((plan.in_scope, plan.accounts, plan.findings), (set(), (), ()))
        plan = plan_headers([header], EVERYTHING)
        self.assertEqual(plan.in_scope, {header.name})
        self.assertEqual((plan.accounts, plan.findings), ((), ()))

    def test_holds_what_a_rule_with_experts_takes_whatever_its_name(self) -> None:
        bank = make_rule(r"ffn\.bank", expert=0, rows=1, cols=2, proj_group=None)
        group = make_rule(r"ffn\.e(\d+)\.", expert_group=1)
        for name, shape, rule, n_experts in (
            ("ffn.bank.w1", (3, 4, 6), bank, 3),
            ("ffn.e5.w1", (4, 6), group, 1),
        ):
            plan = plan_one(name, shape, {"extract_rules": [rule]})
            self.assertEqual(plan.in_scope, {name})
            self.assertEqual(len(plan.matrices), n_experts)
            off = plan_one(name, shape, {"extract_rules": [rule | {"enabled": False}]})
            self.assertEqual((off.in_scope, off.units), (set(), ()))

    def test_does_not_hold_what_a_rule_without_experts_takes(self) -> None:
        plan = plan_one("ffn.w1", (4, 6), {"extract_rules": [make_rule(".*")]})
        self.assertEqual((plan.in_scope, plan.units), (set(), ()))

    def test_does_not_hold_a_shared_expert_of_a_rule_when_those_are_left_out(self) -> None:
        rule = make_rule(r".*", expert=0, rows=1, cols=2)
        changes = {"extract_rules": [rule], "scan.include_shared_expert": False}
        plan = plan_one("shared_expert.bank.w1", (3, 4, 6), changes)
        self.assertEqual((plan.in_scope, plan.units), (set(), ()))


class ShapesUnderRules(unittest.TestCase):
    """A rule of the user or the template is believed, and reported where config.json differs."""

    DIMENSIONS = ExpertDimensions(hidden_size=8, expert_widths=(6,), n_experts=2)

    def test_that_differ_are_measured_with_one_finding(self) -> None:
        names = [f"layers.{layer}.mlp.experts.up_proj.weight" for layer in range(5)]
        plan = plan_headers(
            make_headers(dict.fromkeys(names, (2, 8, 6))), dimensions=self.DIMENSIONS
        )
        self.assertEqual(list(keys_of(plan)), names)
        (finding,) = plan.findings
        self.assertEqual(
            finding.message,
            "[extract] a rule reads another shape than config.json says: 5 tensors "
            f"({names[0]}, {names[1]}, {names[2]}, ...)",
        )
        self.assertEqual(finding.hint, "check rows_axis and cols_axis of the rule")
        self.assertEqual((finding.count, finding.tensor), (5, names[0]))

    def test_that_agree_or_belong_to_shared_experts_need_no_finding(self) -> None:
        tensors = {
            "experts.up_proj.weight": (2, 6, 8),
            "shared_experts.0.up_proj.weight": (24, 8),
            "experts.0.down_proj.weight": (8, 6),
        }
        plan = plan_headers(make_headers(tensors), dimensions=self.DIMENSIONS)
        self.assertEqual(len(plan.rule_extracted), 3)
        self.assertEqual(plan.findings, ())


class Findings(unittest.TestCase):
    def test_unknown_ids_are_listed_one_by_one_up_to_twenty(self) -> None:
        names = [f"layers.{layer}.experts.up_proj" for layer in range(23)]
        plan = plan_headers(make_headers(dict.fromkeys(names, (4, 6))))
        self.assertEqual(
            messages_of(plan),
            [f"[extract] expert id unknown for {name}" for name in names[:20]]
            + [
                (
                    "[extract] expert id unknown for further tensors: 3 tensors "
                    f"({names[20]}, {names[21]}, {names[22]})"
                )
            ],
        )
        self.assertEqual(
            {finding.hint for finding in plan.findings},
            {"mend parsing.expert_regex or give the rule an expert_group"},
        )
        self.assertEqual(sum(finding.count for finding in plan.findings), 23)

    def test_name_file_and_tensor(self) -> None:
        header = make_header("experts.up_proj", (4, 6), file="b.safetensors")
        (finding,) = plan_headers([header]).findings
        self.assertEqual((finding.file, finding.tensor), ("b.safetensors", "experts.up_proj"))

    def test_refusals_of_one_cause_are_one_line_and_of_two_causes_two(self) -> None:
        headers = [
            make_header("experts.0.up_proj", (4, 6), "F6_E2M3"),
            make_header("experts.1.up_proj", (4, 6), "F6_E3M2"),
            make_header("experts.2.up_proj", (4, 6), "F6_E2M3"),
        ]
        self.assertEqual(
            messages_of(plan_headers(headers)),
            [
                (
                    "[read] refused (unknown_dtype): dtype F6_E2M3 is not decoded: 2 tensors "
                    "(experts.0.up_proj, experts.2.up_proj)"
                ),
                "[read] refused (unknown_dtype): dtype F6_E3M2 is not decoded: experts.1.up_proj",
            ],
        )


class WholePlan(unittest.TestCase):
    def test_counts_tensors_by_the_way_they_were_taken_in_scan_order(self) -> None:
        tensors = {
            "b.experts.0.w1": (4, 6),
            "experts.1.up_proj.weight": (4, 6),
            "a.experts.0.w1": (4, 6),
            "experts.0.up_proj.weight": (4, 6),
            "experts.up_proj.weight": (2, 4, 6),
        }
        plan = plan_headers(make_headers(tensors))
        self.assertEqual(plan.fallback_extracted, ("b.experts.0.w1", "a.experts.0.w1"))
        self.assertEqual(
            plan.rule_extracted,
            ("experts.1.up_proj.weight", "experts.0.up_proj.weight", "experts.up_proj.weight"),
        )

    def test_lists_what_is_not_measured_in_scan_order_whatever_keeps_it_out(self) -> None:
        kinds = (
            ("other", "I32", (4, 6)),  # claimed by no encoding
            ("plain", "BF16", (4,)),  # floats that no rule takes
            ("codes", "F8_E4M3", (4, 6)),  # codes without a scale
        )
        headers = [
            make_header(f"experts.{expert}.{word}", shape, code, offset=100 * expert, file=file)
            for file in ("a.npz", "b.safetensors")
            for expert, (word, code, shape) in enumerate(kinds)
        ]
        for order in (headers, headers[::-1]):
            listed = [
                (item.header.file, item.header.name) for item in plan_headers(order).unmatched
            ]
            self.assertEqual(listed, [(header.file, header.name) for header in order])

    def test_counts_the_bytes_that_will_be_read(self) -> None:
        plan = plan_headers(make_headers({UP: (4, 6), "experts.0.scales": (4, 6)}, "F32"))
        self.assertEqual(plan.nbytes, 96)

    def test_one_name_in_two_files_gives_rows_of_both(self) -> None:
        headers = [make_header(UP, (4, 6), file=f"{shard}.safetensors") for shard in "ba"]
        plan = plan_headers(headers)
        self.assertEqual(
            [unit.source.header.file for unit in plan.units], ["a.safetensors", "b.safetensors"]
        )

    def test_of_nothing_is_empty_and_refuses_nothing(self) -> None:
        plan = plan_headers([])
        self.assertEqual((plan.units, plan.matrices, plan.nbytes), ((), [], 0))
        self.assertFalse(plan.measures_nothing_but_refused)
        plan.raise_strict_errors()

    def test_that_measures_something_is_not_empty_for_its_refusals(self) -> None:
        headers = [make_header(UP, (4, 6)), make_header("experts.1.w1", (4, 6), "F8_E4M3")]
        self.assertFalse(plan_headers(headers).measures_nothing_but_refused)

    def test_cannot_be_changed(self) -> None:
        with self.assertRaises(FrozenInstanceError):
            plan_headers([]).units = ()  # type: ignore[misc]


class StrictErrors(unittest.TestCase):
    HINT = (
        "fix extract_rules[].packed_split, or set parsing.strict_packed_split to false to warn "
        "and fall back"
    )

    def failure(self, n_tensors: int) -> PackedSplitError:
        split = {"axis": "rows", "splits": [3], "projs": ["w1"]}
        rule = make_rule(".*", packed_split=split)
        names = [f"experts.{expert}.w1" for expert in range(n_tensors)]
        plan = plan_headers(make_headers(dict.fromkeys(names, (4, 6))), {"extract_rules": [rule]})
        with self.assertRaises(PackedSplitError) as caught:
            plan.raise_strict_errors()
        return caught.exception

    def line(self, expert: int) -> str:
        return (
            f"packed_split failed for rule=r tensor=experts.{expert}.w1: splits [3] sum to 3, the "
            "axis has 4"
        )

    def test_end_the_run_with_exit_code_four(self) -> None:
        error = self.failure(1)
        self.assertEqual(str(error), f"{self.line(0)}\n{self.HINT}")
        self.assertEqual(error.exit_code, ExitCode.EXTRACTION)

    def test_name_five_tensors_and_count_the_rest(self) -> None:
        lines = str(self.failure(7)).split("\n")
        self.assertEqual(
            lines,
            [*(self.line(expert) for expert in range(5)), "... and 2 more tensors", self.HINT],
        )
        self.assertEqual(len(str(self.failure(5)).split("\n")), 6)
