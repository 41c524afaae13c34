"""From a checkpoint to `data/` and `logs/`.

1. Take the run's lock, load the config.
2. Survey: headers, index, config.json, plan; strict refusals happen here.
3. Hold the native quantiser against MLX, open the workers.
4. Measure the plan's units; finished batches are committed as parts.
5. Write tables and logs, the write manifest last; remove the parts.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import JsonValue, RunLock, check_writable
from moe_weights.audit.failure import write_failure
from moe_weights.audit.run_identity import find_run
from moe_weights.commands.collect_report import say_survey
from moe_weights.commands.collect_results import CollectedRun, write_results
from moe_weights.commands.collected_artifacts import RUN_FAILURE, ArtifactWriter
from moe_weights.commands.console import Reporter
from moe_weights.commands.measuring import measure_units
from moe_weights.commands.memory import (
    DEFAULT_MAX_MEMORY,
    give_back_large_buffers,
    resident_nbytes,
)
from moe_weights.commands.open_parts import open_parts, refuse_changed_shards
from moe_weights.commands.parts import PartStore
from moe_weights.commands.plan_report import print_plan
from moe_weights.commands.refusals import refuse_by_plan
from moe_weights.commands.run_settings import (
    choose_simulation,
    measure_settings,
)
from moe_weights.commands.survey import Survey, survey_checkpoint
from moe_weights.commands.unit_memory import memory_for_units
from moe_weights.commands.warm_up import announce_compilation, compile_measuring
from moe_weights.commands.work import UnitResult, WorkSettings
from moe_weights.commands.workers import ExecutorKind, open_workers
from moe_weights.config.load import effective_config_json, load_config
from moe_weights.config.schema import AnalysisConfig
from moe_weights.errors import (
    ExitCode,
    ExtractionError,
    MoeWeightsError,
    OutputError,
    UsageError,
)
from moe_weights.measure.sampling import write_sample_cache
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.writer import load_parquet


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """What the command line says.

    Attributes:
        run_dir: The run directory.
        model_path: Replaces the config's `model_path`; None keeps it.
        plan_only: Print the plan and stop before the first weight byte; nothing is written.
        workers: How many batches are measured at a time.
        executor: Who measures.
        scheduler: Address of a Dask scheduler; None starts a cluster on this machine.
        max_memory: Bytes beyond the interpreter and its libraries; for each process that measures
            where these are several.
        restart: Measure everything anew.
        quiet: Say nothing but warnings.
    """

    run_dir: Path
    model_path: str | None = None
    plan_only: bool = False
    workers: int = 1
    executor: ExecutorKind = "threads"
    scheduler: str | None = None
    max_memory: int = DEFAULT_MAX_MEMORY
    restart: bool = False
    quiet: bool = False


def collect_data(options: CollectOptions) -> int:
    """Collect statistics and simulated quantisation error of every expert matrix.

    Returns:
        0; every failure raises.

    Raises:
        MoeWeightsError: see `errors` for the kinds and their exit codes.
    """
    if options.scheduler is not None and options.executor != "dask":
        raise UsageError(
            f"--scheduler goes with --executor dask, not with {options.executor}; leave one out"
        )
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
    measure_settings(loaded)
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
    give_back_large_buffers()
    load_parquet()
    at_start = resident_nbytes()
    loaded = load_config(run.config_path, model_path_override=options.model_path)
    config = loaded.config
    measure = measure_settings(loaded)
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
    planned = resident_nbytes()
    announce_compilation(reporter)
    simulation = choose_simulation(loaded, survey)
    if options.executor == "threads":
        compile_measuring(survey.plan.units, measure)
    # MLX and compiled code count among the libraries; what the plan takes does not.
    baseline = at_start + max(resident_nbytes() - planned, 0)
    settings = WorkSettings(
        root=survey.files.root,
        measure=measure,
        schemes=simulation.schemes,
        backends=simulation.backends,
        memory_nbytes=memory_for_units(
            survey.plan.units,
            measure,
            n_schemes=len(simulation.schemes),
            uses_mlx=simulation.backends.uses_mlx,
            max_memory=options.max_memory,
            taken=max(planned - at_start, 0),
        ),
        scratch_folder=run.path / "cache",
    )
    effective = effective_config_json(loaded)
    store = open_parts(run, survey, effective, simulation, reporter, restart=options.restart)
    if measure.sample_per_matrix is not None:
        for n_elements in {matrix.view.rows * matrix.view.cols for matrix in survey.plan.matrices}:
            write_sample_cache(
                run.sampled_indices_path,
                n_elements,
                measure.sample_per_matrix,
                measure.sample_seed,
            )
    try:
        results = _measure(survey, settings, store, options, reporter, config)
        refuse_changed_shards(survey)
        write_results(
            CollectedRun(
                run=run,
                manifest=manifest,
                loaded=loaded,
                model_path_override=options.model_path,
                survey=survey,
                measure=measure,
                simulation=simulation,
                results=results,
                max_memory=options.max_memory,
                baseline=baseline,
                started=started,
            ),
            writer,
        )
    except OutputError as error:
        raise OutputError(f"{error}; {store.kept_text}") from error
    store.discard()


def _measure(
    survey: Survey,
    settings: WorkSettings,
    store: PartStore,
    options: CollectOptions,
    reporter: Reporter,
    config: AnalysisConfig,
) -> list[UnitResult]:
    try:
        with open_workers(options.executor, options.workers, options.scheduler) as pool:
            return measure_units(
                survey.plan.units,
                settings,
                store=store,
                pool=pool,
                reporter=reporter,
                progress_every_files=config.debug.print_progress_every_files,
            )
    except OutputError as error:
        raise OutputError(f"{error}; tables and logs are as they were before") from error
