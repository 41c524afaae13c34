"""What a compressed-tensors config says about the integer codes of one module.

A config names groups of modules, each with a scheme; formats may differ per group, so that only
the groups count, not the format on top. The library applies the first of: targets that are the
module's name, regular expressions (`re:`, matched from the start of the name, in the order of
their text), the class `Linear`.

Source:
    vllm-project/compressed-tensors 0.20.0: utils/match.py (match_targets),
    quantization/lifecycle/apply.py (_scheme_from_targets), quantization/quant_args.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_weights.decode.block_scale import block_shape_of, parse_block

_REGEX = "re:"
_LINEAR = "Linear"
_REORDERED = frozenset({"group", "dynamic"})  # `actorder`; "weight" and "static" need no index


@dataclass(frozen=True, slots=True, kw_only=True)
class IntScheme:
    """Scheme of integer weights, as one group of the config declares it.

    Attributes:
        bits: Bits of one code.
        block: (rows, cols) that share a scale; 0 stands for the whole axis.
        is_symmetric: There is no zero point.
        is_reordered: Columns were grouped in another order, which an index tells.
    """

    bits: int
    block: tuple[int, int]
    is_symmetric: bool
    is_reordered: bool = False

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the (rows, cols) that share a scale in weights of this shape."""
        rows, cols = shape[-2:]
        return self.block[0] or rows, min(self.block[1] or cols, cols)

    def describe(self) -> str:
        """Return the scheme in words, for messages."""
        rows, cols = (str(side) if side else "all" for side in self.block)
        return f"{self.bits} bits, one scale per {rows} rows x {cols} columns"


class IntSchemes:
    """The integer schemes of a config, found by module name."""

    def __init__(self, quantization: Mapping[str, object]) -> None:
        """Read `config_groups`; what is no scheme of integer weights is left out."""
        groups = quantization.get("config_groups")
        self._by_target: dict[str, IntScheme | None] = {}
        for group in groups.values() if isinstance(groups, Mapping) else ():
            if not isinstance(group, Mapping):
                continue
            scheme = _parse_scheme(group.get("weights"))
            targets = group.get("targets")
            for target in targets if isinstance(targets, Sequence) else ():
                if isinstance(target, str):
                    self._by_target[target] = scheme
        self._regexes = [
            (pattern, scheme)
            for target, scheme in sorted(self._by_target.items(), key=lambda item: item[0])
            if target.startswith(_REGEX)
            and (pattern := _compile(target.removeprefix(_REGEX))) is not None
        ]
        self.all = tuple(dict.fromkeys(s for s in self._by_target.values() if s is not None))

    def of_module(self, module: str) -> IntScheme | None:
        """Return the scheme that the library would apply; None where that is not an integer one."""
        if module in self._by_target:
            return self._by_target[module]
        for pattern, scheme in self._regexes:
            if pattern.match(module):
                return scheme
        return self._by_target.get(_LINEAR)


def int_schemes(quantization: Mapping[str, object]) -> IntSchemes:
    """Return the schemes of a config; parsed once for all tensors of a checkpoint."""
    last = _LAST.get("config")
    if last is None or last[0] is not quantization:
        last = _LAST["config"] = (quantization, IntSchemes(quantization))
    return last[1]


def scale_block_of(
    shape: tuple[int, ...], scale_shape: tuple[int, ...], scheme: IntScheme | None
) -> tuple[int, int] | None:
    """Return the (rows, cols) that share a scale, or None when the shapes do not fit.

    Args:
        shape: Shape of the weights (..., R, C).
        scale_shape: () or (1,) per tensor, (R,) or (R, 1) per row, (ceil(R / b), ceil(C / b)).
        scheme: What the config says; None: the shapes alone decide, and columns must then divide
            into groups, as the library demands.
    """
    rows, cols = shape[-2:]
    lead = shape[:-2]
    if scheme is not None:
        block = scheme.block_of(shape)
        grid = (-(-rows // block[0]), -(-cols // block[1]))
        accepted = [(*lead, *grid)]
        if grid[1] == 1:
            accepted.append((*lead, grid[0]))
        if grid == (1, 1):
            accepted += [lead, (1,) * len(scale_shape)]
        return block if scale_shape in accepted else None
    if len(scale_shape) == len(shape) and scale_shape[:-1] == (*lead, rows) and scale_shape[-1] > 1:
        n_groups = scale_shape[-1]
        return (1, cols // n_groups) if cols % n_groups == 0 else None
    return block_shape_of(shape, scale_shape, None)


_LAST: dict[str, tuple[Mapping[str, object], IntSchemes]] = {}


def _parse_scheme(weights: object) -> IntScheme | None:
    if not isinstance(weights, Mapping) or weights.get("type", "int") != "int":
        return None
    bits, group_size = weights.get("num_bits", 8), weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        # The library's own reading of a missing strategy.
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    block: tuple[int, int] | None = None
    if strategy == "tensor":
        block = (0, 0)
    elif strategy == "channel":
        block = (1, 0)
    elif strategy in {"group", "tensor_group"} and type(group_size) is int and group_size > 0:
        block = (1, group_size)
    elif strategy == "block":
        block = parse_block(weights.get("block_structure"))
    if block is None or type(bits) is not int or not 1 <= bits <= 8:
        return None
    order = weights.get("actorder")
    return IntScheme(
        bits=bits,
        block=block,
        is_symmetric=weights.get("symmetric", True) is True,
        is_reordered=order is True or (isinstance(order, str) and order.lower() in _REORDERED),
    )


def _compile(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError):  # repeated too often, nested too deeply
        return None
