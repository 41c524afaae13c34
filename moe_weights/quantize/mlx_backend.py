"""Quantisation by the real MLX package; the only door to it.

MLX lays groups along the last axis and refuses widths that a group does not divide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe_weights.errors import BackendUnavailableError
from moe_weights.quantize.error import ErrorSums
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec
from moe_weights.quantize.stored_weights import real_scales, refuse_width

DeviceName: TypeAlias = Literal["cpu", "gpu"]

# The graphs of the floating-point modes hold sixteen numbers for each weight, several times over.
PIECE_WEIGHTS = 2**19


class MlxBackend:
    """Calls `mlx.core.quantize` and `dequantize`.

    Attributes:
        name: "mlx".
    """

    name = "mlx"

    def __init__(self, device: DeviceName) -> None:
        """Import MLX and choose the device.

        Args:
            device: "cpu" or "gpu".

        Raises:
            ImportError: mlx is not importable.
            BackendUnavailableError: mlx has no such device here.
        """
        import mlx.core as mx

        self._mx: Any = mx
        self._device: Any = mx.gpu if device == "gpu" else mx.cpu
        if not mx.is_available(self._device):
            raise BackendUnavailableError(
                f'mlx has no {device} device on this machine; set $.mlx.device to "cpu"'
            )
        if device == "cpu":
            # What is kept for later graphs has no bound; made anew, they are as fast.
            mx.set_cache_limit(0)

    def round_trip(self, matrix: NDArray[Any], scheme: SchemeSpec) -> RoundTrip:
        """Quantise and dequantise one matrix.

        Args:
            matrix: (R, C) contiguous float16, bfloat16 or float32; quantised in that dtype.
            scheme: Mode, bits and group size.

        Returns:
            What MLX reconstructs with its default dtypes, the codes, and the real scales and
            biases.

        Raises:
            ValueError: MLX's own text, when the scheme or the width does not fit.
        """
        refuse_width(scheme, *matrix.shape)
        packed, result = self._restore(matrix, scheme)
        codes = _unpack(np.array(packed), scheme.bits, matrix.shape)
        return replace(result, codes=codes)

    def add_errors(self, block: NDArray[Any], scheme: SchemeSpec, sums: ErrorSums) -> None:
        """Quantise some rows and add their errors, a bounded piece at a time.

        Args:
            block: (r, C) contiguous float16, bfloat16 or float32; the next rows of a matrix.
            scheme: Mode, bits and group size.
            sums: Those of this matrix and scheme.

        Raises:
            ValueError: MLX's own text, when the scheme or the width does not fit.
        """
        n_rows, n_cols = block.shape
        refuse_width(scheme, n_rows, n_cols)
        # Groups stand alone, so a long row may be cut; always at the same columns.
        per_piece = PIECE_WEIGHTS // scheme.group_size * scheme.group_size
        for row in range(0, n_rows, step := max(1, PIECE_WEIGHTS // max(1, n_cols))):
            for col in range(0, n_cols, max(per_piece, 1)):
                piece = block[row : row + step, col : col + max(per_piece, 1)]
                piece = np.ascontiguousarray(piece)
                sums.add_restored(piece, self._restore_piece(piece, scheme))

    def _restore_piece(self, piece: NDArray[Any], scheme: SchemeSpec) -> RoundTrip:
        """Return the round trip of some rows, also where MLX needs one more to pack nvfp4."""
        rows = len(piece)
        if scheme.mode == "nvfp4" and piece.size % 32:
            piece = np.concatenate([piece, np.zeros_like(piece[:1])])
        found = self._restore(piece, scheme)[1]
        biases = None if found.biases is None else found.biases[:rows]
        return RoundTrip(found.values[:rows], found.scales[:rows], biases)

    def _restore(self, matrix: NDArray[Any], scheme: SchemeSpec) -> tuple[Any, RoundTrip]:
        """Return MLX's packed codes, and the round trip without codes."""
        mx, device = self._mx, self._device
        options = {
            "group_size": scheme.group_size,
            "bits": scheme.bits,
            "mode": scheme.mode,
            "stream": device,
        }
        weights = mx.array(matrix)
        packed, scales, *biases = mx.quantize(weights, **options)
        restored = mx.dequantize(packed, scales, *biases, **options)
        values = np.array(restored.astype(mx.float32, stream=device))
        if scheme.mode == "affine":
            return packed, RoundTrip(values, self._as_float64(scales), self._as_float64(biases[0]))
        scale_codes = np.array(scales)
        real = real_scales(scheme.mode, scale_codes)
        return packed, RoundTrip(values, real, None, None, scale_codes)

    def _as_float64(self, array: Any) -> NDArray[np.float64]:
        widened = np.array(array.astype(self._mx.float32, stream=self._device))
        return widened.astype(np.float64)


def _unpack(packed: NDArray[np.uint32], bits: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return one code per weight of rows that MLX packs as little-endian streams of bits."""
    rows, cols = shape
    stream = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    places = stream.reshape(rows, cols, bits)
    codes = np.zeros((rows, cols), dtype=np.uint8)
    for place in range(bits):
        codes |= places[..., place] << np.uint8(place)
    return codes
