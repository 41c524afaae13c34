"""Which scale made a decoded weight NaN or Inf; asked only where a weight is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.columns import Row
from moe_weights.decode.raw_array import view_raw
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.findings import Finding, FindingKind, name_some

_FLOAT_CODES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E8M0"})


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
        header.name: (role, header)
        for unit in units
        if (unit.source.header.file, unit.source.header.name) in damaged
        for role, header in unit.source.companions
    }
    scales = [
        header
        for _name, (role, header) in sorted(companions.items())
        if _is_damaged(role, header, root)
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


def _is_damaged(role: str, header: TensorHeader, root: Path) -> bool:
    values = view_raw(read_tensor_bytes(root, header, 0, header.nbytes), header.dtype_code)
    if header.dtype_code == "U8":  # of scales, E8M0 or E4M3 codes: 255 is NaN in both
        return role == "scale" and bool((values == 255).any())
    if header.dtype_code not in _FLOAT_CODES:
        return False
    return not bool(np.isfinite(values.astype(np.float64)).all())
