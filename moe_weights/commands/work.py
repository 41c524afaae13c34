"""One work unit: every matrix in it is read block by block and becomes numbers."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, Row
from moe_weights.commands.encoded_unit import EncodedUnit
from moe_weights.commands.matrix_blocks import PlainUnit
from moe_weights.commands.memory import MemoryBudget
from moe_weights.commands.unit_memory import unit_nbytes
from moe_weights.errors import CheckpointError
from moe_weights.extract.layout import MatrixView
from moe_weights.extract.work_unit import PlannedMatrix, WorkUnit
from moe_weights.measure.matrix_measurement import MatrixMeasurement
from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.metric_table import metric_columns
from moe_weights.measure.sampling import sample_indices
from moe_weights.measure.scratch import Scratch
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.choose_backend import BackendChoice
from moe_weights.quantize.error import NUMBER_COLUMNS
from moe_weights.quantize.round_trip import SchemeSpec
from moe_weights.quantize.simulate import SchemeMeter, as_quantised_dtype, not_simulated


class StopFlag(Protocol):
    """Says whether the process is about to end."""

    def is_set(self) -> bool:
        """Tell whether it is."""

    def set(self) -> None:
        """Say that it is."""

    def clear(self) -> None:
        """Say that it is not."""


class StoppedError(Exception):
    """The process is about to end; what was begun is left undone."""


# What is always counted, whatever columns are chosen.
COUNTS = ("n_zero", "n_nan", "n_inf")

# Set by the process that is interrupted; its threads stop at their next block.
STOPPING: StopFlag = threading.Event()

_OPENING_BUDGET = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkSettings:
    """What every unit is told; small and picklable, so that units can run anywhere.

    Attributes:
        root: Model directory.
        measure: How matrices are measured.
        schemes: What is simulated; empty when nothing is.
        backends: What quantises each scheme and dtype.
        memory_nbytes: Bytes of weights that the workers of one process may hold together.
        scratch_folder: Where deflated `.npz` members are inflated to; where it does not exist, the
            system's folder for temporary files serves.
    """

    root: Path
    measure: MeasureSettings
    schemes: tuple[SchemeSpec, ...]
    backends: BackendChoice
    memory_nbytes: int
    scratch_folder: Path


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitResult:
    """The numbers of some units, in the order of their matrices.

    Attributes:
        measured: (matrices, metrics) float64 in the order of `metric_columns`; NaN for null. Counts
            are below 2**53, so they are exact.
        simulated: (matrices * schemes, numbers) float64 in the order of `NUMBER_COLUMNS`; NaN for
            null; all schemes of the first matrix, then of the second.
        errors: One per row of `simulated`: why there are no numbers, or None.
        counts: (matrices, 3) int64: elements that are zero, NaN, infinite; see `COUNTS`.
        fingerprints: One per matrix: equal for equal weights, see `MatrixMeter`.
        constant: One per matrix: all elements have the same bits.
    """

    measured: NDArray[np.float64]
    simulated: NDArray[np.float64]
    errors: list[str | None]
    counts: NDArray[np.int64]
    fingerprints: list[str]
    constant: list[bool]


class _Source(Protocol):
    """The matrices of one unit."""

    def blocks(self, view: MatrixView) -> Iterator[NDArray[Any]]: ...
    def code_blocks(self, view: MatrixView) -> Iterator[NDArray[Any]]: ...


def run_units(units: Sequence[WorkUnit], settings: WorkSettings) -> UnitResult:
    """Measure the matrices of some units.

    Raises:
        CheckpointError: a shard cannot be read.
        OutputError: there is no room to inflate a member of an `.npz` file.
        StoppedError: the process is stopping.
    """
    metrics = [column.name for column in metric_columns(settings.measure)]
    numbers = [column.name for column in NUMBER_COLUMNS]
    measured: list[list[float]] = []
    simulated: list[list[float]] = []
    errors: list[str | None] = []
    counts: list[tuple[int, int, int]] = []
    fingerprints: list[str] = []
    constant: list[bool] = []
    uses_mlx = settings.backends.uses_mlx
    nbytes = [unit_nbytes(unit, settings.measure, uses_mlx=uses_mlx) for unit in units]
    folder = settings.scratch_folder if settings.scratch_folder.is_dir() else None
    with _budget(settings.memory_nbytes).take(max(nbytes, default=0)):
        scratch = Scratch()
        for unit in units:
            source = _open(unit, settings.root, folder, scratch)
            for planned in unit.matrices:
                measurement, rows = _run_matrix(source, planned, settings, scratch)
                measured.append(_as_floats(measurement.values, metrics))
                counts.append((measurement.n_zero, measurement.n_nan, measurement.n_inf))
                fingerprints.append(measurement.fingerprint)
                constant.append(measurement.is_constant)
                for row in rows:
                    simulated.append(_as_floats(row, numbers))
                    error = row["error"]
                    errors.append(None if error is None else str(error))
    return UnitResult(
        measured=np.array(measured, dtype=np.float64).reshape(len(measured), len(metrics)),
        simulated=np.array(simulated, dtype=np.float64).reshape(len(simulated), len(numbers)),
        errors=errors,
        counts=np.array(counts, dtype=np.int64).reshape(len(counts), len(COUNTS)),
        fingerprints=fingerprints,
        constant=constant,
    )


def quantised_dtype(unit: WorkUnit) -> str:
    """Return the name of the dtype in which the matrices of a unit are quantised."""
    if unit.source.encoding != "plain":
        return "float32"
    return {"BF16": "bfloat16", "F16": "float16"}.get(unit.source.header.dtype_code, "float32")


def _open(unit: WorkUnit, root: Path, folder: Path | None, scratch: Scratch) -> _Source:
    if unit.source.encoding == "plain":
        return PlainUnit(unit, root, folder, scratch)
    return EncodedUnit(unit, root, folder)


def _run_matrix(
    source: _Source, planned: PlannedMatrix, settings: WorkSettings, scratch: Scratch
) -> tuple[MatrixMeasurement, list[Row]]:
    view = planned.view
    meter: MatrixMeter | None = None
    schemes: list[SchemeMeter] = []
    overflows = False
    for block in _until_stopped(source.blocks(view)):
        if meter is None:
            sampled = _sampled(view, settings)
            meter = MatrixMeter(
                view.rows, view.cols, block.dtype, settings.measure, sampled, scratch=scratch
            )
        meter.add(block)
        if not settings.schemes:
            continue
        weights = as_quantised_dtype(block)
        if weights.dtype != block.dtype:
            overflows = overflows or not np.isfinite(weights).all()
        if not schemes:
            schemes = _scheme_meters(view, weights.dtype, settings)
        for scheme in schemes:
            scheme.add(weights)
    assert meter is not None  # a plan has no matrix without rows
    try:
        while meter.needs_another_pass:
            for block in _until_stopped(source.blocks(view)):
                meter.add_again(block)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(
            f"{planned.derived_tensor}: {error}; the file changed while it was read: let its "
            "writer finish, then run again"
        ) from error
    metrics = settings.measure.metrics
    if metrics is None or "n_distinct" in metrics:
        for codes in _until_stopped(source.code_blocks(view)):
            meter.add_codes(codes)
    measurement = meter.finish()
    cause = ""
    if measurement.n_nan or measurement.n_inf:
        cause = f"NonFiniteWeights: {measurement.n_nan} NaN, {measurement.n_inf} Inf"
    elif overflows:
        cause = "OverflowError: a float64 weight is beyond the range of float32"
    rows: list[Row] = [not_simulated(cause) if cause else scheme.finish() for scheme in schemes]
    return measurement, rows


def _scheme_meters(
    view: MatrixView, dtype: np.dtype[Any], settings: WorkSettings
) -> list[SchemeMeter]:
    name, eps = dtype.name, settings.measure.eps
    return [
        SchemeMeter(
            view.rows, view.cols, dtype, scheme, settings.backends.backend(scheme.name, name), eps
        )
        for scheme in settings.schemes
    ]


def _sampled(view: MatrixView, settings: WorkSettings) -> NDArray[np.int64] | None:
    measure = settings.measure
    if measure.sample_per_matrix is None or measure.sample_per_matrix >= view.rows * view.cols:
        return None
    return sample_indices(view.rows * view.cols, measure.sample_per_matrix, measure.sample_seed)


def _until_stopped(blocks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for block in blocks:
        if STOPPING.is_set():
            raise StoppedError
        yield block


def _as_floats(row: Row | dict[str, Cell], names: Sequence[str]) -> list[float]:
    cells = [row[name] for name in names]
    return [math.nan if cell is None else float(cell) for cell in cells]  # type: ignore[arg-type]


def _budget(nbytes: int) -> MemoryBudget:
    """Return the one that all threads of this process share."""
    with _OPENING_BUDGET:
        return _open_budget(nbytes)


@lru_cache(maxsize=1)
def _open_budget(nbytes: int) -> MemoryBudget:
    return MemoryBudget(nbytes)
