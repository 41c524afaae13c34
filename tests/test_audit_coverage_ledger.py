from __future__ import annotations

import json
import unittest
from collections.abc import Mapping, Sequence
from typing import Any

from moe_weights.audit.coverage_ledger import (
    coverage_findings,
    coverage_json,
    coverage_line,
    coverage_summary,
)
from moe_weights.extract.coverage import Coverage
from moe_weights.findings import FindingKind
from tests.support.extraction import make_headers, plan_headers

NAME = "model.layers.{}.mlp.experts.{}.{}.weight"
SHAPES = {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}
DECLARED: dict[str, Any] = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_experts": 2,
    "num_hidden_layers": 2,
}
ROUTER_BIAS = "model.layers.0.mlp.experts.e_score_correction_bias"
ODD = "model.layers.0.mlp.experts.0.odd"
LAYER_BYTES = 2 * 3 * 2 * 32 * 64


def whole_model(n_layers: int = 2, n_experts: int = 2) -> dict[str, Sequence[int]]:
    return {
        NAME.format(layer, expert, proj): shape
        for layer in range(n_layers)
        for expert in range(n_experts)
        for proj, shape in SHAPES.items()
    }


def coverage_of(
    tensors: Mapping[str, Sequence[int]],
    declared: Mapping[str, Any] | None = None,
    changes: dict[str, Any] | None = None,
) -> Coverage:
    model_config = DECLARED if declared is None else declared
    return plan_headers(make_headers(tensors), changes, model_config=model_config).coverage


def statuses(coverage: Coverage) -> dict[str, int]:
    counts = coverage_summary(coverage)["statuses"]
    assert isinstance(counts, dict)
    return counts


class Ledger(unittest.TestCase):
    def test_of_a_whole_model_is_golden(self) -> None:
        tensors = whole_model(1) | {ROUTER_BIAS: (2,)}
        content = coverage_json(coverage_of(tensors, {**DECLARED, "num_hidden_layers": 1}))
        self.assertEqual(
            json.loads(json.dumps(content)),
            {
                "complete": True,
                "expected": {
                    "stacks": [
                        {
                            "stack": "text",
                            "n_layers": 1,
                            "moe_layers": [0],
                            "n_experts": 2,
                            "n_experts_by_layer": [],
                            "n_identity_experts": 0,
                            "hidden_size": 64,
                            "expert_widths": [32],
                        }
                    ]
                },
                "stacks": [
                    {
                        "stack": "text",
                        "layers": [
                            {
                                "layer": 0,
                                "proj": proj,
                                "expected_experts": 2,
                                "found_experts": 2,
                                "expected_shape": list(shape),
                                "found_shape": list(shape),
                                "status": "complete",
                            }
                            for proj, shape in SHAPES.items()
                        ],
                    }
                ],
                "unaccounted": [],
                "lookalikes": [{"tensor": ROUTER_BIAS, "kind": "router_bias"}],
                "bytes": {
                    "measured": LAYER_BYTES,
                    "excluded": 0,
                    "refused": 0,
                    "unmatched": 0,
                    "lookalike": 4,
                },
            },
        )

    def test_names_what_was_refused_or_left_over_and_why(self) -> None:
        scaleless = "model.layers.1.mlp.experts.0.up_proj.weight"
        headers = make_headers(whole_model() | {ODD: (2, 2)})
        headers = [
            header
            if header.name != scaleless
            else make_headers({scaleless: (32, 64)}, "F8_E4M3")[0]
            for header in headers
        ]
        plan = plan_headers(headers, model_config=DECLARED)
        content = coverage_json(plan.coverage)
        self.assertIs(content["complete"], False)
        self.assertEqual(
            content["unaccounted"],
            [
                {"tensor": ODD, "fate": "unmatched", "reason": "no_rule_match_or_proj_infer"},
                {"tensor": scaleless, "fate": "refused", "reason": "missing_companion"},
            ],
        )
        self.assertEqual(
            content["bytes"],
            {
                "measured": 2 * LAYER_BYTES - 2 * 32 * 64,
                "excluded": 0,
                "refused": 32 * 64,
                "unmatched": 8,
                "lookalike": 0,
            },
        )
        self.assertEqual(statuses(plan.coverage), {"complete": 5, "refused": 1})

    def test_without_a_declaration_is_neither_complete_nor_incomplete(self) -> None:
        coverage = coverage_of(whole_model(), {})
        content = coverage_json(coverage)
        self.assertIsNone(content["complete"])
        self.assertEqual(content["expected"], {"stacks": []})
        self.assertEqual(statuses(coverage), {"unknown": 6})
        self.assertEqual(coverage_findings(coverage), [])

    def test_counts_what_an_option_leaves_out_as_excluded(self) -> None:
        shared = "model.layers.0.mlp.shared_expert.up_proj.weight"
        changes = {"scan.include_shared_expert": False}
        coverage = coverage_of(whole_model() | {shared: (32, 64)}, changes=changes)
        self.assertEqual(coverage.nbytes["excluded"], 2 * 32 * 64)
        self.assertTrue(coverage.complete)

    def test_keeps_stacks_apart_and_in_order(self) -> None:
        other = "encoder.layers.0.mlp.experts.0.up_proj.weight"
        content = coverage_json(coverage_of(whole_model() | {other: (32, 64)}))
        stacks = content["stacks"]
        assert isinstance(stacks, list)
        self.assertEqual(
            [(item["stack"], len(item["layers"])) for item in stacks],
            [("encoder", 1), ("text", 6)],
        )
        self.assertIs(content["complete"], True)


