"""Traces and captures of the toy model, written to a temporary folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_weights.tracing import (
    CaptureSet,
    RuntimeTraceResult,
    ToyEngine,
    TraceRequest,
    capture_model,
    trace_model,
    write_captures,
    write_trace,
)

PROMPT_IDS = (3, 1, 4, 1, 5)


def toy_trace(**fields: Any) -> RuntimeTraceResult:
    """Trace the toy model: layers 0 and 2, one decode step, unless fields say otherwise."""
    options: dict[str, Any] = {
        "trace_id": "toy",
        "input_text": "hello",
        "collect_layers": (0, 2),
        "decode_steps": 1,
    }
    return trace_model(ToyEngine(), TraceRequest(**{**options, **fields}))


def toy_captures(engine: ToyEngine | None = None, **options: Any) -> CaptureSet:
    """Capture the toy model on a fixed prompt."""
    return capture_model(engine or ToyEngine(), PROMPT_IDS, **options)


def toy_with_changed_expert(layer: int, expert: int) -> ToyEngine:
    """Return a toy model that differs from the usual one in one expert of one layer."""
    engine = ToyEngine()
    engine.weights[f"{layer}.experts"][expert] += 0.5
    return engine


def write_toy_trace(folder: Path) -> Path:
    """Write a trace with its arrays."""
    result = toy_trace()
    return write_trace(folder, result.trace, result.arrays)


def write_toy_captures(folder: Path) -> Path:
    """Write a capture set with its arrays."""
    return write_captures(folder / "capture.json", toy_captures(decode_steps=2))


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def change_side_file(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the side file of a document, and the document so that name, size and hash fit."""
    document = json.loads(path.read_text("utf-8"))
    before = path.parent / document["arrays_file"]["path"]
    encoded = change(before.read_bytes())
    sha256 = hashlib.sha256(encoded).hexdigest()
    before.unlink()
    (path.parent / f"{sha256}.npz").write_bytes(encoded)
    document["arrays_file"] = {"path": f"{sha256}.npz", "sha256": sha256, "n_bytes": len(encoded)}
    path.write_text(json.dumps(document), encoding="utf-8")
