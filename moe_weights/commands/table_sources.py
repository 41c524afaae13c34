"""What do the summaries start from: which columns must be there, and what deserves a warning?"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from moe_weights.commands.collected_artifacts import RUN_FAILURE
from moe_weights.config.schema import AnalysisConfig
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.deltas import MATRIX_KEYS
from moe_weights.tables.keys import with_block4
from moe_weights.tables.reader import locate_table, read_table_file, require_columns
from moe_weights.tables.summaries import WEIGHT_METRICS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableSources:
    """What build_tables works on.

    Attributes:
        frames: matrix_stats and quant_sim by name, `block4` filled in where it was missing.
        notes: Lines to show, with their prefix.
    """

    frames: dict[str, pd.DataFrame]
    notes: list[str]


def read_sources(run: RunDirectory, config: AnalysisConfig, *, routed_only: bool) -> TableSources:
    """Read matrix_stats and quant_sim, and check that they have what will be asked of them.

    Args:
        run: The run.
        config: Its config; with delta pairs, quant_sim must have every matrix key.
        routed_only: Whether shared experts must be told apart.

    Raises:
        CheckpointError: a table is missing or cannot be read.
        InvalidDataError: a table lacks columns, or lies outside the run directory.
    """
    needed = {
        "matrix_stats": ["layer", "proj", *WEIGHT_METRICS],
        "quant_sim": ["layer", "proj", "scheme"],
    }
    if config.delta_pairs:
        needed["quant_sim"] += [
            key for key in MATRIX_KEYS if key not in {"layer", "proj", "block4"}
        ]
    frames: dict[str, pd.DataFrame] = {}
    notes: list[str] = []
    for name, columns in needed.items():
        located = locate_table(run, name, "data")
        frame = read_table_file(located.path)
        require_columns(
            frame, [*columns, *(["is_shared_expert"] if routed_only else [])], str(located.path)
        )
        if located.manifest_rows not in (None, len(frame)):
            notes.append(
                f"[warn] {run.relative(located.path)} has {len(frame)} rows, "
                f"logs/write_manifest.json says {located.manifest_rows}; "
                "the file was changed after collect_data"
            )
        frames[name] = with_block4(frame, name) if len(frame.columns) else frame
    if run.log_path(RUN_FAILURE).exists():
        notes.insert(
            0,
            f"[warn] the last collect_data of this run failed (see logs/{RUN_FAILURE}); these "
            "tables come from what an earlier one wrote",
        )
    return TableSources(frames=frames, notes=notes)
