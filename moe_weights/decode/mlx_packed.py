"""Weights packed by MLX: unsigned codes in 32-bit words, `X.weight`, with `X.scales` beside them.

affine: code * scale + bias, scales and biases (`X.biases`) in the dtype of the model.
mxfp4, mxfp8, nvfp4: E2M1 or E4M3 numbers * scale; the scales are E8M0, E8M0 and E4M3 bytes.
nvfp4 with `X.global_scale`: the scale is first multiplied by global_scale / (6 * 448).

Source:
    mlx.core.quantize; mlx-lm, models/switch_layers.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.affine_codes import scale_integers
from moe_weights.decode.bit_stream import unpack_codes
from moe_weights.decode.block_scale import real_scales
from moe_weights.decode.encoding import Encoding, Parts
from moe_weights.decode.fp4_codes import scale_fp4
from moe_weights.decode.mlx_form import mlx_form
from moe_weights.decode.mlx_settings import AFFINE, FLOAT_MODES
from moe_weights.decode.row_cuts import PartCut, RowCuts, joined_cuts, scale_cut
from moe_weights.decode.scale_codes import decode_e4m3
from moe_weights.decode.scaled_lookup import scale_codes
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    StoredTensor,
)

_WORD_BITS = 32
_FP4_BITS = 4
_E4M3 = decode_e4m3(np.arange(256, dtype=np.uint8)).astype(np.float32)
_LARGEST_NVFP4 = np.float32(6 * 448)  # the largest code times the largest scale


class MlxPacked:
    """One mode of MLX's packed codes."""

    def __init__(self, mode: str) -> None:
        """Serve one mode: "affine" or one of `FLOAT_MODES`."""
        self.mode = mode
        self.name = f"mlx_{mode}"

    def claim(
        self, header: TensorHeader, context: EncodingContext
    ) -> StoredTensor | EncodingRefusal | None:
        """Recognise packed codes of this mode; see `Encoding.claim`.

        Codes whose mode cannot be told are refused by the affine member, for all.
        """
        form = mlx_form(header, context)
        if form is None:
            return None
        if isinstance(form, EncodingRefusal):
            return form if self.mode == AFFINE else None
        if form.settings.mode != self.mode:
            return None
        return StoredTensor(
            name=header.name,
            encoding=self.name,
            header=header,
            shape=form.shape,
            companions=form.companions,
            options=(
                ("bits", form.settings.bits),
                ("group_size", form.settings.group_size),
            ),
        )

    def decode(self, tensor: StoredTensor, parts: Parts) -> NDArray[Any]:
        """Return the values in float32, each operation rounded once; see `Encoding.decode`."""
        bits, group_size = _settings_of(tensor)
        words, scales = parts[WEIGHT], _scales(parts, self.mode)
        if self.mode != AFFINE and bits == _FP4_BITS:
            return scale_fp4(np.ascontiguousarray(words).view(np.uint8), scales, group_size)
        codes = unpack_codes(words, bits, tensor.shape[-1])
        if self.mode == AFFINE:
            biases = parts["bias"].astype(np.float32)
            return scale_integers(codes, scales, (1, group_size), biases=biases)
        return scale_codes(codes, _E4M3[:, None], scales, (1, group_size))

    def codes(self, tensor: StoredTensor, parts: Parts) -> NDArray[np.uint8]:
        """Return the codes as unsigned integers; see `Encoding.codes`."""
        return unpack_codes(parts[WEIGHT], _settings_of(tensor)[0], tensor.shape[-1])

    def row_cuts(self, tensor: StoredTensor) -> RowCuts | None:
        """Cut between rows; columns where words end with codes; see `Encoding.row_cuts`."""
        bits, group_size = _settings_of(tensor)
        has_whole_codes = _WORD_BITS % bits == 0
        rows, cols = tensor.shape[-2:]
        cuts = {
            role: scale_cut(
                tensor, header, (rows, cols) if role == "global_scale" else (1, group_size)
            )
            for role, header in tensor.companions
        }
        codes = PartCut(rows=1, cols=_WORD_BITS // bits if has_whole_codes else 0)
        return joined_cuts({WEIGHT: codes, **cuts}, col_grain=int(has_whole_codes))


MLX_MEMBERS: tuple[Encoding, ...] = tuple(MlxPacked(mode) for mode in (AFFINE, *FLOAT_MODES))


def _settings_of(tensor: StoredTensor) -> tuple[int, int]:
    """Return bits and group size."""
    bits, group_size = tensor.option("bits"), tensor.option("group_size")
    assert isinstance(bits, int)
    assert isinstance(group_size, int)
    return bits, group_size


def _scales(parts: Parts, mode: str) -> NDArray[np.float32]:
    """Return the scale of each group, (..., out, groups)."""
    stored = parts["scale"]
    if mode != "nvfp4":
        return real_scales(stored)
    scales: NDArray[np.float32] = _E4M3[stored]
    if "global_scale" in parts:
        per_matrix = np.asarray(parts["global_scale"], dtype=np.float32) / _LARGEST_NVFP4
        lead = scales.shape[:-2]
        # Damaged scales may be infinite; what comes out is counted by who measures.
        with np.errstate(over="ignore", invalid="ignore"):
            scales *= per_matrix.reshape(*lead, 1, 1)
    return scales
