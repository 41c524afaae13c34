"""Which run is this? `manifest.json` read back, and the block that every log quotes from it."""

from __future__ import annotations

from pathlib import Path

from moe_weights.atomic_files import JsonValue
from moe_weights.checkpoint.file_names import is_utf8
from moe_weights.errors import CheckpointError, UsageError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.json_object import load_json_object


def find_run(run_dir: Path) -> tuple[RunDirectory, dict[str, JsonValue]]:
    """Return the run at a path and the content of its `manifest.json`.

    Args:
        run_dir: User-expanded and made absolute; symbolic links are kept.

    Raises:
        UsageError: there is no such run directory, its path is not UTF-8, or it lacks a readable
            `manifest.json` or an `analysis_config.json`.
    """
    try:
        run = RunDirectory(run_dir.expanduser().absolute())
    except RuntimeError as error:
        raise UsageError(f"run directory {run_dir}: {error}; write the path in full") from error
    if not is_utf8(run.path):
        raise UsageError(
            f"run directory {str(run.path)!r} is not UTF-8, so no log can name it; "
            "rename the folder"
        )
    try:
        if not run.path.is_dir():
            raise UsageError(f"run directory not found: {run.path}; run init_run first")
        missing = [path.name for path in (run.manifest_path, run.config_path) if not path.is_file()]
    except OSError as error:
        raise UsageError(
            f"run directory cannot be reached: {run.path}: {error.strerror}; check the path and "
            "its permissions"
        ) from error
    if missing:
        raise UsageError(
            f"{run.path} is not a run directory: it lacks {' and '.join(missing)}; give the folder "
            "<root>/<model-id>/<run-name> that init_run printed"
        )
    try:
        return run, load_json_object(run.manifest_path)
    except CheckpointError as error:
        raise UsageError(
            f"{run.manifest_path} cannot be read; run init_run again, it keeps "
            f"analysis_config.json "
            f"(cause: {error.__cause__ or 'it does not hold an object'})"
        ) from error


def run_block(run: RunDirectory, run_manifest: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return `{run_dir, model_id, run_name, created_at}`; null for what the manifest lacks."""
    return {
        "run_dir": str(run.path),
        "model_id": run_manifest.get("model_id"),
        "run_name": run_manifest.get("run_name"),
        "created_at": run_manifest.get("created_at"),
    }
