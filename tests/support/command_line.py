"""Commands run inside the test process, on a tiny model in a temporary folder."""

from __future__ import annotations

import contextlib
import io
import json
import unittest
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe_weights.atomic_files import write_json_atomic
from moe_weights.cli import main
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.reader import read_table_file
from tests.support.checkpoints import make_checkpoint
from tests.support.config_documents import make_config_document
from tests.support.runs import CREATED_AT, read_json, temporary_folder

HIDDEN, WIDTH = 64, 32
SHAPES = {"gate_proj": (WIDTH, HIDDEN), "up_proj": (WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did.

    Attributes:
        code: Exit code.
        out: Standard output.
        err: Standard error.
    """

    code: int
    out: str
    err: str


def run_command(*arguments: object) -> Outcome:
    """Run `moe-weights <arguments>` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = int(ending.code or 0)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def random_weights(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normal weights, float32; other seeds and shapes give other values."""
    generator = np.random.default_rng([seed, *shape])
    return (generator.standard_normal(shape) * 0.05).astype(np.float32)


def expert_tensors(n_experts: int = 2, *, layer: int = 0) -> dict[str, np.ndarray]:
    """Return one layer of an OLMoE-style model: its experts and a router."""
    tensors = {
        f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight": random_weights(
            *shape, seed=100 * layer + 10 * expert + number
        )
        for expert in range(n_experts)
        for number, (proj, shape) in enumerate(SHAPES.items())
    }
    tensors[f"model.layers.{layer}.mlp.gate.weight"] = random_weights(n_experts, HIDDEN)
    return tensors


def bank_rule(match: str, **fields: Any) -> dict[str, Any]:
    """Return a rule for (E, R, C) banks."""
    layout = {"layer_axis": None, "expert_axis": 0, "rows_axis": 1, "cols_axis": 2}
    return {"name": "mine", "match": match, "ndim": 3, "layout": layout, **fields}


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every path below a folder with its content and time of change."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


class CommandCase(unittest.TestCase):
    """A model directory and a run directory; quantisation is off unless a test turns it on."""

    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.model = self.folder / "model"
        self.run_directory = RunDirectory(self.folder / "runs" / "org" / "model" / "first")
        self.path = self.run_directory.path

    def write_model(self, tensors: Mapping[str, np.ndarray] | None = None, **options: Any) -> None:
        """Write the model directory, see `make_checkpoint`; without tensors one tiny layer."""
        make_checkpoint(self.model, expert_tensors() if tensors is None else tensors, **options)

    def configure(self, changes: Mapping[str, Any] | None = None) -> None:
        """Make the run, or write its config anew: the template with dotted keys changed."""
        write_json_atomic(
            self.run_directory.manifest_path,
            {"model_id": "org/model", "run_name": "first", "created_at": CREATED_AT, "version": 2},
        )
        document = make_config_document(
            {
                "model_path": str(self.model),
                "mlx.enabled": False,
                "metadata.enabled": False,
                **(changes or {}),
            }
        )
        self.run_directory.config_path.write_text(json.dumps(document), encoding="utf-8")

    def collect(self, *arguments: object) -> Outcome:
        """Run collect-data; any exit code."""
        return run_command("collect-data", "--run-dir", self.path, *arguments)

    def collected(self, changes: Mapping[str, Any] | None = None, *arguments: object) -> Outcome:
        """Configure and run collect-data, which must succeed."""
        self.configure(changes)
        outcome = self.collect(*arguments)
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        return outcome

    def refused(
        self, code: int, changes: Mapping[str, Any] | None = None, *arguments: object
    ) -> str:
        """Configure and run collect-data, which must end with `code`; return its message."""
        self.configure(changes)
        outcome = self.collect(*arguments)
        self.assertEqual(outcome.code, code, outcome.err)
        self.assertTrue(outcome.err.startswith("error: "), outcome.err)
        self.assertNotIn("Traceback", outcome.err)
        return outcome.err.removeprefix("error: ").removesuffix("\n")

    def frame(self, path: str) -> pd.DataFrame:
        """Read a table of the run, `data/matrix_stats` or with a suffix."""
        for suffix in ("", ".parquet", ".csv"):
            file = self.path / f"{path}{suffix}"
            if file.is_file():
                return read_table_file(file)
        raise AssertionError(f"there is no table {path}")

    def warnings(self) -> list[str]:
        """Return the texts of logs/warnings; empty when there is no such table."""
        if not list((self.path / "logs").glob("warnings.*")):
            return []
        return list(self.frame("logs/warnings")["warning"])

    def log(self, name: str) -> dict[str, Any]:
        """Read a JSON log."""
        return dict(read_json(self.run_directory.log_path(name)))

    def files(self, *folders: str) -> list[str]:
        """Return the files of some folders of the run, relative to it."""
        return sorted(
            path.relative_to(self.path).as_posix()
            for folder in folders
            for path in (self.path / folder).rglob("*")
            if path.is_file()
        )

    def assert_shards(self, expected: Sequence[str]) -> None:
        """Check which shards were scanned, by the inventory."""
        self.assertEqual(sorted(set(self.frame("data/tensor_inventory")["file"])), list(expected))
