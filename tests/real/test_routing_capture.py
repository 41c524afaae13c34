"""What a bundle says of a live model against what the model computed, token by token."""

from __future__ import annotations

import contextlib
import io
import tempfile
import unittest
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from architectures import HIDDEN_SIZE, Architecture
from building import build_model
from torch.nn import functional

from moe_weights.cli import main
from moe_weights.errors import UsageError
from moe_weights.routing import (
    build_manifest,
    create_working_bundle,
    load_run_bundle,
    resume_working_bundle,
)
from moe_weights.routing.capture import RoutingCapture
from moe_weights.routing.capture_blocks import NotMoeModelError
from moe_weights.routing.capture_command import CaptureOptions, capture_generation
from moe_weights.routing.capture_model import CaptureModel

TINY_OLMOE = Path(__file__).parents[2] / "examples" / "tiny_olmoe"
PROMPT = "the quick brown fox"
N_NEW = 4
MLA = {"head_dim": 8, "num_key_value_heads": 4}
GROUPS = {"n_group": 2, "topk_group": 1}
EVEN = (72, 40, 56, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A small random model, and what is known of its router.

    Attributes:
        options: Config fields over the small default ones.
        kind: Score function; None when weights are none of it.
        normalised: Whether weights are divided by their sum; None when they follow no rule.
        scale: Factor in the weights.
        has_bias: Whether a bias is added for the choice.
        group_score: How groups are scored; "" without groups.
        given_weights: Whether the experts are given weights.
        sizes: See `Architecture.fixed_sizes`.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    class_name: str = ""
    part: str = ""
    kind: str | None = "softmax"
    normalised: bool | None = True
    scale: float | None = 1.0
    has_bias: bool = False
    group_score: str = ""
    given_weights: bool = True
    sizes: tuple[int, int, int, int] | None = None


FAMILIES: dict[str, Family] = {
    "mixtral": Family(),
    "qwen3_moe": Family(options={"norm_topk_prob": True, "mlp_only_layers": [0, 2]}),
    "qwen3_moe plain": Family(options={"norm_topk_prob": False}, normalised=False),
    "deepseek_v3": Family(
        options={**MLA, **GROUPS, "first_k_dense_replace": 2},
        kind="sigmoid", scale=2.5, has_bias=True, group_score="top2_sum", sizes=EVEN,
    ),
    "deepseek_v2": Family(
        options={**MLA, **GROUPS, "topk_method": "group_limited_greedy"},
        normalised=False, group_score="max", sizes=EVEN,
    ),
    "deepseek_v2 greedy": Family(options=MLA, normalised=False),
    "deepseek_v32": Family(options=MLA, kind="sigmoid", scale=2.5, has_bias=True),
    "mistral4": Family(
        options={"head_dim": 16, "num_key_value_heads": 4, **GROUPS},
        group_score="top2_sum", sizes=EVEN,
    ),
    "olmoe": Family(normalised=False),
    "flex_olmo": Family(normalised=False),
    "qwen2_moe": Family(normalised=False),
    "qwen3_next": Family(),
    "qwen3_5_moe": Family(class_name="Qwen3_5MoeForCausalLM", part="text_config"),
    "gpt_oss": Family(),
    "glm4_moe": Family(
        options=GROUPS, kind="sigmoid", has_bias=True, group_score="top2_sum", sizes=EVEN
    ),
    "granitemoe": Family(),
    "granitemoeshared": Family(),
    "granitemoehybrid": Family(options={"layer_types": ["mamba", "attention", "mamba", "mamba"]}),
    "phimoe": Family(kind=None, normalised=None, scale=None),
    "llama4": Family(
        class_name="Llama4ForCausalLM", part="text_config", kind="sigmoid",
        options={"text_config.interleave_moe_layer_step": 2},
        normalised=None, scale=None, given_weights=False,
    ),
    "minimax": Family(),
    "minimax_m2": Family(kind="sigmoid", has_bias=True),
    "hunyuan_v1_moe": Family(),
    "ernie4_5_moe": Family(has_bias=True),
    "dots1": Family(kind="sigmoid", normalised=False, has_bias=True),
    "afmoe": Family(kind="sigmoid", has_bias=True),
    "lfm2_moe": Family(
        kind="sigmoid", has_bias=True,
        options={"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    ),
    "exaone_moe": Family(kind="sigmoid", scale=2.5, has_bias=True),
    "cohere2_moe": Family(),
    "jetmoe": Family(),
    "dbrx": Family(
        options={"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}}
    ),
    "jamba": Family(normalised=False, options={"attn_layer_period": 2, "attn_layer_offset": 1}),
    "gemma4": Family(
        normalised=None, scale=None,
        options={
            "text_config.enable_moe_block": True,
            "text_config.vocab_size_per_layer_input": 98,
            "text_config.hidden_size_per_layer_input": 8,
            "vision_config.position_embedding_size": 64,
        },
    ),
    "muse_spark": Family(
        kind="sigmoid", has_bias=True,
        options={
            "audio_config.num_hidden_layers": 4,
            "audio_config.hidden_sizes": [8, 8, 8, 8],
            "audio_config.depths": [1, 1, 1, 1],
            "audio_config.out_hidden_size": HIDDEN_SIZE,
            "out_hidden_size": HIDDEN_SIZE,
            "projector_hidden_size": 32,
        },
    ),
}  # fmt: skip
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


def make_model(name: str, family: Family, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = build_model(
        Architecture(
            name=f"capture {name}",
            model_type=name.partition(" ")[0],
            class_name=family.class_name,
            part=family.part,
            options=family.options,
            fixed_sizes=family.sizes,
        )
    ).to(dtype)
    with torch.no_grad():
        for path, values in [*model.named_buffers(), *model.named_parameters()]:
            last = path.rpartition(".")[2]
            if "correction_bias" in last or last == "expert_bias":
                values.copy_(0.2 * torch.randn_like(values))
            if path.endswith(("gate.weight", "router.weight", "wg.weight")):
                values.mul_(4.0)  # scores that differ
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.eval()


def weight_of(router: Any, hidden: Any) -> Any:
    """Return logits of hidden states, in float64, from the router's own matrix."""
    matrices = [value for _name, value in router.named_parameters() if value.ndim == 2]
    bias = getattr(router, "bias", None)
    bias = None if bias is None else bias.double()
    return functional.linear(hidden.double(), matrices[0].double(), bias)


class CaptureCase(unittest.TestCase):
    def setUp(self) -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self.addCleanup(torch.set_num_threads, threads)
        transformers.utils.logging.set_verbosity_error()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def capture(self, model: Any, run_id: str = "one", n_new: int = N_NEW) -> dict[str, Any]:
        options = CaptureOptions(
            model="m", prompt=PROMPT, max_new_tokens=n_new, out="", run_id=run_id
        )
        capture_generation(
            CaptureModel(network=model, tokenizer=None, versions={}), self.folder, options
        )
        return load_run_bundle(self.folder / run_id)


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
            self.check_choice(family, layers, observer.experts_calls[path])
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

    def check_choice(self, family: Family, layers: list[Any], calls: list[Any]) -> None:
        if not family.given_weights or not calls:
            return
        indices = torch.cat([call[1].reshape(-1, call[1].shape[-1]) for call in calls])
        weights = torch.cat([call[2].reshape(-1, call[2].shape[-1]) for call in calls])
        for token, layer in enumerate(layers):
            self.assertEqual(layer["topk_indices"], indices[token].tolist())
            self.assertEqual(layer["combine_weights"], weights[token].double().tolist())

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


class TheCommand(CaptureCase):
    def run_cli(self, *arguments: object) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([str(argument) for argument in arguments])
        return code, out.getvalue()

    LINE: ClassVar[tuple[object, ...]] = ("--prompt", PROMPT, "--max-new-tokens", 5)

    def test_captures_the_example_into_a_run(self) -> None:
        line = ("capture", "--model", TINY_OLMOE, *self.LINE, "--out", self.folder)
        code, told = self.run_cli(*line)
        self.assertEqual(code, 0, told)
        run_dir = self.folder / "routing" / "capture"
        self.assertIn("8 prompt tokens, 5 generated tokens", told)
        bundle = load_run_bundle(run_dir)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(TINY_OLMOE))
        model = transformers.AutoModelForCausalLM.from_pretrained(str(TINY_OLMOE), dtype="auto")
        ids = tokenizer(PROMPT, return_tensors="pt")
        expected = model.generate(**ids, max_new_tokens=5, do_sample=False)[0].tolist()
        self.assertEqual([event["token_id"] for event in bundle["raw_events"]], expected)
        self.assertEqual(
            "".join(event["token_text"] for event in bundle["raw_events"]),
            tokenizer.decode(expected),
        )
        code, told = self.run_cli(*line)
        self.assertEqual(code, 6, told)

    def test_the_same_seed_draws_the_same_tokens(self) -> None:
        drawn = []
        for run_id in ("a", "b"):
            code, told = self.run_cli(
                "capture", "--model", TINY_OLMOE, *self.LINE, "--out", self.folder,
                "--run-id", run_id, "--temperature", 2.0, "--seed", 3,
            )  # fmt: skip
            self.assertEqual(code, 0, told)
            events = load_run_bundle(self.folder / "routing" / run_id)["raw_events"]
            drawn.append([event["token_id"] for event in events])
        self.assertEqual(drawn[0], drawn[1])

    def test_a_folder_that_is_no_model_and_a_dense_one(self) -> None:
        code, told = self.run_cli(
            "capture", "--model", self.folder, *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 5, told)
        config = transformers.LlamaConfig(
            vocab_size=98, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(self.folder / "dense")
        code, told = self.run_cli(
            "capture", "--model", self.folder / "dense", *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 2, told)
        self.assertEqual(list((self.folder / "run").rglob("*.json")), [])

    def test_a_saved_model_without_a_tokenizer(self) -> None:
        make_model("deepseek_v3", FAMILIES["deepseek_v3"]).save_pretrained(self.folder / "m")
        code, told = self.run_cli(
            "capture", "--model", self.folder / "m", *self.LINE, "--out", self.folder / "run"
        )
        self.assertEqual(code, 0, told)
        events = load_run_bundle(self.folder / "run" / "routing" / "capture")["raw_events"]
        self.assertEqual(events[0]["layers"][0]["group_limit"]["num_groups"], 2)
        self.assertEqual(events[0]["layers"][0]["not_captured"], [])

    def test_a_dump_that_torch_saved(self) -> None:
        chosen = torch.full((2, 3, 10), -1, dtype=torch.int32)
        chosen[:, :, :2] = torch.tensor([1, 3])
        record = {
            "forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "input_ids": [5, 6, 7],
            "positions": [0, 1, 2], "extend_seq_lens": [3], "forward_mode": 1,
            "topk_ids_of_layer": chosen, "misc_objects": [],
            "global_physical_count": torch.zeros(2, 4, dtype=torch.int32),
        }  # fmt: skip
        mapping = torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])
        path = self.folder / "dump.pt"
        torch.save({"records": [record], "last_physical_to_logical_map": mapping}, path)
        line = ("import-routing", "--format", "sglang", "--input", path, "--out", self.folder,
                "--model-id", "m", "--experts", 4, "--layers", "1,2")  # fmt: skip
        code, told = self.run_cli(*line)
        self.assertEqual(code, 0, told)
        layers = load_run_bundle(self.folder / "routing" / "sglang-import")["raw_events"][0][
            "layers"
        ]
        self.assertEqual([layer["topk_indices"] for layer in layers], [[1, 3], [2, 0]])
        torch.save({"records": [Family()]}, path)
        code, told = self.run_cli(*line, "--run-id", "unsafe")
        self.assertEqual(code, 5)
        self.assertIn("no torch file of plain tensors", told)


if __name__ == "__main__":
    unittest.main()
