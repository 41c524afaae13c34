"""The same numbers as anybody would compute them with NumPy and MLX; what the kernels race."""

from __future__ import annotations

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
    """Return error norms and scale statistics of a BF16 matrix (R, C): MLX, then NumPy float64."""
    options = {"group_size": group_size, "bits": bits, "mode": mode}
    codes, scales, *biases = mx.quantize(mx.array(weights), **options, stream=mx.cpu)
    restored = mx.dequantize(codes, scales, *biases, **options, stream=mx.cpu)
    stored = weights.astype(np.float64)
    error = np.array(restored.astype(mx.float32, stream=mx.cpu)).astype(np.float64) - stored
    real_scales = np.array(scales.astype(mx.float32, stream=mx.cpu)).astype(np.float64)
    return {
        "w_rel_fro": float(np.linalg.norm(error) / (np.linalg.norm(stored) + eps)),
        "w_rel_max": float(np.abs(error).max() / (np.abs(stored).max() + eps)),
        "scale_mean": float(real_scales.mean()),
        "scale_max": float(real_scales.max()),
    }
