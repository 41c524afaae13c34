"""Quantisation by the real MLX package; the only door to it.

MLX lays groups along the last axis and refuses widths that a group does not divide.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moe_weights.decode.scale_codes import decode_e4m3, decode_e8m0
from moe_weights.errors import BackendUnavailableError
from moe_weights.quantize.round_trip import RoundTrip, SchemeSpec

DeviceName: TypeAlias = Literal["cpu", "gpu"]

# How each mode stores its scales: MLX documents e8m0 for the mx modes and e4m3 for nvfp4, all as
# uint8; affine scales are plain floats.
_SCALE_DECODERS = {"mxfp4": decode_e8m0, "mxfp8": decode_e8m0, "nvfp4": decode_e4m3}


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

    def round_trip(self, matrix: NDArray[Any], scheme: SchemeSpec) -> RoundTrip:
        """Quantise and dequantise one matrix.

        Args:
            matrix: (R, C) contiguous float16, bfloat16 or float32; quantised in that dtype.
            scheme: Mode, bits and group size.

        Returns:
            What MLX reconstructs with its default dtypes, and the real scales and biases.

        Raises:
            ValueError: MLX's own text, when the scheme or the width does not fit.
        """
        mx, device = self._mx, self._device
        options = {
            "group_size": scheme.group_size,
            "bits": scheme.bits,
            "mode": scheme.mode,
            "stream": device,
        }
        weights = mx.array(matrix)
        codes, scales, *biases = mx.quantize(weights, **options)
        values = mx.dequantize(codes, scales, *biases, **options)
        decode = _SCALE_DECODERS.get(scheme.mode)
        real_scales = decode(np.array(scales)) if decode else self._as_float64(scales)
        return RoundTrip(
            np.array(values.astype(mx.float32, stream=device)),
            real_scales,
            self._as_float64(biases[0]) if biases else None,
        )

    def _as_float64(self, array: Any) -> NDArray[np.float64]:
        widened = np.array(array.astype(self._mx.float32, stream=self._device))
        return widened.astype(np.float64)
