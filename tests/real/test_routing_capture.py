"""What a bundle says of a live model against what the model computed, token by token."""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np
import torch
from captured_families import FAMILIES, PROMPT, CaptureCase, Family, make_model
from torch.nn import functional

# As the layer index of each: which decoder layers have experts.
SPARSE_LAYERS = {"qwen3_moe": [1, 3], "deepseek_v3": [2, 3], "llama4": [1, 3]}


class Observer:
    """Hooks of the test's own: what every router gave, and what every block's experts got."""

    def __init__(self, model: Any, paths: list[str]) -> None:
        self.router_inputs: dict[str, list[Any]] = {path: [] for path in paths}
        self.experts_calls: dict[str, list[Any]] = {path: [] for path in paths}
        modules = dict(model.named_modules())
        for path in paths:
            for name, child in modules[path].named_children():
                if name in {"gate", "router"}:
                    child.register_forward_pre_hook(self._keeper(self.router_inputs[path]))
                if name == "experts":
                    child.register_forward_pre_hook(self._keeper(self.experts_calls[path]))

    def _keeper(self, calls: list[Any]) -> Any:
        def keep(_module: Any, arguments: Any) -> None:
            calls.append([item.detach().clone() for item in arguments if torch.is_tensor(item)])

        return keep


def weight_of(router: Any, hidden: Any) -> Any:
    """Return logits of hidden states, in float64, from the router's own matrix."""
    matrices = [value for _name, value in router.named_parameters() if value.ndim == 2]
    bias = getattr(router, "bias", None)
    bias = None if bias is None else bias.double()
    return functional.linear(hidden.double(), matrices[0].double(), bias)


class AgainstTheLiveModel(CaptureCase):
    """Indices equal, probabilities to 1e-6, weights as the experts got them."""

    def test_every_token_of_every_layer(self) -> None:
        for name, family in FAMILIES.items():
            with self.subTest(name):
                self.check(name, family)

    def check(self, name: str, family: Family) -> None:
        model = make_model(name, family)
        found = self.capture(
            model, f"{name} layout", 0
        )  # finds the paths; observed in a second run
        paths = {
            entry["layer_index"]: entry["module"]
            for entry in found["manifest"]["capture_config"]["moe_layers"]
        }
        self.assertTrue(paths)
        if name in SPARSE_LAYERS:
            self.assertEqual(sorted(paths), SPARSE_LAYERS[name])
        observer = Observer(model, list(paths.values()))
        bundle = self.capture(model, f"{name} seen")
        events = bundle["raw_events"]
        n_prompt = len(PROMPT)  # bytes
        phases = ["prefill"] * n_prompt + ["decode"] * (len(events) - n_prompt)
        self.assertEqual([event["phase"] for event in events], phases)
        self.assertEqual([event["token_id"] for event in events], self.tokens(model, len(events)))
        modules = dict(model.named_modules())
        for layer_index, path in paths.items():
            layers = [
                layer
                for event in events
                for layer in event["layers"]
                if layer["layer_index"] == layer_index
            ]
            self.assertEqual(len(layers), len(events))
            self.check_choice(name, family, layers, observer.experts_calls[path])
            router = next(
                child
                for child_name, child in modules[path].named_children()
                if child_name in {"gate", "router"}
            )
            self.check_scores(name, family, layers, router, observer.router_inputs[path])
            self.check_rule(family, layers)

    def tokens(self, model: Any, n_tokens: int) -> list[int]:
        """Return the text by greedy steps without a cache."""
        size = model.get_input_embeddings().weight.shape[0]
        ids = [byte % size for byte in PROMPT.encode()]
        while len(ids) < n_tokens:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
        return ids

    def check_choice(self, name: str, family: Family, layers: list[Any], calls: list[Any]) -> None:
        if not family.given_weights:
            return
        if name == "jetmoe":  # its experts are two modules, which get tokens sorted by expert
            self.check_choice_by_logits(layers)
            return
        self.assertTrue(calls)
        indices = torch.cat([call[1].reshape(-1, call[1].shape[-1]) for call in calls])
        weights = torch.cat([call[2].reshape(-1, call[2].shape[-1]) for call in calls])
        for token, layer in enumerate(layers):
            self.assertEqual(layer["topk_indices"], indices[token].tolist())
            self.assertEqual(layer["combine_weights"], weights[token].double().tolist())

    def check_choice_by_logits(self, layers: list[Any]) -> None:
        for layer in layers:
            logits = torch.tensor(layer["router_logits"], dtype=torch.float64)
            best = logits.topk(len(layer["topk_indices"]))
            self.assertEqual(layer["topk_indices"], best.indices.tolist())
            np.testing.assert_allclose(
                layer["combine_weights"], best.values.softmax(-1).numpy(), rtol=1e-6
            )

    def check_scores(
        self, name: str, family: Family, layers: list[Any], router: Any, inputs: list[Any]
    ) -> None:
        if name == "gemma4":
            factor = router.scale * router.scalar_root_size
            hidden = [router.norm(call[0]) * factor for call in inputs]
        else:
            hidden = [call[0] for call in inputs]
        width = hidden[0].shape[-1]
        rows = torch.cat([values.reshape(-1, width) for values in hidden])[: len(layers)]
        matrix = router if name != "gemma4" else router.proj
        logits = weight_of(matrix, rows)
        if name == "muse_spark":
            logits = logits * router.output_multiplier
        captured = torch.tensor([layer["router_logits"] for layer in layers], dtype=torch.float64)
        np.testing.assert_allclose(captured.numpy(), logits.detach().numpy(), atol=2e-5, rtol=1e-5)
        if family.kind is None:
            return
        function = torch.sigmoid if family.kind == "sigmoid" else lambda x: x.softmax(-1)
        probs = np.array([layer["router_probs"] for layer in layers])
        np.testing.assert_allclose(probs, function(captured).numpy(), atol=1e-9)
        np.testing.assert_allclose(probs, function(logits.detach()).numpy(), atol=2e-6)

    def check_rule(self, family: Family, layers: list[Any]) -> None:
        for layer in layers:
            self.assertEqual(layer["router_kind"], family.kind)
            self.assertEqual(layer["combine_normalised"], family.normalised)
            if family.scale is None:
                self.assertIsNone(layer["combine_scale"])
            else:
                self.assertAlmostEqual(layer["combine_scale"], family.scale)
            self.assertEqual(layer["selection_bias"] is not None, family.has_bias)
            limit = layer["group_limit"]
            self.assertEqual((limit or {"group_score": ""})["group_score"], family.group_score)
            if family.kind == "softmax":
                self.assertIsNotNone(layer["entropy"])


