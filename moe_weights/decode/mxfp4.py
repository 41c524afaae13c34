"""MXFP4: FP4 codes, two a byte, with a power of two for each 32 weights of a row.

1. GPT-OSS: `X_blocks` U8 (..., R, C / 32, 16) and `X_scales` U8 (..., R, C / 32); in OpenAI's own
   files `X.blocks` and `X.scales`.
2. compressed-tensors: `X.weight_packed` U8 (R, C / 2) and `X.weight_scale` U8 (R, C / 32).
3. DeepSeek-V4, Quark, modelopt: `X.weight` I8 or U8 (R, C / 2) and a scale of E8M0 exponents, as
   such or under U8. What sets I8 apart from INT8 is that scale.
"""

from __future__ import annotations

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
from moe_weights.decode.row_cuts import RowCuts
from moe_weights.decode.scale_names import (
    SCALE_WORDS,
    describe,
    find_activation_scales,
    find_beside,
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

GROUP_SIZE = 32  # weights that share a scale; OCP MX v1.0, section 5.2
_EXPONENTS = frozenset({"U8", "F8_E8M0"})
_BLOCK_NBYTES = GROUP_SIZE // 2
_SIX_BIT_BLOCK_NBYTES = GROUP_SIZE * 6 // 8
# Dtype code and `quant_method` of weights that are FP4 also where their scale is lost.
_BARE = frozenset({("I8", "fp8"), ("U8", "quark")})
_PACKED = "_packed"


class Mxfp4:
    """FP4 codes times powers of two."""

    name = "mxfp4"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise FP4 weights and their exponents; see `Encoding.claim`."""
        if header.dtype_code not in FP4_CODES or header.ndim < 2:
            return None
        for suffix, partner in (("_blocks", "_scales"), (".blocks", ".scales")):
            stem = header.name.removesuffix(suffix)
            if stem != header.name:
                return self._claim_blocks(header, stem, stem + partner, context)
        name = header.name.removesuffix(_PACKED)
        found = find_beside(name, SCALE_WORDS, context)
        if not found:
            return _refuse_bare(header, context)
        if not any(scale.dtype_code in _EXPONENTS for scale in found):
            return _refuse_floats(header, name, found)
        scale = found[0]
        if len(found) > 1:
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"weights {describe(header)} have several scales: "
                f"{', '.join(describe(other) for other in found)}; which one counts is not known",
                *found,
            )
        if _is_six_bit(header, scale):
            return _refuse(
                name,
                header,
                RefusalKind.UNKNOWN_DTYPE,
                f"weights {describe(header)} with scale {describe(scale)} have the shapes of "
                "MXFP6, which is not read",
                scale,
            )
        layout = fp4_shape_of(header.dtype_code, header.shape, scale.shape, GROUP_SIZE)
        zero_points = find_beside(name, ("weight_zero_point",), context)
        if layout is None or zero_points:
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"weights {describe(header)} have a zero point {describe(zero_points[0])}; "
                "FP4 with zero points is not understood"
                if zero_points
                else f"scale {describe(scale)} does not fit weights {describe(header)}, which "
                f"would be FP4 in groups of {GROUP_SIZE}",
                scale,
                *zero_points,
            )
        shape, axis = layout
        return StoredTensor(
            name=name,
            encoding=self.name,
            header=header,
            shape=shape,
            companions=(("scale", scale), *find_activation_scales(name, shape, context)),
            options=(("axis", axis),),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return code * 2**exponent in float32; see `Encoding.decode`."""
        scales = real_scales(parts["scale"])
        return decode_fp4(_rows_of(tensor, parts), scales, _axis_of(tensor), GROUP_SIZE)

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the four-bit codes; see `Encoding.codes`."""
        return fp4_codes_of(_rows_of(tensor, parts), _axis_of(tensor))

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut codes between bytes and scales between groups; see `Encoding.row_cuts`."""
        return fp4_row_cuts(tensor, _axis_of(tensor), GROUP_SIZE)

    def _claim_blocks(
        self, header: TensorHeader, name: str, scale_name: str, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        scale = context.by_name.get(scale_name)
        is_blocks = header.ndim >= 3 and header.shape[-1] == _BLOCK_NBYTES
        if scale is None:
            if not is_blocks:
                return None
            return _refuse(
                name,
                header,
                RefusalKind.MISSING_COMPANION,
                f"weights {describe(header)} have no scale; looked for {scale_name}",
            )
        if (
            not is_blocks
            or header.dtype_code != "U8"
            or scale.dtype_code not in _EXPONENTS
            or scale.shape != header.shape[:-1]
        ):
            return _refuse(
                name,
                header,
                RefusalKind.BAD_COMPANION,
                f"scale {describe(scale)} does not fit weights {describe(header)}; MXFP4 has "
                f"U8 blocks (..., rows, groups, {_BLOCK_NBYTES}) and U8 scales "
                "(..., rows, groups)",
                scale,
            )
        shape = (*header.shape[:-2], header.shape[-2] * GROUP_SIZE)
        return StoredTensor(
            name=name,
            encoding=self.name,
            header=header,
            shape=shape,
            companions=(("scale", scale), *find_activation_scales(name, shape, context)),
            options=(("axis", -1),),
        )


def _axis_of(tensor: StoredTensor) -> int:
    axis = tensor.option("axis")
    assert isinstance(axis, int)
    return axis


def _rows_of(tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
    """Return the codes (..., R, bytes), without an axis for the blocks of a row."""
    codes = parts[WEIGHT]
    if codes.ndim > len(tensor.shape):
        return codes.reshape(*codes.shape[:-2], codes.shape[-2] * codes.shape[-1])
    return codes


def _is_six_bit(header: TensorHeader, scale: TensorHeader) -> bool:
    """Tell whether bytes and exponents count as those of six-bit floats do."""
    return (
        header.dtype_code != "F4"
        and scale.ndim == header.ndim
        and header.shape == (*scale.shape[:-1], scale.shape[-1] * _SIX_BIT_BLOCK_NBYTES)
    )


def _refuse_floats(
    header: TensorHeader, name: str, found: tuple[TensorHeader, ...]
) -> EncodingRefusal | None:
    """Refuse I8 weights with a scale that is named as FP4 has it, but holds no exponents."""
    if header.dtype_code != "I8" or not all(scale.name.endswith(".scale") for scale in found):
        return None
    return _refuse(
        name,
        header,
        RefusalKind.BAD_COMPANION,
        f"scale {describe(found[0])} does not fit weights {describe(header)}, which would be FP4 "
        f"with {' or '.join(sorted(_EXPONENTS))} scales in groups of {GROUP_SIZE}",
        *found,
    )


def _refuse_bare(header: TensorHeader, context: EncodingContext) -> EncodingRefusal | None:
    """Refuse weights that lack the scale which the config of the checkpoint promises."""
    writer = header.dtype_code, str(context.quantization.get("quant_method"))
    if writer not in _BARE or not is_weight(header.name):
        return None
    names = names_beside(header.name, SCALE_WORDS)
    return _refuse(
        header.name,
        header,
        RefusalKind.MISSING_COMPANION,
        f"weights {describe(header)} have no scale; looked for {', '.join(names)}",
    )


def _refuse(
    name: str, header: TensorHeader, kind: RefusalKind, cause: str, *companions: TensorHeader
) -> EncodingRefusal:
    return EncodingRefusal(name=name, header=header, kind=kind, cause=cause, companions=companions)
