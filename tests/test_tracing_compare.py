"""The thirty-four checks of inference hooks and their comparison, in eleven classes."""

from __future__ import annotations

import json
import math
import unittest

import numpy as np

from moe_weights.cli import _build_parser
from moe_weights.tracing import (
    HookCapture,
    HookPoint,
    InferenceHook,
    MockInferenceHook,
    StageComparison,
    TraceResult,
    compare_captures,
    cosine_similarity,
    format_trace,
    run_trace,
)


def hidden(values: object) -> HookCapture:
    return HookCapture(HookPoint.PREFILL, 0, hidden_states=np.asarray(values, np.float32))


class HookPoints(unittest.TestCase):
    def test_are_three_texts_in_pipeline_order(self) -> None:
        self.assertEqual(list(HookPoint), ["prefill", "kv_transfer", "decode_step"])


class Captures(unittest.TestCase):
    def test_hold_nothing_unless_given(self) -> None:
        capture = HookCapture(HookPoint.PREFILL, 3)
        self.assertEqual((capture.layer, capture.step, capture.arrays), (3, None, {}))
        self.assertIsNone(capture.logits)

    def test_become_json_by_shape_and_dtype(self) -> None:
        document = hidden(np.zeros((2, 4))).to_dict()
        self.assertEqual(document["hidden_states"]["shape"], [2, 4])
        self.assertEqual(document["hidden_states"]["dtype"], "float32")
        self.assertIsNone(document["kv_cache"])
        json.dumps(document, allow_nan=False)

    def test_keep_step_and_notes(self) -> None:
        capture = HookCapture(HookPoint.DECODE_STEP, 1, 5, metadata={"who": "x"})
        document = capture.to_dict()
        self.assertEqual((document["step"], document["metadata"]), (5, {"who": "x"}))


class Comparisons(unittest.TestCase):
    def test_agree_unless_told(self) -> None:
        comparison = StageComparison(HookPoint.PREFILL, 0)
        self.assertFalse(comparison.diverged)
        self.assertEqual(comparison.threshold, 1e-5)
        self.assertEqual(comparison.field_name, "hidden_states")
        self.assertEqual(comparison.cosine_similarity, 1)

    def test_become_json(self) -> None:
        document = StageComparison(HookPoint.DECODE_STEP, 2, 1, 0.5, diverged=True).to_dict()
        self.assertEqual(document["hook_point"], "decode_step")
        self.assertEqual((document["layer"], document["step"]), (2, 1))
        self.assertEqual((document["max_abs_diff"], document["diverged"]), (0.5, True))


class Results(unittest.TestCase):
    def test_are_empty_unless_told(self) -> None:
        result = TraceResult("p")
        self.assertEqual((result.comparisons, result.errors), ((), ()))
        self.assertFalse(result.overall_diverged)
        self.assertEqual(result.verdict, "no_comparisons")

    def test_become_json(self) -> None:
        document = TraceResult("p", "a", "b", (HookPoint.PREFILL,)).to_dict()
        self.assertEqual(document["prompt"], "p")
        self.assertEqual((document["baseline_url"], document["target_url"]), ("a", "b"))
        self.assertEqual(document["hooks"], ["prefill"])
        self.assertIsNone(document["first_divergence"])


