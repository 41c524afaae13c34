"""How a successful run went: counts that agree with the files, in `logs/run_health.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moe_weights.atomic_files import JsonValue
from moe_weights.audit.clock import utc_now_text
from moe_weights.audit.coverage_ledger import coverage_summary
from moe_weights.audit.index_report import IndexReport
from moe_weights.audit.run_context import index_path_text
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.config.schema import AnalysisConfig
from moe_weights.extract.plan import ExtractionPlan

_SHOWN_NAMES = 25
_INDEX_COUNTS = (
    "expected_shards",
    "scanned_shards",
    "missing_shards",
    "extra_scanned_shards",
    "missing_tensors",
    "extra_tensors",
    "extra_safetensors_files_on_disk",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCounts:
    """What was written.

    Attributes:
        rows: Row count per table that was written, by table name.
        wrote_index_report: `logs/index_report.json` was written.
    """

    rows: dict[str, int]
    wrote_index_report: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Physical memory of the process that ran the command, bytes.

    Attributes:
        max_memory: What it might take beyond `baseline`.
        baseline: Taken by the interpreter and its libraries before the work began.
        peak: The most that was ever taken.
    """

    max_memory: int
    baseline: int
    peak: int

    @property
    def beyond_baseline(self) -> int:
        """What the run itself took."""
        return max(self.peak - self.baseline, 0)


def run_health_json(
    run: dict[str, JsonValue],
    *,
    duration_seconds: float,
    config: AnalysisConfig,
    config_used: dict[str, JsonValue],
    files: CheckpointFiles,
    n_tensors: int,
    preset: str | None,
    plan: ExtractionPlan,
    report: IndexReport | None,
    outputs: OutputCounts,
    memory: MemoryUse,
) -> dict[str, JsonValue]:
    """Return `logs/run_health.json`.

    Args:
        run: The block that names the run; the model path is added.
        duration_seconds: Wall time of the command, seconds.
        config: The validated config.
        config_used: The same with all defaults and overrides, as JSON.
        files: What was scanned.
        n_tensors: Tensors in the scanned shards.
        preset: Name of the preset in use, or None.
        plan: What was extracted and what was not.
        report: The index held against the headers; None when no index was used.
        outputs: What was written.
        memory: What the process took.
    """
    # CONTRACT SURFACE: logs/run_health.json
    rows = outputs.rows
    expertish = plan.unmatched if config.scan.experts_only else ()
    return {
        "status": "success",
        "generated_at": utc_now_text(),
        "duration_seconds": round(duration_seconds, 3),
        "run": {**run, "model_path": str(files.model_path)},
        "config_used": config_used,
        "scan_summary": {"files_scanned": len(files.files), "tensors_observed": n_tensors},
        "extraction_summary": {
            "extracted_by_rule": len(plan.rule_extracted),
            "extracted_by_preset": len(plan.preset_extracted),
            "extracted_by_fallback": len(plan.fallback_extracted),
            "unmatched_expertish": len(expertish),
            "fallback_after_packed_split": list(plan.fallback_after_packed_split),
        },
        "memory": {
            "max_memory_bytes": memory.max_memory,
            "baseline_rss_bytes": memory.baseline,
            "peak_rss_bytes": memory.peak,
            "peak_beyond_baseline_bytes": memory.beyond_baseline,
        },
        "preset": preset,
        "coverage": coverage_summary(plan.coverage),
        "outputs_written": {
            "format": config.output.format,
            "tensor_inventory_rows": rows.get("tensor_inventory", 0),
            "matrix_stats_rows": rows.get("matrix_stats", 0),
            "quant_sim_rows": rows.get("quant_sim", 0),
            "unmatched_tensors_rows": rows.get("unmatched_tensors", 0),
            "warnings_rows": rows.get("warnings", 0),
            "wrote_unmatched_tensors": "unmatched_tensors" in rows,
            "wrote_warnings": "warnings" in rows,
            "wrote_index_report": outputs.wrote_index_report,
        },
        "tensor_name_formats": {
            "layer_regex": config.parsing.layer_regex,
            "expert_regex": config.parsing.expert_regex,
            "enabled_extract_rules": [
                {"name": rule.name, "match": rule.match, "ndim": rule.ndim}
                for rule in config.extract_rules
                if rule.enabled
            ],
            "proj_aliases": {
                proj: list(words) for proj, words in config.parsing.proj_aliases.items()
            },
        },
        "tensor_name_examples": {
            "rule_extracted": _some_distinct(plan.rule_extracted),
            "preset_extracted": _some_distinct(plan.preset_extracted),
            "fallback_extracted": _some_distinct(plan.fallback_extracted),
            "unmatched_expertish": _some_distinct([item.header.name for item in expertish]),
        },
        "derived_tensor_formats": [
            "<tensor>::<proj>",
            "<tensor>::split[<rows|cols>]::<proj>",
            "<either>::shared[<number>]",
        ],
        "index_summary": _index_summary(config, files, report),
    }


def _index_summary(
    config: AnalysisConfig, files: CheckpointFiles, report: IndexReport | None
) -> dict[str, JsonValue]:
    state = files.index
    summary: dict[str, JsonValue] = {
        "active": state.active,
        "parsed": state.parsed,
        "used_for_scan": state.used_for_scan,
        "index_path": index_path_text(state),
        "strict_index": config.scan.strict_index,
    }
    for name in _INDEX_COUNTS:
        summary[f"{name}_count"] = len(getattr(report, name)) if report else 0
    if report and report.index_metadata:
        summary["index_metadata"] = report.index_metadata
    return summary


def _some_distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))[:_SHOWN_NAMES]
