"""Capturing the routing of a live model, shown on models made of `tests.support.fake_torch`."""

from __future__ import annotations

import unittest
from types import SimpleNamespace
from typing import Any

import numpy as np

from moe_weights.errors import InvalidDataError, UsageError
from moe_weights.routing import create_working_bundle, load_run_bundle
from moe_weights.routing.capture import RoutingCapture
from moe_weights.routing.capture_blocks import NotMoeModelError, find_moe_blocks
from tests.support.capture_cases import CaptureCase, make_manifest
from tests.support.fake_routers import (
    HIDDEN,
    FakeModel,
    FakeModule,
    FakeSharedExpert,
    FakeTensor,
    make_biased_block,
    make_softmax_block,
)


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
