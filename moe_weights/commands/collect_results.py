"""From measured numbers to tables, findings and logs; the marks of success come last."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.audit.run_context import ModelPathSource, run_context_json
from moe_weights.audit.run_health import MemoryUse, OutputCounts, run_health_json
from moe_weights.audit.run_identity import run_block
from moe_weights.audit.weight_findings import weight_findings
from moe_weights.commands.collect_report import say_summary
from moe_weights.commands.collected_artifacts import ArtifactWriter
from moe_weights.commands.measured_rows import MatrixRows, QuantRows
from moe_weights.commands.memory import peak_resident_nbytes
from moe_weights.commands.run_settings import Simulation, quant_number_columns
from moe_weights.commands.scale_findings import scale_findings
from moe_weights.commands.survey import Survey
from moe_weights.commands.work import UnitResult
from moe_weights.config.load import LoadedConfig, effective_config_json
from moe_weights.findings import Finding
from moe_weights.measure.metric_table import metric_columns
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.findings import failure_findings
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.matrix_stats import matrix_stats_table
from moe_weights.tables.quant_sim import quant_sim_table


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedRun:
    """What a run has found, and how it was asked.

    Attributes:
        run: Where it is written.
        manifest: The run's manifest.
        loaded: The config.
        model_path_override: `--model-path`, or None.
        survey: What headers, index and config.json say.
        measure: How matrices were measured.
        simulation: Schemes and what quantised them.
        results: The numbers of all units, in plan order.
        max_memory: What the process might take beyond `baseline`, bytes.
        baseline: What interpreter and libraries take, bytes.
        started: When the command began, by the monotonic clock, seconds.
    """

    run: RunDirectory
    manifest: dict[str, JsonValue]
    loaded: LoadedConfig
    model_path_override: str | None
    survey: Survey
    measure: MeasureSettings
    simulation: Simulation
    results: Sequence[UnitResult]
    max_memory: int
    baseline: int
    started: float


def write_results(of: CollectedRun, writer: ArtifactWriter) -> None:
    """Write everything, and say what was found.

    Raises:
        OutputError: a file cannot be written; names what is complete.
        CheckpointError: a scale cannot be read any more.
    """
    survey, simulation = of.survey, of.simulation
    metrics = metric_columns(of.measure)
    rows = MatrixRows(
        survey.plan.units,
        of.results,
        metrics,
        has_several_stacks=survey.plan.has_several_stacks,
    )
    quant_rows = QuantRows(rows, of.results, simulation.schemes, simulation.backends)
    writer.withdraw_success()
    writer.write_header_tables(survey)
    writer.write_measured_tables(
        matrix_stats_table(metrics, rows),
        quant_sim_table(
            quant_rows,
            [scheme.name for scheme in simulation.schemes],
            quant_number_columns(of.loaded),
        ),
    )
    findings = writer.write_findings(
        survey,
        [
            *survey.findings,
            *simulation.findings,
            *failure_findings(quant_rows.failed()),
            *weight_findings(rows, rows.fingerprints, rows.constant),
            *scale_findings(rows, survey.plan.units, survey.files.root),
        ],
    )
    writer.write_survey_logs(survey)
    _write_logs(of, writer, findings)


def _write_logs(of: CollectedRun, writer: ArtifactWriter, findings: Sequence[Finding]) -> None:
    survey, config = of.survey, of.loaded.config
    identity = run_block(of.run, of.manifest)
    duration = time.monotonic() - of.started
    source = ModelPathSource(
        configured=str(of.loaded.configured_model_path),
        override=of.model_path_override,
        resolved=survey.files.model_path,
    )
    memory = MemoryUse(max_memory=of.max_memory, baseline=of.baseline, peak=peak_resident_nbytes())
    writer.write_success(
        run_context_json(
            identity, source, survey.files, config.scan, of.simulation.self_check_json
        ),
        run_health_json(
            identity,
            duration_seconds=duration,
            config=config,
            config_used=effective_config_json(of.loaded),
            files=survey.files,
            n_tensors=len(survey.headers),
            preset=survey.preset,
            plan=survey.plan,
            report=survey.report,
            outputs=OutputCounts(rows=writer.rows, wrote_index_report=survey.report is not None),
            memory=memory,
        ),
    )
    say_summary(writer, survey, findings, duration, memory)
