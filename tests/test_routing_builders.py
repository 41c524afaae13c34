from __future__ import annotations

import math
import unittest
from typing import Any

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing import (
    GroupLimit,
    MoELayerCaptureInput,
    PyTorchMoELayerCaptureInput,
    RoutedLayerInput,
    VectorError,
    build_layer_grid_layout,
    build_moe_layer_trace,
    build_routed_layer_trace,
    build_routed_token_event,
    validate_artifact_schema,
    validate_raw_event_semantics,
)
from moe_weights.routing.timestamps import is_rfc3339
from tests.support.routing_bundles import (
    make_event,
    make_manifest,
    make_routed_event,
    sigmoid_layer,
)


class FakeTensor:
    """Does what a tensor on an accelerator does: `tolist` works on the host only."""

    def __init__(self, values: Any, steps: tuple[str, ...] = ()) -> None:
        self.values, self.steps = values, steps

    def detach(self) -> FakeTensor:
        return FakeTensor(self.values, (*self.steps, "detach"))

    def cpu(self) -> FakeTensor:
        return FakeTensor(self.values, (*self.steps, "cpu"))

    def tolist(self) -> Any:
        assert self.steps == ("detach", "cpu")
        return self.values


class Manifests(unittest.TestCase):
    def test_satisfy_their_schema(self) -> None:
        for version in ("v0.1.0", "v0.2.0"):
            manifest = make_manifest(bundle_version=version, seed=2**64 - 1)
            self.assertEqual(validate_artifact_schema("manifest", manifest), [])
        self.assertEqual(make_manifest()["generation_config"], {})

    def test_copy_their_configurations(self) -> None:
        config = {"a": [1]}
        manifest = make_manifest(generation_config=config)
        config["a"].append(2)
        self.assertEqual(manifest["generation_config"], {"a": [1]})

    def test_refuse_empty_names(self) -> None:
        for name in ("run_id", "created_at", "model_id", "tokenizer_id", "derivation_version",
                     "derivation_config_id"):  # fmt: skip
            with self.assertRaises(UsageError) as caught:
                make_manifest(**{name: ""})
            self.assertEqual(
                str(caught.exception), f"{name} must be text of at least one character, got ''"
            )
        with self.assertRaises(UsageError):
            make_manifest(prompt_text=None)

    def test_refuse_times_that_are_not_rfc_3339(self) -> None:
        with self.assertRaises(ValueError) as caught:
            make_manifest(created_at="2026-03-20 12:00:00+00:00")
        self.assertEqual(
            str(caught.exception),
            "created_at '2026-03-20 12:00:00+00:00' is not an RFC 3339 date-time with an offset; "
            "write it like 2026-03-21T12:00:00Z",
        )

    def test_refuse_a_run_id_that_is_text_no_file_system_takes(self) -> None:
        for run_id in ("a\ud800", "a\x1f", "ä" * 101):
            with self.assertRaises(UsageError):
                make_manifest(run_id)


class DateTimes(unittest.TestCase):
    def test_of_rfc_3339(self) -> None:
        for text in (
            "2026-03-21T12:00:00Z", "2026-03-21t12:00:00z", "2026-03-21T12:00:00.123456789+05:30",
            "2026-03-21T12:00:00-23:59", "2024-02-29T00:00:00Z", "1990-12-31T23:59:60Z",
            "1990-12-31T15:59:60-08:00", "2017-01-01T08:59:60+09:00", "2015-06-30T23:59:60.5Z",
            "0001-01-01T00:00:00+23:59",
        ):  # fmt: skip
            self.assertTrue(is_rfc3339(text), text)

    def test_of_other_forms(self) -> None:
        for text in (
            "", "2026-03-21", "2026-03-21T12:00:00", "2026-03-21 12:00:00Z", "2026-3-21T12:00:00Z",
            "2026-02-30T12:00:00Z", "2026-03-21T24:00:00Z", "2026-03-21T12:60:00Z",
            "2026-03-21T12:00:61Z", "2026-03-21T12:00:00+24:00", "2026-03-21T12:00:00+01:60",
            "2026-03-21T12:00:60Z", "1991-12-31T23:59:60Z", "1990-12-31T23:59:60-08:00",
            "2026-03-21T12:00:00.Z", "2026-03-21T12:00:00Z\n", "\uff12026-03-21T12:00:00Z",
            "0000-01-01T00:00:00Z", "0001-01-01T00:00:60+23:59",
        ):  # fmt: skip
            self.assertFalse(is_rfc3339(text), text)


