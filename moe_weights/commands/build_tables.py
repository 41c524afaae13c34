"""How do the measured tables become the summaries A_*, B_* and the deltas?

1. Check the run directory and take its lock.
2. Read matrix_stats and quant_sim as the write manifest names them; refuse duplicates.
3. Compute every table in memory, then write them all, the manifest last.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd

from moe_weights.atomic_files import RunLock, remove_file
from moe_weights.audit.failure import write_failure
from moe_weights.audit.run_identity import find_run
from moe_weights.audit.write_manifest import (
    TABLES_FAILURE,
    TABLES_WRITE_MANIFEST,
    write_tables_manifest,
)
from moe_weights.columns import Table
from moe_weights.commands.console import Reporter
from moe_weights.commands.table_sources import read_sources
from moe_weights.config.load import load_config
from moe_weights.config.schema import AnalysisConfig
from moe_weights.errors import ExitCode, MoeWeightsError, OutputError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.deltas import DELTAS_NAME, check_unique_matrices, quant_deltas
from moe_weights.tables.keys import has_several_stacks
from moe_weights.tables.summaries import SUMMARIES, summarise, without_shared
from moe_weights.tables.writer import ArtifactEntry, checked_values, remove_table, write_table

ROUTED_SUFFIX = "_routed"


def build_tables(run_dir: Path, *, routed_only: bool = False, quiet: bool = False) -> int:
    """Write `tables/` of a run from its `data/`.

    Args:
        run_dir: The run directory.
        routed_only: Also write each summary without shared experts, as `<name>_routed`.
        quiet: Print warnings only.

    Returns:
        0; every failure raises.

    Raises:
        UsageError: no run directory, or another process works in it; nothing is written then.
        ConfigError: `analysis_config.json` is wrong.
        CheckpointError: there is no collected data, or it cannot be read.
        InvalidDataError: the data contradicts itself; no table is written.
        OutputError: a file cannot be written.
    """
    reporter = Reporter(quiet=quiet)
    run, run_manifest = find_run(run_dir)
    failure_path = run.log_path(TABLES_FAILURE)
    with RunLock(run.lock_path):
        try:
            config = load_config(run.config_path).config
            sources = read_sources(run, config, routed_only=routed_only)
            for note in sources.notes:
                reporter.warn(note)
            tables = _compute(sources.frames, config, routed_only=routed_only)
            _write_all(run, config, tables, reporter)
        except Exception as error:
            # Not to swallow anything: the failure is recorded and goes on as it is.
            with contextlib.suppress(OutputError):
                write_failure(
                    failure_path,
                    run,
                    run_manifest,
                    error,
                    with_traceback=not isinstance(error, MoeWeightsError),
                )
            raise
        remove_file(failure_path)
    reporter.say("build_tables", "wrote tables/ A_* and B_*")
    return int(ExitCode.OK)


def _compute(
    frames: dict[str, pd.DataFrame], config: AnalysisConfig, *, routed_only: bool
) -> list[Table]:
    check_unique_matrices(frames["quant_sim"])
    by_stack = has_several_stacks(frames.values())
    tables = [
        summarise(summary, frames[summary.source], by_stack=by_stack) for summary in SUMMARIES
    ]
    if routed_only:
        routed = {name: without_shared(frame) for name, frame in frames.items()}
        tables += [
            summarise(
                summary,
                routed[summary.source],
                by_stack=by_stack,
                name=summary.name + ROUTED_SUFFIX,
            )
            for summary in SUMMARIES
        ]
    if config.delta_pairs:
        tables.append(quant_deltas(frames["quant_sim"], config.delta_pairs, by_stack=by_stack))
    for table in tables:
        # Before the first one is written: an infinite value refuses all of them.
        checked_values(table)
    return tables


def _write_all(
    run: RunDirectory, config: AnalysisConfig, tables: list[Table], reporter: Reporter
) -> None:
    # The manifest is the mark of completeness: it goes first and comes back last.
    remove_file(run.log_path(TABLES_WRITE_MANIFEST))
    entries: list[ArtifactEntry] = []
    try:
        for table in tables:
            entry = write_table(
                run,
                table,
                run.table_path(table.schema.name),
                requested_format=config.output.format,
                compression=config.output.compression,
            )
            entries.append(entry)
            if entry.console_warning:
                reporter.warn(entry.console_warning)
        written = {entry.name for entry in entries}
        optional = [DELTAS_NAME, *(summary.name + ROUTED_SUFFIX for summary in SUMMARIES)]
        for name in optional:
            if name not in written:
                remove_table(run.table_path(name))
        write_tables_manifest(
            run,
            entries,
            requested_format=config.output.format,
            requested_compression=config.output.compression,
        )
    except OutputError as error:
        complete = ", ".join(entry.path for entry in entries) or "nothing"
        raise OutputError(f"{error}; complete so far: {complete}") from error
