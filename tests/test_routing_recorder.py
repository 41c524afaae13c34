from __future__ import annotations

import unittest
from typing import Any

from moe_weights.errors import InvalidDataError
from moe_weights.routing import (
    MoELayerCaptureInput,
    PyTorchMoELayerCaptureInput,
    PyTorchRunBundleRecorder,
    build_olmoe_layer_inputs,
    load_run_bundle,
    record_olmoe_generated_token,
)
from tests.support.routing_bundles import CREATED_AT
from tests.support.runs import temporary_folder


def make_recorder(**changes: Any) -> PyTorchRunBundleRecorder:
    arguments: dict[str, Any] = {
        "run_id": "run-001",
        "created_at": CREATED_AT,
        "model_id": "m",
        "tokenizer_id": "t",
        "prompt_text": "hello",
        "derivation_version": "v",
        "derivation_config_id": "c",
    }
    return PyTorchRunBundleRecorder(**{**arguments, **changes})


def record(recorder: PyTorchRunBundleRecorder, *layers: Any, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "token_id": 1,
        "token_text": "a",
        "context_length": 3,
        "decode_start_ms": 0.0,
        "decode_end_ms": 1.0,
        "layer_inputs": layers or [MoELayerCaptureInput(0, [1.0, 0.0], 1)],
    }
    return recorder.record_generated_token(**{**arguments, **changes})


class Recorder(unittest.TestCase):
    def test_numbers_tokens_and_infers_the_layout(self) -> None:
        recorder = make_recorder(layout_id="mine")
        record(recorder, PyTorchMoELayerCaptureInput(5, [1.0, 2.0, 3.0], 1))
        record(recorder, MoELayerCaptureInput(2, [1.0], 1))
        layout = recorder.build_layout()
        self.assertEqual(layout["layout_id"], "mine")
        self.assertEqual(
            [(layer["layer_index"], len(layer["positions"])) for layer in layout["layers"]],
            [(2, 1), (5, 3)],
        )
        bundle = load_run_bundle(recorder.write_bundle(temporary_folder(self)))
        self.assertEqual([event["token_index"] for event in bundle["raw_events"]], [0, 1])
        self.assertEqual(bundle["manifest"], recorder.manifest)

    def test_goes_on_after_the_last_index(self) -> None:
        recorder = make_recorder()
        recorder.record_token_complete(
            token_index=7, token_id=1, token_text="", context_length=0, decode_start_ms=0,
            decode_end_ms=0, layer_inputs=[MoELayerCaptureInput(0, [1.0], 1)],
        )  # fmt: skip
        self.assertEqual(record(recorder, MoELayerCaptureInput(0, [1.0], 1))["token_index"], 8)
        with self.assertRaises(ValueError) as caught:
            recorder.write_bundle(temporary_folder(self))
        self.assertIn("raw_token_index_sequence_invalid", str(caught.exception))

    def test_gives_copies_and_takes_copies(self) -> None:
        config = {"a": [1]}
        recorder = make_recorder(generation_config=config, capture_config=config)
        record(recorder)["token_id"] = 99
        recorder.raw_events[0]["layers"].clear()
        recorder.manifest["run_id"] = "evil"
        config["a"].append(2)
        self.assertEqual(recorder.raw_events[0]["token_id"], 1)
        self.assertEqual(len(recorder.raw_events[0]["layers"]), 1)
        self.assertEqual(recorder.manifest["run_id"], "run-001")
        self.assertEqual(recorder.manifest["capture_config"], {"a": [1]})

    def test_refuses_a_layer_that_changes_its_size_without_a_trace(self) -> None:
        recorder = make_recorder()
        record(recorder)
        with self.assertRaises(ValueError) as caught:
            record(
                recorder,
                MoELayerCaptureInput(9, [1.0], 1),
                MoELayerCaptureInput(0, [1.0, 0.0, 0.0], 1),
            )
        self.assertEqual(
            str(caught.exception),
            "layer 0 has 3 experts in token 1, in earlier tokens 2; a layer's expert count never "
            "changes within a run",
        )
        with self.assertRaises(ValueError):
            record(recorder, token_id=2, decode_end_ms=-1.0)
        self.assertEqual(len(recorder.raw_events), 1)
        self.assertEqual(len(recorder.build_layout()["layers"]), 1)
        record(recorder)
        bundle = load_run_bundle(recorder.write_bundle(temporary_folder(self)))
        self.assertEqual(len(bundle["raw_events"]), 2)

    def test_needs_a_token_before_anything_is_written(self) -> None:
        recorder = make_recorder()
        root = temporary_folder(self)
        for action in (recorder.build_layout, lambda: recorder.write_bundle(root)):
            with self.assertRaises(InvalidDataError) as caught:
                action()
            self.assertEqual(
                str(caught.exception),
                "no token was recorded yet; the layout is made of their layers",
            )
        self.assertEqual(list(root.iterdir()), [])

    def test_refuses_a_run_that_build_manifest_refuses(self) -> None:
        for changes in ({"run_id": "../x"}, {"created_at": "now"}, {"layout_id": ""}):
            with self.assertRaises(ValueError):
                make_recorder(**changes)


