"""Which scale made a decoded weight NaN or Inf; asked only where a weight is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import open_tensor
from moe_weights.columns import Row
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.scale_codes import nan_codes
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.findings import Finding, FindingKind, name_some

_FLOAT_CODES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0"})
_PIECE_NBYTES = 2**20  # a whole number of every dtype


def scale_findings(rows: Iterable[Row], units: Sequence[WorkUnit], root: Path) -> list[Finding]:
    """Return a warning that names the damaged scales of weights that are not finite, if any.

    Args:
        rows: Rows of matrix_stats.
        units: The plan's units; they know the companions of each tensor.
        root: Model directory.

    Raises:
        CheckpointError: a scale cannot be read any more.
    """
    damaged = {(row["file"], row["source_tensor"]) for row in rows if row["n_nan"] or row["n_inf"]}
    companions = {
        header.name: (unit.source.encoding, role, header)
        for unit in units
        if (unit.source.header.file, unit.source.header.name) in damaged
        for role, header in unit.source.companions
    }
    scales = [
        header
        for _name, (encoding, role, header) in sorted(companions.items())
        if _is_damaged(encoding, role, header, root)
    ]
    if not scales:
        return []
    return [
        Finding(
            kind=FindingKind.WEIGHTS,
            message=f"[weights] NaN or Inf in scale {name_some([s.name for s in scales], 'scale')}",
            file=scales[0].file,
            tensor=scales[0].name,
            count=len(scales),
            hint="get the shard again; the weights that use it have null metrics",
        )
    ]


def _is_damaged(encoding: str, role: str, header: TensorHeader, root: Path) -> bool:
    is_damaged = _damage_test(encoding, role, header.dtype_code)
    if is_damaged is None:
        return False
    with open_tensor(root, header) as stored:
        for start in range(0, header.nbytes, _PIECE_NBYTES):
            raw = stored.read(start, min(start + _PIECE_NBYTES, header.nbytes))
            if is_damaged(view_raw(raw, header.dtype_code)):
                return True
    return False


def _damage_test(
    encoding: str, role: str, dtype_code: str
) -> Callable[[NDArray[Any]], bool] | None:
    """Return what tells a piece with NaN or Inf; None where there can be none."""
    if dtype_code == "U8":
        codes = nan_codes(encoding, role)
        return (lambda values: bool(np.isin(values, codes).any())) if codes else None
    if dtype_code not in _FLOAT_CODES:
        return None
    # Not all types of ml_dtypes know isfinite; float32 holds each of their values.
    wide = np.float64 if dtype_code == "F64" else np.float32
    return lambda values: not bool(np.isfinite(values.astype(wide)).all())
