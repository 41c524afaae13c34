"""A tiny random model of an architecture, and its folder as the library saves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import HIDDEN_SIZE, Architecture
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.models.auto import modeling_auto

# Names of sizes that mean the same in every config class that has them.
_FIXED: dict[str, Any] = {
    "num_hidden_layers": 4,
    "num_layers": 3,
    "num_decoder_layers": 3,
    "n_layers": 3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "head_dim": 16,
    "d_kv": 16,
    "vocab_size": 98,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "shared_expert_intermediate_size": 76,
    "shared_experts_intermediate_size": 76,
    "moe_shared_expert_intermediate_size": 76,
    "shared_intermediate_size": 76,
    "share_expert_dim": 76,
    "moe_hidden_size": 64,
    "q_lora_rank": 20,
    "kv_lora_rank": 12,
    "o_lora_rank": 12,
    "o_groups": 2,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_nextn_predict_layers": 0,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "router_hidden_size": 10,
}
_HIDDEN = ("hidden_size", "d_model")
_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
_DENSE = ("intermediate_size", "ffn_hidden_size", "d_ff", "prefix_dense_intermediate_size")
_ALWAYS_DENSE = ("intermediate_size_mlp", "prefix_dense_intermediate_size")
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOWERS = ("vision", "audio", "code2wav", "code_predictor", "sam", "encoder_config")
_TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "d_model": 32,
    "intermediate_size": 48,
    "encoder_ffn_dim": 48,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "num_hidden_layers": 1,
    "num_layers": 1,
    "encoder_layers": 1,
    "depth": 1,
    "num_position_embeddings": 16,
    "image_size": 32,
    "vocab_size": 98,
    "pad_token_id": 0,
    "decoder_dim": 32,
}
_TASKS = (
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "MODEL_MAPPING",
)


def build_model(architecture: Architecture) -> nn.Module:
    """Return the model with random weights, in the architecture's dtype.

    Each parameter has its own scale, between 0.04 and 0.12, so that no two of them have the same
    statistics.
    """
    config = _shrink(
        CONFIG_MAPPING[architecture.model_type], architecture.sizes, architecture.options
    )
    if architecture.part:
        config = getattr(config, architecture.part)
    torch.manual_seed(architecture.seed)
    with torch.device("cpu"):
        model = _model_class(config, architecture.class_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.04 + 0.08 * torch.rand(1)))
    return model.to(getattr(torch, architecture.dtype)).eval()


def save_model(model: nn.Module, folder: Path, architecture: Architecture) -> None:
    """Save the model as the library does, in about five shards."""
    nbytes = sum(value.numel() * value.element_size() for value in model.parameters())
    model.save_pretrained(
        folder,
        max_shard_size=max(nbytes // 5, 1),
        save_original_format=architecture.save_original_format,
    )


def _model_class(config: Any, class_name: str) -> Any:
    if class_name:
        return getattr(transformers, class_name)
    for task in _TASKS:
        mapping = getattr(modeling_auto, task, {})
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise LookupError(f"no model class for {type(config).__name__}")


def _shrink(
    config_class: Any,
    sizes: tuple[int, int, int, int],
    options: Mapping[str, Any],
    *,
    is_tower: bool = False,
) -> Any:
    """Return a config of this class with small sizes; dotted options go to nested configs."""
    default = config_class()
    known = set(default.to_dict()) | set(vars(default)) | set(config_class.attribute_map)
    hidden, width, dense, n_experts = sizes
    if is_tower:
        fields = dict(_TOWER)
    else:
        has_width = any(name in known for name in _WIDTH)
        fields = dict(_FIXED)
        fields |= dict.fromkeys(_HIDDEN, hidden)
        fields |= dict.fromkeys(_WIDTH, width)
        fields |= dict.fromkeys(_DENSE, dense if has_width else width)
        fields |= dict.fromkeys(_ALWAYS_DENSE, dense)
        fields |= dict.fromkeys(_EXPERTS, n_experts)
    fields = {name: value for name, value in fields.items() if name in known}
    for alias, name in config_class.attribute_map.items():
        if alias in fields and name in fields:
            del fields[alias]
    for name, declared in (config_class.sub_configs or {}).items():
        nested = getattr(default, name, None)
        nested_class = declared if nested is None or isinstance(nested, dict) else type(nested)
        if nested_class is AutoConfig:
            continue
        nested_options = {
            key.removeprefix(f"{name}."): value
            for key, value in options.items()
            if key.startswith(f"{name}.")
        }
        tower = is_tower or any(word in name for word in _TOWERS)
        fields[name] = _shrink(nested_class, sizes, nested_options, is_tower=tower)
    own = {
        key: hidden if value == HIDDEN_SIZE else value
        for key, value in options.items()
        if "." not in key
    }
    config = config_class(**(fields | own))
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = 0  # some classes read it here although it is nested
    return config
