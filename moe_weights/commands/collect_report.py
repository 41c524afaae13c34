"""What collect_data says before and after the work."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from moe_weights.audit.coverage_ledger import coverage_line
from moe_weights.audit.run_health import MemoryUse
from moe_weights.checkpoint.locate import index_ignored_line
from moe_weights.checkpoint.model_config import console_line
from moe_weights.commands.collected_artifacts import ArtifactWriter
from moe_weights.commands.console import Reporter, format_bytes
from moe_weights.commands.survey import Survey
from moe_weights.findings import Finding


def say_survey(survey: Survey, reporter: Reporter) -> None:
    """Say what was found and what will be read."""
    files, plan = survey.files, survey.plan
    ignored = index_ignored_line(files)
    if ignored:
        reporter.line(ignored)
    if survey.model_config is not None:
        line = console_line(survey.model_config)
        if line:
            reporter.line(line)
    if survey.preset is not None:
        reporter.say("collect", f"preset: {survey.preset}")
    reporter.say(
        "collect",
        f"{len(survey.headers)} tensors in {len(files.files)} files ({files.scan_mode} mode); "
        f"{sum(len(unit.matrices) for unit in plan.units)} expert matrices to read, "
        f"{format_bytes(plan.nbytes)}; {len(plan.unmatched)} expert-looking tensors unmatched",
    )


def say_summary(
    writer: ArtifactWriter,
    survey: Survey,
    findings: Sequence[Finding],
    duration: float,
    memory: MemoryUse,
) -> None:
    """Say what was written, what deserves a look and what comes next.

    Args:
        writer: Knows what was written.
        survey: Knows what was expected and found.
        findings: All warnings of the run.
        duration: Wall time of the command, seconds.
        memory: What the process took.
    """
    reporter, rows = writer.reporter, writer.rows
    coverage = survey.plan.coverage
    if coverage.complete is False:
        reporter.warn(f"[warn] {coverage_line(coverage)}; see logs/coverage.json")
    else:
        reporter.say("collect", coverage_line(coverage))
    reporter.say("collect", f"finished in {duration:.1f} s: {writer.run.path}")
    reporter.say(
        "collect",
        f"peak memory {format_bytes(memory.peak)}, {format_bytes(memory.beyond_baseline)} beyond "
        "interpreter and libraries",
    )
    for name in ("tensor_inventory", "matrix_stats", "quant_sim", "unmatched_tensors"):
        if name in rows:
            reporter.say("collect", f"{name} rows: {rows[name]} ({writer.path_of(name)})")
    if findings:
        reporter.say("collect", f"warnings rows: {rows['warnings']} ({writer.path_of('warnings')})")
    for finding in findings[:10]:
        reporter.line(f"[warn] {finding.message}")
    if len(findings) > 10:
        reporter.line(f"[warn] ... and {len(findings) - 10} more in {writer.path_of('warnings')}")
    if not rows["matrix_stats"]:
        reporter.say("collect", "no expert matrix was found; see --plan and extract_rules")
    reporter.say("collect", "read first: logs/run_health.json, logs/write_manifest.json")
    run_dir = shlex.quote(str(writer.run.path))
    reporter.say("collect", f"next: python scripts/build_tables.py --run-dir {run_dir}")