class OlmoeLayers(unittest.TestCase):
    def test_are_sorted(self) -> None:
        inputs = build_olmoe_layer_inputs(
            router_logits_by_layer={10: [1.0], 2: [2.0]}, num_active_experts=1
        )
        self.assertEqual(
            inputs,
            [
                PyTorchMoELayerCaptureInput(2, [2.0], 1),
                PyTorchMoELayerCaptureInput(10, [1.0], 1),
            ],
        )

    def test_come_from_a_mapping_of_layers(self) -> None:
        cases: tuple[tuple[Any, Any, type[Exception]], ...] = (
            ([[1.0]], 1, TypeError),
            ({"0": [1.0]}, 1, TypeError),
            ({True: [1.0]}, 1, TypeError),
            ({0: [1.0]}, True, TypeError),
            ({0: [1.0]}, 1.0, TypeError),
            ({-1: [1.0]}, 1, ValueError),
            ({0: [1.0]}, 0, ValueError),
            ({}, 1, ValueError),
        )

        class Untouched:
            def record_generated_token(self, **_fields: object) -> None:
                raise AssertionError("called")

        for logits, active, kind in cases:
            with self.subTest(logits=logits, active=active), self.assertRaises(kind):
                record_olmoe_generated_token(
                    Untouched(), token_id=1, token_text="", context_length=0, decode_start_ms=0,
                    decode_end_ms=0, router_logits_by_layer=logits, num_active_experts=active,
                )  # fmt: skip

    def test_are_said_to_be_missing(self) -> None:
        with self.assertRaises(ValueError) as caught:
            build_olmoe_layer_inputs(router_logits_by_layer={}, num_active_experts=1)
        self.assertEqual(
            str(caught.exception),
            "router_logits_by_layer must not be empty; give at least one layer",
        )

    def test_need_a_recorder(self) -> None:
        class Closed:
            record_generated_token = 5

        for recorder in (object(), Closed(), None):
            with self.assertRaises(TypeError) as caught:
                record_olmoe_generated_token(
                    recorder, token_id=1, token_text="", context_length=0, decode_start_ms=0,
                    decode_end_ms=0, router_logits_by_layer={0: [1.0]}, num_active_experts=1,
                )  # fmt: skip
            self.assertEqual(
                str(caught.exception), "recorder must implement record_generated_token"
            )

    def test_reach_the_recorder(self) -> None:
        recorder = make_recorder()
        event = record_olmoe_generated_token(
            recorder, token_id=1, token_text="", context_length=0, decode_start_ms=0,
            decode_end_ms=0, router_logits_by_layer={4: [1.0, 0.0]}, num_active_experts=1,
        )  # fmt: skip
        self.assertEqual([event], recorder.raw_events)


if __name__ == "__main__":
    unittest.main()
