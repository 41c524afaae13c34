"""What a run was asked to do and which files it chose: `logs/run_context.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_weights.atomic_files import JsonValue
from moe_weights.audit.clock import utc_now_text
from moe_weights.checkpoint.locate import CheckpointFiles
from moe_weights.checkpoint.shard_index import IndexState
from moe_weights.config.schema import ScanConfig

_SHOWN_FILES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPathSource:
    """Where the model path came from.

    Attributes:
        configured: `model_path` of the config as written; "" when it is empty.
        override: `--model-path`, or None.
        resolved: What was scanned, absolute.
    """

    configured: str
    override: str | None
    resolved: Path


def run_context_json(
    run: dict[str, JsonValue],
    model_path: ModelPathSource,
    files: CheckpointFiles,
    scan: ScanConfig,
    self_check: JsonValue,
) -> dict[str, JsonValue]:
    """Return `logs/run_context.json`.

    Args:
        run: The block that names the run.
        model_path: Configured and resolved path.
        files: What was found there.
        scan: The scan settings.
        self_check: How native quantisation compares with MLX here.
    """
    # CONTRACT SURFACE: logs/run_context.json
    configured = model_path.configured
    overrides: dict[str, JsonValue] = {}
    if model_path.override is not None:
        overrides["model_path"] = str(model_path.resolved)
    return {
        "generated_at": utc_now_text(),
        "run": run,
        "model_path": {
            "configured": _absolute_text(configured) if configured else "",
            "resolved": str(model_path.resolved),
            "source": "config" if model_path.override is None else "cli_override",
        },
        "cli_overrides": overrides,
        "scan_plan": {
            "use_safetensors_index_json": scan.use_safetensors_index_json,
            "strict_index": scan.strict_index,
            "model_path_kind": files.kind,
            "index_discovered_but_ignored_due_to_file_model_path": files.index_ignored_due_to_file,
            "extensions": list(scan.extensions),
            "max_files": scan.max_files,
            "experts_only": scan.experts_only,
            "include_shared_expert": scan.include_shared_expert,
            "inventory_all_tensors": scan.inventory_all_tensors,
            "scan_mode": files.scan_mode,
            "scanned_files_count": len(files.files),
            "scanned_files_example": list(files.files[:_SHOWN_FILES]),
        },
        "index": _index_json(files.index),
        "quantisation_self_check": self_check,
    }


def index_path_text(state: IndexState) -> str | None:
    """Return the index's path, also when it could not be parsed; None when there is none."""
    return None if state.index_path is None else str(state.index_path)


def _absolute_text(path: str) -> str:
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError:  # the home of a user who is not known here; `--model-path` replaced it
        return path


def _index_json(state: IndexState) -> dict[str, JsonValue]:
    content: dict[str, JsonValue] = {
        "status": state.status,
        "searched": state.searched,
        "found": state.found,
        "parsed": state.parsed,
        "active": state.active,
        "used_for_scan": state.used_for_scan,
        "index_path": index_path_text(state),
    }
    if state.error:
        content["error"] = state.error
    return content
