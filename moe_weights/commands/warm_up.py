"""Kernels are compiled before the workers start: an interruption is heard, a wait explained."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moe_weights.commands.console import Reporter
from moe_weights.compiled import cache_folder
from moe_weights.decode.raw_array import view_raw
from moe_weights.extract.work_unit import WorkUnit
from moe_weights.measure.matrix_meter import MatrixMeter
from moe_weights.measure.settings import MeasureSettings


def announce_compilation(reporter: Reporter) -> None:
    """Say that kernels must be compiled, if none were kept."""
    folder = cache_folder()
    if folder is None:
        reporter.say(
            "collect",
            "compiling kernels; they cannot be kept: set NUMBA_CACHE_DIR to a folder that can be "
            "written to",
        )
    elif not any(folder.rglob("*.nbi")):  # indexes of machine code; empty folders come first
        reporter.say("collect", "compiling kernels, once after an installation or update")


def compile_measuring(units: Iterable[WorkUnit], measure: MeasureSettings) -> None:
    """Compile what measures the dtypes of a plan, in this thread.

    Args:
        units: The plan's units.
        measure: How matrices are measured.
    """
    codes = {
        unit.source.header.dtype_code if unit.source.encoding == "plain" else "F32"
        for unit in units
    }
    width = max((size for size in measure.group_sizes if size > 0), default=1)
    for code in sorted(codes):
        matrix = np.ones((2, width)).astype(view_raw(b"", code).dtype)
        meter = MatrixMeter(*matrix.shape, matrix.dtype, measure)
        meter.add(matrix)
        while meter.needs_another_pass:
            meter.add_again(matrix)
        meter.finish()
