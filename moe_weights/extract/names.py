"""What a tensor's name says: its layer and expert, whether it looks like an expert or a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from moe_weights.config.schema import ParsingConfig
from moe_weights.extract.expert_bank import ExpertIdentity
from moe_weights.extract.tensor_roles import stack_by_name

# Last name segments that hold something other than a weight matrix. Sources: quantised forms as
# written by transformers, compressed-tensors, modelopt, autoawq, gptqmodel, bitsandbytes, hqq and
# mlx-lm.
_SIDE_SEGMENTS = frozenset(
    {
        "bias", "biases", "scale", "scales", "weight_scale", "weight_scale_inv", "weight_scale_2",
        "scale_inv", "input_scale", "output_scale", "k_scale", "v_scale", "qscale_weight",
        "qscale_act", "weight_zero_point", "zero_point", "zero_points", "qweight", "qzeros",
        "g_idx", "weight_g_idx", "weight_shape", "weight_packed", "weight_global_scale",
        "input_global_scale", "absmax", "nested_absmax", "quant_map", "nested_quant_map", "SCB",
        "weight_format", "blocks", "zero", "zeros", "lora_A", "lora_B", "lora_a", "lora_b",
    }
)  # fmt: skip
_MAX_ID_DIGITS = 9
MAX_ID = 10**_MAX_ID_DIGITS - 1
_SIDE_ENDINGS = ("_bias", "_scales", "_blocks", "_scale_inv", "_scale", "_scale_2", "_zero_point")
# Adapter factors: LoRA and DoRA (PEFT and kohya spellings), LoHa, LoKr, IA3, OFT, VeRA.
_ADAPTER = re.compile(
    r"(?:^|[._])(?:lora[._]?(?:[ab]|down|up|mid|embedding|magnitude)|hada_|lokr_|ia3_|b?oft_|vera_)",
    re.IGNORECASE,
)


class FoundId(NamedTuple):
    """An id and where in the name it stands, (start, stop)."""

    value: int
    at: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NameReader:
    """Reads ids and roles out of tensor names, as `parsing` in the config says.

    Attributes:
        parsing: The patterns and keywords.
        n_main_layers: Layers of the main stack; ids from there on are extra prediction layers.
            None when unknown.
    """

    parsing: ParsingConfig
    n_main_layers: int | None = None
    _expert_keywords: tuple[str, ...] = field(init=False, repr=False)
    _shared_keywords: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Lower the keywords once; a checkpoint may have 100 000 names."""
        expert = tuple(keyword.lower() for keyword in self.parsing.expert_keywords)
        shared = tuple(keyword.lower() for keyword in self.parsing.shared_expert_keywords)
        object.__setattr__(self, "_expert_keywords", expert)
        object.__setattr__(self, "_shared_keywords", shared)

    def layer_id(self, name: str) -> int | None:
        """Return the layer id that `parsing.layer_regex` finds, or None."""
        found = found_id(self.parsing.layer_pattern.search(name), 1)
        return None if found is None else found.value

    def expert_id(self, name: str) -> int | None:
        """Return the expert id that `parsing.expert_regex` finds, or None."""
        found = found_id(self.parsing.expert_pattern.search(name), 1)
        return None if found is None else found.value

    def identity(
        self,
        name: str,
        *,
        layer: FoundId | None = None,
        expert: FoundId | None = None,
        is_shared_expert: bool | None = None,
        stack: str | None = None,
    ) -> ExpertIdentity:
        """Read the identity out of a tensor name, as far as a rule does not give it.

        Args:
            name: Tensor name.
            layer: Layer id that a rule has found already.
            expert: Expert id that a rule has found already.
            is_shared_expert: What a rule says about it.
            stack: Stack that a rule has found already.
        """
        layer = layer or found_id(self.parsing.layer_pattern.search(name), 1)
        expert = expert or found_id(self.parsing.expert_pattern.search(name), 1)
        layer_id = None if layer is None else layer.value
        return ExpertIdentity(
            layer=layer_id,
            expert_id=None if expert is None else expert.value,
            is_shared_expert=(
                self.is_shared_expert(name) if is_shared_expert is None else is_shared_expert
            ),
            stack=stack_by_name(name, layer_id, self.n_main_layers) if stack is None else stack,
            layer_at=None if layer is None else layer.at,
            expert_at=None if expert is None else expert.at,
        )

    def is_shared_expert(self, name: str) -> bool:
        """All of `parsing.shared_expert_keywords` occur in the name; an empty list means none."""
        return self._has_shared_keywords(name.lower())

    def looks_like_expert(self, name: str) -> bool:
        """One of `parsing.expert_keywords` occurs in the name, or it is a shared expert."""
        lowered = name.lower()
        for keyword in self._expert_keywords:
            if keyword in lowered:
                return True
        return self._has_shared_keywords(lowered)

    def _has_shared_keywords(self, lowered: str) -> bool:
        for keyword in self._shared_keywords:
            if keyword not in lowered:
                return False
        return bool(self._shared_keywords)


def is_adapter(name: str) -> bool:
    """The name says factor of an adapter (LoRA and its kin)."""
    return _ADAPTER.search(name) is not None


def is_side_tensor(name: str) -> bool:
    """The name says scale, bias, zero point, packed code or adapter factor, not a weight matrix."""
    if _ADAPTER.search(name):
        return True
    last = name.rsplit(".", 1)[-1]
    return last in _SIDE_SEGMENTS or last.endswith(_SIDE_ENDINGS)


def owner_names(name: str) -> tuple[str, ...]:
    """Return what the weights may be called that a side tensor belongs to; empty for others."""
    stem, _dot, last = name.rpartition(".")
    weight, found, _rest = name.partition(".weight.")
    owners = [f"{weight}.weight"] if found else []
    if last in _SIDE_SEGMENTS:
        owners += [f"{stem}.weight", stem]
    owners += [name.removesuffix(ending) for ending in _SIDE_ENDINGS if name.endswith(ending)]
    return tuple(owners)


def found_id(captured: re.Match[str] | None, group: int | None) -> FoundId | None:
    """Return the id that a group captured; None where there is none, see `parse_id`."""
    if captured is None or group is None:
        return None
    value = parse_id(captured.group(group))
    return None if value is None else FoundId(value, captured.span(group))


def parse_id(text: str | None) -> int | None:
    """Return a captured text as a non-negative integer id, or None when it is not one.

    More digits than any model has layers or experts are no id; tables hold 64-bit integers.
    """
    if text is None or len(text) > _MAX_ID_DIGITS or not text.isascii() or not text.isdigit():
        return None
    return int(text)
