"""Why did a command fail? `logs/run_failure.json` and `logs/tables_failure.json`."""

from __future__ import annotations

import traceback
from pathlib import Path

from moe_weights.atomic_files import JsonValue, write_json_atomic
from moe_weights.audit.clock import utc_now_text
from moe_weights.audit.run_identity import run_block
from moe_weights.run_directory import RunDirectory


def write_failure(
    path: Path,
    run: RunDirectory,
    run_manifest: dict[str, JsonValue],
    error: BaseException,
    *,
    with_traceback: bool,
) -> None:
    """Write what ended the command; the next success removes the file.

    Args:
        path: The artifact.
        run: The run.
        run_manifest: Content of its `manifest.json`.
        error: What ended the command.
        with_traceback: For errors nobody foresaw; the message alone explains the others.

    Raises:
        OutputError: the file cannot be written.
    """
    # CONTRACT SURFACE: logs/run_failure.json, logs/tables_failure.json
    failure: dict[str, JsonValue] = {
        "generated_at": utc_now_text(),
        "status": "error",
        "run": run_block(run, run_manifest),
        "error": {"type": type(error).__name__, "message": _encodable(str(error))},
    }
    if with_traceback:
        failure["traceback"] = _encodable("".join(traceback.format_exception(error)))
    write_json_atomic(path, failure)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
