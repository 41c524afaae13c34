"""Which rule a router is found to follow: scores, biases, groups, factors."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np

from tests.support.capture_cases import CaptureCase, all_of, block_of
from tests.support.fake_routers import (
    FakeTensor,
    make_biased_block,
    make_softmax_block,
    sigmoid,
    softmax,
    top,
)


class Rules(CaptureCase):
    def test_softmax(self) -> None:
        block = make_softmax_block()
        layers = self.layers_of(block)
        calls = block.children_by_name["experts"].calls  # type: ignore[attr-defined]
        chosen = np.concatenate([call[0].values for call in calls])
        weights = np.concatenate([call[1].values for call in calls])
        for token, layer in enumerate(layers):
            self.assertEqual(layer["router_kind"], "softmax")
            self.assertEqual(layer["topk_indices"], chosen[token].tolist())
            self.assertEqual(layer["combine_weights"], weights[token].tolist())
            self.assertTrue(layer["combine_normalised"])
            self.assertEqual(layer["combine_scale"], 1.0)
            self.assertEqual(layer["num_shared_experts"], 0)
            self.assertEqual(layer["not_captured"], [])

    def test_sigmoid_with_a_bias_and_a_factor(self) -> None:
        block = make_biased_block()
        bias = block.children_by_name["gate"].buffers_by_name["e_score_correction_bias"].values[0]
        for layer in self.layers_of(block):
            self.assertEqual(layer["router_kind"], "sigmoid")
            self.assertEqual(layer["selection_bias"], bias.tolist())
            self.assertEqual(layer["combine_scale"], 2.5)

    def test_sqrtsoftplus_is_another_kind_whose_scores_are_kept(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            scores = np.sqrt(np.log1p(np.exp(logits)))
            chosen = top(scores, 2)
            weights = np.take_along_axis(scores, chosen, axis=1)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        for layer in self.layers_of(block_of(rule, all_of)):
            self.assertEqual(layer["router_kind"], "other")
            expected = np.sqrt(np.log1p(np.exp(layer["router_logits"])))
            np.testing.assert_allclose(layer["router_probs"], expected)
            self.assertIsNone(layer["entropy"])

    def test_a_bias_on_logits_is_in_the_scores_of_the_choice(self) -> None:
        bias = np.array([1.0, -1.0, 0.5, 0.0, 2.0])

        def rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits + bias, 2)
            weights = np.take_along_axis(sigmoid(logits), chosen, axis=1)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        block = block_of(rule, all_of)
        block.buffers_by_name["expert_bias"] = FakeTensor(bias)
        for layer in self.layers_of(block):
            np.testing.assert_allclose(
                layer["selection_scores"], np.array(layer["router_logits"]) + bias
            )
            self.assertEqual(layer["not_captured"], ["selection_bias"])

    def test_groups(self) -> None:
        def rule(router: Any, logits: Any) -> Any:
            scores = softmax(logits)
            best = scores.reshape(-1, 2, 3).max(axis=2).argmax(axis=1)
            inside = np.repeat(np.arange(2), 3)[None] == best[:, None]
            chosen = top(np.where(inside, scores, 0.0), 2)
            weights = np.take_along_axis(scores, chosen, axis=1)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        layers = self.layers_of(block_of(rule, all_of, 6, num_group=2, topk_group=1))
        for layer in layers:
            limit = layer["group_limit"]
            self.assertEqual((limit["num_groups"], limit["group_score"]), (2, "max"))
            self.assertEqual(limit["selected_groups"], [layer["topk_indices"][0] // 3])

    def test_a_greedy_router_ignores_its_groups(self) -> None:
        def rule(router: Any, logits: Any) -> Any:
            scores = softmax(logits)
            chosen = top(scores, 1)
            return FakeTensor(logits), FakeTensor(scores.max(axis=1)[:, None]), FakeTensor(chosen)

        block = block_of(rule, all_of, 6, num_group=2, topk_group=1, topk_method="greedy")
        self.assertTrue(all(layer["group_limit"] is None for layer in self.layers_of(block)))

    def test_a_choice_from_a_table_is_kept_and_not_explained(self) -> None:
        def rule(_router: Any, logits: Any, ids: Any) -> Any:
            chosen = np.tile([0, 3], (len(logits), 1))
            weights = np.take_along_axis(softmax(logits), chosen, axis=1)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        block = block_of(rule, all_of)
        router = block.children_by_name["gate"]
        forward = router.forward
        router.forward = lambda hidden: forward(hidden, hidden)  # type: ignore[method-assign]
        for layer in self.layers_of(block):
            self.assertEqual(layer["topk_indices"], [0, 3])
            self.assertEqual(layer["router_kind"], "softmax")
            self.assertIn("selection_scores", layer["not_captured"])
            self.assertIsNone(layer["selection_scores"])

    def test_weights_beyond_the_bundles_tolerance_are_kept_without_the_rule(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            probs = softmax(logits)
            chosen = top(probs, 2)
            weights = np.take_along_axis(probs, chosen, axis=1) * (1 + 1.5e-5)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        layer = self.layers_of(block_of(rule, all_of))[0]
        self.assertIsNone(layer["combine_scale"])
        self.assertIsNotNone(layer["combine_weights"])
        self.assertEqual(layer["router_kind"], "softmax")

    def test_a_choice_that_the_bundle_would_refuse_is_kept_without_the_rule(self) -> None:
        # Scores of 1e9: the rule is held at their size, the bundle's group check at 1e-6.
        bias = np.array([1e9, 1e9, 0.0, 1e9, 1e9, 0.0])

        def rule(_router: Any, logits: Any) -> Any:
            scores = sigmoid(logits)
            chosen = np.tile([0, 1], (len(logits), 1))
            weights = np.take_along_axis(scores, chosen, axis=1)
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        block = block_of(rule, all_of, 6, num_group=2, topk_group=1)
        block.buffers_by_name["expert_bias"] = FakeTensor(bias)
        for layer in self.layers_of(block):
            self.assertEqual(layer["topk_indices"], [0, 1])
            self.assertEqual(layer["router_kind"], "sigmoid")


if __name__ == "__main__":
    unittest.main()
