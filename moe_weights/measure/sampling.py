"""Which elements of a matrix are drawn when percentiles are sampled; the same ones every time."""

from __future__ import annotations

import io
import threading
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_weights.atomic_files import atomic_path

# One thread draws and writes a sample; the others wait for it.
_DRAWING = threading.Lock()


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
def _drawn(folder: Path, n_elements: int, sample_size: int, seed: int) -> NDArray[np.int64]:
    indices = sample_indices(n_elements, sample_size, seed)
    indices.setflags(write=False)
    stream = io.BytesIO()
    np.save(stream, indices, allow_pickle=False)
    path = folder / f"idx_N{n_elements}_k{sample_size}_seed{seed}.npy"
    if not _holds(path, stream.getvalue()):
        with atomic_path(path) as temporary:
            temporary.write_bytes(stream.getvalue())
    return indices


def cached_sample_indices(
    folder: Path, n_elements: int, sample_size: int, seed: int
) -> NDArray[np.int64]:
    """Return `sample_indices`, kept in a file so that other tools can use the same draw.

    Args:
        folder: Where `idx_N<n>_k<k>_seed<seed>.npy` lies. A file that is not exactly this draw is
            made anew: drawing is as fast as reading, so no file needs to be believed.
        n_elements: See `sample_indices`.
        sample_size: See `sample_indices`.
        seed: See `sample_indices`.

    Returns:
        Read-only; safe to call from several threads.

    Raises:
        OutputError: the file cannot be written.
    """
    with _DRAWING:
        return _drawn(folder, n_elements, sample_size, seed)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False
