"""The same numbers as anybody would compute them with NumPy and MLX; what the kernels race."""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

_GROUP_SIZES = (32, 64)


def numpy_statistics(bits: NDArray[np.uint16], eps: float = 1e-12) -> dict[str, float]:
    """Return the fixed metrics and group ratios of a BF16 matrix (R, C), given by its bits."""
    weight = (bits.astype(np.uint32) << 16).view(np.float32)
    magnitude = np.abs(weight)
    p50, p99, p999 = np.percentile(magnitude, [50.0, 99.0, 99.9])
    mean_abs, max_abs = float(magnitude.mean(dtype=np.float64)), float(magnitude.max())
    statistics = {
        "mean": float(weight.mean(dtype=np.float64)),
        "std": float(weight.std(dtype=np.float64)),
        "mean_abs": mean_abs,
        "rms": float(np.sqrt(np.square(weight, dtype=np.float64).mean())),
        "max_abs": max_abs,
        "p50_abs": float(p50),
        "p99_abs": float(p99),
        "p999_abs": float(p999),
        "outlier_max_over_mean": max_abs / (mean_abs + eps),
        "outlier_p99_over_median": float(p99) / (float(p50) + eps),
        "outlier_p999_over_median": float(p999) / (float(p50) + eps),
    }
    for size in _GROUP_SIZES:
        groups = magnitude.reshape(len(weight), -1, size)
        ratios = groups.max(axis=2) / (groups.mean(axis=2, dtype=np.float64) + eps)
        statistics[f"g{size}_p95_outlier"] = float(np.percentile(ratios, 95))
        statistics[f"g{size}_max_outlier"] = float(ratios.max())
    return statistics


def mlx_and_numpy_errors(
    weights: NDArray[np.generic], mode: str, bits: int, group_size: int, eps: float = 1e-12
) -> dict[str, float]:
    """Return the numbers of a quant_sim row of a BF16 matrix (R, C): MLX, then NumPy float64."""
    options = {"group_size": group_size, "bits": bits, "mode": mode}
    codes, scales, *biases = mx.quantize(mx.array(weights), **options, stream=mx.cpu)
    restored = _as_float64(mx.dequantize(codes, scales, *biases, **options, stream=mx.cpu))
    stored = weights.astype(np.float64)
    error = restored - stored
    norm, error_norm = np.linalg.norm(stored), np.linalg.norm(error)
    scale, bias = _real_scales(scales, mode), _as_float64(biases[0]) if biases else np.zeros(1)
    groups = stored.reshape(len(stored), -1, group_size)
    if mode == "affine":
        edges = bias - scale / 2, bias + scale * (2**bits - 0.5)
        low, high = np.minimum(*edges), np.maximum(*edges)
    else:
        high = scale * (464 if mode == "mxfp8" else 7)
        low = -high
    beyond = (groups < low[:, :, None]) | (groups > high[:, :, None])
    return {
        "w_rel_fro": float(error_norm / (norm + eps)),
        "w_rel_max": float(np.abs(error).max() / (np.abs(stored).max() + eps)),
        "scale_mean": float(scale.mean()),
        "scale_max": float(scale.max()),
        "scale_abs_max": float(np.abs(scale).max()),
        "bias_mean": float(bias.mean()),
        "bias_max": float(bias.max()),
        "sqnr_db": float(20 * np.log10(norm / error_norm)),
        "cosine": float(np.vdot(restored, stored) / (np.linalg.norm(restored) * norm)),
        "n_saturated": int(beyond.sum()),
        "n_zero_scale": int((scale == 0).sum()),
    }


def _as_float64(array: mx.array) -> NDArray[np.float64]:
    return np.array(array.astype(mx.float32, stream=mx.cpu)).astype(np.float64)


def _real_scales(scales: mx.array, mode: str) -> NDArray[np.float64]:
    """Return scales as numbers; those of the floating modes are stored as codes."""
    if mode == "affine":
        return _as_float64(scales)
    kind = ml_dtypes.float8_e4m3fn if mode == "nvfp4" else ml_dtypes.float8_e8m0fnu
    return np.array(scales).view(kind).astype(np.float64)
