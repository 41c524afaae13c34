"""Every token once, whatever the way it is fed."""

from __future__ import annotations

import contextlib
import unittest
from typing import Any

import torch
import transformers
from captured_families import FAMILIES, N_NEW, PROMPT, CaptureCase, make_model

from moe_weights.errors import UsageError
from moe_weights.routing import (
    build_manifest,
    create_working_bundle,
    load_run_bundle,
    resume_working_bundle,
)
from moe_weights.routing.capture import RoutingCapture
from moe_weights.routing.capture_blocks import NotMoeModelError


class Alignment(CaptureCase):
    """Every token once, whatever the way it is fed."""

    def manifest(self, run_id: str = "own") -> dict[str, Any]:
        return build_manifest(
            run_id=run_id, created_at="2026-03-21T12:00:00Z", model_id="m", tokenizer_id="t",
            prompt_text="", derivation_version="none", derivation_config_id="none",
            bundle_version="v0.2.0",
        )  # fmt: skip

    def generate(self, model: Any, run_id: str, **options: Any) -> list[dict[str, Any]]:
        ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
        model.generation_config.eos_token_id = None
        with (
            create_working_bundle(self.folder, self.manifest(run_id)) as bundle,
            RoutingCapture(model, bundle, n_prompt_tokens=6),
        ):
            model.generate(
                input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0, **options
            )
            bundle.promote()
        events: list[dict[str, Any]] = load_run_bundle(self.folder / run_id)["raw_events"]
        return events

    def test_with_cache_without_and_in_chunks_tell_the_same(self) -> None:
        model = make_model("mixtral", FAMILIES["mixtral"])
        cached = self.generate(model, "cached")
        self.assertEqual(len(cached), 6 + 3)  # the last token that is sampled is not fed back
        for run_id, options in {
            "uncached": {"use_cache": False},
            "chunked": {"prefill_chunk_size": 4},
        }.items():
            events = self.generate(model, run_id, **options)
            self.assertEqual([e["phase"] for e in events], [e["phase"] for e in cached])
            self.assertEqual([e["token_id"] for e in events], [e["token_id"] for e in cached])
            for one, other in zip(cached, events, strict=True):
                for left, right in zip(one["layers"], other["layers"], strict=True):
                    self.assertEqual(left["topk_indices"], right["topk_indices"])

    def test_a_batch_is_refused(self) -> None:
        model = make_model("mixtral", FAMILIES["mixtral"])
        with (
            create_working_bundle(self.folder, self.manifest()) as bundle,
            RoutingCapture(model, bundle),
            self.assertRaisesRegex(UsageError, "a batch of 2"),
        ):
            model(input_ids=torch.tensor([[1, 2], [3, 4]]))

    def test_a_crash_keeps_every_token_but_the_one_in_flight(self) -> None:
        model = make_model("mixtral", FAMILIES["mixtral"])
        steps: list[int] = []

        def fail(_module: Any, _arguments: Any) -> None:
            steps.append(1)
            if len(steps) == 4:
                raise KeyboardInterrupt

        model.model.layers[2].register_forward_pre_hook(fail)
        with contextlib.suppress(KeyboardInterrupt):
            self.capture(model)
        with resume_working_bundle(self.folder, "one") as bundle:
            self.assertEqual(bundle.n_events, len(PROMPT) + 2)
            bundle.promote()
        self.assertEqual(len(load_run_bundle(self.folder / "one")["raw_events"]), len(PROMPT) + 2)

    def test_a_capture_leaves_the_model_and_its_text_as_they_are(self) -> None:
        model = make_model("qwen3_moe", FAMILIES["qwen3_moe"])
        ids = torch.tensor([[byte % 98 for byte in PROMPT.encode()]])
        before = model.generate(ids, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)
        bundle = self.capture(model)
        after = model.generate(ids, max_new_tokens=N_NEW, do_sample=False, pad_token_id=0)
        self.assertEqual(before.tolist(), after.tolist())
        captured = [event["token_id"] for event in bundle["raw_events"]]
        self.assertEqual(captured, before[0].tolist())
        hooks = [len(module._forward_hooks) for module in model.modules()]
        self.assertEqual(sum(hooks), 0)

    def test_a_dense_model_is_refused(self) -> None:
        config = transformers.LlamaConfig(
            vocab_size=98, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        with self.assertRaisesRegex(NotMoeModelError, "LlamaForCausalLM is not a Mixture"):
            self.capture(transformers.LlamaForCausalLM(config))


if __name__ == "__main__":
    unittest.main()
