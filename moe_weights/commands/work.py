"""One work unit: its bytes are read once and every matrix in it becomes rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from moe_weights.checkpoint.dtype_codes import dtype_name
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.columns import Cell
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.resolve import decode_parts
from moe_weights.decode.stored_tensor import StoredTensor, is_cut_with_experts
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit
from moe_weights.measure.matrix_metrics import measure_matrix
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.mlx_backend import DeviceName, MlxBackend
from moe_weights.quantize.round_trip import SchemeSpec
from moe_weights.quantize.simulate import as_quantised_dtype, not_simulated, simulate_scheme
from moe_weights.tables.matrix_stats import block4_of

MutableRow = dict[str, Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """What every unit is told; small and picklable, so that units can run anywhere.

    Attributes:
        root: Model directory.
        measure: How matrices are measured.
        sample_folder: Cache of drawn indices.
        schemes: What is simulated; empty when nothing is.
        has_several_stacks: Rows name their stack; with one stack the column stays empty.
        device: MLX device.
    """

    root: Path
    measure: MeasureSettings
    sample_folder: Path
    schemes: tuple[SchemeSpec, ...]
    device: DeviceName
    has_several_stacks: bool = False


@dataclass(slots=True, kw_only=True)
class UnitResult:
    """The rows of some units.

    Attributes:
        matrix_rows: One per matrix, all columns of matrix_stats.
        quant_rows: One per matrix and scheme, all columns of quant_sim.
        digests: One per matrix, in the order of `matrix_rows`: a digest of its shape-free values.
        constant: One per matrix: all elements have the same bits.
    """

    matrix_rows: list[MutableRow] = field(default_factory=list)
    quant_rows: list[MutableRow] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    constant: list[bool] = field(default_factory=list)

    def extend(self, other: UnitResult) -> None:
        """Append another result."""
        self.matrix_rows += other.matrix_rows
        self.quant_rows += other.quant_rows
        self.digests += other.digests
        self.constant += other.constant


def run_units(units: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
    """Measure the matrices of some units.

    Raises:
        CheckpointError: a shard cannot be read.
        OutputError: the cache of drawn indices cannot be written.
    """
    result = UnitResult()
    for unit in units:
        _run_unit(unit, settings, result)
    return result


def _run_unit(unit: WorkUnit, settings: WorkSettings, result: UnitResult) -> None:
    flat = _decode_unit(unit, settings.root)
    for planned in unit.matrices:
        matrix = matrix_at(flat, planned.view)
        keys = _key_cells(unit, planned, planned.stack if settings.has_several_stacks else "")
        values = measure_matrix(matrix, settings.measure, settings.sample_folder)
        result.matrix_rows.append(keys | values)
        bits = matrix.view(f"u{matrix.dtype.itemsize}")
        result.digests.append(hashlib.blake2b(bits.data, digest_size=16).hexdigest())
        result.constant.append(bool((bits == bits[0, 0]).all()))
        if settings.schemes:
            result.quant_rows += _simulate(matrix, keys, values, settings)


def _decode_unit(unit: WorkUnit, root: Path) -> NDArray[Any]:
    """Return the decoded elements `unit.start` to `unit.stop` of the tensor, flat."""
    source = unit.source
    if source.encoding == "plain":
        header = source.header
        width = header.nbytes // header.n_elements
        raw = read_tensor_bytes(root, header, unit.start * width, unit.stop * width)
        return view_raw(raw, header.dtype_code)
    per_entry = source.n_elements // source.shape[0]
    first, last = unit.start // per_entry, -(-unit.stop // per_entry)
    parts = {
        role: _read_part(root, role, header, source, first, last) for role, header in source.parts
    }
    return decode_parts(source, parts).reshape(-1)


def _read_part(
    root: Path, role: str, header: TensorHeader, source: StoredTensor, first: int, last: int
) -> NDArray[Any]:
    """Read a stored part, cut to entries of the first axis where it has that axis."""
    shape = header.shape
    if (first, last) != (0, source.shape[0]) and is_cut_with_experts(role, header, source):
        per_entry = header.nbytes // shape[0]
        raw = read_tensor_bytes(root, header, first * per_entry, last * per_entry)
        shape = (last - first, *shape[1:])
    else:
        raw = read_tensor_bytes(root, header, 0, header.nbytes)
    return view_raw(raw, header.dtype_code).reshape(shape)


def matrix_at(flat: NDArray[Any], view: MatrixView) -> NDArray[Any]:
    """Return one matrix (R, C), contiguous and aligned; a copy where it is not stored that way.

    Args:
        flat: (n,) stored elements, from the first one of the view's unit on.
        view: Place of the matrix among them.

    Raises:
        ValueError: the view reaches beyond the elements.
    """
    if view.offset < 0 or view.stop > flat.size:
        raise ValueError(f"{view} does not lie within {flat.size} elements")
    width = flat.dtype.itemsize
    strided = as_strided(
        flat[view.offset :],
        shape=(view.rows, view.cols),
        strides=(view.row_stride * width, view.col_stride * width),
        writeable=False,
    )
    return np.require(strided, requirements=["C", "A"])


def _key_cells(unit: WorkUnit, planned: PlannedMatrix, stack: str) -> MutableRow:
    header = unit.source.header
    return {
        "file": header.file,
        "source_tensor": header.name,
        "derived_tensor": planned.derived_tensor,
        "layer": planned.layer,
        "block4": block4_of(planned.layer),
        "proj": planned.proj,
        "expert_id": planned.expert_id,
        "is_routed_expert": planned.is_routed_expert,
        "is_shared_expert": planned.is_shared_expert,
        "rows": planned.view.rows,
        "cols": planned.view.cols,
        "dtype": dtype_name(header.dtype_code),
        "stack": stack,
        "extracted_via": unit.extracted_via,
        "encoding": unit.source.encoding,
        "layout_evidence": unit.layout_evidence,
    }


def _simulate(
    matrix: NDArray[Any], keys: MutableRow, values: MutableRow, settings: WorkSettings
) -> list[MutableRow]:
    cause = ""
    if values["n_nan"] or values["n_inf"]:
        cause = f"NonFiniteWeights: {values['n_nan']} NaN, {values['n_inf']} Inf"
    with np.errstate(over="ignore"):
        weights = as_quantised_dtype(matrix)
    if not cause and weights.dtype != matrix.dtype and not np.isfinite(weights).all():
        cause = "OverflowError: a float64 weight is beyond the range of float32"
    backend = _backend(settings.device)
    rows = []
    for scheme in settings.schemes:
        numbers = (
            not_simulated(cause)
            if cause
            else simulate_scheme(weights, scheme, backend, settings.measure.eps)
        )
        rows.append(
            keys
            | numbers
            | {
                "scheme": scheme.name,
                "mode": scheme.mode,
                "bits": scheme.bits,
                "group_size": scheme.group_size,
                "backend": backend.name,
                "quant_dtype": weights.dtype.name,
            }
        )
    return rows


@lru_cache(maxsize=2)
def _backend(device: DeviceName) -> MlxBackend:
    return MlxBackend(device)
