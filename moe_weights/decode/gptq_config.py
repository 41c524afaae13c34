"""What config.json says of GPTQ codes: bits, group size, and how zero points and bits lie."""

from __future__ import annotations

from dataclasses import dataclass

from moe_weights.decode.qweight import GPTQ, config_number, config_word
from moe_weights.decode.stored_tensor import EncodingContext

_PLANAR = "gptq_p"
_FORMATS = (GPTQ, "gptq_v2", _PLANAR)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqConfig:
    """Settings of a whole checkpoint.

    Attributes:
        bits: Bits per code; None where modules have their own, so that shapes decide.
        group_size: Inputs that share a scale, -1 for all; None like `bits`.
        minus_one: Zero points are stored minus one.
        planar: 3-bit codes lie in planes.
    """

    bits: int | None
    group_size: int | None
    minus_one: bool
    planar: bool

    def n_groups(self, n_inputs: int) -> int | None:
        """Return the groups of a matrix; None where the config does not say."""
        if self.group_size is None:
            return None
        return 1 if self.group_size < 1 else -(-n_inputs // self.group_size)


def gptq_config(context: EncodingContext) -> GptqConfig | str:
    """Read the settings, or say why they do not settle what the codes mean.

    Args:
        context: Its `quantization` is the block `quantization_config` of config.json.
    """
    method = config_word(context, "quant_method")
    if method not in (None, GPTQ):
        return (
            f"config.json names quant_method {method!r}; how it stores zero points is not known "
            "(known are awq and gptq)"
        )
    named = {
        word
        for key in ("checkpoint_format", "format")
        if (word := config_word(context, key)) is not None
    }
    if method is None and not named:
        return (
            "config.json does not say whether zero points are stored minus one; add its "
            "quantization_config with quant_method and checkpoint_format"
        )
    layout = named.pop() if named else GPTQ
    if named or layout not in _FORMATS or context.quantization.get("is_marlin_format") is True:
        return (
            f"config.json gives them the format {' and '.join(sorted({layout, *named}))!r}; "
            f"known are {', '.join(_FORMATS)}, without is_marlin_format"
        )
    # Modules may deviate by patterns that readers match in their own ways; shapes say as much.
    uniform = not context.quantization.get("dynamic")
    return GptqConfig(
        bits=config_number(context, "bits") if uniform else None,
        group_size=config_number(context, "group_size") if uniform else None,
        minus_one=layout == GPTQ,
        planar=layout == _PLANAR,
    )
