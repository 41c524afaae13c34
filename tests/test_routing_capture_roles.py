"""Which tensor is which: logits, choice and weights, in the forms that models give them."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError
from tests.support.capture_cases import CaptureCase, all_of, block_of
from tests.support.fake_routers import (
    HIDDEN,
    FakeExperts,
    FakeLinear,
    FakeModel,
    FakeModule,
    FakeMoe,
    FakeRouter,
    FakeSharedExpert,
    FakeTensor,
    make_softmax_block,
    sigmoid,
    softmax,
    softmax_rule,
    top,
)


class Roles(CaptureCase):
    def test_weights_in_a_row_of_all_experts(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits, 2)
            dense = np.zeros_like(logits)
            np.put_along_axis(
                dense, chosen, np.take_along_axis(sigmoid(logits), chosen, axis=1), axis=1
            )
            return FakeTensor(dense), FakeTensor(logits)

        layers = self.layers_of(block_of(rule, lambda _output: ()))
        for layer in layers:
            self.assertEqual(layer["router_kind"], "sigmoid")
            self.assertEqual(
                set(layer["topk_indices"]), set(top(np.array([layer["router_logits"]]), 2)[0])
            )
            self.assertIsNone(layer["combine_weights"])

    def test_slots_that_are_sorted_by_expert(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits, 2)
            weights = softmax(np.take_along_axis(logits, chosen, axis=1))
            order = np.argsort(chosen.reshape(-1), kind="stable")
            sizes = np.bincount(chosen.reshape(-1), minlength=5).tolist()
            return (
                FakeTensor(order),
                FakeTensor(order // 2),
                FakeTensor(weights.reshape(-1)[order]),
                sizes,
                FakeTensor(logits),
            )

        for layer in self.layers_of(block_of(rule, lambda _output: ())):
            expected = top(np.array([layer["router_logits"]]), 2)[0].tolist()
            self.assertEqual(layer["topk_indices"], expected)
            self.assertTrue(layer["combine_normalised"])

    def test_slots_sorted_by_expert_without_weights_or_without_an_order(self) -> None:
        def sorted_rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits, 2).reshape(-1)
            return (
                FakeTensor(np.argsort(chosen, kind="stable")),
                np.bincount(chosen, minlength=5).tolist(),
                FakeTensor(logits),
            )

        layer = self.layers_of(block_of(sorted_rule, lambda _output: ()))[0]
        self.assertEqual(len(layer["topk_indices"]), 2)
        self.assertIsNone(layer["combine_weights"])

    def test_logits_alone_are_kept_and_nothing_is_made_up(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            return (FakeTensor(logits), [2, 1])

        layer = self.layers_of(block_of(rule, lambda _output: (), top_k=3))[0]
        self.assertIsNone(layer["topk_indices"])
        self.assertIsNotNone(layer["router_logits"])
        self.assertEqual(layer["num_active_experts"], 3)

    def test_how_many_are_active_is_read_off_the_config_or_not_made_up(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            return (FakeTensor(logits), [2, 1])

        config = SimpleNamespace(num_experts_per_tok=2)
        model = FakeModel(block_of(rule, lambda _output: ()), config=config)
        self.assertEqual(self.capture(model)[0]["layers"][0]["num_active_experts"], 2)
        self.root /= "two"
        with (
            self.assertLogs("moe_weights.routing.capture", "WARNING"),
            self.assertRaisesRegex(InvalidDataError, "none could be read"),
        ):
            self.layers_of(block_of(rule, lambda _output: ()))

    def test_a_router_whose_probabilities_are_given_out_and_logits_are_inside(self) -> None:
        class Router(FakeModule):
            def forward(self, hidden: FakeTensor) -> Any:
                rows = FakeTensor(hidden.values.reshape(-1, HIDDEN))
                probs = softmax(self.children_by_name["proj"](rows).values)
                chosen = top(probs, 2)
                gains = np.linspace(0.5, 1.5, 5)[chosen]
                weights = gains * np.take_along_axis(probs, chosen, axis=1)
                return FakeTensor(probs), FakeTensor(weights), FakeTensor(chosen)

        router = Router(proj=FakeLinear(np.random.default_rng(2).standard_normal((5, HIDDEN))))
        block = FakeMoe(router, 5, lambda output: (output[2], output[1]))
        for layer in self.layers_of(block):
            self.assertEqual(layer["router_kind"], "softmax")
            np.testing.assert_allclose(
                layer["router_probs"], softmax(np.array([layer["router_logits"]]))[0]
            )
            self.assertEqual(layer["not_captured"], ["combine_normalised", "combine_scale"])

    def test_a_block_that_chooses_itself_is_read_at_its_experts(self) -> None:
        def given(output: Any) -> Any:
            probs = softmax(output.values)
            chosen = top(probs, 2)
            return FakeTensor(chosen), FakeTensor(np.take_along_axis(probs, chosen, axis=1))

        for layer in self.layers_of(block_of(lambda _r, logits: FakeTensor(logits), given)):
            self.assertEqual(layer["router_kind"], "softmax")
            self.assertEqual(layer["combine_scale"], 1.0)

    def test_a_choice_that_reaches_the_experts_without_weights(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            return FakeTensor(logits), FakeTensor(top(logits, 2))

        layer = self.layers_of(block_of(rule, lambda output: (output[1],)))[0]
        self.assertEqual(len(layer["topk_indices"]), 2)
        self.assertIsNone(layer["combine_weights"])

    def test_logits_wider_than_the_experts_are_not_theirs_and_unused_slots_no_choice(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = np.tile([[2]], (len(logits), 1))
            weights = np.ones(chosen.shape)
            if len(logits) == 1:
                weights *= 0.0
            return FakeTensor(logits), FakeTensor(weights), FakeTensor(chosen)

        block = block_of(rule, lambda output: (output[2], output[1]), 6)
        block.children_by_name["experts"] = FakeExperts(5)
        layers = self.layers_of(block)
        self.assertEqual([layer["topk_indices"] for layer in layers], [[2]] * 3 + [None] * 2)
        self.assertIsNone(layers[0]["router_logits"])
        self.assertEqual(layers[0]["num_total_experts"], 5)

    def test_logits_that_are_not_finite_are_not_kept(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits, 2)
            weights = np.full(chosen.shape, np.nan)
            return FakeTensor(logits * np.inf), FakeTensor(weights), FakeTensor(chosen)

        layer = self.layers_of(block_of(rule, all_of))[0]
        self.assertIsNone(layer["router_logits"])
        self.assertIsNone(layer["combine_weights"])
        self.assertEqual(len(layer["topk_indices"]), 2)

    def test_weights_that_are_not_finite_leave_the_rest(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = top(logits, 2)
            return FakeTensor(logits), FakeTensor(np.full(chosen.shape, np.inf)), FakeTensor(chosen)

        layer = self.layers_of(block_of(rule, all_of))[0]
        self.assertIsNone(layer["combine_weights"])
        self.assertEqual(layer["selection_scores"], layer["router_logits"])

    def test_the_highest_expert_seen_is_not_how_many_there_are(self) -> None:
        def rule(_router: Any, logits: Any) -> Any:
            chosen = np.tile([[4]], (len(logits), 1))
            return FakeTensor(np.ones((len(logits), 1))), FakeTensor(chosen)

        block = block_of(rule, lambda output: (output[1], output[0]))
        block.children_by_name["experts"].parameters_by_name = {"w": FakeTensor(np.ones((2, 2)))}
        with (
            self.assertLogs("moe_weights.routing.capture", "WARNING"),
            self.assertRaisesRegex(InvalidDataError, "none could be read"),
        ):
            self.layers_of(block)

    def test_experts_whose_number_the_logits_tell(self) -> None:
        block = make_softmax_block()
        block.children_by_name["experts"].parameters_by_name = {"w": FakeTensor(np.ones((2, 2)))}
        layer = self.layers_of(block)[0]
        self.assertEqual((layer["num_total_experts"], layer["router_kind"]), (5, "softmax"))

    def test_a_router_that_cannot_be_asked_alone_is_read_from_its_own_tokens(self) -> None:
        def refusing(error: Exception) -> Any:
            def refuse(router: Any, logits: Any) -> Any:
                if len(logits) > 5:
                    raise error
                return softmax_rule(router, logits)

            return refuse

        for rule, more in (
            (refusing(ValueError("too many")), ()),
            (refusing(AssertionError("5 tokens")), ()),
            (refusing(KeyError("position")), ()),
            (lambda r, x, _more: softmax_rule(r, x), (1,)),
        ):
            block = block_of(rule, lambda output: (output[2], output[1]))
            router = block.children_by_name["gate"]
            forward = router.forward
            if more:  # something goes with each token
                router.forward = lambda hidden, f=forward: f(hidden, hidden)  # type: ignore[misc]
            self.root = self.root / "next"
            layer = self.layers_of(block)[0]
            self.assertEqual(layer["router_kind"], "softmax")

    def test_a_router_that_is_called_by_keyword(self) -> None:
        block = make_softmax_block()
        router = block.children_by_name["gate"]
        router.forward = lambda hidden: FakeRouter.forward(router, hidden)  # type: ignore
        experts = block.children_by_name["experts"]

        def forward(hidden: FakeTensor) -> FakeTensor:
            output = router(hidden=hidden)
            experts(hidden, output[2], output[1])
            return hidden

        block.forward = forward  # type: ignore[method-assign]
        self.assertEqual(self.layers_of(block)[0]["router_kind"], "softmax")


class SharedExperts(CaptureCase):
    def make_block(self, **children: Any) -> FakeMoe:
        return make_softmax_block(shared_expert=FakeSharedExpert(), **children)

    def test_without_a_gate_their_weight_is_one(self) -> None:
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(n_shared_experts=2))
        model = FakeModel(self.make_block(), config=config)
        layer = self.capture(model)[0]["layers"][0]
        self.assertEqual(layer["num_shared_experts"], 2)
        self.assertIsNone(layer["shared_expert_weights"])
        self.assertEqual(layer["not_captured"], [])

    def test_with_a_gate_that_gives_the_sum(self) -> None:
        gate = FakeLinear(np.ones((1, HIDDEN)))
        layers = self.layers_of(self.make_block(shared_expert_gate=gate))
        weights = [layer["shared_expert_weights"][0] for layer in layers]
        self.assertTrue(all(0.0 < weight < 1.0 for weight in weights))
        self.assertGreater(len(set(weights)), 1)

    def test_with_a_gate_that_does_not_give_the_sum(self) -> None:
        gate = FakeLinear(np.ones((1, HIDDEN)))
        block = self.make_block(shared_expert_gate=gate)
        forward = block.forward
        block.forward = lambda hidden: FakeTensor(forward(hidden).values * 2)  # type: ignore[method-assign]
        layer = self.layers_of(block)[0]
        self.assertEqual(layer["not_captured"], ["shared_expert_weights"])

    def test_with_a_gate_of_another_width_or_an_output_that_is_no_tensor(self) -> None:
        gate = FakeLinear(np.ones((HIDDEN, HIDDEN)))
        layer = self.layers_of(self.make_block(shared_expert_gate=gate))[0]
        self.assertEqual(layer["not_captured"], ["shared_expert_weights"])
        block = self.make_block(shared_expert_gate=FakeLinear(np.ones((1, HIDDEN))))
        forward = block.forward
        block.forward = lambda hidden: (forward(hidden), None)[1]  # type: ignore[method-assign]
        self.root = self.root / "second"
        layer = self.layers_of(block)[0]
        self.assertEqual(layer["not_captured"], ["shared_expert_weights"])

    def test_that_are_given_weights_of_their_own(self) -> None:
        block = self.make_block()
        children = block.children_by_name

        def forward(hidden: FakeTensor) -> FakeTensor:
            children["gate"](hidden)
            return children["shared_expert"](hidden, FakeTensor(np.ones((1, 1))))  # type: ignore[no-any-return]

        block.forward = forward  # type: ignore[method-assign]
        layer = self.layers_of(block)[0]
        self.assertIn("shared_expert_weights", layer["not_captured"])
        self.assertIsNone(layer["combine_weights"])


if __name__ == "__main__":
    unittest.main()
