from __future__ import annotations

import copy
import math
import unittest
from dataclasses import replace
from typing import Any

from moe_weights.routing import (
    GroupLimit,
    Issue,
    RoutedLayerInput,
    validate_artifact_schema,
    validate_layout_semantics,
    validate_manifest_semantics,
    validate_raw_event_semantics,
    validate_run_bundle_semantics,
)
from tests.support.routing_bundles import (
    make_bundle,
    make_event,
    make_routed_bundle,
    make_routed_event,
    sigmoid_layer,
    softmax_layer,
)


def codes(issues: list[Issue]) -> list[str]:
    return [issue.code for issue in issues]


class SoundBundles(unittest.TestCase):
    def test_have_no_issues(self) -> None:
        for bundle in (make_bundle(), make_routed_bundle(), make_bundle(1, derived=False)):
            self.assertEqual(validate_run_bundle_semantics(**bundle), [])

    def test_may_have_no_events_and_more_layout_layers_and_derive_a_subset(self) -> None:
        bundle = make_bundle(2)
        bundle["derived_events"].pop(0)
        bundle["layout"]["layers"].append(
            {"layer_index": 9, "positions": [{"expert_index": 0, "x": 0, "y": 0, "z": 9}]}
        )
        self.assertEqual(validate_run_bundle_semantics(**bundle), [])
        empty = make_bundle(0, derived=False)
        self.assertEqual(validate_run_bundle_semantics(**empty), [])

    def test_manifests_alone_say_nothing_that_could_be_wrong(self) -> None:
        self.assertEqual(validate_manifest_semantics(make_bundle()["manifest"]), [])


class WhatTheSchemaRefusesFirst(unittest.TestCase):
    def test_no_active_expert(self) -> None:
        event = make_event()
        event["layers"][0].update(num_active_experts=0, topk_indices=[], topk_probs=[])
        self.assertEqual(
            codes(validate_raw_event_semantics(event)), ["num_active_experts_must_be_positive"]
        )

    def test_versions_that_the_manifest_does_not_expect(self) -> None:
        for artifact in ("layout", "motif_ledger", "contingency"):
            bundle = make_bundle()
            bundle[artifact]["schema_version"] = "other/v9"
            self.assertEqual(
                codes(validate_run_bundle_semantics(**bundle)),
                [f"{artifact}_schema_version_mismatch"],
            )
        bundle = make_bundle()
        bundle["derived_events"][0]["schema_version"] = "other/v9"
        (issue,) = validate_run_bundle_semantics(**bundle)
        self.assertEqual(
            issue,
            Issue(
                "bundle",
                "derived_event_schema_version_mismatch",
                "token 0 is other/v9, the manifest expects derived/v0.1.0-provisional; versions "
                "never mix in one bundle",
            ),
        )


class Order(unittest.TestCase):
    def test_is_by_scope(self) -> None:
        bundle = make_bundle()
        bundle["raw_events"][2]["token_index"] = 1
        bundle["raw_events"][2]["layers"][0]["entropy"] = 9.0
        bundle["layout"]["layers"].append(bundle["layout"]["layers"][0])
        bundle["derived_events"] = None
        found = validate_run_bundle_semantics(**bundle)
        self.assertEqual(
            [(issue.scope, issue.code) for issue in found],
            [
                ("event", "entropy_mismatch"),
                ("layout", "duplicate_layer_index"),
                ("bundle", "duplicate_raw_token_index"),
                ("bundle", "raw_token_index_sequence_invalid"),
            ],
        )
        self.assertEqual(validate_layout_semantics(bundle["layout"]), [found[1]])

    def test_ties_may_be_chosen_in_any_order(self) -> None:
        event = make_event()
        layer = event["layers"][0]
        layer.update(
            router_probs=[0.25] * 4,
            topk_indices=[3, 1],
            topk_probs=[0.25, 0.25],
            entropy=math.log(4),
            normalized_entropy=1.0,
            top1_prob=0.25,
            top1_top2_margin=0.0,
        )
        self.assertEqual(validate_raw_event_semantics(event), [])

    def test_probabilities_of_the_wrong_length_are_not_summed(self) -> None:
        event = make_event()
        event["layers"][0]["router_probs"].append(1.0)
        found = codes(validate_raw_event_semantics(event))
        self.assertIn("router_probs_length_mismatch", found)
        self.assertNotIn("router_probs_sum_mismatch", found)


GROUPS = sigmoid_layer().group_limit
assert GROUPS is not None
IDS_ONLY = RoutedLayerInput(
    layer_index=0, num_total_experts=4, num_active_experts=2, topk_indices=[3, 0],
    not_captured=["selection_bias", "selection_scores", "group_limit"],
)  # fmt: skip


