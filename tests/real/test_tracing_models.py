"""Traces and comparisons of small random models of other people's libraries."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import Architecture
from building import build_model

from moe_weights.cli import main
from moe_weights.tracing import (
    DocumentError,
    Intervention,
    TraceRequest,
    load_captures,
    load_trace,
    open_engine,
    trace_model,
    write_trace,
)

PROMPT = "the quick brown fox"
ARCHITECTURES = ("mixtral", "qwen3_moe", "olmoe")
CHANGED_LAYER = 2
DEEPSEEK = {"head_dim": 8, "num_key_value_heads": 4}


def run_cli(*arguments: object) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


def experts_of(model: Any, layer: int) -> Any:
    (experts,) = [
        module
        for name, module in model.model.layers[layer].named_modules()
        if name.endswith("experts")
    ]
    return experts


class RealCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def save(self, model: Any, name: str) -> Path:
        path = self.folder / name
        model.save_pretrained(path)
        return path

    def compare(self, baseline: Path, target: Path, *more: object) -> tuple[int, dict[str, Any]]:
        result = self.folder / "result.json"
        code, told = run_cli(
            "trace", "--baseline", baseline, "--target", target, "--prompt", PROMPT,
            "--json", result, *more,
        )  # fmt: skip
        self.assertTrue(result.exists(), told)
        return code, json.loads(result.read_text("utf-8"))


class TwoModels(RealCase):
    def test_that_differ_in_one_expert_of_one_layer_first_diverge_there(self) -> None:
        for model_type in ARCHITECTURES:
            with self.subTest(model_type):
                model = build_model(Architecture(name=f"trace {model_type}", model_type=model_type))
                before = self.save(model.float(), f"{model_type}-a")
                used = self.most_used_expert(model)
                with torch.no_grad():
                    experts_of(model, CHANGED_LAYER).down_proj[used] += 0.1
                after = self.save(model, f"{model_type}-b")
                code, result = self.compare(before, before, "--decode-steps", 2)
                self.assertEqual((code, result["verdict"]), (0, "match"))
                code, result = self.compare(before, after, "--decode-steps", 2)
                self.assertEqual((code, result["errors"], result["missing"]), (1, [], []))
                first = result["first_divergence"]
                self.assertEqual(
                    (first["hook_point"], first["layer"], first["step"], first["field_name"]),
                    ("prefill", CHANGED_LAYER, None, "hidden_states"),
                )
                agreeing = {
                    (entry["hook_point"], entry["layer"])
                    for entry in result["comparisons"]
                    if not entry["diverged"] and entry["max_abs_diff"] == 0
                }
                self.assertLessEqual({("prefill", 0), ("prefill", 1)}, agreeing)

    def most_used_expert(self, model: Any) -> int:
        counts: dict[int, int] = {}
        handle = experts_of(model, CHANGED_LAYER).register_forward_pre_hook(
            lambda _module, arguments: counts.update(
                {int(e): counts.get(int(e), 0) + 1 for e in arguments[1].reshape(-1)}
            )
        )
        ids = [byte % model.config.vocab_size for byte in PROMPT.encode()]
        model(input_ids=torch.tensor([ids]))
        handle.remove()
        return max(counts, key=lambda expert: counts[expert])

    def test_compare_like_their_saved_captures(self) -> None:
        model = build_model(Architecture(name="trace saved", model_type="olmoe"))
        before = self.save(model, "a")
        with torch.no_grad():
            experts_of(model, 1).down_proj += 0.1
        after = self.save(model, "b")
        code, live = self.compare(before, after, "--save-captures", self.folder / "kept")
        self.assertEqual(code, 1)
        kept = [self.folder / "kept" / side / "capture.json" for side in ("baseline", "target")]
        code, saved = self.compare(*kept)
        self.assertEqual(code, 1)
        self.assertEqual(saved["comparisons"], live["comparisons"])
        code, mixed = self.compare(kept[0], after)
        self.assertEqual(mixed["comparisons"], live["comparisons"])
        captures = load_captures(kept[0])
        self.assertEqual(captures.source["backend"], "torch")
        damaged = next(kept[0].parent.glob("*.npz"))
        damaged.write_bytes(damaged.read_bytes()[:-100])
        with self.assertRaises(DocumentError):
            load_captures(kept[0])
        code, told = run_cli("trace", "--baseline", kept[0], "--target", after, "--prompt", PROMPT)
        self.assertEqual(code, 5, told)

    def test_with_missing_weights_are_unreadable(self) -> None:
        from safetensors.torch import load_file, save_file

        model = build_model(Architecture(name="trace missing", model_type="mixtral"))
        path = self.save(model, "a")
        tensors = load_file(path / "model.safetensors")
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        code, told = run_cli("trace", "--baseline", path, "--target", path, "--prompt", PROMPT)
        self.assertEqual(code, 5)
        self.assertIn("1 weights are missing", told)


class OneModel(RealCase):
    def test_shows_what_transformers_itself_shows(self) -> None:
        for model_type in (*ARCHITECTURES, "deepseek_v3", "qwen2_moe", "granitemoe", "gpt_oss"):
            with self.subTest(model_type):
                # The default sizes are for weights alone; this family rotates whole heads.
                options = DEEPSEEK if model_type == "deepseek_v3" else {}
                model = build_model(
                    Architecture(name="show", model_type=model_type, options=options)
                )
                model.set_experts_implementation("eager")
                path = self.save(model, model_type)
                engine = open_engine(str(path))
                n_layers = engine.model.n_layers
                ids = tuple(range(3, 12))
                request = TraceRequest(
                    trace_id="t",
                    prompt_ids=ids,
                    collect_layers=tuple(range(n_layers)),
                    return_logprobs=True,
                    decode_steps=2,
                )
                result = trace_model(engine, request)
                with torch.no_grad():
                    expected = model(torch.tensor([list(ids)]), output_hidden_states=True)
                    sequence = model(torch.tensor([[*ids, *result.generated_ids]]))
                for layer in range(n_layers - 1):
                    np.testing.assert_allclose(
                        result.arrays[f"activation.layer_{layer}"],
                        expected.hidden_states[layer + 1][0].float().numpy(),
                        rtol=0.02, atol=0.02,
                    )  # fmt: skip
                logits = expected.logits[0].float()
                np.testing.assert_allclose(
                    result.arrays["logits"], logits.numpy(), rtol=0.02, atol=0.02
                )
                self.assertEqual(result.generated_ids[0], int(logits[-1].argmax()))
                np.testing.assert_allclose(
                    result.arrays["logits.step_1"][0],
                    sequence.logits[0, -1].float().numpy(),
                    rtol=0.1, atol=0.1,
                )  # fmt: skip
                np.testing.assert_allclose(
                    result.arrays["logprobs"].sum(), logits.log_softmax(-1).sum(), rtol=0.02
                )
                names = [span.name for span in result.trace.spans]
                self.assertEqual(
                    names,
                    ["prepare_batch", "prefill", "forward", "lm_head", "observe"]
                    + ["decode", "observe"] * 2,
                )
                saved = write_trace(self.folder / "traces", result.trace, result.arrays)
                again, arrays = load_trace(saved)
                self.assertEqual(again, result.trace)
                self.assertEqual(set(arrays), set(result.arrays))

    def test_can_be_changed_after_a_layer(self) -> None:
        model = build_model(Architecture(name="change", model_type="qwen3_moe")).float()
        engine = open_engine(str(self.save(model, "a")))
        change = Intervention(name="silence", layer=1, scale=0.0)
        request = TraceRequest(
            trace_id="t", input_text="hello", collect_layers=(0, 1, 2), interventions=(change,)
        )
        arrays = trace_model(engine, request).arrays
        self.assertTrue(arrays["activation.layer_0"].any())
        self.assertFalse(arrays["activation.layer_1"].any())
        plain = TraceRequest(trace_id="t", input_text="hello", collect_layers=(0, 1, 2))
        untouched = trace_model(engine, plain).arrays
        np.testing.assert_array_equal(arrays["activation.layer_0"], untouched["activation.layer_0"])
        self.assertTrue(untouched["activation.layer_1"].any())

    def test_has_the_tokens_of_its_own_tokeniser(self) -> None:
        example = Path(__file__).resolve().parents[2] / "examples" / "tiny_olmoe"
        code, told = run_cli(
            "trace-model", "--model", example, "--prompt", "Once upon a time", "--out", self.folder,
            "--collect-layer", 1, "--decode-steps", 2, "--request", "logprobs,weight_snapshot,text",
        )  # fmt: skip
        self.assertEqual(code, 0, told)
        self.assertIn("[missing] text", told)
        trace, _arrays = load_trace(self.folder / "trace.json")
        self.assertEqual(trace.artifacts[0].metadata["tokenizer"], "model")
        self.assertEqual(trace.metadata["unsupported_requested_artifacts"], ["text"])


if __name__ == "__main__":
    unittest.main()