class Layers(unittest.TestCase):
    def test_describe_a_row_of_logits(self) -> None:
        layer = build_moe_layer_trace(3, [0.0, math.log(3.0)], num_active_experts=2)
        self.assertEqual(layer["topk_indices"], [1, 0])
        for value, expected in zip(layer["router_probs"], [0.25, 0.75], strict=True):
            self.assertAlmostEqual(value, expected)
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        self.assertAlmostEqual(layer["entropy"], entropy)
        self.assertAlmostEqual(layer["normalized_entropy"], entropy / math.log(2))
        self.assertAlmostEqual(layer["top1_top2_margin"], 0.5)

    def test_rank_equals_by_index_and_take_the_top_as_margin_of_one(self) -> None:
        self.assertEqual(
            build_moe_layer_trace(0, [1, 1, 1, 1], num_active_experts=2)["topk_indices"], [0, 1]
        )
        layer = build_moe_layer_trace(0, [1, 1], num_active_experts=1)
        self.assertEqual(layer["top1_top2_margin"], 0.5)
        one = build_moe_layer_trace(0, [5.0], num_active_experts=1)
        self.assertEqual((one["entropy"], one["normalized_entropy"]), (0.0, 0.0))

    def test_of_uniform_routers_pass_the_schema_at_every_size(self) -> None:
        for size in range(1, 513):
            event = make_event(layer_inputs=[MoELayerCaptureInput(0, [0.0] * size, 1)])
            self.assertEqual(validate_artifact_schema("raw_event", event), [], size)
            self.assertEqual(validate_raw_event_semantics(event), [], size)

    def test_survive_extreme_logits(self) -> None:
        layer = build_moe_layer_trace(0, [1.7e308, -1.7e308, 0.0], num_active_experts=3)
        self.assertEqual(layer["router_probs"], [1.0, 0.0, 0.0])
        self.assertEqual(math.copysign(1.0, layer["entropy"]), 1.0)

    def test_take_tensors_without_a_framework(self) -> None:
        expected = build_moe_layer_trace(0, [2.0, 1.0], num_active_experts=1)
        for logits in (FakeTensor([2.0, 1.0]), (2, 1)):
            built = build_moe_layer_trace(0, logits, num_active_experts=1)
            self.assertEqual(built, expected)

    def test_refuse_what_is_not_one_row_of_numbers(self) -> None:
        for logits in ("12", b"12", [[1.0]], FakeTensor(2.0), FakeTensor("ab"), {0: 1.0}, 3.0,
                       [True, False], [None], ["1"], FakeTensor([[1.0, 2.0]])):  # fmt: skip
            with self.subTest(logits=logits), self.assertRaises(VectorError) as caught:
                build_moe_layer_trace(0, logits, num_active_experts=1)  # type: ignore[arg-type]
            self.assertIsInstance(caught.exception, TypeError)
            self.assertIsInstance(caught.exception, ValueError)
            self.assertIn("router_logits must be a 1D sequence", str(caught.exception))

    def test_refuse_values_that_make_no_layer(self) -> None:
        for arguments, told in (
            ((-1, [1.0], 1), "layer_index is -1; it must be at least 0"),
            ((0, [], 1), "router_logits must not be empty; give one number per expert"),
            ((0, [math.nan], 1), "router_logits[0] is nan; all values must be finite"),
            ((0, [1.0, 10**400], 1), "router_logits[1] is inf; all values must be finite"),
            ((0, [1.0], 0), "num_active_experts is 0; it must be at least 1"),
            (
                (0, [1.0], 2),
                (
                    "num_active_experts is 2, layer 0 has 1 router_logits; no more experts can be "
                    "chosen than there are"
                ),
            ),
        ):
            layer, logits, active = arguments
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                build_moe_layer_trace(layer, logits, num_active_experts=active)
            self.assertEqual(str(caught.exception), told)
        with self.assertRaises(TypeError):
            build_moe_layer_trace(0, [1.0], num_active_experts=True)


class Events(unittest.TestCase):
    def test_sort_their_layers_and_take_both_kinds_of_input(self) -> None:
        event = make_event(
            layer_inputs=[
                MoELayerCaptureInput(5, [1.0], 1),
                PyTorchMoELayerCaptureInput(2, FakeTensor([1.0, 2.0]), 1),
            ]
        )
        self.assertEqual([layer["layer_index"] for layer in event["layers"]], [2, 5])
        self.assertEqual(event["timing_ms"]["decode_duration"], 15.0)
        self.assertEqual(validate_artifact_schema("raw_event", event), [])

    def test_refuse_what_makes_no_event(self) -> None:
        layer = MoELayerCaptureInput(0, [1.0], 1)
        for changes, told in (
            ({"token_index": -1}, "token_index is -1; it must be at least 0"),
            ({"context_length": -1}, "context_length is -1; it must be at least 0"),
            ({"layer_inputs": []}, "there are no layers; give at least one MoE layer"),
            ({"layer_inputs": [layer] * 2}, "layer 0 is given twice; give each layer once"),
            ({"decode_start_ms": math.inf}, "decode_start_ms is inf; it must be finite"),
            (
                {"decode_end_ms": 1.0},
                (
                    "decode_end_ms is 1.0, before decode_start_ms, 10.0; give both in milliseconds "
                    "on one clock"
                ),
            ),
        ):
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                make_event(**changes)
            self.assertEqual(str(caught.exception), told)
        with self.assertRaises(UsageError):
            make_event(run_id="")
        for changes in ({"token_text": None}, {"token_id": 1.0}, {"decode_end_ms": "1"}):
            with self.assertRaises(TypeError):
                make_event(**changes)


