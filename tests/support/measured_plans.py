"""Small checkpoints planned and measured in one go: which values each matrix is measured with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands.encoded_unit import EncodedUnit
from moe_weights.commands.matrix_blocks import PlainUnit
from moe_weights.config.preset import Preset
from moe_weights.extract.plan import ExtractionPlan
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.measure.scratch import Scratch
from tests.support.checkpoints import write_safetensors
from tests.support.extraction import plan_headers
from tests.support.work_units import make_work_settings, run_rows

# (stack, layer, expert, proj) of a matrix
MatrixKey = tuple[str, int, int, str]


def digest_of(matrix: np.ndarray) -> str:
    """Return what the digest of a matrix (R, C) must be: of its values row by row."""
    return hashlib.blake2b(np.ascontiguousarray(matrix).tobytes(), digest_size=16).hexdigest()


def numbered(*shape: int, start: int = 0) -> np.ndarray:
    """Return float32 values that are all different."""
    return np.arange(start, start + int(np.prod(shape)), dtype=np.float32).reshape(shape)


def headers_of(
    folder: Path, tensors: Mapping[str, np.ndarray], file: str = "model.safetensors"
) -> list[TensorHeader]:
    """Write one shard and return its headers."""
    path = write_safetensors(folder / file, tensors)
    return list(read_safetensors_headers(path, file).tensors)


def plan_and_measure(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    changes: dict[str, Any] | None = None,
    *,
    model_config: Mapping[str, Any] | None = None,
    preset: Preset | None = None,
    quantization: Mapping[str, object] | None = None,
) -> tuple[ExtractionPlan, dict[MatrixKey, str]]:
    """Return the plan of a checkpoint and the digest of every matrix measured by it.

    Raises:
        AssertionError: one key came out twice.
    """
    plan = plan_headers(
        headers_of(folder, tensors),
        changes,
        model_config={} if model_config is None else model_config,
        preset=preset,
        quantization=quantization,
    )
    found: dict[MatrixKey, str] = {}
    digests = [digest for unit in plan.units for digest in _digests(unit, folder)]
    rows, _quant_rows = run_rows(plan.units, make_work_settings(folder))
    for matrix, row, digest in zip(plan.matrices, rows, digests, strict=True):
        key = (matrix.stack, matrix.layer, matrix.expert_id, matrix.proj)
        assert key not in found, key
        assert (row["layer"], row["expert_id"], row["proj"]) == key[1:]
        assert (row["rows"], row["cols"]) == (matrix.view.rows, matrix.view.cols)
        found[key] = digest
    return plan, found


def _digests(unit: WorkUnit, folder: Path) -> list[str]:
    """Return the digest of what is measured as each matrix of a unit."""
    is_plain = unit.source.encoding == "plain"
    source = (
        PlainUnit(unit, folder, None, Scratch()) if is_plain else EncodedUnit(unit, folder, None)
    )
    return [
        digest_of(np.concatenate([block.copy() for block in source.blocks(matrix.view)]))
        for matrix in unit.matrices
    ]
