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
from moe_weights.decode.bit_stream import unpack_codes
from moe_weights.decode.encoding import Encoding, Parts
from moe_weights.decode.fp4_codes import unpack_fp4
from moe_weights.decode.mlx_form import mlx_form
from moe_weights.decode.mlx_settings import AFFINE, FLOAT_MODES
from moe_weights.decode.scale_codes import decode_e4m3, decode_e8m0
from moe_weights.decode.stored_tensor import (
    WEIGHT,
    EncodingContext,
    EncodingRefusal,
    StoredTensor,
)

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
        bits = tensor.option("bits")
        assert isinstance(bits, int)
        values = _numbers(np.ascontiguousarray(parts[WEIGHT]), self.mode, bits, tensor.shape[-1])
        scales = _scales(parts, self.mode)
        grouped = values.reshape(*scales.shape, -1)
        # Values that overflow are part of what the bytes say.
        with np.errstate(over="ignore", invalid="ignore"):
            np.multiply(grouped, scales[..., None], out=grouped)
            if self.mode == AFFINE:
                np.add(grouped, parts["bias"].astype(np.float32)[..., None], out=grouped)
        return values


MLX_MEMBERS: tuple[Encoding, ...] = tuple(MlxPacked(mode) for mode in (AFFINE, *FLOAT_MODES))


def _numbers(words: NDArray[Any], mode: str, bits: int, n_columns: int) -> NDArray[np.float32]:
    """Return what the codes in words (..., W) mean before any scale: (..., C), contiguous."""
    if mode == AFFINE:
        return unpack_codes(words, bits, n_columns).astype(np.float32, order="C")
    codes = words.view(np.uint8)
    return unpack_fp4(codes) if bits == 4 else _E4M3[codes]


def _scales(parts: Parts, mode: str) -> NDArray[np.float32]:
    """Return the scale of each group, (..., out, groups)."""
    stored = np.ascontiguousarray(parts["scale"])
    if mode == AFFINE:
        return stored.astype(np.float32)
    if mode != "nvfp4":
        return decode_e8m0(stored).astype(np.float32)
    scales = decode_e4m3(stored).astype(np.float32)
    if "global_scale" in parts:
        per_matrix = np.asarray(parts["global_scale"], dtype=np.float32) / _LARGEST_NVFP4
        lead = scales.shape[:-2]
        scales *= per_matrix.reshape(*lead, 1, 1)
    return scales