class Mocks(unittest.TestCase):
    def test_are_inference_hooks(self) -> None:
        self.assertIsInstance(MockInferenceHook(), InferenceHook)
        self.assertNotIsInstance(object(), InferenceHook)

    def test_give_hidden_states_and_cache_at_prefill(self) -> None:
        capture = MockInferenceHook(hidden_dim=16, seq_len=3).on_prefill(0)
        assert capture is not None
        self.assertEqual(
            {name: array.shape for name, array in capture.arrays.items()},
            {"hidden_states": (3, 16), "kv_cache": (2, 3, 16)},
        )
        self.assertEqual({str(array.dtype) for array in capture.arrays.values()}, {"float32"})

    def test_give_the_cache_alone_at_transfer(self) -> None:
        capture = MockInferenceHook().on_kv_transfer(1)
        assert capture is not None
        self.assertEqual(list(capture.arrays), ["kv_cache"])

    def test_give_hidden_states_and_logits_at_a_decode_step(self) -> None:
        capture = MockInferenceHook(hidden_dim=16).on_decode_step(1, 2)
        assert capture is not None
        self.assertEqual(capture.step, 2)
        self.assertEqual(
            {name: array.shape for name, array in capture.arrays.items()},
            {"hidden_states": (1, 16), "logits": (1, 16)},
        )

    def test_give_nothing_beyond_their_layers(self) -> None:
        hook = MockInferenceHook(num_layers=2)
        self.assertIsNone(hook.on_prefill(2))
        self.assertIsNone(hook.on_kv_transfer(2))
        self.assertIsNone(hook.on_decode_step(2, 0))

    def test_without_noise_give_the_same_again(self) -> None:
        left, right = MockInferenceHook().on_prefill(0), MockInferenceHook().on_prefill(0)
        assert left is not None and right is not None
        np.testing.assert_array_equal(left.arrays["kv_cache"], right.arrays["kv_cache"])

    def test_with_noise_give_something_else(self) -> None:
        left = MockInferenceHook().on_prefill(0)
        right = MockInferenceHook(noise_scale=0.1).on_prefill(0)
        assert left is not None and right is not None
        distance = np.abs(left.arrays["kv_cache"] - right.arrays["kv_cache"])
        self.assertTrue(0.01 < distance.max() < 1)


class Cosine(unittest.TestCase):
    def test_of_equal_arrays_is_one(self) -> None:
        self.assertAlmostEqual(cosine_similarity(np.arange(5.0), np.arange(5.0)), 1)

    def test_of_right_angles_is_zero(self) -> None:
        self.assertEqual(cosine_similarity(np.array([1.0, 0]), np.array([0, 1.0])), 0)

    def test_of_a_zero_array_is_zero(self) -> None:
        self.assertEqual(cosine_similarity(np.zeros(3), np.ones(3)), 0)
        self.assertEqual(cosine_similarity(np.zeros(3), np.zeros(3)), 0)


class ComparingCaptures(unittest.TestCase):
    def test_finds_equal_ones_equal(self) -> None:
        (comparison,) = compare_captures(hidden([1, 2]), hidden([1, 2]))
        self.assertFalse(comparison.diverged)
        self.assertEqual(comparison.max_abs_diff, 0)

    def test_finds_a_difference_above_the_threshold(self) -> None:
        (comparison,) = compare_captures(hidden([1, 2]), hidden([1, 2.5]))
        self.assertTrue(comparison.diverged)
        self.assertEqual((comparison.max_abs_diff, comparison.mean_abs_diff), (0.5, 0.25))

    def test_lets_a_difference_at_the_threshold_pass(self) -> None:
        (comparison,) = compare_captures(hidden([1, 2]), hidden([1, 2.5]), 0.5)
        self.assertFalse(comparison.diverged)

    def test_skips_fields_that_one_side_lacks(self) -> None:
        self.assertEqual(compare_captures(hidden([1]), HookCapture(HookPoint.PREFILL, 0)), [])

    def test_finds_other_shapes_diverging_without_broadcast(self) -> None:
        (comparison,) = compare_captures(hidden([[1, 1]]), hidden([1, 1]))
        self.assertTrue(comparison.diverged)
        self.assertEqual((comparison.max_abs_diff, comparison.mean_abs_diff), (math.inf, math.inf))
        self.assertEqual(comparison.cosine_similarity, 0)


