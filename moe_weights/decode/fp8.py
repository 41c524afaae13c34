"""FP8 weights with a scale per tensor, per row or per block; value = code * scale.

Scales are floats, or E8M0 exponents as such or under U8 (MXFP8). Their names: see `scale_names`.
Blocks at the ragged edges are cut, never stretched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.block_scale import (
    block_shape_of,
    expected_grid,
    fits_block,
    parse_block,
    real_scales,
)
from moe_weights.decode.encoding import Parts
from moe_weights.decode.row_cuts import PartCut, RowCuts, joined_cuts, scale_cut
from moe_weights.decode.scale_names import (
    SCALE_WORDS,
    describe,
    find_activation_scales,
    find_beside,
    is_gate_and_up,
    names_beside,
)
from moe_weights.decode.scaled_lookup import scale_codes
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_CODES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_EXPONENT_CODES = frozenset({"F8_E8M0", "U8"})
_SCALE_CODES = frozenset({"F32", "F16", "BF16", "F64", "F8_E8M0", "U8"})
_SCALE_SUFFIX = "_scale"  # of NVFP4 group scales, which are FP8 numbers and no weights


class Fp8:
    """FP8 codes times scales."""

    name = "fp8"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise FP8 weights and their scale; see `Encoding.claim`."""
        if header.dtype_code not in _CODES or header.ndim < 2:
            return None
        if header.name.endswith(_SCALE_SUFFIX):
            return _claim_scale(header, context)
        found = find_beside(header.name, SCALE_WORDS, context)
        if not found:
            names = names_beside(header.name, SCALE_WORDS)
            return _refuse(
                header,
                RefusalKind.MISSING_COMPANION,
                f"weights {describe(header)} have no scale; looked for {', '.join(names)}",
            )
        scale = found[0]
        if len(found) > 1:
            return _refuse(
                header,
                RefusalKind.BAD_COMPANION,
                f"weights {describe(header)} have several scales: "
                f"{', '.join(describe(other) for other in found)}; which one counts is not known",
                *found,
            )
        zero_points = find_beside(header.name, ("weight_zero_point",), context)
        if zero_points:
            return _refuse(
                header,
                RefusalKind.BAD_COMPANION,
                f"weights {describe(header)} have a zero point {describe(zero_points[0])}; "
                "FP8 with zero points is not understood",
                scale,
                *zero_points,
            )
        other = _block_instead_of_halves(header, scale, context.quantization)
        if other is not None:
            return _refuse(
                header,
                RefusalKind.AMBIGUOUS_ENCODING,
                f"scale {describe(scale)} of weights {describe(header)} is one for each half of "
                f"the rows, or one for each block of {list(other)}; weight_block_size in the "
                "quantization_config of config.json would tell (null means halves)",
                scale,
            )
        block = _block_of(header, scale, context.quantization)
        if scale.dtype_code not in _SCALE_CODES or block is None:
            return _refuse(
                header,
                RefusalKind.BAD_COMPANION,
                f"scale {describe(scale)} does not fit weights {describe(header)}"
                + _describe_expected(header, context.quantization),
                scale,
            )
        return StoredTensor(
            name=header.name,
            encoding=self.name,
            header=header,
            shape=header.shape,
            companions=(
                ("scale", scale),
                *find_activation_scales(header.name, header.shape, context),
            ),
            options=(("block", block),),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return code * scale in float32; see `Encoding.decode`."""
        block = tensor.option("block")
        assert isinstance(block, tuple)
        codes = parts[WEIGHT]
        values = np.arange(256, dtype=np.uint8).view(codes.dtype).astype(np.float32)
        return scale_codes(
            codes.view(np.uint8),
            values[:, None],
            real_scales(parts["scale"]),
            (block[0], block[1]),
        )

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the bytes; see `Encoding.codes`."""
        return parts[WEIGHT].view(np.uint8)

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut codes anywhere, scales with their blocks; see `Encoding.row_cuts`."""
        block = tensor.option("block")
        assert isinstance(block, tuple)
        scale = dict(tensor.companions)["scale"]
        return joined_cuts(
            {
                WEIGHT: PartCut(rows=1, cols=1),
                "scale": scale_cut(tensor, scale, (block[0], block[1])),
            },
            col_grain=1,
        )


def _claim_scale(header: TensorHeader, context: EncodingContext) -> EncodingRefusal | None:
    """Leave group scales to their weights; refuse those that have lost them."""
    stem = header.name.removesuffix(_SCALE_SUFFIX)
    owners = dict.fromkeys((stem, f"{stem}_packed", stem.removesuffix("_weight")))
    if any(owner in context.by_name for owner in owners):
        return None
    return _refuse(
        header,
        RefusalKind.MISSING_COMPANION,
        f"scales {describe(header)} have no weights; looked for {', '.join(owners)}",
    )


def _block_of(
    header: TensorHeader, scale: TensorHeader, quantization: Mapping[str, object]
) -> tuple[int, int] | None:
    """Return the (rows, cols) that one scale covers, or None when the shapes do not fit."""
    rows, cols = header.shape[-2:]
    if quantization.get("quant_method") == "fbgemm_fp8" and header.ndim == 3:
        # transformers stores stacked experts (E, in, out) there and scales each output: gate_up as
        # (E, 1, out), down as (E, out, 1).
        whole = scale.shape in {(header.shape[0], 1, cols), (header.shape[0], cols, 1)}
        return (rows, 1) if whole else None
    declared = _declared_blocks(quantization)
    if declared:
        fitting = (block for block in declared if fits_block(header.shape, scale.shape, block))
        return next(((block[0] or rows, block[1] or cols) for block in fitting), None)
    configured = _config_block(quantization)
    if _is_row_per_half(header, scale, configured):
        return rows // 2, cols if configured is None else configured[1]
    return block_shape_of(
        header.shape,
        scale.shape,
        configured,
        is_exponent=scale.dtype_code in _EXPONENT_CODES,
    )


def _is_row_per_half(
    header: TensorHeader, scale: TensorHeader, configured: tuple[int, int] | None
) -> bool:
    """Gate and up share one block of rows, and each half has a row of scales of its own.

    Args:
        header: The weights.
        scale: Their scale.
        configured: Blocks of config.json; without any, a whole half has one scale.

    Source:
        huggingface/transformers, integrations/finegrained_fp8.py, `_alloc_expert_proj`
        (`min_sf_out=2` for fused experts).
    """
    grid = expected_grid(header.shape, configured or (0, 0))
    return (
        header.ndim == 3
        and is_gate_and_up(header.name)
        and grid[0] == 1
        and header.shape[1] % 2 == 0
        and scale.shape == (header.shape[0], 2, grid[1])
    )


def _block_instead_of_halves(
    header: TensorHeader, scale: TensorHeader, quantization: Mapping[str, object]
) -> tuple[int, int] | None:
    """Return the block that scales may stand for that fit the halves of a fused tensor as well.

    None where config.json speaks of blocks (also to say that there are none), where no block fits,
    and where both readings give the same values.
    """
    says_none = quantization.get("quant_method") == "fp8" and "weight_block_size" in quantization
    if (
        says_none
        or _config_block(quantization) is not None
        or _declared_blocks(quantization)
        or not _is_row_per_half(header, scale, None)
    ):
        return None
    block = block_shape_of(
        header.shape, scale.shape, None, is_exponent=scale.dtype_code in _EXPONENT_CODES
    )
    return None if block is None or block[0] == header.shape[1] // 2 else block


def _declared_blocks(quantization: Mapping[str, object]) -> tuple[tuple[int, int], ...]:
    """Return the blocks of the FP8 schemes of a compressed-tensors config; 0 = the whole axis."""
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or quantization.get("quant_method") != "compressed-tensors":
        return ()
    blocks = []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping) or weights.get("type") != "float":
            continue
        if weights.get("num_bits") != 8:
            continue
        size = weights.get("group_size")
        block = {
            "tensor": (0, 0),
            "channel": (1, 0),
            "block": parse_block(weights.get("block_structure")),
            "group": (1, size) if isinstance(size, int) and size > 0 else None,
        }.get(str(weights.get("strategy")))
        if block is None:
            return ()
        blocks.append(block)
    return tuple(blocks)


def _config_block(quantization: Mapping[str, object]) -> tuple[int, int] | None:
    return parse_block(quantization.get("weight_block_size"))


def _describe_expected(header: TensorHeader, quantization: Mapping[str, object]) -> str:
    block = _config_block(quantization)
    if block is None:
        return ""
    grid = [*header.shape[:-2], *expected_grid(header.shape, block)]
    return f"; weight_block_size {list(block)} of config.json asks for {grid}"


def _refuse(
    header: TensorHeader, kind: RefusalKind, cause: str, *companions: TensorHeader
) -> EncodingRefusal:
    return EncodingRefusal(
        name=header.name, header=header, kind=kind, cause=cause, companions=companions
    )
