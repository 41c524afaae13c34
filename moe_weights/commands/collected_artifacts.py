"""Which files collect_data leaves behind, and in which order they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moe_weights.atomic_files import JsonValue, remove_file, write_json_atomic
from moe_weights.audit.coverage_ledger import coverage_json
from moe_weights.audit.index_report import index_report_json
from moe_weights.audit.projection_report import (
    empty_alias_finding,
    projection_findings,
    projection_report_table,
)
from moe_weights.audit.write_manifest import (
    TABLES_FAILURE,
    TABLES_WRITE_MANIFEST,
    WRITE_MANIFEST,
    write_collect_manifest,
)
from moe_weights.checkpoint.dtype_codes import dtype_name
from moe_weights.checkpoint.model_config import ModelConfig, trimmed_raw
from moe_weights.columns import Row, Table
from moe_weights.commands.console import Reporter
from moe_weights.commands.survey import Survey
from moe_weights.config.schema import AnalysisConfig
from moe_weights.errors import OutputError
from moe_weights.extract.projections import ProjectionAliases
from moe_weights.extract.role_assignment import RoleAssignment
from moe_weights.findings import Finding
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.coverage import coverage_table
from moe_weights.tables.tensor_inventory import tensor_inventory_schema
from moe_weights.tables.unmatched_tensors import UNMATCHED_TENSORS_SCHEMA
from moe_weights.tables.warnings import warnings_table
from moe_weights.tables.writer import ArtifactEntry, remove_table, write_table

RUN_FAILURE = "run_failure.json"
_INDEX_REPORT = "index_report.json"
_MARKS_OF_SUCCESS = (
    WRITE_MANIFEST,
    TABLES_WRITE_MANIFEST,
    "run_health.json",
    "run_context.json",
)


@dataclass(slots=True, kw_only=True)
class ArtifactWriter:
    """Writes the artifacts of one run and remembers what was written.

    Attributes:
        run: The run.
        config: Chooses format, compression and optional tables.
        reporter: Told about fallbacks.
        entries: What was written so far.
    """

    run: RunDirectory
    config: AnalysisConfig
    reporter: Reporter
    entries: list[ArtifactEntry] = field(default_factory=list)

    def withdraw_success(self) -> None:
        """Remove what says that the run is complete; it comes back last.

        Summaries of an earlier collection go as well: beside new data they would be wrong numbers
        that nobody notices. So does why they could not be made.

        Raises:
            OutputError: a file cannot be removed.
        """
        for name in (*_MARKS_OF_SUCCESS, TABLES_FAILURE):
            remove_file(self.run.log_path(name))
        for path in self.run.summary_paths():
            remove_file(path)

    def write_header_tables(self, survey: Survey) -> None:
        """Write what headers alone tell: inventory, unmatched tensors, coverage."""
        self._table(_inventory_table(survey, self.config), "data")
        if self.config.debug.dump_unmatched_tensors:
            self._table(_unmatched_table(survey), "data")
        else:
            remove_table(self.run.data_path("unmatched_tensors"))
        self._table(coverage_table(survey.plan.coverage), "data")

    def write_measured_tables(self, matrix_stats: Table, quant_sim: Table) -> None:
        """Write the two tables made from weights.

        They are of one run or not both there: an earlier quant_sim beside a new matrix_stats, left
        by a kill between the two, would be summarised as if they belonged together.
        """
        remove_table(self.run.data_path("quant_sim"))
        self._table(matrix_stats, "data")
        self._table(quant_sim, "data")

    def remove_measured_tables(self) -> None:
        """Remove the two tables of an earlier run, whose numbers this config does not stand for."""
        for name in ("matrix_stats", "quant_sim"):
            remove_table(self.run.data_path(name))

    def write_findings(self, survey: Survey, findings: Sequence[Finding]) -> list[Finding]:
        """Write the projection report and the warnings, each only if it has rows.

        Returns:
            All warnings, those about projections included.
        """
        unresolved = survey.plan.unresolved_projections
        everything = list(findings)
        if unresolved:
            aliases = ProjectionAliases(self.config.parsing.proj_aliases)
            report = self._table(projection_report_table(unresolved, aliases), "logs")
            everything += projection_findings(unresolved, report.path)
        else:
            remove_table(self.run.log_table_path("proj_canonicalization_report"))
        n_dropped = sum(event.action == "dropped_strict" for event in unresolved)
        if n_dropped and not self.config.parsing.proj_aliases:
            paths = [entry.path for entry in self.entries if entry.name == "unmatched_tensors"]
            everything.append(empty_alias_finding(n_dropped, paths[0] if paths else None))
        if everything:
            self._table(warnings_table(everything), "logs")
        else:
            remove_table(self.run.log_table_path("warnings"))
        return everything

    def write_survey_logs(self, survey: Survey) -> None:
        """Write the JSON logs about index and config.json, or remove those of an earlier run."""
        self._json_or_none(
            _INDEX_REPORT, None if survey.report is None else index_report_json(survey.report)
        )
        raw, budget = _model_config_logs(survey.model_config)
        self._json_or_none("model_config.raw.json", raw)
        self._json_or_none("model_shape_budget.json", budget)
        self._json_or_none("coverage.json", coverage_json(survey.plan.coverage))

    def write_success(
        self, run_context: dict[str, JsonValue], run_health: dict[str, JsonValue]
    ) -> None:
        """Write the logs that say the run is complete, the manifest last.

        Raises:
            OutputError: naming what is complete.
        """
        try:
            write_json_atomic(self.run.log_path("run_context.json"), run_context)
            write_json_atomic(self.run.log_path("run_health.json"), run_health)
            remove_file(self.run.log_path(RUN_FAILURE))
            write_collect_manifest(
                self.run,
                self.entries,
                requested_format=self.config.output.format,
                requested_compression=self.config.output.compression,
            )
        except OutputError as error:
            raise self._incomplete(error) from error

    @property
    def rows(self) -> dict[str, int]:
        """Row count of each table written, by name."""
        return {entry.name: entry.rows for entry in self.entries}

    def path_of(self, name: str) -> str:
        """Return where a table was written, relative to the run directory; "" if it was not."""
        return next((entry.path for entry in self.entries if entry.name == name), "")

    def _table(self, table: Table, folder: str) -> ArtifactEntry:
        name = table.schema.name
        stem = self.run.data_path(name) if folder == "data" else self.run.log_table_path(name)
        try:
            entry = write_table(
                self.run,
                table,
                stem,
                requested_format=self.config.output.format,
                compression=self.config.output.compression,
            )
        except OutputError as error:
            raise self._incomplete(error) from error
        self.entries.append(entry)
        if entry.console_warning:
            self.reporter.warn(entry.console_warning)
        return entry

    def _json_or_none(self, name: str, content: dict[str, JsonValue] | None) -> None:
        path = self.run.log_path(name)
        try:
            if content is None:
                remove_file(path)
            else:
                write_json_atomic(path, content)
        except OutputError as error:
            raise self._incomplete(error) from error

    def _incomplete(self, error: OutputError) -> OutputError:
        complete = ", ".join(entry.path for entry in self.entries)
        told = f"complete so far: {complete}" if complete else "no table is complete yet"
        return OutputError(f"{error}; {told}")


def _inventory_table(survey: Survey, config: AnalysisConfig) -> Table:
    index = survey.files.index.index
    is_index_mode = survey.report is not None
    everything = config.scan.inventory_all_tensors
    in_scope = survey.plan.in_scope
    roles = RoleAssignment(survey.plan)
    rows: list[Row] = []
    for header in survey.headers:
        if not everything and header.name not in in_scope:
            continue
        row: dict[str, object] = {
            "file": header.file,
            "tensor_name": header.name,
            "dtype": dtype_name(header.dtype_code),
            "shape": header.shape,
            "ndim": header.ndim,
            "nbytes": header.nbytes,
            "role": str(roles.role(header.name)),
        }
        if is_index_mode and index is not None:
            shard = index.weight_map.get(header.name)
            row |= {"in_index": shard is not None, "index_shard": shard or ""}
        rows.append(row)  # type: ignore[arg-type] # every value is a cell
    return Table.from_rows(tensor_inventory_schema(index_mode=is_index_mode), rows)


def _unmatched_table(survey: Survey) -> Table:
    return Table.from_rows(
        UNMATCHED_TENSORS_SCHEMA,
        (
            {
                "file": tensor.header.file,
                "tensor_name": tensor.header.name,
                "dtype": dtype_name(tensor.header.dtype_code),
                "shape": tensor.header.shape,
                "ndim": tensor.header.ndim,
                "reason": str(tensor.reason),
            }
            for tensor in survey.plan.unmatched
        ),
    )


def _model_config_logs(
    config: ModelConfig | None,
) -> tuple[dict[str, JsonValue] | None, dict[str, JsonValue] | None]:
    if config is None:
        return None, None
    budget: dict[str, JsonValue] = {
        "config_path": str(config.path),
        "shape_budget": dict(config.shape_budget),
        "origins": dict(config.origins),
    }
    return dict(trimmed_raw(config)), budget
