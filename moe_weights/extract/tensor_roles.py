"""What a tensor is for, judged by its name: the column `role` of the inventory, and look-alikes.

Planned tensors have their role from the plan; this file is about all the others. What a name says
about roles, stacks and look-alikes does not depend on its ids.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

from moe_weights.checkpoint.name_ids import without_ids


class TensorRole(StrEnum):
    """The closed list of roles."""

    ROUTED_EXPERT = "routed_expert"
    SHARED_EXPERT = "shared_expert"
    ROUTER = "router"
    ROUTER_BIAS = "router_bias"
    DENSE_MLP = "dense_mlp"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    NORM = "norm"
    OTHER = "other"


_ROUTER_BIAS = re.compile(
    r"(?:^|\.)(?:e_score_correction_bias|expert_bias(?:es)?|router_bias(?:es)?|exp_probs_b"
    r"|balancing_biases)$"
    r"|(?:^|\.)(?:gate|router)\.(?:wg\.|gate\.|classifier\.|layer\.|proj\.)?bias$"
)
_ROUTER = re.compile(
    r"(?:^|\.)(?:router|routers|shared_expert_gate|shared_experts_gate|moe_gate|tid2eid)(?:\.|$)"
    r"|(?:^|\.)gate(?:\.(?:wg|gate|classifier))?\.(?:weight|weight_1|scales|biases|qweight"
    r"|weight_scale|weight_packed|global_scale|per_expert_scale|tid2eid)"
    r"(?:\.|$)"
    r"|(?:^|\.)(?:mlp|ffn|moe|block_sparse_moe|feed_forward|mixer)\.(?:gate|router)(?:\.|$)"
    r"|ffn_gate_inp"
)
_NORM = re.compile(
    r"(?:^|[._])(?:[a-z_]*norm\d*|ln_?[0-9f]*|ln|[a-z_]*layernorm)(?:\.|$|_)", re.IGNORECASE
)
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:[a-z_]*embed(?:ding|dings|_tokens)?[a-z_]*|wte|wpe|lm_head|output_embed|head|shared)"
    r"(?:\.|$)|token_embd"
)
_ATTENTION = re.compile(
    r"(?:^|[._])(?:[a-z_]*attn[a-z_0-9]*|[a-z_]*attention|selfattention|encdecattention"
    r"|[qkvo]_proj|qkv|wqkv|wq|wk|wv|wo_a|wo_b|kv_a_proj_with_mqa|kv_b_proj|q_a_proj|q_b_proj)(?:\.|$|_)",
    re.IGNORECASE,
)
_DENSE = re.compile(
    r"(?:^|\.)(?:mlp|mlps\.\d+|ffn|feed_forward|densereludense|residual_mlp|shared_mlp|mixer)"
    r"(?:\..*)?(?:\.|^)"
    r"(?:gate_proj|up_proj|down_proj|gate_up_proj|w1|w2|w3|wi|wi_0|wi_1|wo|fc1|fc2|fc3"
    r"|linear_fc1|linear_fc2|lin1|lin2"
    r"|c_fc|c_proj|dense_h_to_4h|dense_4h_to_h|input_linear|output_linear|linear_gate)(?:\.|$)",
    re.IGNORECASE,
)


# A checkpoint has 100 000 names and, ids apart, a few dozen.
_CACHED_NAMES = 4096


def role_by_name(name: str) -> TensorRole:
    """Return the role of a tensor that is not measured as an expert."""
    return _role_of(without_ids(name))


@lru_cache(maxsize=_CACHED_NAMES)
def _role_of(name: str) -> TensorRole:
    if _ROUTER_BIAS.search(name):
        return TensorRole.ROUTER_BIAS
    if _ROUTER.search(name):
        return TensorRole.ROUTER
    norm = _NORM.search(name)
    # DBRX has its attention inside of a module `norm_attn_norm`.
    if norm and not _ATTENTION.search(name, norm.end() - 1):
        return TensorRole.NORM
    if _ATTENTION.search(name):
        return TensorRole.ATTENTION
    if _DENSE.search(name):
        return TensorRole.DENSE_MLP
    if _EMBEDDING.search(name):
        return TensorRole.EMBEDDING
    return TensorRole.OTHER


_STACKS = (
    ("mtp", re.compile(r"(?:^|\.)mtp(?:\.|_|$)|(?:^|\.)mtp[a-z_]*\.")),
    ("thinker", re.compile(r"(?:^|\.)thinker\.")),
    ("talker", re.compile(r"(?:^|\.)talker\.")),
    ("vision", re.compile(r"(?:^|\.)(?:vision|visual|vision_tower|vision_model|vit)\.")),
    ("encoder", re.compile(r"(?:^|\.)encoder\.")),
    ("decoder", re.compile(r"(?:^|\.)decoder\.")),
)
MAIN_STACK = "text"
MTP_STACK = "mtp"


def stack_by_name(name: str, layer: int | None, n_main_layers: int | None) -> str:
    """Return the stack of layers that a tensor belongs to.

    Args:
        name: Tensor name.
        layer: Layer id in the name, or None.
        n_main_layers: `num_hidden_layers` of config.json: ids from there on are the extra
            prediction layers that some families append; None when unknown.
    """
    named = _stack_in(without_ids(name))
    if named:
        return named
    if layer is not None and n_main_layers is not None and layer >= n_main_layers:
        return MTP_STACK
    return MAIN_STACK


@lru_cache(maxsize=_CACHED_NAMES)
def _stack_in(name: str) -> str:
    for stack, pattern in _STACKS:
        if pattern.search(name):
            return stack
    return ""
