"""Which files did a command write, in which format, with how many rows?

`logs/write_manifest.json` (collect_data) and `logs/tables_write_manifest.json` (build_tables);
each is the last file its command writes, so its presence means that everything it names is
complete.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.atomic_files import JsonValue, file_sha256, write_json_atomic
from moe_weights.audit.clock import utc_now_text
from moe_weights.errors import OutputError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.writer import ArtifactEntry

WRITE_MANIFEST = "write_manifest.json"
TABLES_WRITE_MANIFEST = "tables_write_manifest.json"
TABLES_FAILURE = "tables_failure.json"

# Each build_tables writes these anew; a hash of an earlier one would be wrong after the next.
_NOT_OF_COLLECT_DATA = frozenset({WRITE_MANIFEST, TABLES_WRITE_MANIFEST, TABLES_FAILURE})


def write_collect_manifest(
    run: RunDirectory,
    entries: Sequence[ArtifactEntry],
    *,
    requested_format: str,
    requested_compression: str | None,
) -> None:
    """Write `logs/write_manifest.json`; call it last.

    Args:
        run: The run.
        entries: One per table that was written.
        requested_format: `output.format` of the config.
        requested_compression: `output.compression` of the config.

    Raises:
        OutputError: it cannot be written, or a JSON log cannot be read back.
    """
    # CONTRACT SURFACE: logs/write_manifest.json
    manifest = build_manifest(
        entries, requested_format=requested_format, requested_compression=requested_compression
    )
    manifest["json_artifacts"] = json_artifacts(run)
    write_json_atomic(run.log_path(WRITE_MANIFEST), manifest)


def write_tables_manifest(
    run: RunDirectory,
    entries: Sequence[ArtifactEntry],
    *,
    requested_format: str,
    requested_compression: str | None,
) -> None:
    """Write `logs/tables_write_manifest.json`; arguments as `write_collect_manifest`.

    Raises:
        OutputError: it cannot be written.
    """
    # CONTRACT SURFACE: logs/tables_write_manifest.json
    manifest = build_manifest(
        entries, requested_format=requested_format, requested_compression=requested_compression
    )
    write_json_atomic(run.log_path(TABLES_WRITE_MANIFEST), manifest)


def build_manifest(
    entries: Sequence[ArtifactEntry], *, requested_format: str, requested_compression: str | None
) -> dict[str, JsonValue]:
    """Return `{generated_at, requested_format, requested_compression, artifacts}`."""
    return {
        "generated_at": utc_now_text(),
        "requested_format": requested_format,
        "requested_compression": requested_compression,
        "artifacts": {entry.name: entry_json(entry) for entry in entries},
    }


def entry_json(entry: ArtifactEntry) -> dict[str, JsonValue]:
    """Return one artifact's entry: `{path, format, fallback, error, rows}`."""
    return {
        "path": entry.path,
        "format": entry.format,
        "fallback": entry.fallback,
        "error": entry.error,
        "rows": entry.rows,
    }


def json_artifacts(run: RunDirectory) -> dict[str, JsonValue]:
    """Return name (without `.json`) → `{path, sha256}` for every JSON log of collect_data.

    Raises:
        OutputError: a log cannot be read back.
    """
    logs = sorted(run.log_path(WRITE_MANIFEST).parent.glob("*.json"))
    listed: dict[str, JsonValue] = {}
    for path in logs:
        if path.name in _NOT_OF_COLLECT_DATA or not path.is_file():
            continue
        try:
            listed[path.stem] = {"path": run.relative(path), "sha256": file_sha256(path)}
        except OSError as error:
            raise OutputError(
                f"cannot read back {path}: {error.strerror}; make it readable or remove it, then "
                "run collect_data again"
            ) from error
    return listed
