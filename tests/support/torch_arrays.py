"""Tensors of torch as the arrays that a file of them would be read into; for `tests/real` alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch

_ONE_BYTE = {
    torch.float8_e4m3fn: ml_dtypes.float8_e4m3fn,
    torch.float8_e5m2: ml_dtypes.float8_e5m2,
    torch.float8_e8m0fnu: ml_dtypes.float8_e8m0fnu,
}


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """Return the same bytes with the NumPy or ml_dtypes type of the same name."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype in _ONE_BYTE:
        return tensor.view(torch.uint8).numpy().view(_ONE_BYTE[tensor.dtype])
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def adversarial(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return normal weights in float32 with outliers, tiny values, zeros and a row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator) * 0.05
    flat = weights.reshape(-1)
    flat[::37] *= 200
    flat[5::41] *= 1e-6
    flat[7::29] = 0.0
    weights[..., shape[-2] // 2, :] = 0.0
    return weights
