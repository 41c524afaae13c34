"""A capture from a stand-in model: alignment, roles of tensors, refusals, what is not captured."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing import build_manifest, create_working_bundle, load_run_bundle
from moe_weights.routing.capture import RoutingCapture
from moe_weights.routing.capture_blocks import NotMoeModelError, find_moe_blocks
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
    make_biased_block,
    make_softmax_block,
    sigmoid,
    softmax,
    softmax_rule,
    top,
)


def make_manifest(run_id: str = "one") -> dict[str, Any]:
    return build_manifest(
        run_id=run_id,
        created_at="2026-03-21T12:00:00Z",
        model_id="m",
        tokenizer_id="t",
        prompt_text="",
        derivation_version="none",
        derivation_config_id="none",
        bundle_version="v0.2.0",
    )


def block_of(rule: Any, given: Any, n_experts: int = 5, **more: Any) -> FakeMoe:
    return FakeMoe(FakeRouter(rule, n_experts, 4, **more), n_experts, given)


def all_of(output: Any) -> Any:
    return output[1:]


class CaptureCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def capture(self, model: FakeModel, **options: Any) -> list[dict[str, Any]]:
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle, **options) as capture,
        ):
            model.feed([3, 4, 5])
            model.feed([6], 3)
            model.feed([7], 4)
            bundle.promote()
            self.assertEqual(capture.fed_ids, [3, 4, 5, 6, 7])
        self.assertEqual(sum(len(module._forward_hooks) for module in model.modules()), 0)
        events: list[dict[str, Any]] = load_run_bundle(self.root / "one")["raw_events"]
        return events

    def layers_of(self, block: FakeMoe) -> list[dict[str, Any]]:
        return [event["layers"][0] for event in self.capture(FakeModel(block))]


class Tokens(CaptureCase):
    def test_each_stands_once_with_its_phase_place_and_time(self) -> None:
        model = FakeModel(make_softmax_block(), FakeModule(), make_biased_block())
        events = self.capture(model, to_text=str, synchronize=lambda: None)
        self.assertEqual([event["phase"] for event in events], ["prefill"] * 3 + ["decode"] * 2)
        self.assertEqual([event["token_text"] for event in events], list("34567"))
        self.assertEqual([event["context_length"] for event in events], [0, 1, 2, 3, 4])
        self.assertEqual([layer["layer_index"] for layer in events[0]["layers"]], [0, 2])
        starts = [event["timing_ms"]["decode_start"] for event in events]
        self.assertEqual(starts[0], starts[2])
        self.assertLess(starts[2], starts[3])

    def test_embeddings_have_no_token_ids(self) -> None:
        model = FakeModel(make_softmax_block())

        def forward(inputs_embeds: Any) -> None:
            model.children_by_name["layers"].children_by_name["0"](inputs_embeds)

        model.forward = forward  # type: ignore[method-assign]
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle),
        ):
            model(inputs_embeds=FakeTensor(np.ones((1, 2, HIDDEN))))
            bundle.promote()
        event = load_run_bundle(self.root / "one")["raw_events"][1]
        self.assertIsNone(event["token_id"])
        self.assertIn("token_id", event["not_captured"])

    def test_a_text_that_is_fed_again_and_again_is_recorded_once(self) -> None:
        model = FakeModel(make_softmax_block())
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle, n_prompt_tokens=2),
        ):
            model.feed([3, 4])
            model.feed([3, 4, 5])
            self.assertEqual(bundle.n_events, 3)
            with self.assertRaisesRegex(UsageError, "positions 0..3 after 3 tokens"):
                model.feed([3, 9, 5, 6])
            with self.assertRaisesRegex(UsageError, "positions 5..5 after 3 tokens"):
                model.feed([3], 5)
            with self.assertRaisesRegex(UsageError, "positions 1..1 after 3 tokens"):
                model.feed([4], 1)
            self.assertEqual(bundle.n_events, 3)

    def test_the_place_of_a_pass_is_told_by_mask_positions_or_order(self) -> None:
        model = FakeModel(make_softmax_block())
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle),
        ):
            model(FakeTensor([[3, 4]]))
            model(FakeTensor([[5]]), position_ids=FakeTensor([[2]]))
            model(FakeTensor([[6]]), position_ids=FakeTensor([[[3]]]))
            with self.assertRaisesRegex(UsageError, r"positions 7\.\.7"):
                model(FakeTensor([[6]]), position_ids=FakeTensor([[7]]))
            self.assertEqual(bundle.n_events, 4)

    def test_batches_padding_and_calls_without_tokens_are_refused(self) -> None:
        model = FakeModel(make_softmax_block())
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle),
        ):
            with self.assertRaisesRegex(UsageError, "a batch of 2"):
                model(input_ids=FakeTensor([[1], [2]]))
            before = FakeTensor([[-2]])
            with self.assertRaisesRegex(UsageError, r"fed positions -2\.\.0 after 0 tokens"):
                model(input_ids=FakeTensor([[1, 2, 3]]), position_ids=before)
            mask = FakeTensor(np.array([[False, True]]))
            with self.assertRaisesRegex(UsageError, "without padding"):
                model(input_ids=FakeTensor([[1, 2]]), attention_mask=mask)
            model.forward = lambda: None  # type: ignore[method-assign]
            with self.assertRaisesRegex(UsageError, "without input_ids and without"):
                model()
            self.assertEqual(bundle.n_events, 0)

    def test_a_model_whose_blocks_do_not_run_is_refused(self) -> None:
        model = FakeModel(make_softmax_block())
        model.forward = lambda input_ids: None  # type: ignore[method-assign]
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle),
            self.assertLogs("moe_weights.routing.capture", "WARNING") as logs,
            self.assertRaisesRegex(InvalidDataError, r"blocks are layers\.0\.mlp"),
        ):
            model(input_ids=FakeTensor([[1]]))
        self.assertEqual(len(logs.output), 1)

    def test_a_model_that_takes_no_hook_keeps_none(self) -> None:
        model = FakeModel(make_softmax_block())

        def refuse(*_arguments: Any, **_options: Any) -> Any:
            raise RuntimeError("no hooks")

        model.register_forward_hook = refuse  # type: ignore[method-assign]
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            self.assertRaisesRegex(RuntimeError, "no hooks"),
            RoutingCapture(model, bundle),
        ):
            pass
        kept = [
            hooks
            for module in model.modules()
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
            if hooks
        ]
        self.assertEqual(kept, [])

    def test_others_hooks_see_the_models_own_passes_alone(self) -> None:
        block = make_softmax_block()
        seen: list[int] = []
        router = block.children_by_name["gate"]
        router.register_forward_hook(lambda _m, arguments, _o: seen.append(arguments[0].shape[1]))
        model = FakeModel(block)
        with (
            create_working_bundle(self.root, make_manifest()) as bundle,
            RoutingCapture(model, bundle) as capture,
        ):
            model.feed([3, 4, 5])
            described = capture.describe()
        self.assertEqual(seen, [3])
        self.assertEqual(
            described["moe_layers"],
            [
                {
                    "moe_ordinal": 0,
                    "layer_index": 0,
                    "module": "layers.0.mlp",
                    "router_class": "FakeRouter",
                }
            ],
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


class Blocks(unittest.TestCase):
    def test_the_layer_is_the_number_in_the_path(self) -> None:
        model = FakeModel(FakeModule(), make_softmax_block(), FakeModule(), make_softmax_block())
        self.assertEqual([block.layer for block in find_moe_blocks(model)], [1, 3])

    def test_other_towers_and_attention_are_left_aside(self) -> None:
        block = make_softmax_block()
        vision = FakeModule(layers=FakeModule(**{"0": FakeModule(mlp=make_softmax_block())}))
        layer = FakeModule(mlp=block, self_attn=make_softmax_block())
        model = FakeModule(vision=vision, layers=FakeModule(**{"0": layer}))
        found = find_moe_blocks(model)
        self.assertEqual([entry.path for entry in found], ["layers.0.mlp"])

    def test_two_blocks_of_a_layer_are_refused(self) -> None:
        layer = FakeModule(mlp=make_softmax_block(), ffn=make_softmax_block())
        model = FakeModule(layers=FakeModule(**{"0": layer}))
        with self.assertRaisesRegex(UsageError, r"layers\.0\.mlp and layers\.0\.ffn"):
            find_moe_blocks(model)

    def test_a_path_without_a_number_is_refused(self) -> None:
        with self.assertRaisesRegex(UsageError, "'mlp' has no layer number"):
            find_moe_blocks(FakeModule(mlp=make_softmax_block()))

    def test_a_dense_model_is_refused_with_its_modules(self) -> None:
        many = {f"m{n}": type(f"Part{n}", (FakeModule,), {})() for n in range(14)}
        with self.assertRaises(NotMoeModelError) as caught:
            find_moe_blocks(FakeModule(**many))
        self.assertEqual(
            str(caught.exception),
            "FakeModule is not a Mixture-of-Experts model: no module has experts and a router "
            "beside them; its modules are FakeModule, "
            + ", ".join(f"Part{n}" for n in range(11))
            + " and 3 more",
        )

    def test_a_router_beside_the_layers_dense_block(self) -> None:
        layer = make_softmax_block(mlp=FakeSharedExpert())
        model = FakeModule(layers=FakeModule(**{"4": layer}))
        (block,) = find_moe_blocks(model)
        self.assertEqual((block.layer, block.n_shared, block.shared), (4, None, None))

    def test_shared_experts_beside_the_block(self) -> None:
        layer = FakeModule(moe=make_softmax_block(), shared_mlp=FakeSharedExpert())
        model = FakeModule(layers=FakeModule(**{"0": layer}))
        (block,) = find_moe_blocks(model)
        self.assertEqual(block.n_shared, 1)
        self.assertIs(block.shared, layer.children_by_name["shared_mlp"])

    def test_how_many_experts_a_list_or_a_number_says(self) -> None:
        class Listed(FakeModule):
            def __len__(self) -> int:
                return 7

        for experts, count in ((Listed(), 7), (SimpleNamespace, None)):
            block = make_softmax_block()
            if count:
                block.children_by_name["experts"] = experts  # type: ignore[assignment]
            else:
                counted = FakeModule()
                counted.num_experts = 9  # type: ignore[attr-defined]
                block.children_by_name["experts"] = counted
            (found,) = find_moe_blocks(FakeModel(block))
            self.assertEqual(found.n_experts, count or 9)


if __name__ == "__main__":
    unittest.main()
