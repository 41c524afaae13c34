"""What a tensor's name says: its layer and expert, whether it looks like an expert or a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moe_weights.config.schema import ParsingConfig

# Last name segments that hold something other than a weight matrix. Sources: quantised forms as
# written by transformers, compressed-tensors, modelopt, autoawq, gptqmodel, bitsandbytes, mlx-lm.
_SIDE_SEGMENTS = frozenset(
    {
        "bias", "biases", "scale", "scales", "weight_scale", "weight_scale_inv", "weight_scale_2",
        "scale_inv", "input_scale", "output_scale", "k_scale", "v_scale", "qscale_weight",
        "qscale_act", "weight_zero_point", "zero_point", "zero_points", "qweight", "qzeros",
        "g_idx", "weight_g_idx", "weight_shape", "weight_packed", "weight_global_scale",
        "input_global_scale", "absmax", "nested_absmax", "quant_map", "nested_quant_map", "SCB",
        "weight_format", "blocks", "lora_A", "lora_B", "lora_a", "lora_b",
    }
)  # fmt: skip
_SIDE_ENDINGS = ("_bias", "_scales", "_blocks", "_scale_inv", "_scale", "_scale_2", "_zero_point")
_ADAPTER = re.compile(r"(?:^|[._])lora[._]?(?:[ab]|embedding|magnitude)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class NameReader:
    """Reads ids and roles out of tensor names, as `parsing` in the config says.

    Attributes:
        parsing: The patterns and keywords.
    """

    parsing: ParsingConfig

    def layer_id(self, name: str) -> int | None:
        """Return the layer id that `parsing.layer_regex` finds, or None."""
        return _first_integer(self.parsing.layer_pattern, name)

    def expert_id(self, name: str) -> int | None:
        """Return the expert id that `parsing.expert_regex` finds, or None."""
        return _first_integer(self.parsing.expert_pattern, name)

    def is_shared_expert(self, name: str) -> bool:
        """All of `parsing.shared_expert_keywords` occur in the name."""
        keywords = self.parsing.shared_expert_keywords
        lowered = name.lower()
        return bool(keywords) and all(keyword.lower() in lowered for keyword in keywords)

    def looks_like_expert(self, name: str) -> bool:
        """One of `parsing.expert_keywords` occurs in the name, or it is a shared expert."""
        lowered = name.lower()
        return any(
            keyword.lower() in lowered for keyword in self.parsing.expert_keywords
        ) or self.is_shared_expert(name)


def is_side_tensor(name: str) -> bool:
    """The name says scale, bias, zero point, packed code or adapter factor, not a weight matrix."""
    if _ADAPTER.search(name):
        return True
    last = name.rsplit(".", 1)[-1]
    return last in _SIDE_SEGMENTS or last.endswith(_SIDE_ENDINGS)


def _first_integer(pattern: re.Pattern[str], name: str) -> int | None:
    found = pattern.search(name)
    if found is None:
        return None
    return parse_id(found.group(1))


def parse_id(text: str | None) -> int | None:
    """Return a captured text as a non-negative integer id, or None when it is not one."""
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return int(text)
