"""A router's rule, found from what it computed."""

from __future__ import annotations

import unittest
from dataclasses import replace
from typing import Any

import numpy as np

from moe_weights.routing.capture_scheme import (
    RouterParts,
    RouterSample,
    RouterScheme,
    choice_holds,
    choice_scores,
    fit_scheme,
    open_groups,
    weights_hold,
)
from moe_weights.routing.capture_scores import to_scores
from tests.support.fake_routers import sigmoid, softmax, top

LOGITS = 2.0 * np.random.default_rng(0).standard_normal((64, 8))
BIAS = np.random.default_rng(1).standard_normal(8)


def make_sample(
    scores: Any,
    by: Any = None,
    *,
    normalise: bool = True,
    scale: float = 1.0,
    k: int = 2,
    logits: Any = LOGITS,
    **more: Any,
) -> RouterSample:
    chosen = top(scores if by is None else by, k)
    weights = np.take_along_axis(scores, chosen, axis=1)
    if normalise:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return RouterSample(logits=logits, chosen=chosen, weights=scale * weights, **more)


def masked(scores: Any, score: str, fill: float) -> Any:
    groups = np.sort(scores.reshape(-1, 4, 2), axis=2)
    best = groups[:, :, -1] if score == "max" else groups.sum(axis=2)
    is_open = np.zeros_like(best, dtype=bool)
    np.put_along_axis(is_open, top(best, 2), True, axis=1)
    return np.where(np.repeat(is_open, 2, axis=1), scores, fill)


class Functions(unittest.TestCase):
    def test_softmax_and_sigmoid_with_and_without_a_sum_and_a_factor(self) -> None:
        for function, scores in {
            "softmax": softmax(LOGITS),
            "sigmoid": sigmoid(LOGITS),
            "sqrtsoftplus": np.sqrt(np.log1p(np.exp(LOGITS))),
        }.items():
            for normalise in (False, True):
                for scale in (1.0, 2.5):
                    with self.subTest(function, normalise=normalise, scale=scale):
                        sample = make_sample(scores, normalise=normalise, scale=scale)
                        found = fit_scheme(sample, RouterParts())
                        self.assertEqual(found.function, function)
                        self.assertEqual(found.normalised, normalise)
                        self.assertAlmostEqual(found.scale or 0.0, scale, places=6)
                        self.assertTrue(choice_holds(found, sample).all())
                        self.assertTrue(weights_hold(found, sample).all())
        self.assertEqual(RouterScheme(function="sqrtsoftplus").router_kind, "other")
        self.assertEqual(RouterScheme(function="sigmoid").router_kind, "sigmoid")

    def test_a_softmax_over_the_chosen_logits_is_a_normalised_softmax(self) -> None:
        chosen = top(LOGITS, 3)
        weights = softmax(np.take_along_axis(LOGITS, chosen, axis=1))
        found = fit_scheme(
            RouterSample(logits=LOGITS, chosen=chosen, weights=weights), RouterParts()
        )
        self.assertEqual((found.function, found.normalised, found.scale), ("softmax", True, 1.0))

    def test_rounding_to_bfloat16_is_no_other_rule(self) -> None:
        def rounded(values: Any) -> Any:
            bits = np.asarray(values, np.float32).view(np.uint32)
            return ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(float)

        logits = rounded(LOGITS)
        sample = make_sample(softmax(logits), logits=logits)
        assert sample.weights is not None
        sample = replace(
            sample,
            weights=rounded(sample.weights),
            weights_dtype="bfloat16",
            logits_dtype="bfloat16",
        )
        found = fit_scheme(sample, RouterParts())
        self.assertEqual((found.function, found.normalised, found.scale), ("softmax", True, 1.0))
        self.assertEqual(found.score_dtype, "float32")

    def test_probabilities_that_the_router_gives_out_name_the_function(self) -> None:
        scale = np.linspace(0.5, 1.5, 8)  # per expert: no rule that is known
        chosen = top(LOGITS, 2)
        weights = scale[chosen]
        sample = RouterSample(logits=LOGITS, chosen=chosen, weights=weights, probs=softmax(LOGITS))
        found = fit_scheme(sample, RouterParts())
        self.assertEqual((found.function, found.normalised, found.scale), ("softmax", None, None))
        self.assertFalse(weights_hold(found, sample).any())
        other = replace(sample, probs=np.full_like(LOGITS, 0.125))
        self.assertIsNone(fit_scheme(other, RouterParts()).function)

    def test_weights_of_no_known_rule_leave_the_function_open(self) -> None:
        chosen = top(LOGITS, 2)
        weights = np.random.default_rng(3).random(chosen.shape)
        found = fit_scheme(
            RouterSample(logits=LOGITS, chosen=chosen, weights=weights), RouterParts()
        )
        self.assertIsNone(found.function)
        self.assertEqual(found.selects_by, "logits")

    def test_a_single_weight_of_one_tells_no_function(self) -> None:
        found = fit_scheme(make_sample(softmax(LOGITS), k=1), RouterParts())
        self.assertIsNone(found.function)
        self.assertIsNone(found.router_kind)

    def test_of_one_token_only_a_factor_that_the_router_has_is_taken(self) -> None:
        one = make_sample(softmax(LOGITS[:1]), scale=2.5, logits=LOGITS[:1])
        self.assertIsNone(fit_scheme(one, RouterParts()).scale)
        found = fit_scheme(one, RouterParts(scales=(1.0, 2.5)))
        self.assertEqual((found.normalised, found.scale), (True, 2.5))

    def test_when_all_experts_are_chosen_the_router_says_whether_it_divides(self) -> None:
        sample = make_sample(softmax(LOGITS), k=8)
        for says in (True, False):
            found = fit_scheme(sample, RouterParts(normalises=says))
            self.assertEqual(found.normalised, says)
        self.assertEqual(fit_scheme(sample, RouterParts()).normalised, False)

    def test_scores_far_out_stay_finite(self) -> None:
        for function in ("softmax", "sigmoid", "sqrtsoftplus"):
            scores = to_scores(function, np.array([[-1e4, 0.0, 1e4]]))  # type: ignore[arg-type]
            self.assertTrue(np.isfinite(scores).all())

    def test_weights_that_are_all_zero_fit_nothing(self) -> None:
        chosen = top(LOGITS, 2)
        sample = RouterSample(logits=LOGITS, chosen=chosen, weights=np.zeros(chosen.shape))
        self.assertIsNone(fit_scheme(sample, RouterParts()).function)


