"""Does the expectation read from config.json agree with the modules that transformers builds?"""

from __future__ import annotations

import copy
import json
import re
import unittest
from collections import defaultdict
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from moe_weights.checkpoint.expert_expectation import ExpectedStack, expect_experts

Json = dict[str, Any]
# Layer id -> number of experts, sizes that the axes of their matrices show.
LiveStack = dict[int, tuple[int, frozenset[int]]]

_AUTO_MAPPINGS = (
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING",
    "MODEL_MAPPING",
)
_KINDS = ["dense", "sparse", "dense", "sparse", "sparse", "dense"]
# Model type -> settings of its config; a pair of types is one family with two settings.
# Sizes left out are the family's own: on the meta device they cost nothing.
CASES: list[tuple[str, Json]] = [
    ("afmoe", {"num_hidden_layers": 6, "num_dense_layers": 2}),
    ("aria_text", {"num_hidden_layers": 6, "intermediate_size": 1664}),
    ("aria", {"text_config": {"num_hidden_layers": 6, "intermediate_size": 1664}}),
    ("axk1", {"num_hidden_layers": 6, "first_k_dense_replace": 2, "moe_layer_freq": 2}),
    ("axk2", {"num_hidden_layers": 6, "mlp_layer_types": _KINDS}),
    ("bailing_hybrid", {"num_hidden_layers": 6, "first_k_dense_replace": 3}),
    ("beam", {"num_hidden_layers": 6}),
    ("cohere2_moe", {"num_hidden_layers": 6, "first_k_dense_replace": 2}),
    ("dbrx", {"n_layers": 3, "attn_config": {"rope_theta": 10000.0}}),
    ("deepseek_ocr2", {"text_config": {"num_hidden_layers": 6, "mlp_layer_types": _KINDS}}),
    ("deepseek_v2", {"num_hidden_layers": 6, "first_k_dense_replace": 0}),
    ("deepseek_v2", {"num_hidden_layers": 6, "first_k_dense_replace": 4}),
    ("deepseek_v3", {"num_hidden_layers": 6, "first_k_dense_replace": 2}),
    ("deepseek_v3", {"num_hidden_layers": 6, "first_k_dense_replace": 6}),
    ("deepseek_v32", {"num_hidden_layers": 6, "first_k_dense_replace": 1}),
    ("deepseek_v4", {"num_hidden_layers": 6}),
    ("diffusion_gemma", {"text_config": {"num_hidden_layers": 6, "num_experts": 8,
                                         "top_k_experts": 2, "moe_intermediate_size": 704}}),
    ("dots1", {"num_hidden_layers": 6, "n_routed_experts": 8, "num_experts_per_tok": 2,
               "n_shared_experts": 1, "first_k_dense_replace": 2}),
    ("dots3_note", {"text_config": {"num_hidden_layers": 6,
                                    "moe_layer_freq": [0, 1, 0, 1, 1, 0]}}),
    ("ernie4_5_moe", {"num_hidden_layers": 6}),
    ("ernie4_5_moe", {"num_hidden_layers": 8, "moe_layer_start_index": 2,
                      "moe_layer_end_index": 6, "moe_layer_interval": 2}),
    ("ernie4_5_vl_moe", {"text_config": {"num_hidden_layers": 6}}),
    ("exaone_moe", {"num_hidden_layers": 6, "first_k_dense_replace": 2}),
    ("flex_olmo", {"num_hidden_layers": 6}),
    ("flint", {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    ("gemma4_text", {"num_hidden_layers": 6, "enable_moe_block": True, "num_experts": 8,
                     "top_k_experts": 2, "moe_intermediate_size": 704}),
    ("gemma4_text", {"num_hidden_layers": 6}),
    ("glm4_moe", {"num_hidden_layers": 6, "first_k_dense_replace": 2}),
    ("glm4_moe_lite", {"num_hidden_layers": 6}),
    ("glm4v_moe", {"text_config": {"num_hidden_layers": 6, "first_k_dense_replace": 2}}),
    ("glm5_next", {"text_config": {"num_hidden_layers": 6}}),
    ("glm_moe_dsa", {"num_hidden_layers": 6, "first_k_dense_replace": 1}),
    ("gpt_oss", {"num_hidden_layers": 6, "intermediate_size": 1024}),
    ("granitemoe", {"num_hidden_layers": 6}),
    ("granitemoe_swa", {"num_hidden_layers": 6}),
    ("granitemoehybrid", {"num_hidden_layers": 6}),
    ("granitemoehybrid", {"num_hidden_layers": 6, "num_local_experts": 0}),
    ("granitemoeshared", {"num_hidden_layers": 6}),
    ("hunyuan_v1_moe", {"num_hidden_layers": 6, "num_experts": 4, "head_dim": 128}),
    ("hy_v3", {"num_hidden_layers": 6}),
    ("hy_v4", {"num_hidden_layers": 6}),
    ("inkling_text", {"num_hidden_layers": 6, "dense_mlp_idx": 2}),
    ("inkling_mm_model", {"text_config": {"num_hidden_layers": 6}}),
    ("inkling2", {"text_config": {"num_hidden_layers": 6}}),
    ("jamba", {"num_hidden_layers": 8, "expert_layer_period": 3, "expert_layer_offset": 2}),
    ("jamba", {"num_hidden_layers": 8, "num_experts": 1}),
    ("jetmoe", {"num_hidden_layers": 6}),
    ("kimi_k25", {"text_config": {"num_hidden_layers": 6, "first_k_dense_replace": 1}}),
    ("kimi_linear", {"num_hidden_layers": 6, "first_k_dense_replace": 2}),
    ("kolibri1", {"num_hidden_layers": 6}),
    ("laguna", {"num_hidden_layers": 6}),
    ("lfm2_moe", {"num_hidden_layers": 6, "num_dense_layers": 3,
                  "layer_types": ["full_attention"] * 6}),
    ("llama4_text", {"num_hidden_layers": 6, "interleave_moe_layer_step": 2}),
    ("llama4_text", {"num_hidden_layers": 6, "moe_layers": [0, 5]}),
    ("llama4", {"text_config": {"num_hidden_layers": 6}}),
    ("longcat_flash", {"num_layers": 3, "n_routed_experts": 8, "zero_expert_num": 4}),
    ("mellum", {"num_hidden_layers": 6, "mlp_layer_types": _KINDS}),
    ("mimo_v2_flash", {"num_hidden_layers": 6}),
    ("minimax", {"num_hidden_layers": 6}),
    ("minimax_m2", {"num_hidden_layers": 6}),
    ("minimax_m3_vl", {"text_config": {"num_hidden_layers": 6,
                                       "moe_layer_freq": [0, 0, 1, 1, 0, 1]}}),
    ("mistral4", {"num_hidden_layers": 6, "first_k_dense_replace": 1}),
    ("mistral_large4", {"text_config": {"num_hidden_layers": 6, "moe_intermediate_size": 1024}}),
    ("mixtral", {"num_hidden_layers": 6}),
    ("muse_spark_text", {"num_hidden_layers": 6, "moe_intermediate_size": 1024}),
    ("nemo_speechlm", {}),
    ("nemotron_h", {"hybrid_override_pattern": "M-E*EM", "moe_latent_size": 1024}),
    ("nemotron_h", {"layers_block_type": ["linear_attention", "mlp", "full_attention"]}),
    ("nllb-moe", {"encoder_layers": 8, "decoder_layers": 6, "encoder_sparse_step": 4,
                  "decoder_sparse_step": 2, "encoder_ffn_dim": 512, "num_experts": 4}),
    ("olmoe", {"num_hidden_layers": 6, "intermediate_size": 1024}),
    ("openai_privacy_filter", {"num_hidden_layers": 4, "intermediate_size": 320}),
    ("phimoe", {"num_hidden_layers": 6}),
    ("qwen2_moe", {"num_hidden_layers": 6, "decoder_sparse_step": 2}),
    ("qwen3_5_moe_text", {"num_hidden_layers": 6}),
    ("qwen3_5_moe", {"text_config": {"num_hidden_layers": 6}}),
    ("qwen3_moe", {"num_hidden_layers": 6, "mlp_only_layers": [0, 4]}),
    ("qwen3_moe", {"num_hidden_layers": 6, "num_experts": 0}),
    ("qwen3_next", {"num_hidden_layers": 6, "mlp_only_layers": [5]}),
    ("qwen3_omni_moe", {
        "thinker_config": {"text_config": {"num_hidden_layers": 4, "num_experts": 6,
                                           "mlp_only_layers": [1]}},
        "talker_config": {"spatial_merge_size": 2,
                          "text_config": {"num_hidden_layers": 3, "num_experts": 4,
                                          "shared_expert_intermediate_size": 64}}}),
    ("qwen3_vl_moe", {"text_config": {"num_hidden_layers": 6, "decoder_sparse_step": 3}}),
    ("qwen4_exp", {"text_config": {"num_hidden_layers": 6,
                                   "layer_types": ["linear_attention"] * 6}}),
    ("solar_open", {"num_hidden_layers": 6}),
    ("step3p7", {"text_config": {"num_hidden_layers": 6, "moe_layers_enum": "2,3,5"}}),
    ("step3p7", {"text_config": {"num_hidden_layers": 6}}),
    ("switch_transformers", {"num_layers": 6, "num_decoder_layers": 9,
                             "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3}),
    ("switch_transformers", {"num_layers": 4, "num_decoder_layers": 4,
                             "num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 0}),
    ("unlimited_ocr", {"text_config": {"num_hidden_layers": 6, "first_k_dense_replace": 2}}),
    ("zaya", {"num_hidden_layers": 6, "moe_intermediate_size": 512}),
]  # fmt: skip
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|block|h)\.(\d+)\.")


def build_model(config: Any) -> nn.Module:
    """Build a model of a config without memory for its weights."""
    for name in _AUTO_MAPPINGS:
        mapping = getattr(modeling_auto, name, {})
        if type(config) in mapping:
            classes = mapping[type(config)]
            model_class = classes[0] if isinstance(classes, (list, tuple)) else classes
            with torch.device("meta"):
                return model_class(config)
    raise AssertionError(f"no model class for {type(config).__name__}")


def find_live_experts(model: nn.Module) -> dict[str, LiveStack]:
    """Collect the expert modules of a model by stack and layer."""
    found: dict[str, dict[int, list[tuple[int, set[int]]]]] = defaultdict(lambda: defaultdict(list))
    for path, module in model.named_modules():
        experts = _read_experts(path, module)
        layer = _LAYER.search(f"{path}.")
        if experts is not None and layer is not None:
            found[_stack_of(path[: layer.start()])][int(layer.group(1))].append(experts)
    return {
        stack: {
            layer: (
                sum(n for n, _sizes in banks),
                frozenset(size for _n, sizes in banks for size in sizes),
            )
            for layer, banks in layers.items()
        }
        for stack, layers in found.items()
    }


def _stack_of(path_before_layer: str) -> str:
    for part, stack in (("thinker", "thinker"), ("talker", "talker"), ("vis", "vision")):
        if part in path_before_layer:
            return stack
    halves = {"encoder", "decoder"}.intersection(path_before_layer.split("."))
    return halves.pop() if len(halves) == 1 else "text"


def _read_experts(path: str, module: nn.Module) -> tuple[int, set[int]] | None:
    """Return the number of experts of a module and the sizes of their axes; None for others."""
    class_name = type(module).__name__
    if "shared" in path or not re.search(r"Experts$|ExpertGLU$|MoE$", class_name):
        return None
    own = dict(module.named_parameters(recurse=False))
    if class_name.endswith("ExpertGLU"):
        rows, hidden = own["w1"].shape
        return rows // module.ffn_hidden_size, {hidden, module.ffn_hidden_size}
    if class_name.startswith("JetMoe"):
        if class_name != "JetMoeMoE":
            return None
        down = module.output_linear.weight
        return down.shape[0], set(down.shape[1:])
    if isinstance(module, nn.ModuleDict):
        matrices = [
            [weight for weight in expert.parameters() if weight.ndim == 2]
            for expert in module.values()
        ]
        sizes = {size for weights in matrices for weight in weights for size in weight.shape}
        return sum(map(bool, matrices)), sizes
    down = own.get("down_proj")
    return None if down is None else (down.shape[0], set(down.shape[1:]))


def _live_of(stack: ExpectedStack) -> LiveStack:
    """Return what a declaration says, in the form of the live truth."""
    assert stack.moe_layers is not None and stack.hidden_size is not None
    sizes = frozenset({stack.hidden_size, *stack.expert_widths})
    counts = {layer: stack.n_experts_in(layer) for layer in stack.moe_layers}
    assert None not in counts.values()
    return {layer: (n, sizes) for layer, n in counts.items() if n is not None}


def _without_lists(part: Any) -> Any:
    """Return a written config as files of before transformers 5 are: without lists of layers."""
    if not isinstance(part, dict):
        return part
    lists = {"mlp_layer_types", "moe_layers", "layers_block_type"}
    return {name: _without_lists(value) for name, value in part.items() if name not in lists}


def _merged(part: Json, settings: Json) -> Json:
    return part | {
        name: _merged(part[name], value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }


class ExpectationAgreesWithTheLiveModel(unittest.TestCase):
    live: ClassVar[list[dict[str, LiveStack]]]
    written: ClassVar[list[Json]]

    @classmethod
    def setUpClass(cls) -> None:
        cls.live, cls.written = [], []
        for model_type, settings in CASES:
            config = AutoConfig.for_model(model_type, **copy.deepcopy(settings))
            live = find_live_experts(build_model(config))
            if model_type == "diffusion_gemma":
                # The encoder's layers are the decoder's, and only these are saved.
                live = {"text": live["decoder"]}
            cls.live.append(live)
            cls.written.append(json.loads(config.to_json_string()))

    def test_every_family_has_the_declared_experts_in_the_declared_layers(self) -> None:
        for (model_type, settings), live, written in zip(
            CASES, self.live, self.written, strict=True
        ):
            with self.subTest(model_type=model_type, settings=settings):
                declared = expect_experts(written)
                self.assertEqual({item.stack: _live_of(item) for item in declared.stacks}, live)

    def test_configs_without_lists_of_layers_never_name_wrong_layers(self) -> None:
        known = set()
        for (model_type, settings), live, written in zip(
            CASES, self.live, self.written, strict=True
        ):
            with self.subTest(model_type=model_type, settings=settings):
                declared = expect_experts(_merged(_without_lists(written), settings))
                self.assertLessEqual(live.keys(), {item.stack for item in declared.stacks})
                for item in declared.stacks:
                    if item.moe_layers is not None:
                        self.assertEqual(_live_of(item), live.get(item.stack))
                        known.add(model_type)
        self.assertGreaterEqual(len(known), 50)

    def test_at_least_sixty_model_types_are_compared(self) -> None:
        self.assertGreaterEqual(len({model_type for model_type, _settings in CASES}), 60)
