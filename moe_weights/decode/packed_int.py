"""Integer weights of 1 to 8 bits packed in 32-bit words (compressed-tensors `pack-quantized`).

`X.weight_packed` I32 (out, ceil(in * bits / 32)) holds one bit stream per row. There is no
`X.weight`: `X.weight_shape` tells the shape, `X.weight_scale` the scales. Codes are unsigned;
value = (code - 2**(bits - 1)) * scale, or (code - zero point) * scale where `X.weight_zero_point`
exists: I32, packed alike but along the rows, or I8, signed, one per scale. `X.weight_g_idx` names
each column's group where columns were quantised in another order; they are stored in place.

Source:
    vllm-project/compressed-tensors 0.20.0: compressors/pack_quantized; 0.11.0 for `g_idx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.affine_codes import known_groups, scale_integers
from moe_weights.decode.bit_stream import PERIOD, n_words, unpack_codes
from moe_weights.decode.compressed_tensors_config import (
    IntScheme,
    int_schemes,
    scale_block_of,
)
from moe_weights.decode.encoding import Parts
from moe_weights.decode.row_cuts import WHOLE, PartCut, RowCuts, joined_cuts, scale_cut
from moe_weights.decode.scale_names import describe, find_activation_scales
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    RefusalKind,
    StoredTensor,
)

_SUFFIX = "_packed"
_ROLES = ("scale", "shape", "zero_point", "g_idx")
_SCALE_CODES = frozenset({"BF16", "F16", "F32"})
_INTEGER_SIZES = {"I32": 4, "I64": 8}
_ANY_BITS = range(1, 9)
_WORD_BITS = 32
_PACKED, _PLAIN, _NONE = "packed", "plain", ""  # forms of the zero point


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """One way to read the codes that the shapes allow."""

    bits: int
    block: tuple[int, int]
    has_zero_point: bool
    has_index: bool


class PackedInt:
    """Codes of 1 to 8 bits in 32-bit words."""

    name = "packed_int"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise packed codes by name and dtype; see `Encoding.claim`."""
        if header.dtype_code != "I32" or not header.name.endswith(_SUFFIX):
            return None
        if header.ndim < 2 or header.nbytes == 0:
            return None
        stem = header.name.removesuffix(_SUFFIX)
        found = {
            role: context.by_name[name]
            for role in _ROLES
            if (name := f"{stem}_{role}") in context.by_name
        }

        def refuse(kind: RefusalKind, cause: str) -> EncodingRefusal:
            return EncodingRefusal(
                name=stem, header=header, kind=kind, cause=cause, companions=tuple(found.values())
            )

        missing = [f"{stem}_{role}" for role in ("scale", "shape") if role not in found]
        if missing:
            return refuse(
                RefusalKind.MISSING_COMPANION,
                f"codes {describe(header)} without " + " and ".join(missing),
            )
        shape = _read_shape(found["shape"], header, context)
        if shape is None:
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"{describe(found['shape'])} is not the shape of weights with codes "
                f"{describe(header)}",
            )
        readings = _readings(stem, shape, header, found, context)
        if len(readings) != 1:
            kind = RefusalKind.AMBIGUOUS_ENCODING if readings else RefusalKind.BAD_COMPANION
            return refuse(kind, _why_not_one(shape, header, found, readings, context))
        reading = readings[0]
        form = _zero_point_form(found.get("zero_point"), found["scale"], shape, reading)
        if form is None:
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"zero point {describe(found['zero_point'])} does not fit scale "
                f"{describe(found['scale'])} and {reading.bits} bits of weights {list(shape)}",
            )
        if form == _NONE and reading.has_zero_point:
            return refuse(
                RefusalKind.MISSING_COMPANION,
                f"codes {describe(header)}, asymmetric by config.json, without {stem}_zero_point",
            )
        if "g_idx" not in found and reading.has_index:
            return refuse(
                RefusalKind.MISSING_COMPANION,
                f"codes {describe(header)}, whose columns were reordered by config.json (actorder),"
                f" without {stem}_g_idx",
            )
        if "g_idx" in found and not _index_fits(found["g_idx"], shape, reading.block):
            return refuse(
                RefusalKind.BAD_COMPANION,
                f"group index {describe(found['g_idx'])} does not fit scale "
                f"{describe(found['scale'])} of weights {list(shape)}",
            )
        return StoredTensor(
            name=stem,
            encoding=self.name,
            header=header,
            shape=shape,
            companions=(*found.items(), *find_activation_scales(stem, shape, context)),
            options=(("bits", reading.bits), ("block", reading.block), ("zero_point", form)),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return (code - zero point) * scale in float32; see `Encoding.decode`."""
        bits, pair = _layout_of(tensor)
        rows, cols = tensor.shape[-2:]
        names = {role: header.name for role, header in tensor.parts}
        groups = known_groups(
            names.get("g_idx", ""), parts.get("g_idx"), n_groups=-(-cols // pair[1])
        )
        zeros = np.full(1, 1 << (bits - 1), dtype=np.float32)
        form = tensor.option("zero_point")
        if form == _PLAIN:
            # Codes are stored from 0, these zero points around 0.
            zeros = parts["zero_point"].astype(np.float32) + zeros
        elif form == _PACKED:
            # One stream for each group of columns; it runs along the rows.
            words = parts["zero_point"]
            words = words.reshape(*words.shape[:-2], -1, -(-cols // pair[1]))
            streams = unpack_codes(np.swapaxes(words, -1, -2), bits, rows)
            zeros = np.swapaxes(streams, -1, -2).astype(np.float32)
        return scale_integers(
            self.codes(tensor, parts),
            parts["scale"].astype(np.float32),
            pair,
            zeros=zeros,
            group_of_column=groups,
        )

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the codes, counted from 0; see `Encoding.codes`."""
        return unpack_codes(parts[WEIGHT], _layout_of(tensor)[0], tensor.shape[-1])

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut between rows; packed zero points between words; see `Encoding.row_cuts`."""
        bits, block = _layout_of(tensor)
        companions = dict(tensor.companions)
        per_word = 0 if _WORD_BITS % bits else _WORD_BITS // bits
        cuts: dict[str, PartCut | None] = {
            WEIGHT: PartCut(rows=1, cols=per_word),
            "scale": scale_cut(tensor, companions["scale"], block),
        }
        row_grain, form = 1, tensor.option("zero_point")
        if form == _PLAIN:
            cuts["zero_point"] = scale_cut(tensor, companions["zero_point"], block)
        elif form == _PACKED:
            # Codes that cross words fill whole ones together.
            row_grain = per_word or PERIOD
            group = block[1] if per_word and block[1] < tensor.shape[-1] else 0
            is_whole = bool(per_word) or tensor.shape[-2] % PERIOD == 0
            cuts["zero_point"] = PartCut(rows=row_grain, cols=group) if is_whole else None
        index = companions.get("g_idx")
        if index is not None:
            cuts["g_idx"] = WHOLE if index.ndim == 1 else PartCut(rows=tensor.shape[-2])
        return joined_cuts(cuts, row_grain=row_grain, col_grain=int(index is None and per_word > 0))


def _layout_of(tensor: StoredTensor) -> tuple[int, tuple[int, int]]:
    """Return bits and block."""
    bits, block = tensor.option("bits"), tensor.option("block")
    assert isinstance(bits, int)
    assert isinstance(block, tuple)
    return bits, (block[0], block[1])


def _read_shape(
    companion: TensorHeader, header: TensorHeader, context: EncodingContext
) -> tuple[int, ...] | None:
    """Return the weights' shape, or None when it contradicts the codes or is none."""
    size = _INTEGER_SIZES.get(companion.dtype_code)
    if size is None or companion.shape not in {(2,), (header.ndim,)}:
        return None
    raw = context.read_metadata(companion)
    if raw is None:
        return None
    stated = tuple(int(length) for length in np.frombuffer(raw, dtype=f"<i{size}"))
    rows = header.shape[-2]
    if stated[:-1] not in {(rows,), header.shape[:-1]} or stated[-1] <= 0:
        return None
    return (*header.shape[:-1], stated[-1])


def _readings(
    stem: str,
    shape: tuple[int, ...],
    header: TensorHeader,
    found: Mapping[str, TensorHeader],
    context: EncodingContext,
) -> list[_Reading]:
    """Return every reading that config and shapes allow: one, if the bytes can be understood."""
    schemes = int_schemes(context.quantization)
    own = schemes.of_module(stem.removesuffix(".weight"))
    fitting = _fitting(shape, header, found["scale"], (own,)) if own is not None else []
    if not fitting:
        # Names of modules differ between writers; a scheme of another group that fits is as good,
        # provided that it is the only one. Without schemes the shapes alone must decide.
        fitting = _fitting(shape, header, found["scale"], schemes.all or (None,))
    if len(fitting) > 1:
        fitting = [r for r in fitting if r.has_zero_point == ("zero_point" in found)] or fitting
    if len(fitting) > 1:
        fitting = [r for r in fitting if r.has_index == ("g_idx" in found)] or fitting
    return fitting


def _fitting(
    shape: tuple[int, ...],
    header: TensorHeader,
    scale: TensorHeader,
    schemes: tuple[IntScheme | None, ...],
) -> list[_Reading]:
    """Return the readings under these schemes; None stands for a config that says nothing."""
    return [
        _Reading(
            bits=bits,
            block=block,
            has_zero_point=scheme is not None and not scheme.is_symmetric,
            has_index=scheme is not None and scheme.is_reordered and block[1] < shape[-1],
        )
        for scheme in schemes
        if scale.dtype_code in _SCALE_CODES
        and (block := scale_block_of(shape, scale.shape, scheme)) is not None
        for bits in (_ANY_BITS if scheme is None else (scheme.bits,))
        if n_words(shape[-1], bits) == header.shape[-1]
    ]


def _why_not_one(
    shape: tuple[int, ...],
    header: TensorHeader,
    found: Mapping[str, TensorHeader],
    readings: list[_Reading],
    context: EncodingContext,
) -> str:
    if readings:
        options = " or ".join(f"{r.bits} bits in blocks {list(r.block)}" for r in readings)
        return f"codes {describe(header)} of weights {list(shape)} can be read as {options}"
    cause = (
        f"codes {describe(header)} and scale {describe(found['scale'])} do not fit weights "
        f"{list(shape)}"
    )
    said = "; ".join(scheme.describe() for scheme in int_schemes(context.quantization).all)
    return f"{cause} as config.json describes them ({said})" if said else cause


def _zero_point_form(
    zero: TensorHeader | None, scale: TensorHeader, shape: tuple[int, ...], reading: _Reading
) -> str | None:
    """Return how zero points are stored; None when they do not fit."""
    if zero is None:
        return _NONE
    rows, cols = shape[-2:]
    if zero.dtype_code == "I8" and zero.shape == scale.shape:
        return _PLAIN
    packed = (*shape[:-2], n_words(rows, reading.bits), -(-cols // reading.block[1]))
    if zero.dtype_code == "I32" and zero.shape == packed and reading.block[0] == 1:
        return _PACKED
    return None


def _index_fits(index: TensorHeader, shape: tuple[int, ...], block: tuple[int, int]) -> bool:
    return (
        index.dtype_code in _INTEGER_SIZES
        and index.shape in {shape[-1:], (*shape[:-2], shape[-1])}
        and (block[0] == 1 or block[1] == shape[-1])
    )
