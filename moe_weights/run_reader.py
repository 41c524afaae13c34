"""What did a run find? Its tables as pandas frames and its logs as dicts, for notebooks.

    run = moe_weights.open_run("runs/org/model/first")
    run.quant_sim.groupby("scheme")["w_rel_fro"].median()

Everything is read when it is first asked for; nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import pandas as pd

from moe_weights.atomic_files import JsonValue
from moe_weights.audit.run_identity import find_run, run_block
from moe_weights.errors import CheckpointError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.json_object import JsonObject, load_json_object
from moe_weights.tables.reader import (
    TableFolder,
    locate_table,
    manifest_entries,
    read_table_file,
)
from moe_weights.tables.warnings import WARNINGS_SCHEMA
from moe_weights.tables.writer import SUFFIXES


def open_run(path: str | os.PathLike[str]) -> OpenedRun:
    """Open a run directory for reading.

    Args:
        path: `<root>/<model-id>/<run-name>`; `~` is expanded.

    Raises:
        UsageError: there is no run directory at `path`.
    """
    run, run_manifest = find_run(Path(path))
    return OpenedRun(run, run_manifest)


class SummaryTables(Mapping[str, pd.DataFrame]):
    """The tables of `tables/` by name, each read when it is first asked for."""

    def __init__(self, run: RunDirectory) -> None:
        """List the tables of `run`: those its manifest names, or without one those on disk.

        Raises:
            CheckpointError: the manifest cannot be read.
        """
        self._run = run
        self._frames: dict[str, pd.DataFrame] = {}
        entries = manifest_entries(run, "tables")
        if entries is None:
            files = run.table_path("").glob("*")
            entries = {file.stem: {} for file in files if file.suffix in SUFFIXES.values()}
        self._names = tuple(sorted(entries))

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table.

        Raises:
            KeyError: there is no such table; lists those there are.
            CheckpointError: it cannot be read.
        """
        if name not in self._names:
            there_are = ", ".join(self._names) or "none yet: run build_tables first"
            raise KeyError(f'no table "{name}"; there are: {there_are}')
        if name not in self._frames:
            self._frames[name] = read_table_file(locate_table(self._run, name, "tables").path)
        return self._frames[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"SummaryTables({', '.join(self._names)})"


class OpenedRun:
    """A run directory that is read piece by piece.

    Frames hold int64 (Int64 with nulls), float64 (NaN for null), bool and object columns. A piece
    that the run does not have raises `CheckpointError` and says which command writes it.
    """

    def __init__(self, run: RunDirectory, run_manifest: JsonObject) -> None:
        """Take a run that `find_run` found; use `open_run`."""
        self._run = run
        self.run_manifest = run_manifest

    @property
    def path(self) -> Path:
        """The run directory, absolute."""
        return self._run.path

    @cached_property
    def matrix_stats(self) -> pd.DataFrame:
        """One row per expert matrix."""
        return self._frame("matrix_stats", "data")

    @cached_property
    def quant_sim(self) -> pd.DataFrame:
        """One row per expert matrix and quantisation scheme."""
        return self._frame("quant_sim", "data")

    @cached_property
    def inventory(self) -> pd.DataFrame:
        """One row per tensor of the checkpoint."""
        return self._frame("tensor_inventory", "data")

    @cached_property
    def unmatched(self) -> pd.DataFrame:
        """One row per expert-looking tensor that was not measured.

        Only there when `debug.dump_unmatched_tensors` is on.
        """
        return self._frame("unmatched_tensors", "data")

    @cached_property
    def warnings(self) -> pd.DataFrame:
        """One row per warning; zero rows when there was none."""
        if "warnings" not in self._artifacts:
            return pd.DataFrame({name: [] for name in WARNINGS_SCHEMA.column_names})
        return self._frame("warnings", "logs")

    @cached_property
    def tables(self) -> SummaryTables:
        """The summaries, for example `run.tables["A_weight_layer_summary"]`."""
        return SummaryTables(self._run)

    @cached_property
    def manifest(self) -> JsonObject:
        """`logs/write_manifest.json`: what collect_data wrote."""
        return self._log("write_manifest.json")

    @cached_property
    def health(self) -> JsonObject:
        """`logs/run_health.json`: counts, names and the config that was used."""
        return self._log("run_health.json")

    @cached_property
    def context(self) -> JsonObject:
        """`logs/run_context.json`: paths, overrides, scan plan and index status."""
        return self._log("run_context.json")

    @cached_property
    def coverage(self) -> JsonObject:
        """`logs/coverage.json`: what config.json declares, held against what was found.

        Also there when the run ended with exit code 4. `data/coverage` has the same as a table.
        """
        return self._log("coverage.json")

    @cached_property
    def config(self) -> JsonObject:
        """`analysis_config.json` as it is now; `health["config_used"]` is what the run used."""
        return load_json_object(self._run.config_path)

    @cached_property
    def failure(self) -> JsonObject | None:
        """Why the last collect_data failed; None when it did not."""
        return self._optional_log("run_failure.json")

    @cached_property
    def tables_failure(self) -> JsonObject | None:
        """Why the last build_tables failed; None when it did not."""
        return self._optional_log("tables_failure.json")

    def __repr__(self) -> str:
        """Say what is there and what to look at first; damaged pieces are named, not raised."""
        lines = [
            f"OpenedRun({str(self.path)!r})",
            "  model     {model_id}, run {run_name}, created {created_at}".format_map(
                run_block(self._run, self.run_manifest)
            ),
        ]
        try:
            lines += [f"  {label:<9} {text}" for label, text in self._summary()]
        except CheckpointError as error:
            lines.append(f"  damaged   {error}")
        return "\n".join(lines)

    @cached_property
    def _artifacts(self) -> dict[str, JsonObject]:
        entries = manifest_entries(self._run, "logs")
        if entries is None:
            raise CheckpointError(
                f"{self._run.log_path('write_manifest.json')} does not exist; "
                f"run collect_data --run-dir {self.path} first"
            )
        return entries

    @property
    def _is_incomplete(self) -> bool:
        has_ledger = self._run.log_path("coverage.json").exists()
        return has_ledger and self.coverage.get("complete") is False

    @property
    def _n_warnings(self) -> JsonValue:
        return self._artifacts.get("warnings", {}).get("rows", 0)

    def _frame(self, name: str, folder: TableFolder) -> pd.DataFrame:
        return read_table_file(locate_table(self._run, name, folder).path)

    def _log(self, name: str) -> JsonObject:
        path = self._run.log_path(name)
        if not path.exists():
            raise CheckpointError(
                f"{path} does not exist; run collect_data --run-dir {self.path} first"
            )
        return load_json_object(path)

    def _optional_log(self, name: str) -> JsonObject | None:
        path = self._run.log_path(name)
        return load_json_object(path) if path.exists() else None

    def _summary(self) -> Iterator[tuple[str, str]]:
        if self.failure is not None:
            yield "status", f"collect_data failed: {_error_text(self.failure)}"
        elif not self._run.log_path("write_manifest.json").exists():
            yield "status", "not collected yet"
        else:
            yield "status", f"collected {self.manifest.get('generated_at')}"
        if self._run.log_path("coverage.json").exists():
            yield "coverage", _verdict(self.coverage.get("complete"))
        if self._run.log_path("write_manifest.json").exists():
            rows = [
                f"{name} {entry.get('rows')}"
                for name, entry in sorted(self._artifacts.items())
                if name != "warnings"
            ]
            if rows:
                yield "rows", " · ".join(rows)
            yield "warnings", str(self._n_warnings)
        if self.tables_failure is not None:
            yield "tables", f"build_tables failed: {_error_text(self.tables_failure)}"
        else:
            yield "tables", ", ".join(self.tables) or "none yet"
        yield "look at", self._first_look()

    def _first_look(self) -> str:
        if self.failure is not None:
            return "run.failure"
        if not self._run.log_path("write_manifest.json").exists():
            return f"nothing yet: run collect_data --run-dir {self.path}"
        first = "run.warnings, then " if self._n_warnings else ""
        if self._is_incomplete:
            first = "run.coverage, " + first
        if "B_quant_global_summary" in self.tables:
            return first + 'run.tables["B_quant_global_summary"]'
        return first + "run.matrix_stats; run.tables after build_tables"


def _verdict(complete: JsonValue) -> str:
    if complete is None:
        return "unknown: config.json declares no experts, not how many, or not in which layers"
    return "complete" if complete else "INCOMPLETE"


def _error_text(failure: JsonObject) -> str:
    error = failure.get("error")
    if not isinstance(error, Mapping):
        return "unknown error"
    return f"{error.get('type')}: {error.get('message')}"
