"""Second copies of the same weights in one folder: original formats beside the converted shards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from moe_weights.checkpoint.name_ids import without_ids
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.findings import Finding, FindingKind, name_some

_COPY_FOLDERS = frozenset({"original", "consolidated"})
_EXPERT_WORD = re.compile("expert|moe", re.IGNORECASE)

# What is left is no smaller part of a copy than 2-bit codes are of 16-bit weights.
_LEAST_PART = 8


def set_copies_apart(
    headers: Sequence[TensorHeader],
) -> tuple[Sequence[TensorHeader], tuple[TensorHeader, ...]]:
    """Separate tensors of `original/` and `consolidated*` files from the main shards.

    A file that is called like a copy is none if it continues the main shards: if it has further
    tensors that are called like theirs, ids apart, or the only experts.

    Returns:
        The tensors that count and those of copies, both in scan order. Where the other files are
        none or too few to hold the same weights, the files called like copies are the model itself.
    """
    is_copy = {file: _looks_like_copy(file) for file in {header.file for header in headers}}
    if not any(is_copy.values()):
        return headers, ()
    main = {header.name for header in headers if not is_copy[header.file]}
    kinds = set(map(without_ids, main))
    has_experts = any(map(_EXPERT_WORD.search, main))
    for header in headers:
        name = header.name
        if is_copy[header.file] and name not in main:
            continues = without_ids(name) in kinds
            if continues or (not has_experts and _EXPERT_WORD.search(name)):
                is_copy[header.file] = False
    kept = [header for header in headers if not is_copy[header.file]]
    copies = tuple(header for header in headers if is_copy[header.file])
    if _nbytes(kept) * _LEAST_PART < _nbytes(copies):
        return headers, ()
    return kept, copies


def copies_finding(copies: Sequence[TensorHeader]) -> Finding:
    """Return the warning about files that were set apart; there is at least one."""
    files = sorted({header.file for header in copies})
    return Finding(
        kind=FindingKind.SCAN,
        message=f"[scan] second copy of the model, not measured: {name_some(files, 'file')}",
        file=files[0],
        count=len(files),
        hint="to measure it instead, point model_path at a folder with these files alone",
    )


def _nbytes(headers: Sequence[TensorHeader]) -> int:
    return sum(header.nbytes for header in headers)


def _looks_like_copy(file: str) -> bool:
    path = PurePosixPath(file)
    return path.name.startswith("consolidated") or bool(_COPY_FOLDERS & set(path.parts[:-1]))
