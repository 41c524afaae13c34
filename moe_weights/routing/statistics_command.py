"""What does `moe-weights routing-stats` do: count the load of a run's bundles, show and keep it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_weights.columns import Table
from moe_weights.errors import UsageError
from moe_weights.routing.artifacts import RAW_TRACE_FILE
from moe_weights.routing.bundle_files import is_there
from moe_weights.routing.bundle_reader import open_run_bundle
from moe_weights.routing.capture_command import ROUTING_FOLDER
from moe_weights.routing.expert_counts import EXPERT_COUNTS_FILE, load_expert_counts
from moe_weights.routing.load_counts import LayerCounts, PhaseFilter, count_events
from moe_weights.routing.load_statistics import DeadRule, to_expert_table, to_layer_table
from moe_weights.routing.run_ids import UNFINISHED_PREFIX, bundle_path

_SHOWN = (
    ("layer", "layer"),
    ("experts", "num_total_experts"),
    ("tokens", "tokens"),
    ("fairness", "jain_fairness"),
    ("cv", "coefficient_of_variation"),
    ("max", "max_load"),
    ("min", "min_load"),
    ("overloaded", "overloaded_experts"),
    ("dead", "dead_experts"),
    ("entropy", "mean_entropy"),
    ("slope", "entropy_slope"),
    ("collapsed", "is_collapsed"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsOptions:
    """What to count.

    Attributes:
        run_dir: Run directory, or the folder of one bundle.
        bundle: Id of one bundle; None takes all of the run.
        phase: Which tokens.
        min_tokens: Tokens needed to call an expert dead; None takes ceil(10 * N / k).
        dead_threshold: Selections up to which an expert is dead.
        quiet: Whether to print nothing.
    """

    run_dir: str
    bundle: str | None = None
    phase: PhaseFilter = "all"
    min_tokens: int | None = None
    dead_threshold: int = 0
    quiet: bool = False


def show_statistics(options: StatisticsOptions) -> int:
    """Write `routing_expert_stats` and `routing_layer_stats` beside each trace, and print them.

    Returns:
        0.

    Raises:
        UsageError: there is no bundle, or counts without tokens are asked for one phase.
        BundleError: a bundle is refused; no table of it is written.
        OutputError: a table cannot be written.
    """
    rule = DeadRule(threshold=options.dead_threshold, min_tokens=options.min_tokens)
    for folder in find_bundles(Path(options.run_dir), options.bundle):
        counts = _count(folder, options.phase)
        layers = to_layer_table(counts, rule, options.phase)
        paths = _write(folder, [to_expert_table(counts, rule, options.phase), layers])
        if not options.quiet:
            sys.stdout.write(_to_text(folder, layers, options.phase, paths))
    return 0


def find_bundles(run_dir: Path, bundle: str | None) -> list[Path]:
    """Return the folders of bundles and counts of a run, sorted.

    Args:
        run_dir: Run directory with a `routing` folder, or the folder of one bundle.
        bundle: Id of one; None returns all.

    Raises:
        UsageError: there is none.
    """
    if bundle is not None:
        found = [bundle_path(run_dir / ROUTING_FOLDER, bundle)]
    elif _is_countable(run_dir):
        found = [run_dir]
    else:
        found = _search(run_dir)
    found = [folder for folder in found if _is_countable(folder)]
    if not found:
        where = bundle_path(run_dir / ROUTING_FOLDER, bundle) if bundle else run_dir
        raise UsageError(
            f"{where} has no routing bundle; make one with moe-weights capture or "
            "moe-weights import-routing"
        )
    return found


def _search(run_dir: Path) -> list[Path]:
    try:
        return sorted(
            {
                path.parent
                for name in (RAW_TRACE_FILE, EXPERT_COUNTS_FILE)
                for path in (run_dir / ROUTING_FOLDER).rglob(name)
                if not any(
                    part.startswith(UNFINISHED_PREFIX) for part in path.relative_to(run_dir).parts
                )
            }
        )
    except OSError as error:
        raise UsageError(f"{run_dir} cannot be searched: {error.strerror or error}") from error


def _is_countable(folder: Path) -> bool:
    # By name alone: what cannot be read is refused where it is read, not left out.
    return is_there(folder / RAW_TRACE_FILE) or is_there(folder / EXPERT_COUNTS_FILE)


def _count(folder: Path, phase: PhaseFilter) -> list[LayerCounts]:
    if is_there(folder / RAW_TRACE_FILE):
        return count_events(open_run_bundle(folder).checked_raw_events(), phase)
    if phase != "all":
        raise UsageError(f"{folder} holds counts without tokens: they have no phase; use all")
    return load_expert_counts(folder)


def _write(folder: Path, tables: list[Table]) -> list[str]:
    # Loads pandas and pyarrow: counting alone must not need them.
    from moe_weights.run_directory import RunDirectory
    from moe_weights.tables.writer import write_table

    return [
        write_table(
            RunDirectory(folder),
            table,
            folder / table.schema.name,
            requested_format="parquet",
            compression="zstd",
        ).path
        for table in tables
    ]


def _to_text(folder: Path, layers: Table, phase: str, paths: list[str]) -> str:
    columns = [
        [title, *(_to_cell(value) for value in layers.values[name])] for title, name in _SHOWN
    ]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    head = f"{folder}: {layers.n_rows} MoE layers, tokens: {phase}"
    return "\n".join([head, *lines, f"wrote {', '.join(paths)}", ""])


def _to_cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