class Line(unittest.TestCase):
    def test_says_complete(self) -> None:
        self.assertEqual(
            coverage_line(coverage_of(whole_model())),
            "coverage complete: every expert matrix that config.json declares will be measured",
        )

    def test_does_not_claim_layers_that_config_json_does_not_count(self) -> None:
        for n_layers in (None, -1, 100_001, 10**400):
            with self.subTest(n_layers=n_layers):
                declared = DECLARED | {"num_hidden_layers": n_layers}
                coverage = coverage_of(whole_model(), declared)
                self.assertIsNone(coverage.complete)
                self.assertEqual(
                    coverage_line(coverage),
                    "coverage unknown: config.json does not say which layers have experts",
                )

    def test_does_not_deny_experts_whose_number_config_json_leaves_open(self) -> None:
        coverage = coverage_of(whole_model(), DECLARED | {"num_local_experts": 3})
        self.assertEqual(
            coverage_line(coverage),
            "coverage unknown: config.json does not say how many experts each layer has",
        )

    def test_says_what_is_missing_and_names_a_lost_tensor(self) -> None:
        tensors = whole_model() | {ODD: (2, 2)}
        del tensors[NAME.format(1, 1, "up_proj")]
        self.assertEqual(
            coverage_line(coverage_of(tensors)),
            "coverage INCOMPLETE: missing: 1; tensors refused or unmatched: 1, for example " + ODD,
        )

    def test_says_that_nothing_was_found_where_layers_are_not_known(self) -> None:
        declared = {"num_experts": 2, "hidden_size": 64, "moe_intermediate_size": 32}
        self.assertEqual(
            coverage_line(coverage_of({}, declared)), "coverage INCOMPLETE: nothing was found"
        )

    def test_says_unknown(self) -> None:
        self.assertEqual(
            coverage_line(coverage_of(whole_model(), {})),
            "coverage unknown: config.json declares no experts to hold the tensors against",
        )


