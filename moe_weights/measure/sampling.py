"""Which elements of a matrix are drawn when percentiles are sampled; the same ones every time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_weights.atomic_files import atomic_path


def sample_indices(n_elements: int, sample_size: int, seed: int) -> NDArray[np.int64]:
    """Draw flat indices without repeats.

    Args:
        n_elements: Elements of the matrix, R * C.
        sample_size: How many to draw; all of them in order when there are no more.
        seed: Seed of NumPy's `default_rng`.

    Returns:
        (min(sample_size, n_elements),) flat indices, in drawing order.
    """
    if sample_size >= n_elements:
        return np.arange(n_elements, dtype=np.int64)
    drawn = np.random.default_rng(seed).choice(n_elements, size=sample_size, replace=False)
    return drawn.astype(np.int64, copy=False)


@lru_cache(maxsize=16)
def cached_sample_indices(
    folder: Path, n_elements: int, sample_size: int, seed: int
) -> NDArray[np.int64]:
    """Return `sample_indices`, kept in a file so that other tools can use the same draw.

    Args:
        folder: Where `idx_N<n>_k<k>_seed<seed>.npy` lies; a file that is not exactly such a draw
            (length, type, range, repeats) is made anew.
        n_elements: See `sample_indices`.
        sample_size: See `sample_indices`.
        seed: See `sample_indices`.

    Raises:
        OutputError: the file cannot be written.
    """
    path = folder / f"idx_N{n_elements}_k{sample_size}_seed{seed}.npy"
    indices = _load_valid(path, n_elements, min(sample_size, n_elements))
    if indices is None:
        indices = sample_indices(n_elements, sample_size, seed)
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.save(stream, indices, allow_pickle=False)
    indices.setflags(write=False)
    return indices


def _load_valid(path: Path, n_elements: int, size: int) -> NDArray[np.int64] | None:
    try:
        indices = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(indices, np.ndarray):
        return None
    if indices.shape != (size,) or indices.dtype != np.int64:
        return None
    if size and (indices.min() < 0 or indices.max() >= n_elements):
        return None
    if np.unique(indices).size != size:
        return None
    return indices
