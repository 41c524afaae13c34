"""The one fate of every byte, and what a ledger makes of what was lost."""

from __future__ import annotations

from moe_weights.extract.account import Fate
from tests.support.extraction import make_header, make_rule, plan_headers, rules
from tests.support.ledgers import SHAPES, LedgerCase, experts, name_of


class RefusedOrUnmatched(LedgerCase):
    def test_is_what_is_missing_because_it_was_refused(self) -> None:
        tensors = experts()
        name = name_of(0, 1, "up_proj")
        del tensors[name]
        plan = self.plan(tensors, more=[make_header(name, (6, 8), "F8_E4M3")])
        self.assert_incomplete(plan, {"0 up_proj": "refused"})
        (lost,) = plan.coverage.of_fate(Fate.REFUSED)
        self.assertEqual((lost.tensor, lost.detail), (name, "missing_companion"))

    def test_covers_all_projections_of_a_layer_where_the_name_tells_none(self) -> None:
        tensors = experts(layers=[1])
        name = "model.layers.0.mlp.experts.fused"
        plan = self.plan(tensors, more=[make_header(name, (2, 6, 8), "U8")])
        self.assert_incomplete(plan, {f"0 {proj}": "refused" for proj in SHAPES})

    def test_keeps_a_ledger_incomplete_even_with_every_expert_found(self) -> None:
        for more, fate in (
            (make_header("model.layers.0.mlp.experts.odd", (2, 6, 8)), Fate.UNMATCHED),
            (make_header("model.layers.0.mlp.experts.0.scales", (2, 6)), Fate.UNMATCHED),
            (make_header("model.layers.0.mlp.experts.blob", (2, 6), "U8"), Fate.REFUSED),
        ):
            plan = self.plan(experts(), more=[more])
            self.assertEqual(self.statuses(plan), {})
            self.assertIs(plan.coverage.complete, False)
            self.assertEqual([x.tensor for x in plan.coverage.of_fate(fate)], [more.name])


class Bytes(LedgerCase):
    """Every byte of every expert-looking tensor has one fate."""

    def test_sum_to_those_of_all_expert_looking_tensors(self) -> None:
        fp8 = name_of(0, 0, "up_proj")
        orphan = name_of(0, 1, "up_proj")
        headers = [
            make_header(fp8, (128, 128), "F8_E4M3"),
            make_header(f"{fp8}_scale_inv", (1, 1), "F32", file="other.safetensors"),
            make_header(orphan, (128, 128), "F8_E4M3"),
            make_header(name_of(1, 0, "gate_proj"), (128, 128)),
            make_header("model.layers.0.mlp.shared_experts.up_proj.weight", (128, 128)),
            make_header("model.layers.0.mlp.experts.odd", (3, 3)),
            make_header("model.layers.0.mlp.experts.none", (0, 3)),
            make_header("model.layers.0.mlp.experts.0.scales", (7,)),
            make_header("model.layers.0.mlp.experts.e_score_correction_bias", (2,), "F32"),
            make_header("model.layers.0.mlp.experts.0.up_proj.lora_A.weight", (2, 8)),
            make_header("model.layers.0.mlp.experts.ids", (5,), "I64"),
            make_header(name_of(1, 0, "gate_proj"), (128, 128), file="original/m.safetensors"),
        ]
        dense = [make_header("model.norm.weight", (128,)), make_header("lm_head.weight", (9, 9))]
        for changes in (
            {},
            {"scan.include_shared_expert": False},
            {"scan.experts_only": False},
            {"extract_rules": []},
        ):
            plan = plan_headers([*headers, *dense], changes)
            with self.subTest(changes=changes):
                by_fate = plan.coverage.nbytes
                self.assertEqual(set(by_fate), {str(fate) for fate in Fate})
                self.assertEqual(sum(by_fate.values()), sum(header.nbytes for header in headers))
                places = [(item.tensor, item.file) for item in plan.accounts]
                self.assertEqual(len(places), len(set(places)))
                explained = set(plan.companions)
                self.assertEqual(
                    {tensor for tensor, _file in places} | explained,
                    {header.name for header in headers},
                )
                self.assertEqual(by_fate["measured"], plan.nbytes)
                left_out = 128 * 128 * 2 if "scan.include_shared_expert" in changes else 0
                self.assertEqual(by_fate["excluded"], left_out)

    def test_of_what_is_measured_beside_experts_do_not_count(self) -> None:
        dense = {"model.layers.0.mlp.up_proj.weight": (24, 8), "model.norm.weight": (0,)}
        plan = self.plan(experts() | dense, changes={"scan.experts_only": False})
        self.assertEqual(len(plan.units), len(experts()) + 1)
        self.assertEqual(plan.coverage.nbytes["measured"], 12 * 96)
        self.assertEqual(plan.coverage.nbytes["unmatched"], 0)
        self.assertIs(plan.coverage.complete, True)
        self.assertEqual(plan.in_scope, set(experts()) | set(dense))

    def test_that_were_all_refused_end_the_run_whatever_the_filter(self) -> None:
        header = make_header(name_of(0, 0, "up_proj"), (6, 8), "F8_E4M3")
        for changes in ({}, {"scan.experts_only": False}):
            self.assertTrue(plan_headers([header], changes).measures_nothing_but_refused)


class SideTensors(LedgerCase):
    def test_count_where_the_rule_for_their_weights_names_experts(self) -> None:
        scales = "model.layers.0.block.3.up_proj.scales"
        pattern = r".*block\.(\d+)\.up_proj\.weight$"
        for rule, counted in (
            (make_rule(pattern, expert_group=1), [scales]),
            (make_rule(pattern), []),
        ):
            plan = self.plan({scales: (4,)}, changes=rules(rule))
            self.assertEqual([account.tensor for account in plan.accounts], counted)
