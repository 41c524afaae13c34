"""From a checkpoint to `data/` and `logs/`.

1. Take the run's lock, load the config.
2. Survey: headers, index, config.json, plan; strict refusals happen here.
3. Measure the plan's units; finished batches are committed as parts.
4. Write tables and logs, the write manifest last; remove the parts.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import JsonValue, RunLock, check_writable
from moe_weights.audit.failure import write_failure
from moe_weights.audit.run_context import ModelPathSource, run_context_json
from moe_weights.audit.run_health import OutputCounts, run_health_json
from moe_weights.audit.run_identity import find_run, run_block
from moe_weights.audit.weight_findings import weight_findings
from moe_weights.checkpoint.headers import file_identity
from moe_weights.commands.collect_report import say_summary, say_survey
from moe_weights.commands.collected_artifacts import RUN_FAILURE, ArtifactWriter
from moe_weights.commands.console import Reporter
from moe_weights.commands.measuring import measure_units
from moe_weights.commands.parts import PartStore, run_fingerprint
from moe_weights.commands.plan_report import print_plan
from moe_weights.commands.refusals import refuse_by_plan
from moe_weights.commands.scale_findings import scale_findings
from moe_weights.commands.survey import Survey, survey_checkpoint
from moe_weights.commands.work import UnitResult, WorkSettings
from moe_weights.config.load import LoadedConfig, effective_config_json, load_config
from moe_weights.errors import ExitCode, ExtractionError, MoeWeightsError, OutputError
from moe_weights.findings import Finding, FindingKind
from moe_weights.measure.matrix_metrics import metric_columns
from moe_weights.measure.settings import MeasureSettings
from moe_weights.quantize.findings import failure_findings
from moe_weights.quantize.mlx_backend import MlxBackend
from moe_weights.quantize.round_trip import SchemeSpec
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.matrix_stats import matrix_stats_table
from moe_weights.tables.quant_sim import quant_sim_table

_MLX_MISSING = "mlx is not importable; skipping quantization simulations"


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """What the command line says.

    Attributes:
        run_dir: The run directory.
        model_path: Replaces the config's `model_path`; None keeps it.
        plan_only: Print the plan and stop before the first weight byte; nothing is written.
        workers: Threads that measure.
        quiet: Say nothing but warnings.
    """

    run_dir: Path
    model_path: str | None = None
    plan_only: bool = False
    workers: int = 1
    quiet: bool = False


def collect_data(options: CollectOptions) -> int:
    """Collect statistics and simulated quantisation error of every expert matrix.

    Returns:
        0; every failure raises.

    Raises:
        MoeWeightsError: see `errors` for the kinds and their exit codes.
    """
    started = time.monotonic()
    reporter = Reporter(quiet=options.quiet)
    run, manifest = find_run(options.run_dir)
    if options.plan_only:
        return _plan_only(run, options, reporter)
    with RunLock(run.lock_path):
        check_writable([run.path / folder for folder in ("cache", "data", "logs", "tables")])
        try:
            _collect(run, manifest, options, reporter, started)
        except (Exception, KeyboardInterrupt) as error:
            # Not to swallow anything: the failure is recorded and goes on as it is.
            with contextlib.suppress(OutputError):
                write_failure(
                    run.log_path(RUN_FAILURE),
                    run,
                    manifest,
                    error,
                    with_traceback=not isinstance(error, MoeWeightsError | KeyboardInterrupt),
                )
            raise
    return int(ExitCode.OK)


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _plan_only(run: RunDirectory, options: CollectOptions, reporter: Reporter) -> int:
    loaded = load_config(run.config_path, model_path_override=options.model_path)
    survey = survey_checkpoint(loaded)
    print_plan(survey, reporter)
    refuse_by_plan(survey, loaded.config)
    return int(ExitCode.OK)


def _collect(
    run: RunDirectory,
    manifest: dict[str, JsonValue],
    options: CollectOptions,
    reporter: Reporter,
    started: float,
) -> None:
    loaded = load_config(run.config_path, model_path_override=options.model_path)
    config = loaded.config
    survey = survey_checkpoint(loaded)
    say_survey(survey, reporter)
    writer = ArtifactWriter(run=run, config=config, reporter=reporter)
    try:
        refuse_by_plan(survey, loaded.config)
    except ExtractionError:
        writer.withdraw_success()
        writer.remove_measured_tables()
        writer.write_header_tables(survey)
        writer.write_findings(survey, survey.findings)
        writer.write_survey_logs(survey)
        raise
    schemes, quant_findings = _usable_schemes(loaded)
    settings = WorkSettings(
        root=survey.files.root,
        measure=_measure_settings(loaded),
        sample_folder=run.sampled_indices_path,
        schemes=schemes,
        device=config.mlx.device,
        has_several_stacks=survey.plan.has_several_stacks,
    )
    effective = effective_config_json(loaded)
    store = _open_store(run, survey, effective, schemes, reporter)
    try:
        with ThreadPoolExecutor(max_workers=options.workers) as executor:
            result = measure_units(
                survey.plan.units,
                settings,
                store=store,
                executor=executor,
                reporter=reporter,
                progress_every_files=config.debug.print_progress_every_files,
            )
    except OutputError as error:
        raise OutputError(
            f"{error}; complete so far: the finished parts below cache/parts, which the next run "
            "takes up; tables and logs are as they were before"
        ) from error
    writer.withdraw_success()
    writer.write_header_tables(survey)
    writer.write_measured_tables(
        matrix_stats_table(metric_columns(settings.measure), result.matrix_rows),
        quant_sim_table(result.quant_rows, [scheme.name for scheme in schemes]),
    )
    findings = writer.write_findings(
        survey, [*survey.findings, *quant_findings, *_measured_findings(result, survey)]
    )
    writer.write_survey_logs(survey)
    duration = time.monotonic() - started
    identity = run_block(run, manifest)
    source = ModelPathSource(
        configured=str(loaded.configured_model_path),
        override=options.model_path,
        resolved=survey.files.model_path,
    )
    writer.write_success(
        run_context_json(identity, source, survey.files, config.scan),
        run_health_json(
            identity,
            duration_seconds=duration,
            config=config,
            config_used=effective,
            files=survey.files,
            n_tensors=len(survey.headers),
            preset=survey.preset,
            plan=survey.plan,
            report=survey.report,
            outputs=OutputCounts(rows=writer.rows, wrote_index_report=survey.report is not None),
        ),
    )
    store.discard()
    say_summary(writer, survey, findings, duration)


def _usable_schemes(loaded: LoadedConfig) -> tuple[tuple[SchemeSpec, ...], list[Finding]]:
    """Return the schemes that can be simulated here, and why none can."""
    config = loaded.config
    schemes = tuple(
        SchemeSpec(
            name=scheme.name, mode=scheme.mode, bits=scheme.bits, group_size=scheme.group_size
        )
        for scheme in config.quant_schemes
        if scheme.enabled
    )
    if not config.mlx.enabled or not schemes:
        return (), []
    try:
        MlxBackend(config.mlx.device)
    except ImportError as error:
        warnings.warn(_MLX_MISSING, RuntimeWarning, stacklevel=2)
        finding = Finding(
            kind=FindingKind.QUANT_SIM,
            message=f"[quant_sim] {_MLX_MISSING}",
            hint=f"install mlx, or set mlx.enabled to false ({error})",
        )
        return (), [finding]
    return schemes, []


def _measure_settings(loaded: LoadedConfig) -> MeasureSettings:
    stats = loaded.config.stats
    return MeasureSettings(
        eps=stats.eps,
        percentiles_abs=stats.percentiles_abs,
        group_outlier_percentile=stats.group_outlier_percentile,
        group_sizes=tuple(dict.fromkeys(stats.group_sizes_lastdim)),
        sample_per_matrix=stats.sample_per_matrix,
        sample_seed=stats.sample_seed,
    )


def _open_store(
    run: RunDirectory,
    survey: Survey,
    effective: dict[str, JsonValue],
    schemes: tuple[SchemeSpec, ...],
    reporter: Reporter,
) -> PartStore:
    identities = [file_identity(survey.files.root, file) for file in survey.files.files]
    # Whether MLX could be imported is no part of the config, but the rows depend on it.
    fingerprint = run_fingerprint(
        identities, {**effective, "simulated": [scheme.name for scheme in schemes]}
    )
    store = PartStore(run.parts_path, fingerprint)
    if store.discard_others():
        reporter.say(
            "collect",
            "parts of an unfinished run were discarded: checkpoint, config or code has changed",
        )
    return store


def _measured_findings(result: UnitResult, survey: Survey) -> list[Finding]:
    return [
        *failure_findings(result.quant_rows),
        *weight_findings(result.matrix_rows, result.digests, result.constant),
        *scale_findings(result.matrix_rows, survey.plan.units, survey.files.root),
    ]
