"""Work units over small safetensors files, without a plan in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.commands.measured_rows import MatrixRows, QuantRows
from moe_weights.commands.work import UnitResult, WorkSettings, run_units
from moe_weights.decode.stored_tensor import StoredTensor
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit
from moe_weights.measure.metric_table import metric_columns
from moe_weights.quantize.choose_backend import BackendChoice, BackendName
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
    root: Path,
    *,
    schemes: Sequence[SchemeSpec] = (),
    backend: BackendName = "native",
    memory_nbytes: int = 2**30,
    **measure: Any,
) -> WorkSettings:
    """Return what workers are told; one backend for every scheme and dtype."""
    dtypes = ("bfloat16", "float16", "float32")
    names = tuple((scheme.name, dtype, backend) for scheme in schemes for dtype in dtypes)
    return WorkSettings(
        root=root,
        measure=make_settings(**measure),
        schemes=tuple(schemes),
        backends=BackendChoice(device="cpu", names=names),
        memory_nbytes=memory_nbytes,
        scratch_folder=root,
    )


def rows_of(
    units: Sequence[WorkUnit],
    results: Sequence[UnitResult],
    settings: WorkSettings,
    *,
    has_several_stacks: bool = False,
) -> tuple[MatrixRows, QuantRows]:
    """Join plan and numbers to the rows of both tables."""
    rows = MatrixRows(
        units, results, metric_columns(settings.measure), has_several_stacks=has_several_stacks
    )
    return rows, QuantRows(rows, results, settings.schemes, settings.backends)


def run_rows(units: Sequence[WorkUnit], settings: WorkSettings) -> tuple[MatrixRows, QuantRows]:
    """Measure units in this thread and return the rows of both tables."""
    return rows_of(units, [run_units(units, settings)], settings)


def content_of(results: Sequence[UnitResult]) -> list[object]:
    """Return all numbers in a form that compares bit for bit."""
    return [
        [
            (result.measured.shape, result.measured.tobytes()),
            (result.simulated.shape, result.simulated.tobytes()),
            result.errors,
            result.counts.tolist(),
            result.fingerprints,
            result.constant,
        ]
        for result in results
    ]
