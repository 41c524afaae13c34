"""Which architectures are built, and how they differ from the small default sizes.

Widths are such that no two sizes of a model agree and none is twice another: a transposed or
wrongly halved matrix then has a shape that nothing expects.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# (hidden_size, expert width, dense width, experts): one row per architecture, by its name's hash.
SIZES = ((72, 40, 56, 5), (88, 24, 104, 7), (56, 44, 72, 6), (104, 36, 60, 7), (96, 28, 68, 5))
DTYPES = ("bfloat16", "float16", "float32")
# As the value of an option: the hidden size that the architecture has.
HIDDEN_SIZE = "hidden size"
SPARSE_LAST_THREE = ("dense", "sparse", "sparse", "sparse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is built.

    Attributes:
        name: Of the test.
        model_type: Of transformers.
        class_name: Model class; empty takes the first that the library knows for the config.
        part: Nested config that the model is made from; empty for the whole.
        options: Config fields, dotted into nested configs, over the small default ones.
        save_original_format: False writes the names of the running model.
        fixed_sizes: `sizes` other than those that the name picks.
    """

    name: str
    model_type: str
    class_name: str = ""
    part: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    save_original_format: bool = True
    fixed_sizes: tuple[int, int, int, int] | None = None

    @property
    def seed(self) -> int:
        """A number that stays the same for the name."""
        return zlib.crc32(self.name.encode())

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(hidden_size, expert width, dense width, experts)."""
        return self.fixed_sizes or SIZES[self.seed % len(SIZES)]

    @property
    def dtype(self) -> str:
        """What is saved."""
        return DTYPES[self.seed // 7 % len(DTYPES)]


def _architecture(model_type: str, name: str = "", **fields: Any) -> Architecture:
    return Architecture(name=name or model_type, model_type=model_type, **fields)


_DOTS3 = {
    "text_config.num_key_value_heads": 4,
    "text_config.swa_num_attention_heads": 4,
    "text_config.swa_num_key_value_heads": 4,
    "text_config.swa_q_lora_rank": 20,
    "text_config.swa_kv_lora_rank": 12,
    "text_config.swa_head_dim": 16,
    "text_config.swa_qk_nope_head_dim": 8,
    "text_config.swa_v_head_dim": 12,
    "vision_config.num_hidden_layers": 2,
    "vision_config.mlp_layer_types": ["dense", "sparse"],
    "vision_config.num_local_experts": 3,
    "vision_config.num_experts_per_tok": 2,
    "vision_config.moe_intermediate_size": 20,
    "vision_config.adapter_in_dim": 32,
    "vision_config.adapter_out_dim": HIDDEN_SIZE,
    "audio_config.adapter_input_size": 32,
    "audio_config.adapter_out_dim": HIDDEN_SIZE,
}
_MUSE_SPARK = {
    "audio_config.num_hidden_layers": 4,
    "audio_config.hidden_sizes": [8, 8, 8, 8],
    "audio_config.depths": [1, 1, 1, 1],
    "audio_config.out_hidden_size": HIDDEN_SIZE,
    "out_hidden_size": HIDDEN_SIZE,
    "projector_hidden_size": 32,
}
_QWEN4_INDEXER = {
    "text_config.indexer_n_heads": 2,
    "text_config.indexer_kv_heads": 1,
    "text_config.indexer_head_dim": 16,
    "text_config.indexer_budget": 8,
    "text_config.indexer_compress_ratio": 2,
}
_OMNI = {
    "enable_audio_output": True,
    "talker_config.text_config.shared_expert_intermediate_size": 76,
    "talker_config.text_config.num_experts": 9,
    "talker_config.text_config.moe_intermediate_size": 52,
    "talker_config.text_config.hidden_size": 80,
    "talker_config.spatial_merge_size": 2,
    "thinker_config.audio_config.encoder_layers": 1,
}

_WRITTEN: tuple[Architecture, ...] = (
    _architecture("afmoe"),
    _architecture("aria"),
    *(_architecture(name) for name in ("axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe")),
    _architecture("dbrx", options={"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}}),
    _architecture(
        "deepseek_ocr2", options={"text_config.mlp_layer_types": list(SPARSE_LAST_THREE)}
    ),
    _architecture("deepseek_v2"),
    _architecture("deepseek_v3"),
    _architecture("deepseek_v32"),
    _architecture("deepseek_v4"),
    _architecture("diffusion_gemma"),
    _architecture("dots1"),
    _architecture("dots3_note", class_name="Dots3NoteForConditionalGeneration", options=_DOTS3),
    _architecture("ernie4_5_moe"),
    _architecture(
        "ernie4_5_vl_moe",
        options={
            "text_config.moe_intermediate_size": [44, 20],
            "text_config.rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 4, 3],
            },
        },
    ),
    _architecture("exaone_moe"),
    _architecture("flex_olmo"),
    _architecture("flint"),
    _architecture(
        "gemma4",
        options={
            "text_config.enable_moe_block": True,
            "text_config.vocab_size_per_layer_input": 98,
            "text_config.hidden_size_per_layer_input": 8,
            "vision_config.position_embedding_size": 64,
        },
    ),
    _architecture("glm4_moe"),
    _architecture("glm4_moe_lite"),
    _architecture("glm4v_moe"),
    _architecture(
        "glm5_next",
        options={
            "text_config.num_key_value_heads": 4,
            "text_config.index_topk": 16,
            "text_config.qk_rope_head_dim": 0,
        },
    ),
    _architecture("glm_moe_dsa"),
    _architecture("gpt_oss"),
    _architecture("granitemoe"),
    _architecture("granitemoe_swa"),
    _architecture(
        "granitemoehybrid", options={"layer_types": ["mamba", "attention", "mamba", "mamba"]}
    ),
    _architecture("granitemoeshared"),
    _architecture("hunyuan_v1_moe"),
    _architecture("hy_v3"),
    _architecture("hy_v4"),
    _architecture("inkling_mm_model", "inkling"),
    _architecture(
        "inkling2",
        options={
            "vision_config.text_hidden_size": HIDDEN_SIZE,
            # The caps would bend what the experts compute; without them they are SwiGLU.
            "text_config.mlp_gate_softcap": 1e6,
            "text_config.mlp_up_softcap": 1e6,
        },
    ),
    _architecture("jamba"),
    _architecture("jetmoe"),
    *(_architecture(name) for name in ("kimi_k25", "kimi_linear", "kolibri1", "laguna")),
    _architecture(
        "lfm2_moe", options={"layer_types": ["conv", "full_attention", "conv", "full_attention"]}
    ),
    _architecture(
        "llama4",
        class_name="Llama4ForConditionalGeneration",
        options={"text_config.interleave_moe_layer_step": 2},
    ),
    _architecture(
        "llama4",
        "llama4_text",
        class_name="Llama4ForCausalLM",
        part="text_config",
        options={"text_config.interleave_moe_layer_step": 1},
    ),
    _architecture("longcat_flash", options={"zero_expert_num": 3}),
    _architecture("mellum"),
    _architecture("mimo_v2_flash"),
    _architecture("minimax"),
    _architecture("minimax_m2"),
    _architecture("minimax_m3_vl"),
    _architecture("mistral4"),
    _architecture("mistral_large4"),
    _architecture("mixtral"),
    _architecture("muse_spark", options=_MUSE_SPARK),
    _architecture(
        "nemotron_h",
        options={"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp"]},
    ),
    _architecture(
        "nemotron_h",
        "nemotron_h_latent",
        options={
            "layers_block_type": ["moe", "linear_attention", "full_attention", "moe", "mlp"],
            "moe_latent_size": 20,
        },
    ),
    _architecture(
        "nllb-moe",
        options={
            "encoder_layers": 4,
            "decoder_layers": 6,
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 3,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 44,
            "decoder_ffn_dim": 52,
        },
    ),
    _architecture("olmoe"),
    _architecture("openai_privacy_filter"),
    _architecture("phimoe"),
    _architecture("qwen2_moe"),
    _architecture("qwen2_moe", "qwen2_moe__every_second", options={"decoder_sparse_step": 2}),
    _architecture("qwen3_moe"),
    _architecture("qwen3_moe", "qwen3_moe__some_dense", options={"mlp_only_layers": [0, 2]}),
    _architecture("qwen3_next"),
    _architecture("qwen3_omni_moe", options=_OMNI),
    _architecture("qwen3_vl_moe"),
    _architecture("qwen3_5_moe", class_name="Qwen3_5MoeForConditionalGeneration"),
    _architecture(
        "qwen3_5_moe", "qwen3_5_moe_text", class_name="Qwen3_5MoeForCausalLM", part="text_config"
    ),
    _architecture(
        "qwen4_exp", class_name="Qwen4ExpForConditionalGeneration", options=_QWEN4_INDEXER
    ),
    _architecture("solar_open"),
    _architecture("step3p7"),
    _architecture(
        "switch_transformers", options={"encoder_sparse_step": 2, "decoder_sparse_step": 3}
    ),
    _architecture("unlimited_ocr"),
    _architecture("zaya", options={"num_experts_per_tok": 1}),
)

# Saved without the library's conversion; ERNIE-VL's vision experts then have ids of their own.
_RUNTIME = tuple(
    replace(written, name=f"{written.name}__runtime_names", save_original_format=False)
    for written in _WRITTEN
    if written.model_type != "ernie4_5_vl_moe"
)
# Sizes with which a shape tells less: I == H, and 2I == H.
_SQUARE, _HALF = (72, 72, 104, 5), (72, 36, 104, 5)
_EQUAL_SIZES = tuple(
    replace(written, name=f"{written.name}__{name}", fixed_sizes=sizes)
    for written in _WRITTEN
    if written.name
    in {
        "aria",
        "dbrx",
        "deepseek_v3",
        "gemma4",
        "gpt_oss",
        "granitemoe",
        "inkling",
        "jetmoe",
        "llama4",
        "mistral4",
        "mixtral",
        "nllb-moe",
        "openai_privacy_filter",
        "qwen3_5_moe",
        "qwen3_moe",
        "step3p7",
        "switch_transformers",
    }
    for name, sizes in (("square", _SQUARE), ("half", _HALF))
)
ARCHITECTURES = (*_WRITTEN, *_RUNTIME, *_EQUAL_SIZES)

# One name, two axis orders, and sizes that fit both: no reading is certain.
AMBIGUOUS = tuple(
    replace(written, name=f"{written.name}__{name}", fixed_sizes=sizes)
    for written in _WRITTEN
    if written.name == "qwen3_vl_moe"
    for name, sizes in (("square", _SQUARE), ("half", _HALF))
)
