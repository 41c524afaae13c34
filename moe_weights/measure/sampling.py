"""Which elements of a matrix are drawn when percentiles are sampled; the same ones every time."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_weights.atomic_files import atomic_path


@lru_cache(maxsize=16)
def sample_indices(n_elements: int, sample_size: int, seed: int) -> NDArray[np.int64]:
    """Draw flat indices without repeats; touches no file.

    Args:
        n_elements: Elements of the matrix, R * C.
        sample_size: How many to draw; all of them in order when there are no more.
        seed: Seed of NumPy's `default_rng`.

    Returns:
        (min(sample_size, n_elements),) flat indices, in drawing order; read-only, kept in memory.
    """
    if sample_size >= n_elements:
        indices = np.arange(n_elements, dtype=np.int64)
    else:
        drawn = np.random.default_rng(seed).choice(n_elements, size=sample_size, replace=False)
        indices = drawn.astype(np.int64, copy=False)
    indices.setflags(write=False)
    return indices


def write_sample_cache(folder: Path, n_elements: int, sample_size: int, seed: int) -> None:
    """Write a draw into a file, so that other tools can use it.

    Args:
        folder: Where `idx_N<n>_k<k>_seed<seed>.npy` lies. A file that is exactly this draw is left
            alone, any other is made anew: drawing is as fast as reading, so none is believed.
        n_elements: See `sample_indices`.
        sample_size: See `sample_indices`.
        seed: See `sample_indices`.

    Raises:
        OutputError: the file cannot be written.
    """
    stream = io.BytesIO()
    indices = sample_indices(n_elements, sample_size, seed)
    np.save(stream, indices, allow_pickle=False)
    path = folder / f"idx_N{n_elements}_k{sample_size}_seed{seed}.npy"
    if not _holds(path, stream.getvalue()):
        with atomic_path(path) as temporary:
            temporary.write_bytes(stream.getvalue())


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False
