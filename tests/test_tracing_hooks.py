from __future__ import annotations

import unittest
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.tracing import HookCapture, compare_captures, run_trace
from moe_weights.tracing.capture_set import join_keys_and_values
from tests.support.traces import PROMPT_IDS, toy_captures, toy_with_changed_expert


def pair(left: Any, right: Any, **options: Any) -> Any:
    (comparison,) = compare_captures(
        HookCapture("prefill", 0, logits=np.asarray(left)),
        HookCapture("prefill", 0, logits=np.asarray(right)),
        **options,
    )
    return comparison


class Decisions(unittest.TestCase):
    def test_values_that_are_not_finite_diverge(self) -> None:
        for left, right, count in (
            ([np.nan], [1.0], 1),
            ([np.nan], [np.nan], 2),
            ([np.inf], [np.inf], 2),
        ):
            comparison = pair(left, right)
            self.assertTrue(comparison.diverged)
            self.assertEqual((comparison.reason, comparison.n_non_finite), ("non_finite", count))
            self.assertIsNone(comparison.to_dict()["max_abs_diff"])

    def test_empty_arrays_of_one_shape_match(self) -> None:
        self.assertFalse(pair(np.zeros((0, 4)), np.zeros((0, 4))).diverged)
        self.assertEqual(pair(np.zeros((0, 4)), np.zeros((0, 5))).reason, "shape_mismatch")

    def test_zero_arrays_match_and_are_flagged(self) -> None:
        comparison = pair([0.0], [0.0])
        self.assertFalse(comparison.diverged)
        self.assertTrue(comparison.zero_norm)
        self.assertEqual((comparison.cosine_similarity, comparison.max_rel_diff), (0, 0))

    def test_extreme_values_keep_their_numbers(self) -> None:
        comparison = pair([1e308], [-1e308])
        self.assertEqual((comparison.reason, comparison.cosine_similarity), ("overflow", -1))
        comparison = pair([1e-300, 0], [1e-300, 1e-300])
        self.assertAlmostEqual(comparison.cosine_similarity, 0.5**0.5)
        self.assertEqual(pair(np.float16([1]), np.int8([3])).max_abs_diff, 2)

    def test_may_be_relative(self) -> None:
        comparison = pair([100.0, 1], [101.0, 1], threshold=0.02, relative=True)
        self.assertFalse(comparison.diverged)
        self.assertEqual((comparison.max_rel_diff, comparison.measure), (0.01, "relative"))
        self.assertTrue(pair([0.0], [1e-9], threshold=0.5, relative=True).diverged)

    def test_long_arrays_are_compared_to_their_end(self) -> None:
        left = np.zeros(600_000, np.float32)
        right = left.copy()
        right[-1] = 1
        comparison = pair(left, right)
        self.assertEqual(comparison.max_abs_diff, 1)
        self.assertAlmostEqual(comparison.mean_abs_diff, 1 / 600_000)

    def test_refuse_what_cannot_be_compared(self) -> None:
        with self.assertRaises(InvalidDataError):
            compare_captures(HookCapture("prefill", 0), HookCapture("prefill", 1))
        for threshold in (-1.0, np.nan, np.inf):
            with self.assertRaises(UsageError):
                pair([1.0], [1.0], threshold=threshold)
        for array in (["a"], [1j]):
            with self.assertRaises(InvalidDataError):
                pair(array, array)
        with self.assertRaises(InvalidDataError):
            pair(np.zeros(2, "V3"), np.zeros(2, "V3"))

    def test_joined_caches_keep_every_value(self) -> None:
        keys, values = np.ones((2, 3, 4)), np.zeros((2, 3, 5))
        self.assertEqual(join_keys_and_values(keys, keys).shape, (2, 2, 3, 4))
        self.assertEqual(join_keys_and_values(keys, values).shape, (2, 3, 9))
        self.assertEqual(join_keys_and_values(keys, values[:1]).shape, (39,))


class Failing:
    def on_prefill(self, layer: int) -> HookCapture | None:
        if layer == 1:
            raise OSError("gone")
        return HookCapture("prefill", layer, logits=np.array(["x"]))

    def on_kv_transfer(self, layer: int) -> HookCapture | None:
        return None

    def on_decode_step(self, layer: int, step: int) -> HookCapture | None:
        return None


class Hooks(unittest.TestCase):
    def test_that_fail_are_told_and_the_run_goes_on(self) -> None:
        result = run_trace(Failing(), Failing(), "p", num_layers=2)
        self.assertEqual(
            result.errors,
            (
                "prefill layer 0: array of <U1: its elements are no real numbers",
                "baseline, prefill layer 1: OSError: gone",
                "target, prefill layer 1: OSError: gone",
            ),
        )
        self.assertEqual(result.verdict, "error")
        with self.assertRaises(UsageError):
            run_trace(Failing(), Failing(), "p", num_layers=-1)

    def test_of_changed_models_name_the_changed_layer_first(self) -> None:
        baseline = toy_captures(decode_steps=2)
        for layer in range(3):
            changed = toy_with_changed_expert(layer, self.used_expert(layer))
            target = toy_captures(changed, decode_steps=2, decode_ids=baseline.decode_ids)
            result = run_trace(
                baseline.to_hook(), target.to_hook(), "p", num_layers=3, decode_steps=2
            )
            first = result.first_divergence
            assert first is not None
            self.assertEqual(
                (first.hook_point, first.layer, first.step, first.field_name),
                ("prefill", layer, None, "hidden_states"),
            )
            document = result.to_dict()
            self.assertEqual(document["claim"]["access_level"], "activations")

    def used_expert(self, layer: int) -> int:
        plain = toy_captures()
        for expert in range(4):
            other = toy_captures(toy_with_changed_expert(layer, expert))
            left, right = (side.to_hook().on_prefill(layer) for side in (plain, other))
            assert left is not None and right is not None
            if compare_captures(left, right)[0].diverged:
                return expert
        raise AssertionError(f"no expert of layer {layer} is used by {PROMPT_IDS}")


if __name__ == "__main__":
    unittest.main()