class RoutersOfAnyKind(unittest.TestCase):
    def assert_issues(self, expected: list[str], *layers: Any, **changes: Any) -> None:
        event = make_routed_event(0, *layers)
        for name, value in changes.items():
            event["layers"][0][name] = value
        self.assertEqual(validate_artifact_schema("raw_event", event), [])
        self.assertEqual(codes(validate_raw_event_semantics(event)), expected)

    def test_that_are_sound_have_no_issues(self) -> None:
        no_groups = sigmoid_layer(group_limit=None, topk_indices=[0, 7])
        for layer in (
            softmax_layer(),
            sigmoid_layer(),
            no_groups,
            IDS_ONLY,
            replace(IDS_ONLY, topk_indices=None),
            replace(IDS_ONLY, router_kind="softmax"),
            softmax_layer(topk_indices=None, combine_weights=None),
            softmax_layer(router_kind="other", selection_scores=[3, 2, 1, 0]),
            sigmoid_layer(group_limit=replace(GROUPS, group_score=None)),
            sigmoid_layer(group_limit=replace(GROUPS, selected_groups=None)),
            sigmoid_layer(num_shared_experts=1, shared_expert_weights=[0.25]),
        ):
            self.assert_issues([], layer)

    def test_without_a_choice_are_not_held_to_one(self) -> None:
        layer = replace(IDS_ONLY, topk_indices=None, num_active_experts=5)
        self.assert_issues(["num_active_experts_exceeds_num_total_experts"], layer)
        self.assert_issues(
            ["topk_length_mismatch"], replace(layer, num_active_experts=1, combine_weights=[1.0])
        )

    def test_null_and_not_captured_must_agree(self) -> None:
        missing, extra = ["missing_value_not_declared"], ["not_captured_field_has_value"]
        self.assert_issues(extra, softmax_layer(not_captured=["router_logits"]))
        self.assert_issues(missing, softmax_layer(), num_shared_experts=None)
        self.assert_issues(missing, softmax_layer(), top1_prob=None)
        event = make_routed_event()
        event["token_id"] = None
        (issue,) = validate_raw_event_semantics(event)
        self.assertEqual(
            issue.message,
            "token 0: token_id is null; it always exists, so add it to not_captured",
        )
        self.assertEqual(issue.code, "missing_value_not_declared")

    def test_rows_have_one_number_per_expert(self) -> None:
        for name in ("router_logits", "router_probs", "selection_bias", "selection_scores"):
            with self.subTest(name):
                self.assert_issues([f"{name}_length_mismatch"], softmax_layer(), **{name: [0.5]})

    def test_choices_are_counted(self) -> None:
        layer = softmax_layer()
        self.assert_issues(["topk_length_mismatch"], layer, combine_weights=[1.0])
        self.assert_issues(["duplicate_topk_index"], layer, topk_indices=[1, 1])
        self.assert_issues(["topk_index_out_of_bounds"], layer, topk_indices=[0, 4])
        self.assert_issues(
            ["num_active_experts_exceeds_num_total_experts", "topk_length_mismatch"],
            layer,
            num_active_experts=5,
        )

    def test_scores_follow_from_logits(self) -> None:
        probs = softmax_layer(router_logits=[2.1, 1.0, 0.0, -1.0])
        moved = make_routed_event(0, probs)["layers"][0]["router_logits"]
        self.assert_issues(["router_probs_logits_mismatch"], softmax_layer(), router_logits=moved)
        self.assert_issues(["router_probs_logits_mismatch"], sigmoid_layer(), router_logits=[0] * 8)

    def test_softmax_scores_sum_to_1_and_are_described(self) -> None:
        layer = softmax_layer(router_logits=None, router_probs=[0.5, 0.25, 0.125, 0.125])
        event = make_routed_event(0, replace(layer, combine_weights=None))
        self.assertEqual(validate_raw_event_semantics(event), [])
        event["layers"][0]["router_probs"][3] = 0.25
        self.assertEqual(
            codes(validate_raw_event_semantics(event)),
            ["router_probs_sum_mismatch", "entropy_mismatch", "normalized_entropy_mismatch"],
        )

    def test_scores_of_softmax_and_sigmoid_are_at_most_1(self) -> None:
        layer = sigmoid_layer(
            router_logits=None, router_probs=[1.5] + [0.1] * 7, group_limit=None,
            selection_bias=None, topk_indices=[0, 1], combine_weights=None,
        )  # fmt: skip
        self.assert_issues(["router_prob_out_of_range"], layer)
        self.assert_issues([], replace(layer, router_kind="other"))

    def test_selection_scores_are_scores_and_bias(self) -> None:
        scores = list(make_routed_event(0, sigmoid_layer())["layers"][0]["router_probs"])
        scores[0] += 0.5
        self.assert_issues([], sigmoid_layer(selection_scores=scores))
        self.assert_issues(
            ["selection_scores_mismatch"],
            sigmoid_layer(selection_scores=[1.02, *scores[1:]]),
        )
        rounded = sigmoid_layer(selection_scores=[1.02, *scores[1:]], score_dtype="bfloat16")
        self.assert_issues([], rounded)

    def test_choice_is_of_the_best_by_what_it_was_made_by(self) -> None:
        wrong = softmax_layer(topk_indices=[0, 2], combine_weights=None)
        self.assert_issues(["topk_selection_mismatch"], wrong)
        self.assert_issues([], replace(wrong, selection_bias=[0.0, -0.2, 0.1, 0.0]))
        self.assert_issues([], replace(wrong, selection_scores=[3.0, 0.0, 2.0, 0.0]))
        self.assert_issues([], replace(wrong, not_captured=["selection_bias"]))
        self.assert_issues([], replace(wrong, not_captured=["group_limit"]))

    def test_probabilities_of_chosen_experts_are_theirs(self) -> None:
        self.assert_issues(
            ["topk_prob_mismatch", "combine_weights_mismatch"],
            sigmoid_layer(),
            topk_probs=[0.9, 0.1],
        )

    def test_groups_fit_and_are_the_best(self) -> None:
        free = {"combine_weights": None}
        cases: list[tuple[list[str], GroupLimit, list[int]]] = [
            (["expert_group_count_mismatch"], replace(GROUPS, num_groups=3), [0, 7]),
            (["expert_group_count_mismatch"], replace(GROUPS, num_selected_groups=5), [0, 7]),
            (["selected_groups_mismatch"], replace(GROUPS, selected_groups=[0]), [0, 7]),
            (["selected_groups_mismatch"], replace(GROUPS, selected_groups=[0, 0]), [0, 7]),
            (["selected_groups_mismatch"], replace(GROUPS, selected_groups=[0, 4]), [0, 7]),
            (["selected_groups_mismatch"], replace(GROUPS, selected_groups=[]), [0, 7]),
            (["group_selection_mismatch"], replace(GROUPS, selected_groups=[0, 2]), [0, 5]),
            (
                ["topk_outside_selected_groups"],
                replace(GROUPS, masked_score=None),
                [0, 5],
            ),
            ([], replace(GROUPS, group_score="max"), [0, 7]),
            ([], replace(GROUPS, num_selected_groups=4, selected_groups=[3, 2, 1, 0]), [0, 7]),
        ]
        for expected, limit, chosen in cases:
            with self.subTest(limit=limit):
                found = codes(
                    validate_raw_event_semantics(
                        make_routed_event(
                            0, sigmoid_layer(group_limit=limit, topk_indices=chosen, **free)
                        )
                    )
                )
                self.assertEqual(found, expected)

    def test_masked_experts_may_win_over_negative_scores(self) -> None:
        bias = [0.5, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0, -2.0]
        limit = replace(GROUPS, group_score="max", num_selected_groups=1, selected_groups=[0])
        layer = sigmoid_layer(
            selection_bias=bias, group_limit=limit, topk_indices=[0, 5], combine_weights=None
        )
        self.assert_issues([], layer)

    def test_weights_are_normalised_and_scaled_as_said(self) -> None:
        layer = softmax_layer()
        self.assert_issues(
            ["combine_weights_sum_mismatch", "combine_weights_mismatch"],
            replace(layer, combine_weights=[0.7, 0.2]),
        )
        self.assert_issues(["combine_weights_mismatch"], replace(layer, combine_weights=[0.5, 0.5]))
        self.assert_issues(["combine_weights_mismatch"], replace(layer, combine_normalised=False))
        self.assert_issues(
            [], replace(layer, combine_weights=[0.73, 0.27], combine_dtype="bfloat16")
        )
        self.assert_issues([], replace(layer, combine_weights=[9.0, 9.0], combine_scale=None))

    def test_shared_experts_have_one_weight_each(self) -> None:
        self.assert_issues(
            ["shared_expert_weights_length_mismatch"],
            softmax_layer(num_shared_experts=2, shared_expert_weights=[0.5]),
        )

    def test_numbers_at_the_edge_of_floats_do_not_break_the_check(self) -> None:
        huge = int(1.7e308)
        event = make_routed_event(0, softmax_layer())
        event["timing_ms"] = {"decode_start": -huge, "decode_end": huge, "decode_duration": 0.5}
        event["layers"][0].update(
            combine_weights=[1.7e308, 1.7e308],
            router_logits=[huge, -huge, 0, 0],
            selection_bias=[huge, huge, 0, 0],
            selection_scores=[huge, 1.7e308, 1.0, 1.0],
        )
        self.assertEqual(validate_artifact_schema("raw_event", event), [])
        self.assertIn("decode_duration_mismatch", codes(validate_raw_event_semantics(event)))


class RoutedBundles(unittest.TestCase):
    def test_have_no_prefill_after_decode(self) -> None:
        bundle = make_routed_bundle()
        bundle["raw_events"][2]["phase"] = "prefill"
        self.assertEqual(
            codes(validate_run_bundle_semantics(**bundle)), ["raw_phase_sequence_invalid"]
        )

    def test_never_hold_older_events(self) -> None:
        bundle = make_routed_bundle()
        bundle["raw_events"][1] = copy.deepcopy(make_event(1))
        self.assertIn(
            "raw_event_schema_version_mismatch", codes(validate_run_bundle_semantics(**bundle))
        )


if __name__ == "__main__":
    unittest.main()