class Runs(unittest.TestCase):
    def test_of_equal_mocks_match(self) -> None:
        result = run_trace(MockInferenceHook(), MockInferenceHook(), "p")
        self.assertEqual((result.verdict, len(result.comparisons)), ("match", 4 * (2 + 1 + 2)))

    def test_of_a_noisy_mock_diverge(self) -> None:
        result = run_trace(MockInferenceHook(), MockInferenceHook(noise_scale=1), "p")
        self.assertTrue(result.overall_diverged)
        self.assertIs(result.first_divergence, result.comparisons[0])

    def test_ask_only_for_the_named_stages(self) -> None:
        hooks = [HookPoint.KV_TRANSFER]
        result = run_trace(MockInferenceHook(), MockInferenceHook(), "p", hooks=hooks)
        self.assertEqual({entry.field_name for entry in result.comparisons}, {"kv_cache"})

    def test_go_by_stage_then_step_then_layer(self) -> None:
        hooks = ["decode_step", "prefill"]
        result = run_trace(
            MockInferenceHook(), MockInferenceHook(), "p", hooks=hooks, num_layers=2, decode_steps=2
        )
        places = [(str(c.hook_point), c.step, c.layer) for c in result.comparisons[::2]]
        self.assertEqual(
            places,
            [("prefill", None, 0), ("prefill", None, 1)]
            + [("decode_step", step, layer) for step in (0, 1) for layer in (0, 1)],
        )

    def test_keep_captures_that_one_side_gave(self) -> None:
        result = run_trace(
            MockInferenceHook(num_layers=1), MockInferenceHook(num_layers=2), "p", num_layers=2
        )
        self.assertEqual((len(result.baseline_captures), len(result.target_captures)), (3, 6))
        self.assertEqual({entry.missing_in for entry in result.missing}, {"baseline"})
        self.assertFalse(result.overall_diverged)


class Reports(unittest.TestCase):
    def test_of_a_match_say_so(self) -> None:
        text = format_trace(run_trace(MockInferenceHook(), MockInferenceHook(), "p", "a", "b"))
        lines = text.splitlines()
        self.assertEqual(
            lines[:8],
            [
                "=" * 60, "Inference Trace Report", "=" * 60, "Prompt: p", "Baseline: a",
                "Target: b", "Hooks: prefill, kv_transfer, decode_step", "Stages compared: 20",
            ],
        )  # fmt: skip
        self.assertIn("Overall: ✅ MATCH", lines)
        self.assertEqual(lines[-1], "=" * 60)

    def test_of_a_divergence_name_its_place(self) -> None:
        noisy = MockInferenceHook(noise_scale=1)
        result = run_trace(MockInferenceHook(), noisy, "p", hooks=["decode_step"])
        text = format_trace(result)
        self.assertIn("Overall: ❌ DIVERGED\n\nFirst divergence:\n  Stage: decode_step\n", text)
        self.assertIn("  Layer: 0\n  Step: 0\n  Field: hidden_states\n  Max diff: ", text)
        self.assertIn("❌ FAIL", text)

    def test_shorten_a_long_prompt(self) -> None:
        self.assertIn(f"Prompt: {'x' * 80}...\n", format_trace(TraceResult("x" * 81)))
        self.assertIn(f"Prompt: {'x' * 80}\n", format_trace(TraceResult("x" * 80)))

    def test_without_comparisons_have_no_table(self) -> None:
        text = format_trace(TraceResult("p", errors=("boom",)))
        self.assertNotIn("Stage Details:", text)
        self.assertIn("Errors:\n  - boom", text)


class Json(unittest.TestCase):
    def test_of_a_run_is_standard(self) -> None:
        result = run_trace(MockInferenceHook(seq_len=2), MockInferenceHook(), "p")
        text = json.dumps(result.to_dict(), allow_nan=False)
        first = json.loads(text)["first_divergence"]
        self.assertIsNone(first["max_abs_diff"])
        self.assertEqual(first["reason"], "shape_mismatch")


class CommandLine(unittest.TestCase):
    def test_knows_the_command(self) -> None:
        arguments = _build_parser().parse_args(
            ["trace", "--baseline", "a", "--target", "b", "--prompt", "p", "--mock"]
        )
        self.assertTrue(arguments.mock)
        self.assertEqual(arguments.hooks, "prefill,kv_transfer,decode_step")


if __name__ == "__main__":
    unittest.main()
