"""How config.json says that MLX packed a module: mode, bits and group size.

The block `quantization` holds the settings of most modules, and beside them overrides under module
paths: other settings, or `false` where the module was left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

AFFINE = "affine"
AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)

# The only bits and group size of each floating-point mode.
FLOAT_MODES: Final[Mapping[str, tuple[int, int]]] = {
    "mxfp4": (4, 32),
    "mxfp8": (8, 32),
    "nvfp4": (4, 16),
}
_AFFINE_DEFAULT = (4, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxSettings:
    """How one module is packed.

    Attributes:
        mode: "affine" or a key of `FLOAT_MODES`.
        bits: Bits per code.
        group_size: Columns that share a scale.
        global_scale: An override announces one further scale per matrix.
    """

    mode: str
    bits: int
    group_size: int
    global_scale: bool = False

    def __str__(self) -> str:
        return f"mode {self.mode}, {self.bits} bits, groups of {self.group_size}"


def settings_of(module: str, quantization: Mapping[str, object]) -> MlxSettings | str | None:
    """Return the settings of one module.

    Args:
        module: Tensor name without `.weight`.
        quantization: The block of config.json; one with `quant_method` is not MLX's.

    Returns:
        The settings; what is wrong with them; or None when the block does not speak of MLX.
    """
    if not quantization or "quant_method" in quantization:
        return None
    overrides = _overrides(module, quantization)
    values = list(overrides.values())
    if any(value != values[0] for value in values):
        return f"config.json has different settings under {', '.join(sorted(overrides))}"
    if values and not values[0]:
        return f"config.json says under {next(iter(overrides))} that it is not quantised"
    if values and isinstance(values[0], Mapping):
        return _parse(values[0], f"config.json under {next(iter(overrides))}")
    if "bits" not in quantization or "group_size" not in quantization:
        return None
    return _parse(quantization, "config.json under quantization")


def _overrides(module: str, quantization: Mapping[str, object]) -> dict[str, object]:
    """Return the overrides of a module: its exact path, else paths with or without a prefix."""
    if _is_override(quantization.get(module)):
        return {module: quantization[module]}
    shorter = {
        path: quantization[path]
        for path in _without_prefix(module)
        if _is_override(quantization.get(path))
    }
    suffix = f".{module}"
    longer = {
        path: value
        for path, value in quantization.items()
        if path.endswith(suffix) and _is_override(value)
    }
    return shorter | longer


def _without_prefix(module: str) -> Iterator[str]:
    # A single segment ("gate_proj") is no path: it would hold for every module of that name.
    while module.count(".") > 1:
        module = module.partition(".")[2]
        yield module


def _is_override(value: object) -> bool:
    return isinstance(value, Mapping | bool)


def _parse(values: Mapping[str, object], place: str) -> MlxSettings | str:
    mode = values.get("mode") or AFFINE
    if not isinstance(mode, str) or (mode != AFFINE and mode not in FLOAT_MODES):
        return f"{place} names mode {mode!r}; known are {AFFINE}, {', '.join(FLOAT_MODES)}"
    default = _AFFINE_DEFAULT if mode == AFFINE else FLOAT_MODES[mode]
    bits = values.get("bits") or default[0]
    group_size = values.get("group_size") or default[1]
    if type(bits) is not int or type(group_size) is not int:
        return f"{place} has bits {bits!r} and group_size {group_size!r}; both must be integers"
    if mode == AFFINE and (bits not in AFFINE_BITS or group_size < 1):
        return (
            f"{place} has {bits} bits in groups of {group_size}; affine codes have "
            f"{', '.join(map(str, AFFINE_BITS))} bits and groups of at least 1"
        )
    if mode != AFFINE and (bits, group_size) != default:
        return (
            f"{place} has {bits} bits in groups of {group_size}; {mode} has {default[0]} bits in "
            f"groups of {default[1]}"
        )
    return MlxSettings(
        mode=mode,
        bits=bits,
        group_size=group_size,
        global_scale=values.get("global_scale") is True,
    )
