"""Work units over small safetensors files, without a plan in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands.work import WorkSettings
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit
from moe_weights.quantize.round_trip import SchemeSpec
from tests.support.checkpoints import write_safetensors
from tests.support.matrices import make_settings

AFFINE_Q4 = SchemeSpec(name="affine_q4_g32", mode="affine", bits=4, group_size=32)
MXFP4 = SchemeSpec(name="mxfp4_g32", mode="mxfp4", bits=4, group_size=32)


def write_headers(
    folder: Path, tensors: Mapping[str, np.ndarray], file: str = "model.safetensors"
) -> list[TensorHeader]:
    """Write a shard and return its headers, in file order."""
    path = write_safetensors(folder / file, tensors)
    return list(read_safetensors_headers(path, file).tensors)


def row_major(rows: int, cols: int, offset: int = 0) -> MatrixView:
    """Return the place of a matrix that is stored row by row."""
    return MatrixView(offset=offset, rows=rows, cols=cols, row_stride=cols, col_stride=1)


def plan_matrix(view: MatrixView, **changes: Any) -> PlannedMatrix:
    """Return a routed expert's matrix."""
    values: dict[str, Any] = {
        "derived_tensor": "t",
        "layer": 0,
        "proj": "gate_proj",
        "expert_id": 0,
        "is_shared_expert": False,
        "stack": "text",
        "view": view,
    }
    return PlannedMatrix(**(values | changes))


def plain_tensor(header: TensorHeader) -> StoredTensor:
    """Return a tensor of plain floats."""
    return StoredTensor(name=header.name, encoding="plain", header=header, shape=header.shape)


def make_unit(
    header: TensorHeader, matrices: Sequence[PlannedMatrix], start: int = 0, stop: int | None = None
) -> WorkUnit:
    """Return a unit over the elements `start` to `stop` of a tensor; all of them by default."""
    return WorkUnit(
        source=plain_tensor(header),
        extracted_via="rule:r",
        layout_evidence="rule",
        start=start,
        stop=header.n_elements if stop is None else stop,
        matrices=tuple(matrices),
    )


def bank_units(headers: Sequence[TensorHeader]) -> list[WorkUnit]:
    """Return one unit per expert of banks (E, R, C); the bank's number is its layer."""
    units = []
    for layer, header in enumerate(headers):
        experts, rows, cols = header.shape
        for expert in range(experts):
            matrix = plan_matrix(
                row_major(rows, cols), derived_tensor=header.name, layer=layer, expert_id=expert
            )
            start = expert * rows * cols
            units.append(make_unit(header, [matrix], start, start + rows * cols))
    return units


def make_work_settings(
    root: Path, *, schemes: Sequence[SchemeSpec] = (), **measure: Any
) -> WorkSettings:
    """Return what workers are told; samples lie beside the model."""
    return WorkSettings(
        root=root,
        measure=make_settings(**measure),
        sample_folder=root / "sampled_indices",
        schemes=tuple(schemes),
        device="cpu",
    )
