"""NVFP4: FP4 codes, two a byte, an E4M3 scale for each 16 weights of a row, one scale for all.

The scale for all has two senses, told by its name: modelopt's `weight_scale_2` multiplies,
compressed-tensors' `weight_global_scale` divides. Both libraries first join the two scales in
float32 and then multiply the code; so does this file, to end in the same bits. Of stacked
`gate_up_proj` gate and up may have a multiplier each, (E, 2), as Muse-Spark has them (mlx-lm,
models/muse_spark.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.block_scale import real_scales
from moe_weights.decode.encoding import Parts
from moe_weights.decode.fp4_layout import (
    FP4_CODES,
    decode_fp4,
    fp4_codes_of,
    fp4_row_cuts,
    fp4_shape_of,
)
from moe_weights.decode.row_cuts import RowCuts, scale_cut
from moe_weights.decode.scale_names import (
    SCALE_WORDS,
    describe,
    find_activation_scales,
    find_beside,
    is_gate_and_up,
    is_weight,
    names_beside,
)
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_GROUP_SIZE = 16
# modelopt's one scheme with wider groups; allowed only where the config names it, so that scales
# of which half are lost do not pass for it.
_WIDE_SCHEME, _WIDE_GROUP_SIZE = "W4A8_NVFP4_FP8", 32
_PACKED = "_packed"
_SCALE_WORDS = ("weight_scale", "scale")
_MULTIPLIERS = ("weight_scale_2", "scale_2")
_DIVISORS = ("weight_global_scale", "global_scale")
_GLOBAL_CODES = frozenset({"F32", "F16", "BF16", "F64"})


class Nvfp4:
    """FP4 codes times E4M3 scales times or by one scale."""

    name = "nvfp4"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise FP4 weights with two scales; see `Encoding.claim`."""
        if header.dtype_code not in FP4_CODES or header.ndim < 2:
            return None
        name = header.name.removesuffix(_PACKED)
        scales = find_beside(name, _SCALE_WORDS, context)
        multipliers = find_beside(name, _MULTIPLIERS, context)
        divisors = find_beside(name, _DIVISORS, context)
        has_e4m3 = any(scale.dtype_code == "F8_E4M3" for scale in scales)
        if not (multipliers or divisors or has_e4m3) and not _is_bare(header, name, context):
            return None
        totals = (*multipliers, *divisors)
        found = (*scales, *totals)
        if not scales or not totals:
            missing = [] if scales else names_beside(name, _SCALE_WORDS)
            if not totals:
                missing += names_beside(name, (*_MULTIPLIERS, *_DIVISORS))
            return _refuse(
                name,
                header,
                RefusalKind.MISSING_COMPANION,
                f"FP4 weights {_describe_all(header, *found)} lack a scale; "
                f"looked for {', '.join(missing)}",
                *found,
            )
        if len(scales) > 1 or len(totals) > 1:
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"FP4 weights {_describe_all(header, *found)} have more than two scales; which "
                "ones count is not known",
                *found,
            )
        scale, total = scales[0], totals[0]
        zero_points = find_beside(name, ("weight_zero_point",), context)
        if zero_points:
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"FP4 weights {describe(header)} have a zero point {describe(zero_points[0])}; "
                "FP4 with zero points is not understood",
                *found,
                *zero_points,
            )
        group_size, layout = _layout_of(header, scale, context.quantization)
        if layout is None or scale.dtype_code != "F8_E4M3":
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"scale {describe(scale)} does not fit FP4 weights {describe(header)}; NVFP4 has "
                f"F8_E4M3 scales in groups of {group_size}",
                *found,
            )
        shape, axis = layout
        has_halves = bool(multipliers) and _is_per_half(total.shape, name, shape, axis)
        if total.dtype_code not in _GLOBAL_CODES or not (
            has_halves or _is_total(total.shape, header.shape[:-2])
        ):
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"scale {describe(total)} does not fit FP4 weights {describe(header)}; one float "
                "is needed, or one for each stacked matrix",
                *found,
            )
        return StoredTensor(
            name=name,
            encoding=self.name,
            header=header,
            shape=shape,
            companions=(
                ("scale", scale),
                ("divisor" if divisors else "multiplier", total),
                *find_activation_scales(name, shape, context),
            ),
            options=(
                ("axis", axis),
                ("group_size", group_size),
                ("half", shape[_outputs_axis(axis)] // 2 if has_halves else 0),
            ),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return code * (scale * multiplier or scale / divisor); see `Encoding.decode`."""
        axis, group_size = tensor.option("axis"), tensor.option("group_size")
        assert isinstance(axis, int)
        assert isinstance(group_size, int)
        scales = real_scales(parts["scale"])
        divides = "divisor" in parts
        total = real_scales(parts["divisor" if divides else "multiplier"])
        half = tensor.option("half")
        assert isinstance(half, int)
        if half:
            n_outputs = scales.shape[_outputs_axis(axis)]
            per_output = np.repeat(total.reshape(*scales.shape[:-2], -1), half, axis=-1)
            total = np.expand_dims(per_output[..., :n_outputs], axis)
        else:
            total = total.reshape(1 if total.size == 1 else (*scales.shape[:-2], 1, 1))
        # Damaged scales may be zero or infinite; what comes out is counted by who measures.
        with np.errstate(all="ignore"):
            joined = scales / total if divides else scales * total
        return decode_fp4(parts[WEIGHT], joined, axis, group_size)

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the four-bit codes; see `Encoding.codes`."""
        axis = tensor.option("axis")
        assert isinstance(axis, int)
        return fp4_codes_of(parts[WEIGHT], axis)

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut codes between bytes and scales between groups; see `Encoding.row_cuts`."""
        axis, group_size, half = map(tensor.option, ("axis", "group_size", "half"))
        assert isinstance(axis, int)
        assert isinstance(group_size, int)
        assert isinstance(half, int)
        rows, cols = tensor.shape[-2:]
        block = (rows, cols)
        if half:
            block = (half, cols) if axis == -1 else (rows, half)
        role, total = tensor.companions[1]
        return fp4_row_cuts(tensor, axis, group_size, **{role: scale_cut(tensor, total, block)})


def _outputs_axis(axis: int) -> int:
    """Return the axis of the outputs, given that of the codes, which run along the inputs."""
    return -2 if axis == -1 else -1


def _is_bare(header: TensorHeader, name: str, context: EncodingContext) -> bool:
    """Tell whether the tensor must be FP4 although it has no scale that shows it."""
    found = find_beside(name, SCALE_WORDS, context)
    if header.dtype_code == "F4" or (name != header.name and header.dtype_code == "U8"):
        return not any(scale.dtype_code in {"U8", "F8_E8M0"} for scale in found)  # MXFP4
    return (
        not found
        and header.dtype_code == "U8"
        and is_weight(header.name)
        and "FP4" in _algorithm(context.quantization)
    )


def _layout_of(
    header: TensorHeader, scale: TensorHeader, quantization: Mapping[str, object]
) -> tuple[int, tuple[tuple[int, ...], int] | None]:
    group_size = _WIDE_GROUP_SIZE if _algorithm(quantization) == _WIDE_SCHEME else _GROUP_SIZE
    return group_size, fp4_shape_of(header.dtype_code, header.shape, scale.shape, group_size)


def _algorithm(quantization: Mapping[str, object]) -> str:
    """Return modelopt's name of the scheme, from config.json or hf_quant_config.json."""
    inner = quantization.get("quantization")
    block = inner if isinstance(inner, Mapping) else quantization
    return str(block.get("quant_algo", ""))


def _is_total(shape: tuple[int, ...], lead: tuple[int, ...]) -> bool:
    return math.prod(shape) == 1 or (bool(lead) and shape in {lead, (*lead, 1), (*lead, 1, 1)})


def _is_per_half(
    total_shape: tuple[int, ...], name: str, shape: tuple[int, ...], axis: int
) -> bool:
    """Gate and up, the halves of a stack's outputs, have one number each."""
    n_outputs = shape[_outputs_axis(axis)]
    lead = shape[:-2]
    return bool(lead) and is_gate_and_up(name) and n_outputs % 2 == 0 and total_shape == (*lead, 2)


def _describe_all(*headers: TensorHeader) -> str:
    return ", ".join(describe(header) for header in headers)


def _refuse(
    name: str, header: TensorHeader, kind: RefusalKind, cause: str, *companions: TensorHeader
) -> EncodingRefusal:
    return EncodingRefusal(name=name, header=header, kind=kind, cause=cause, companions=companions)
