"""Second copies of the same weights in one folder: original formats beside the converted shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from moe_weights.checkpoint.tensor_header import TensorHeader

_COPY_FOLDERS = frozenset({"original", "consolidated"})


def set_copies_apart(
    headers: Sequence[TensorHeader],
) -> tuple[list[TensorHeader], tuple[TensorHeader, ...]]:
    """Separate tensors of `original/` and `consolidated*` files from the main shards.

    Returns:
        The tensors that count and those of copies, both in scan order; when all files look like
        copies they are the model itself.
    """
    is_copy = {file: _looks_like_copy(file) for file in {header.file for header in headers}}
    if all(is_copy.values()):
        return list(headers), ()
    kept = [header for header in headers if not is_copy[header.file]]
    return kept, tuple(header for header in headers if is_copy[header.file])


def _looks_like_copy(file: str) -> bool:
    path = PurePosixPath(file)
    return path.name.startswith("consolidated") or bool(_COPY_FOLDERS & set(path.parts[:-1]))