class Findings(unittest.TestCase):
    def messages(self, coverage: Coverage) -> list[str]:
        findings = coverage_findings(coverage)
        self.assertEqual(
            {finding.kind for finding in findings} | {FindingKind.COVERAGE},
            {FindingKind.COVERAGE},
        )
        self.assertEqual(
            {finding.hint for finding in findings} | {"all pairs are in logs/coverage.json"},
            {"all pairs are in logs/coverage.json"},
        )
        return [finding.message for finding in findings]

    def test_are_none_for_a_whole_model(self) -> None:
        self.assertEqual(self.messages(coverage_of(whole_model())), [])

    def test_tell_of_experts_that_are_there_twice(self) -> None:
        tensors = whole_model() | {"draft." + NAME.format(0, 0, "up_proj"): (32, 64)}
        place = "(text layer 0 up_proj: {} experts, some more than once)"
        for config, counts in ((DECLARED, "2 of 2"), ({}, "2")):
            self.assertEqual(
                self.messages(coverage_of(tensors, config)),
                ["[coverage] extra: 1 (layer, projection) pairs " + place.format(counts)],
            )

    def test_are_one_per_status_with_three_places(self) -> None:
        coverage = coverage_of(whole_model(n_experts=1), {**DECLARED, "num_hidden_layers": 2})
        (finding,) = coverage_findings(coverage)
        self.assertEqual(finding.count, 6)
        self.assertEqual(
            finding.message,
            "[coverage] missing: 6 (layer, projection) pairs (text layer 0 gate_proj: 1 of 2 "
            "experts; text layer 0 up_proj: 1 of 2 experts; text layer 0 down_proj: 1 of 2 "
            "experts; ...)",
        )

    def test_say_that_there_are_more_only_where_there_are(self) -> None:
        for n_layers, n_pairs, ending in ((1, 3, "experts)"), (2, 6, "experts; ...)")):
            declared = {**DECLARED, "num_hidden_layers": n_layers}
            (message,) = self.messages(coverage_of(whole_model(n_layers, n_experts=1), declared))
            self.assertTrue(message.startswith(f"[coverage] missing: {n_pairs} "), message)
            self.assertTrue(message.endswith(f" 1 of 2 {ending}"), message)

    def test_hold_projections_against_each_other_only_where_no_number_is_declared(self) -> None:
        tensors = whole_model()
        del tensors[NAME.format(1, 1, "up_proj")]
        self.assertEqual(
            self.messages(coverage_of(tensors)),
            [
                (
                    "[coverage] missing: 1 (layer, projection) pairs (text layer 1 up_proj: 1 of 2 "
                    "experts)"
                )
            ],
        )

    def test_show_the_shape_where_that_is_what_is_wrong(self) -> None:
        tensors = dict(whole_model())
        for expert in range(2):
            tensors[NAME.format(0, expert, "up_proj")] = (16, 64)
        place = "text layer 0 up_proj: [16, 64]"
        self.assertEqual(
            self.messages(coverage_of(tensors)),
            ["[coverage] wrong_shape: 1 (layer, projection) pairs (" + place + ")"],
        )

    def test_tell_of_extra_prediction_layers_that_are_not_there(self) -> None:
        mtp = {
            f"mtp.layers.0.mlp.experts.{expert}.{proj}.weight": shape
            for expert in range(2)
            for proj, shape in SHAPES.items()
        }
        for n_declared, tensors, n_found in ((1, {}, 0), (3, mtp, 1)):
            declared = {**DECLARED, "num_nextn_predict_layers": n_declared}
            coverage = coverage_of(whole_model() | tensors, declared)
            self.assertIs(coverage.complete, True)
            (finding,) = coverage_findings(coverage)
            self.assertEqual(finding.kind, FindingKind.COVERAGE)
            self.assertEqual(
                finding.message,
                f"[coverage] config.json counts multi-token-prediction layers: {n_declared}; "
                f"with experts here: {n_found}",
            )
            self.assertEqual(
                finding.hint,
                "many releases leave these layers out, and in some families they are dense; if "
                "they should be here, look for a missing shard",
            )
        for n_declared in (0, 1):
            declared = {**DECLARED, "num_nextn_predict_layers": n_declared}
            tensors = whole_model() | (mtp if n_declared else {})
            self.assertEqual(coverage_findings(coverage_of(tensors, declared)), [])

    def test_tell_of_ragged_layers_where_config_json_does_not_say_how_many_experts(self) -> None:
        tensors = dict(whole_model(n_layers=5, n_experts=3))
        for layer in range(4):
            del tensors[NAME.format(layer, 1, "up_proj")]
        (finding,) = coverage_findings(coverage_of(tensors, {}))
        self.assertEqual((finding.kind, finding.count), (FindingKind.COVERAGE, 4))
        places = "; ".join(
            f"text layer {layer}: gate_proj 3, up_proj 2, down_proj 3" for layer in range(3)
        )
        self.assertEqual(
            finding.message,
            "[coverage] layers whose projections have different numbers of experts: 4 "
            f"({places}; ...)",
        )
        self.assertEqual(
            finding.hint,
            "config.json does not say how many there should be; look for a missing shard or for "
            "names that no rule takes",
        )
        (finding,) = coverage_findings(coverage_of({**tensors, **whole_model(3, 3)}, {}))
        place = "text layer 3: gate_proj 3, up_proj 2, down_proj 3"
        self.assertEqual(
            finding.message,
            f"[coverage] layers whose projections have different numbers of experts: 1 ({place})",
        )

    def test_tell_of_layers_without_any_where_config_json_does_not_say_how_many_experts(
        self,
    ) -> None:
        declared = DECLARED | {"num_local_experts": 3, "num_hidden_layers": 6}
        coverage = coverage_of(whole_model(n_layers=2), declared)
        (finding,) = coverage_findings(coverage)
        self.assertEqual((finding.kind, finding.count), (FindingKind.COVERAGE, 4))
        self.assertEqual(
            finding.message,
            "[coverage] layers that have experts by config.json, of which none is measured: 4 "
            "(text layer 2; text layer 3; text layer 4; ...)",
        )
        self.assertEqual(
            finding.hint,
            "config.json does not say how many there should be; look for a missing shard or for "
            "names that no rule takes",
        )

    def test_tell_of_experts_and_layers_beyond_what_is_declared(self) -> None:
        tensors = whole_model(n_layers=1, n_experts=3)
        declared = {**DECLARED, "num_hidden_layers": 3, "mlp_only_layers": [0, 1]}
        self.assertEqual(
            [message.split(":")[0] for message in self.messages(coverage_of(tensors, declared))],
            ["[coverage] missing", "[coverage] not_expected"],
        )
        coverage = coverage_of(tensors, {**DECLARED, "num_hidden_layers": 1})
        self.assertEqual(statuses(coverage), {"extra": 3})
        self.assertIs(coverage.complete, False)


if __name__ == "__main__":
    unittest.main()
