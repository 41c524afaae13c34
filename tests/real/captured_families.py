"""Small random models of many families, what is known of their routers, and a capture of one."""

from __future__ import annotations

import tempfile
import unittest
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import HIDDEN_SIZE, Architecture
from building import build_model

from moe_weights.routing import load_run_bundle
from moe_weights.routing.capture_command import CaptureOptions, capture_generation
from moe_weights.routing.capture_model import CaptureModel

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
        bundle = load_run_bundle(self.folder / run_id)
        self.assertGreaterEqual(len(bundle["raw_events"]), len(PROMPT))  # it may end early
        return bundle
