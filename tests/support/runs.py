"""Run directories with collected data, made in a temporary folder."""

from __future__ import annotations

import csv
import json
import tempfile
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_weights.atomic_files import JsonValue, write_json_atomic
from moe_weights.columns import TableSchema
from moe_weights.config.template import template_config
from moe_weights.run_directory import RunDirectory

METRICS = (
    "mean",
    "std",
    "mean_abs",
    "rms",
    "max_abs",
    "p50_abs",
    "p99_abs",
    "p999_abs",
    "outlier_max_over_mean",
    "outlier_p99_over_median",
    "outlier_p999_over_median",
    "g32_p95_outlier",
    "g32_max_outlier",
)

ONE_MATRIX: Mapping[str, object] = {
    "file": "a.safetensors",
    "derived_tensor": "t",
    "layer": 0,
    "block4": 0,
    "proj": "gate_proj",
    "expert_id": 0,
    "is_shared_expert": False,
    "rows": 4,
    "cols": 8,
}

CREATED_AT = "2026-01-02T03:04:05Z"


def temporary_folder(test: unittest.TestCase) -> Path:
    """Return a folder that is removed after the test."""
    folder = tempfile.TemporaryDirectory()
    test.addCleanup(folder.cleanup)
    return Path(folder.name).resolve()


def row_of(schema: TableSchema, **cells: object) -> dict[str, object]:
    """Return a row of a table: null, but for what tells its matrix apart, unless given."""
    keys = ("file", "derived_tensor", "layer", "proj", "expert_id")
    return {**dict.fromkeys(schema.column_names), **{key: ONE_MATRIX[key] for key in keys}, **cells}


def make_run(test: unittest.TestCase, **sections: JsonValue) -> RunDirectory:
    """Make `<tmp>/org/model/first` with manifest.json and the template config.

    Args:
        test: Owner of the temporary folder.
        sections: Replaced top-level sections of the config.
    """
    run = RunDirectory(temporary_folder(test) / "org" / "model" / "first")
    write_json_atomic(
        run.manifest_path,
        {"model_id": "org/model", "run_name": "first", "created_at": CREATED_AT, "version": 2},
    )
    write_json_atomic(run.config_path, {**template_config("/models/m"), **sections})
    return run


def stats_row(**cells: object) -> dict[str, object]:
    """Return a row of matrix_stats; every metric is 1.0 unless given."""
    return {**ONE_MATRIX, **dict.fromkeys(METRICS, 1.0), **cells}


def quant_row(**cells: object) -> dict[str, object]:
    """Return a row of quant_sim without biases or error."""
    return {
        **ONE_MATRIX,
        "scheme": "q4",
        "w_rel_fro": 0.1,
        "w_rel_max": 0.2,
        "scale_mean": 0.01,
        "scale_max": 0.02,
        "bias_mean": None,
        "bias_max": None,
        "error": None,
        **cells,
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with the standard library's CSV writer, header from the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_sources(
    run: RunDirectory,
    stats: Sequence[Mapping[str, object]],
    quant: Sequence[Mapping[str, object]],
) -> None:
    """Write both sources of build_tables as CSV, without a write manifest."""
    write_csv(run.path / "data" / "matrix_stats.csv", stats)
    write_csv(run.path / "data" / "quant_sim.csv", quant)


def write_manifest_json(run: RunDirectory, paths: Mapping[str, str], **rows: int) -> None:
    """Write a `logs/write_manifest.json` that names `paths`, name to path."""
    artifacts = {
        name: {
            "path": path,
            "format": path.rsplit(".", 1)[-1],
            "fallback": False,
            "error": None,
            "rows": rows.get(name),
        }
        for name, path in paths.items()
    }
    write_json_atomic(
        run.log_path("write_manifest.json"), {"generated_at": CREATED_AT, "artifacts": artifacts}
    )


def read_json(path: Path) -> dict[str, JsonValue]:
    """Read a JSON object."""
    value: dict[str, JsonValue] = json.loads(path.read_text(encoding="utf-8"))
    return value
