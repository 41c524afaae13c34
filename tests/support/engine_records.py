"""Records as inference engines write them, and a folder to import them into."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.cli import main
from moe_weights.routing import load_run_bundle

# Five tokens, two MoE layers, two of four experts each.
CHOSEN = np.array(
    [[[0, 1], [2, 3]], [[1, 0], [3, 1]], [[2, 0], [0, 1]], [[3, 1], [1, 2]], [[0, 3], [2, 0]]]
)


def to_npy(values: Any) -> str:
    stream = io.BytesIO()
    np.save(stream, values)
    return base64.b64encode(stream.getvalue()).decode()


def make_pass(pass_id: int, positions: list[int], chosen: Any, **more: Any) -> dict[str, Any]:
    """Return a record of one forward pass; `chosen` is (tokens, layers, k)."""
    padded = np.full((np.shape(chosen)[1], len(positions), 4), -1)
    padded[:, :, : np.shape(chosen)[2]] = np.swapaxes(chosen, 0, 1)
    return {
        "forward_pass_id": pass_id,
        "rank": 0,
        "input_ids": [100 + position for position in positions],
        "positions": positions,
        "forward_mode": 1 if len(positions) > 1 else 2,
        "topk_ids_of_layer": padded.tolist(),
        **more,
    }


def make_dump(**more: Any) -> dict[str, Any]:
    return {
        "records": [
            make_pass(2, [3], CHOSEN[3:4]),
            make_pass(1, [0, 1, 2], CHOSEN[:3]),
            {"forward_pass_id": 3, "forward_mode": 4},
            make_pass(4, [4], CHOSEN[4:]),
        ],
        "last_physical_to_logical_map": None,
        **more,
    }


class ImportCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def write(self, name: str, content: Any) -> Path:
        path = self.folder / name
        if path.suffix == ".json":
            path.write_text(json.dumps(content))
        elif path.suffix == ".npz":
            np.savez(path, **content)
        else:
            np.save(path, content)
        return path

    def run_cli(self, engine: str, path: Path, *more: object) -> tuple[int, str]:
        out = io.StringIO()
        shape = () if "--config" in more else ("--experts", 4, "--layers", "1,3")
        line = ["import-routing", "--format", engine, "--input", path, "--out", self.folder / "run",
                "--model-id", "org/m", *shape, *more]  # fmt: skip
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main([str(argument) for argument in line])
        return code, out.getvalue()

    def bundle(self, run_id: str) -> dict[str, Any]:
        return load_run_bundle(self.folder / "run" / "routing" / run_id)

    def check_events(self, bundle: dict[str, Any], chosen: Any = CHOSEN) -> None:
        self.assertEqual(
            [
                [layer["topk_indices"] for layer in event["layers"]]
                for event in bundle["raw_events"]
            ],
            chosen.tolist(),
        )
        for event in bundle["raw_events"]:
            self.assertEqual([layer["layer_index"] for layer in event["layers"]], [1, 3])
            for layer in event["layers"]:
                given = {name for name, value in layer.items() if value is not None}
                self.assertEqual(
                    given,
                    {"layer_index", "layer_kind", "num_total_experts", "num_active_experts",
                     "topk_indices", "not_captured"},
                )  # fmt: skip
                self.assertIn("combine_weights", layer["not_captured"])
                self.assertIn("selection_bias", layer["not_captured"])