class Layouts(unittest.TestCase):
    def test_are_square_grids_in_the_given_order(self) -> None:
        layout = build_layer_grid_layout(
            run_id="r", layout_id="grid", layer_expert_counts=[(7, 5), (2, 1)]
        )
        self.assertEqual([layer["layer_index"] for layer in layout["layers"]], [7, 2])
        places = [(p["x"], p["y"], p["z"]) for p in layout["layers"][0]["positions"]]
        self.assertEqual(places, [(0, 0, 7), (1, 0, 7), (2, 0, 7), (0, 1, 7), (1, 1, 7)])
        self.assertEqual(layout["layout_kind"], "layer-grid")
        self.assertEqual(validate_artifact_schema("layout", layout), [])

    def test_refuse_what_makes_no_layout(self) -> None:
        for counts in ([], [(0, 1), (0, 2)], [(-1, 1)], [(0, 0)]):
            with self.assertRaises(InvalidDataError):
                build_layer_grid_layout(run_id="r", layout_id="g", layer_expert_counts=counts)
        with self.assertRaises(UsageError):
            build_layer_grid_layout(run_id="r", layout_id="", layer_expert_counts=[(0, 1)])


class RoutedEvents(unittest.TestCase):
    def test_list_what_was_not_captured(self) -> None:
        layer = RoutedLayerInput(layer_index=0, num_total_experts=8, num_active_experts=2)
        event = build_routed_token_event(run_id="r", token_index=0, phase="decode", layers=[layer])
        self.assertEqual(
            event["not_captured"], ["context_length", "timing_ms", "token_id", "token_text"]
        )
        self.assertIsNone(event["layers"][0]["topk_indices"])
        self.assertIn("topk_indices", event["layers"][0]["not_captured"])
        self.assertNotIn("selection_bias", event["layers"][0]["not_captured"])
        self.assertEqual(validate_artifact_schema("raw_event", event), [])
        self.assertEqual(validate_raw_event_semantics(event), [])

    def test_keep_what_was(self) -> None:
        layer = build_routed_layer_trace(sigmoid_layer())
        self.assertEqual(layer["not_captured"], [])
        for prob, logit in zip(layer["topk_probs"], (0.1, 0.8), strict=True):
            self.assertAlmostEqual(prob, 1 / (1 + math.exp(-logit)), places=15)
        self.assertEqual(layer["group_limit"]["selected_groups"], [0, 3])
        self.assertEqual(make_routed_event()["not_captured"], [])

    def test_apply_a_sigmoid_to_any_logit(self) -> None:
        layer = build_routed_layer_trace(
            RoutedLayerInput(
                layer_index=0,
                num_total_experts=3,
                num_active_experts=1,
                router_kind="sigmoid",
                router_logits=[-800.0, 0.0, 800.0],
                topk_indices=[2],
            )
        )
        self.assertEqual(layer["router_probs"], [0.0, 0.5, 1.0])

    def test_refuse_what_makes_no_layer(self) -> None:
        for changes, told in (
            (
                {"router_probs": [0.5] * 8},
                (
                    "layer 3: router_probs follow from router_logits of a sigmoid router; leave "
                    "them out"
                ),
            ),
            (
                {"topk_indices": [0, 8]},
                "layer 3: topk_indices names an expert outside 0..7",
            ),
            (
                {"not_captured": ["bias"]},
                (
                    "layer 3: not_captured names 'bias'; known are selection_bias, "
                    "selection_scores, group_limit, shared_expert_weights"
                ),
            ),
        ):
            with self.subTest(told), self.assertRaises(InvalidDataError) as caught:
                build_routed_layer_trace(sigmoid_layer(**changes))
            self.assertEqual(str(caught.exception), told)
        groups = GroupLimit(num_groups=2, num_selected_groups=1, selected_groups=[0.5])
        for changes in ({"topk_indices": [0.5, 1]}, {"group_limit": groups}):
            with self.assertRaises(VectorError):
                build_routed_layer_trace(sigmoid_layer(**changes))

    def test_need_both_ends_of_a_pass(self) -> None:
        with self.assertRaises(InvalidDataError) as caught:
            make_routed_event(pass_end_ms=None)
        self.assertEqual(
            str(caught.exception),
            "pass_start_ms and pass_end_ms belong together; give both or neither",
        )


if __name__ == "__main__":
    unittest.main()
