"""INT8 weights with a scale per tensor, row, group or block: value = (code - zero point) * scale.

1. `X.weight_scale` (compressed-tensors `int-quantized` and `naive-quantized`, ModelOpt) or
   `X.weight_scale_inv` (SGLang block INT8; it multiplies despite its name), optionally
   `X.weight_zero_point`, signed like the codes. Fused weights: the same suffixes on their name.
2. `X.SCB` (bitsandbytes LLM.int8): largest absolute value of each row; value = code * SCB / 127.

An I8 weight beside `X.scale`, or with one-byte scales, holds packed FP4 and is left to others. One
with groups of columns may hold two INT4 a byte; only a compressed-tensors config rules that out.

Source:
    vllm-project/compressed-tensors 0.20.0: compressors/naive_quantized; bitsandbytes 0.50.2:
    _ops.py (int8_vectorwise_dequant), nn/modules.py (maybe_rearrange_weight); sgl-project/sglang:
    layers/quantization/blockwise_int8.py, w4afp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.affine_codes import known_groups, scale_integers
from moe_weights.decode.block_scale import block_shape_of, parse_block
from moe_weights.decode.compressed_tensors_config import int_schemes, scale_block_of
from moe_weights.decode.encoding import Parts
from moe_weights.decode.row_cuts import WHOLE, PartCut, RowCuts, joined_cuts, scale_cut
from moe_weights.decode.scale_names import describe, find_activation_scales, is_weight
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_SCALE_CODES = frozenset({"BF16", "F16", "F32"})
_EXPONENT_CODES = frozenset({"F8_E8M0", "U8"})
_ZERO_CODES = frozenset({"I8", "I32", "I64"})
_INDEX_CODES = frozenset({"I32", "I64"})
_ROW_MAJOR = b"\x00"  # weight_format 0; the others are tiled for old GPUs
_PER_127 = np.float32(7.874015718698502e-3)  # 1 / 127 as bitsandbytes writes it


class Int8:
    """INT8 codes times scales."""

    name = "int8"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise INT8 weights and their scale; see `Encoding.claim`."""
        if header.dtype_code != "I8" or header.ndim < 2 or header.nbytes == 0:
            return None
        found = _find_companions(header.name, context.by_name)
        block: tuple[int, int] | None = (1, header.shape[-1])
        if "SCB" in found:
            problem = _row_maxima_problem(header, found, context)
        elif "scale" not in found:
            if not _is_weight(header.name, context.by_name):
                return None
            problem = RefusalKind.MISSING_COMPANION, _without_scale(header)
        elif found["scale"].dtype_code in _EXPONENT_CODES:
            return None
        else:
            block = _block_of(header, found["scale"], context)
            problem = _scale_problem(header, found, block, context)
        if problem is not None or block is None:
            assert problem is not None
            return EncodingRefusal(
                name=header.name,
                header=header,
                kind=problem[0],
                cause=problem[1],
                companions=tuple(found.values()),
            )
        bystanders = find_activation_scales(header.name, header.shape, context)
        return StoredTensor(
            name=header.name,
            encoding=self.name,
            header=header,
            shape=header.shape,
            companions=(*found.items(), *bystanders),
            options=(("block", block),),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return (code - zero point) * scale in float32; see `Encoding.decode`."""
        pair = _block_option(tensor)
        names = {role: header.name for role, header in tensor.parts}
        groups = known_groups(
            names.get("g_idx", ""), parts.get("g_idx"), n_groups=-(-tensor.shape[-1] // pair[1])
        )
        codes = parts[WEIGHT]
        if "SCB" in parts:
            values = scale_integers(codes, parts["SCB"].astype(np.float32), pair)
            values *= _PER_127
            return values
        return scale_integers(
            codes,
            parts["scale"].astype(np.float32),
            pair,
            zeros=parts["zero_point"].astype(np.float32) if "zero_point" in parts else None,
            group_of_column=groups,
        )

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the bytes; see `Encoding.codes`."""
        return parts[WEIGHT].view(np.uint8)

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut codes anywhere, scales with their blocks; see `Encoding.row_cuts`."""
        block = _block_option(tensor)
        cuts: dict[str, PartCut | None] = {WEIGHT: PartCut(rows=1, cols=1)}
        cuts |= {
            role: scale_cut(tensor, header, block)
            for role, header in tensor.companions
            if role in {"scale", "SCB", "zero_point"}
        }
        has_index = "g_idx" in dict(tensor.companions)
        if has_index:
            cuts["g_idx"] = WHOLE
        return joined_cuts(cuts, col_grain=int(not has_index))


def _block_option(tensor: StoredTensor) -> tuple[int, int]:
    block = tensor.option("block")
    assert isinstance(block, tuple)
    return block[0], block[1]


def _find_companions(name: str, by_name: Mapping[str, TensorHeader]) -> dict[str, TensorHeader]:
    """Return the companions by role; a scale has two names, and `other_scale` is a second one."""
    names = {role: f"{name}_{role}" for role in ("scale", "zero_point", "g_idx")}
    names["other_scale" if names["scale"] in by_name else "scale"] = f"{name}_scale_inv"
    if name.endswith(".weight"):
        module = name.removesuffix("weight")
        names |= {role: f"{module}{role}" for role in ("SCB", "weight_format")}
    return {role: by_name[word] for role, word in names.items() if word in by_name}


def _is_weight(name: str, by_name: Mapping[str, TensorHeader]) -> bool:
    """Tell whether I8 under this name must be INT8 weights, though no scale was found."""
    return is_weight(name) and (f"{name.removesuffix('weight')}scale" not in by_name)


def _without_scale(header: TensorHeader) -> str:
    names = [f"{header.name}_scale", f"{header.name}_scale_inv"]
    if header.name.endswith(".weight"):
        module = header.name.removesuffix("weight")
        names += [f"{module}SCB", f"{module}scale"]
    return f"weights {describe(header)} without a scale; looked for {', '.join(names)}"


def _block_of(
    header: TensorHeader, scale: TensorHeader, context: EncodingContext
) -> tuple[int, int] | None:
    """Return the (rows, cols) that share a scale, as config or shapes say; None: no fit."""
    schemes = int_schemes(context.quantization)
    own = schemes.of_module(header.name.removesuffix(".weight"))
    if own is not None:
        block = scale_block_of(header.shape, scale.shape, own)
        if block is not None:
            return block
    if schemes.all:
        blocks = {scale_block_of(header.shape, scale.shape, scheme) for scheme in schemes.all}
        blocks.discard(None)
        return blocks.pop() if len(blocks) == 1 else None
    configured = parse_block(context.quantization.get("weight_block_size"))
    if configured is not None:
        return block_shape_of(header.shape, scale.shape, configured)
    return scale_block_of(header.shape, scale.shape, None)


def _scale_problem(
    header: TensorHeader,
    found: Mapping[str, TensorHeader],
    block: tuple[int, int] | None,
    context: EncodingContext,
) -> tuple[RefusalKind, str] | None:
    """Return what keeps codes and companions from being read."""
    weights, scale = f"weights {describe(header)}", found["scale"]
    zero, index = found.get("zero_point"), found.get("g_idx")
    offset = context.by_name.get(f"{header.name}_offset")
    schemes = int_schemes(context.quantization)
    own = schemes.of_module(header.name.removesuffix(".weight"))
    cause = None
    if "other_scale" in found:
        other = found["other_scale"]
        cause = f"{weights} have two scales, {describe(scale)} and {describe(other)}"
    elif scale.dtype_code not in _SCALE_CODES or block is None:
        cause = f"scale {describe(scale)} does not fit {weights}"
    elif zero is not None and (zero.dtype_code not in _ZERO_CODES or zero.shape != scale.shape):
        cause = f"zero point {describe(zero)} does not fit scale {describe(scale)}"
    elif index is not None and (
        index.dtype_code not in _INDEX_CODES
        or index.shape != header.shape[-1:]
        or (block[0] != 1 and block[1] != header.shape[-1])
    ):
        cause = f"group index {describe(index)} does not fit {weights}, scale {describe(scale)}"
    elif offset is not None:
        cause = f"offset {describe(offset)} of {weights} has no known meaning"
    if cause is not None or block is None:
        return RefusalKind.BAD_COMPANION, str(cause)
    # Block INT8, which says `_scale_inv` as packed INT4 does, never has scales of single rows.
    by_row = block[1] < header.shape[-1] or scale.name.endswith("_scale_inv")
    if not schemes.all and block[0] == 1 and by_row:
        return RefusalKind.AMBIGUOUS_ENCODING, (
            f"{weights} with scale {describe(scale)} are INT8, or two INT4 in each byte; "
            "config.json has no compressed-tensors groups that would tell"
        )
    if index is None and own is not None and own.is_reordered and block[1] < header.shape[-1]:
        return RefusalKind.MISSING_COMPANION, (
            f"{weights}, whose columns were reordered by config.json (actorder), without "
            f"{header.name}_g_idx"
        )
    if zero is None and own is not None and not own.is_symmetric:
        return RefusalKind.MISSING_COMPANION, (
            f"{weights}, asymmetric by config.json, without {header.name}_zero_point"
        )
    return None


def _row_maxima_problem(
    header: TensorHeader, found: Mapping[str, TensorHeader], context: EncodingContext
) -> tuple[RefusalKind, str] | None:
    """Return what keeps the bitsandbytes form from being read."""
    weights, row_maxima = f"weights {describe(header)}", found["SCB"]
    layout = found.get("weight_format")
    offset = found.get("zero_point") or context.by_name.get(f"{header.name}_offset")
    rows = header.shape[0]
    cause = None
    if "scale" in found:
        cause = f"{weights} have two scales, {describe(found['scale'])} and {describe(row_maxima)}"
    elif offset is not None:
        cause = (
            f"{describe(offset)} has no known meaning beside {describe(row_maxima)} of {weights}"
        )
    elif (
        header.ndim != 2
        or row_maxima.shape not in {(rows,), (rows, 1)}
        or row_maxima.dtype_code not in _SCALE_CODES
    ):
        cause = f"scale {describe(row_maxima)} does not fit {weights}"
    elif layout is not None and (
        (layout.dtype_code, layout.n_elements) != ("U8", 1)
        or context.read_metadata(layout) != _ROW_MAJOR
    ):
        cause = f"layout {describe(layout)} of {weights} is not 0, rows as they are"
    return None if cause is None else (RefusalKind.BAD_COMPANION, cause)
