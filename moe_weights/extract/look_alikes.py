"""Tensors whose names say expert and which are no expert's weight matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from moe_weights.checkpoint.name_ids import without_ids
from moe_weights.config.rules import LookAlike
from moe_weights.extract.names import is_adapter
from moe_weights.extract.tensor_roles import TensorRole, role_by_name

_ATTENTION_EXPERTS = re.compile(r"(?:^|\.)[a-z_]*(?:attn|attention)[a-z_]*\.experts(?:\.|$)")
_BIAS = re.compile(r"(?:\.bias|_bias|\.biases_fp)$")
IDENTITY_EXPERT = "identity_expert"


class LookAlikeFinder:
    """Tells what an expert-looking tensor is instead."""

    def __init__(self, declared: Sequence[LookAlike]) -> None:
        """Keep what the config and the preset declare; general knowledge comes after it."""
        self._declared = tuple(declared)

    def declared_kind(self, name: str) -> str:
        """Return the kind that the config or the preset gives a tensor; "" for none."""
        for lookalike in self._declared:
            if lookalike.pattern.match(name):
                return lookalike.kind
        return ""

    def general_kind(self, name: str) -> str:
        """Return the kind that the name alone gives a tensor; "" for none."""
        return _general_kind(without_ids(name))


@lru_cache(maxsize=4096)  # without ids a checkpoint has a few dozen names
def _general_kind(name: str) -> str:
    if is_adapter(name):
        return "adapter"
    if _ATTENTION_EXPERTS.search(name):
        return "attention_expert"
    role = role_by_name(name)
    if role in {TensorRole.ROUTER, TensorRole.ROUTER_BIAS}:
        return str(role)
    return "expert_bias" if _BIAS.search(name) else ""