class Choices(unittest.TestCase):
    def test_a_bias_is_found_and_used_for_the_choice_alone(self) -> None:
        for function, scores in {"softmax": softmax(LOGITS), "sigmoid": sigmoid(LOGITS)}.items():
            sample = make_sample(scores, scores + BIAS)
            found = fit_scheme(sample, RouterParts(biases=(np.ones(3), BIAS)))
            self.assertEqual(found.function, function)
            self.assertIs(found.bias, BIAS)
            self.assertTrue(choice_holds(found, sample).all())

    def test_a_bias_that_is_not_used_is_not_claimed(self) -> None:
        found = fit_scheme(make_sample(sigmoid(LOGITS)), RouterParts(biases=(BIAS,)))
        self.assertIsNone(found.bias)

    def test_a_bias_tells_the_function_where_no_weights_do(self) -> None:
        chosen = top(sigmoid(LOGITS) + BIAS, 2)
        sample = RouterSample(logits=LOGITS, chosen=chosen)
        self.assertEqual(fit_scheme(sample, RouterParts(biases=(BIAS,))).function, "sigmoid")
        self.assertIsNone(fit_scheme(sample, RouterParts()).function)

    def test_a_bias_on_logits(self) -> None:
        sample = make_sample(sigmoid(LOGITS), LOGITS + BIAS, normalise=False)
        found = fit_scheme(sample, RouterParts(biases=(BIAS,)))
        self.assertEqual((found.function, found.selects_by), ("sigmoid", "logits"))
        scores = choice_scores(found, LOGITS)
        assert scores is not None
        np.testing.assert_array_equal(scores, LOGITS + BIAS)

    def test_groups(self) -> None:
        scores = sigmoid(LOGITS)
        bias = 0.3 * BIAS - 0.7  # most scores fall below the 0 of the groups that are masked
        for rule, fill in (
            ("top2_sum", None),
            ("top2_sum", 0.0),
            ("max", 0.0),
            ("max", None),
        ):
            with self.subTest(rule, fill=fill):
                by = masked(scores + bias, rule, -np.inf if fill is None else fill)
                sample = make_sample(scores, by, k=3)
                found = fit_scheme(sample, RouterParts(biases=(bias,), groups=(4, 2)))
                self.assertEqual(found.group_limit, (4, 2, rule, fill))
                self.assertTrue(choice_holds(found, sample).all())
                groups = open_groups(found, LOGITS)
                assert groups is not None
                self.assertEqual(groups.shape, (64, 2))

    def test_groups_that_the_router_has_and_does_not_use(self) -> None:
        sample = make_sample(softmax(LOGITS), k=5)
        for groups in ((4, 2), (3, 2)):
            found = fit_scheme(sample, RouterParts(groups=groups))
            self.assertIsNone(found.group_limit)
            self.assertIsNone(open_groups(found, LOGITS))

    def test_a_choice_by_no_scores_at_all(self) -> None:
        chosen = np.tile([0, 1], (64, 1))
        weights = np.take_along_axis(softmax(LOGITS), chosen, axis=1)
        sample = RouterSample(logits=LOGITS, chosen=chosen, weights=weights)
        found = fit_scheme(sample, RouterParts())
        self.assertEqual((found.function, found.selects_by), ("softmax", None))
        self.assertFalse(choice_holds(found, sample).any())
        self.assertIsNone(open_groups(found, LOGITS))
        self.assertEqual(fit_scheme(replace(sample, weights=None), RouterParts()).selects_by, None)

    def test_precision_of_the_choice(self) -> None:
        tied = np.array([[0.501, 0.5, 0.1]])
        sample = RouterSample(logits=tied, chosen=np.array([[1]]))
        self.assertIsNone(fit_scheme(sample, RouterParts()).selects_by)
        for dtype in ("bfloat16", "float16"):
            found = fit_scheme(replace(sample, logits_dtype=dtype), RouterParts())
            self.assertEqual(found.score_dtype, dtype)
        double = replace(sample, logits_dtype="float64", chosen=np.array([[0]]))
        self.assertEqual(fit_scheme(double, RouterParts()).score_dtype, "float64")


if __name__ == "__main__":
    unittest.main()
