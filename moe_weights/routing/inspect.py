"""What does a bundle hold? `python -m moe_weights.routing.inspect [--json] RUN_DIR`.

The whole bundle is checked on the way, one event at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

from moe_weights.errors import ExitCode, MoeWeightsError, OutputError
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.bundle_reader import open_run_bundle
from moe_weights.standard_output import stdout_errors

_CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def main(argv: Sequence[str] | None = None) -> int:
    """Show what a bundle holds.

    Args:
        argv: Arguments after the program's name; None takes the process's own.

    Returns:
        0, or with a message on stderr 1 when the bundle cannot be loaded, 6 when nobody takes the
        output.
    """
    parser = argparse.ArgumentParser(
        prog="python -m moe_weights.routing.inspect",
        description="Show what a routing bundle holds.",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        with stdout_errors():
            show_bundle(arguments.run_dir, as_json=arguments.json)
            sys.stdout.flush()
    except MoeWeightsError as error:
        lines = [line.translate(_CONTROL_CHARACTERS) for line in f"error: {error}".split("\n")]
        sys.stderr.write("\n".join([*lines, ""]))
        return int(ExitCode.OUTPUT if isinstance(error, OutputError) else ExitCode.INVALID_DATA)
    return int(ExitCode.OK)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN_DIR and --json."""
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a bundle")


def show_bundle(run_dir: str | os.PathLike[str], *, as_json: bool) -> None:
    """Print the summary of a bundle.

    Raises:
        BundleError: the bundle cannot be loaded.
    """
    summary = summarize_bundle(run_dir)
    if as_json:
        text = json.dumps(summary, sort_keys=True, indent=2)
    else:
        text = "\n".join(_to_lines(summary))
    sys.stdout.write(f"{text}\n")


def summarize_bundle(run_dir: str | os.PathLike[str]) -> JsonObject:
    """Return what `--json` prints; reads one event at a time.

    Returns:
        `decode_duration_ms` covers generated tokens with a captured time; None without any.

    Raises:
        BundleError: the bundle cannot be loaded.
    """
    reader = open_run_bundle(run_dir)
    durations = _Durations()
    n_events = 0
    for event in reader.checked_raw_events():
        n_events += 1
        if event["timing_ms"] is not None and event.get("phase", "decode") == "decode":
            durations.add(float(event["timing_ms"]["decode_duration"]))
    layers = sorted(reader.layout["layers"], key=lambda layer: int(layer["layer_index"]))
    return {
        "run_id": reader.manifest["run_id"],
        "created_at": reader.manifest["created_at"],
        "model_id": reader.manifest["model_id"],
        "tokenizer_id": reader.manifest["tokenizer_id"],
        "prompt_text": reader.manifest["prompt"]["text"],
        "raw_events": n_events,
        "layers": len(layers),
        "layer_expert_counts": [
            {
                "layer_index": layer["layer_index"],
                "num_total_experts": len(layer["positions"]),
            }
            for layer in layers
        ],
        "optional_artifacts": {
            "derived": reader.has_derived_events,
            "motif_ledger": reader.motif_ledger is not None,
            "contingency": reader.contingency is not None,
        },
        "decode_duration_ms": durations.to_json(),
    }


class _Durations:
    def __init__(self) -> None:
        self._count = 0
        self._total = 0.0
        self._mean = 0.0
        self._least = 0.0
        self._most = 0.0

    def add(self, duration: float) -> None:
        self._least = duration if self._count == 0 else min(self._least, duration)
        self._most = max(self._most, duration)
        self._total += duration
        self._count += 1
        self._mean += (duration - self._mean) / self._count

    def to_json(self) -> JsonObject | None:
        if self._count == 0:
            return None
        # The running mean is less exact, but never beyond the largest float.
        average = self._total / self._count if math.isfinite(self._total) else self._mean
        return {"min": self._least, "max": self._most, "avg": average}


def _to_lines(summary: dict[str, Any]) -> list[str]:
    names = ("run_id", "created_at", "model_id", "tokenizer_id")
    counts = ", ".join(
        f"{layer['layer_index']}={layer['num_total_experts']}"
        for layer in summary["layer_expert_counts"]
    )
    optional = " ".join(
        f"{name}={'yes' if summary['optional_artifacts'][name] else 'no'}"
        for name in ("derived", "motif_ledger", "contingency")
    )
    lines = [
        # Names come from strangers; an escape sequence in one must not reach a terminal.
        *(f"{name}: {summary[name]}".translate(_CONTROL_CHARACTERS) for name in names),
        f"raw_events: {summary['raw_events']}",
        f"layers: {summary['layers']}",
        f"layer_expert_counts: {counts}",
        f"optional_artifacts: {optional}",
        f"prompt_text: {json.dumps(summary['prompt_text'])}",
    ]
    durations = summary["decode_duration_ms"]
    if durations is not None:
        told = " ".join(f"{name}={round(durations[name], 3)}" for name in ("min", "avg", "max"))
        lines.append(f"decode_duration_ms: {told}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