class TheFormulas(CaptureCase):
    """The four named families, by formulas written here."""

    def test_deepseek_v3_limits_groups_adds_a_bias_and_scales(self) -> None:
        family = FAMILIES["deepseek_v3"]
        model = make_model("deepseek_v3", family)
        for event in self.capture(model)["raw_events"]:
            for layer in event["layers"]:
                gate = model.model.layers[layer["layer_index"]].mlp.gate
                scores = torch.tensor(layer["router_logits"]).double().sigmoid()
                biased = scores + gate.e_score_correction_bias.double()
                groups = biased.view(2, 4).topk(2, dim=-1).values.sum(-1)
                best = int(groups.argmax())
                self.assertEqual(layer["group_limit"]["selected_groups"], [best])
                inside = biased[4 * best : 4 * best + 4]
                chosen = {4 * best + int(index) for index in inside.topk(2).indices}
                self.assertEqual(set(layer["topk_indices"]), chosen)
                picked = scores[layer["topk_indices"]]
                expected = (2.5 * picked / picked.sum()).tolist()
                np.testing.assert_allclose(layer["combine_weights"], expected, rtol=1e-5)
                self.assertEqual(layer["num_shared_experts"], 1)

    def test_qwen2_weighs_its_shared_expert(self) -> None:
        model = make_model("qwen2_moe", FAMILIES["qwen2_moe"])
        seen: list[Any] = []
        gate = model.model.layers[1].mlp.shared_expert_gate
        gate.register_forward_hook(lambda _module, _arguments, output: seen.append(output))
        events = self.capture(model)["raw_events"]
        weights = torch.cat(seen).double().sigmoid().reshape(-1).tolist()
        captured = [event["layers"][1]["shared_expert_weights"] for event in events]
        np.testing.assert_allclose(np.array(captured)[:, 0], weights, atol=1e-12)

    def test_half_precision_is_recomputed_in_float64(self) -> None:
        for dtype in (torch.bfloat16, torch.float16):
            model = make_model("mixtral", FAMILIES["mixtral"], dtype)
            bundle = self.capture(model, str(dtype))
            layer = bundle["raw_events"][0]["layers"][0]
            logits = torch.tensor(layer["router_logits"], dtype=torch.float64)
            np.testing.assert_allclose(layer["router_probs"], logits.softmax(-1), atol=1e-12)
            self.assertEqual(layer["score_dtype"], "float32")


if __name__ == "__main__":
    unittest.main()
