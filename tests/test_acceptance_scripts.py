"""The three scripts as a person runs them: by subprocess, from the root of the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from moe_weights.tables.reader import read_table_file
from tests.support.command_line import SHAPES, expert_tensors, random_weights
from tests.support.runs import read_json, temporary_folder

REPO_ROOT = Path(__file__).resolve().parent.parent
KEYS = ["layer", "proj", "expert_id"]


class ScriptCase(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)
        self.model = self.folder / "model"
        self.path = self.folder / "runs" / "tiny" / "first"

    def script(self, name: str, *arguments: object, **environment: str) -> tuple[int, str, str]:
        """Run a script; return exit code, standard output, standard error."""
        done = subprocess.run(
            [sys.executable, f"scripts/{name}.py", *map(str, arguments)],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONWARNINGS": "default"} | environment,
        )
        return done.returncode, done.stdout, done.stderr

    def succeed(self, name: str, *arguments: object, **environment: str) -> tuple[str, str]:
        """Run a script that must end with 0; return standard output and standard error."""
        code, out, told = self.script(name, *arguments, **environment)
        self.assertEqual(code, 0, told)
        return out, told

    def init(self) -> None:
        self.succeed(
            "init_run", "--root", self.folder / "runs", "--model-id", "tiny",
            "--run-name", "first", "--model-path", self.model,
        )  # fmt: skip

    def frame(self, path: str) -> pd.DataFrame:
        return read_table_file(self.path / path)

    def set_config(self, section: str, key: str, value: object) -> None:
        path = self.path / "analysis_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config[section][key] = value
        path.write_text(json.dumps(config), encoding="utf-8")


class ThreeScripts(ScriptCase):
    def setUp(self) -> None:
        super().setUp()
        self.tensors = expert_tensors() | expert_tensors(layer=5)
        self.tensors["model.embed_tokens.weight"] = random_weights(7, 64)
        self.model.mkdir()
        save_file(self.tensors, self.model / "model.safetensors")
        (self.model / "config.json").write_text(
            json.dumps({"hidden_size": 64, "num_experts": 2, "moe_intermediate_size": 32})
        )

    def test_lead_from_a_checkpoint_to_summary_tables(self) -> None:
        self.init()
        out, _ = self.succeed("collect_data", "--run-dir", self.path)
        self.assertIn("[meta] hidden=64 moe_int=32 experts=2\n", out)
        self.assertIn("[collect] matrix_stats rows: 12 (data/matrix_stats.parquet)\n", out)
        self.assertNotIn("[warn]", out)
        self.assertNotIn("\x1b", out)
        self.assert_rows_are_those_of_the_tensors()

        out, _ = self.succeed("build_tables", "--run-dir", self.path)
        self.assertEqual(out.splitlines()[-1], "[build_tables] wrote tables/ A_* and B_*")
        layers = self.frame("tables/A_weight_layer_summary.parquet")
        self.assertEqual(sorted(set(layers["layer"])), [0, 5])
        self.assertEqual(len(self.frame("tables/B_quant_deltas.parquet")), 24)

        first = self.frame("data/matrix_stats.parquet"), self.frame("data/quant_sim.parquet")
        out, _ = self.succeed("collect_data", "--run-dir", self.path, "--workers", 1, "--quiet")
        self.assertEqual(out, "")
        again = self.frame("data/matrix_stats.parquet"), self.frame("data/quant_sim.parquet")
        for before, after in zip(first, again, strict=True):
            self.assertTrue(before.equals(after))

    def assert_rows_are_those_of_the_tensors(self) -> None:
        rows = self.frame("data/matrix_stats.parquet").set_index(KEYS)
        self.assertEqual(len(rows), 2 * 2 * len(SHAPES))  # layers, experts, projections
        for layer in (0, 5):
            for expert in (0, 1):
                for proj in SHAPES:
                    name = f"model.layers.{layer}.mlp.experts.{expert}.{proj}.weight"
                    weights = self.tensors[name].astype(np.float64)
                    row = rows.loc[(layer, proj, expert)]
                    self.assertEqual(row["source_tensor"], name)
                    self.assertEqual(row["derived_tensor"], f"{name}::{proj}")
                    self.assertEqual((row["rows"], row["cols"]), weights.shape)
                    self.assertEqual((row["block4"], row["dtype"]), (layer // 4, "float32"))
                    self.assertEqual(row["max_abs"], np.abs(weights).max())
                    for column, expected in {
                        "mean": weights.mean(),
                        "std": weights.std(),
                        "mean_abs": np.abs(weights).mean(),
                        "rms": np.sqrt((weights**2).mean()),
                        "p50_abs": np.percentile(np.abs(weights), 50),
                        "p999_abs": np.percentile(np.abs(weights), 99.9),
                    }.items():
                        np.testing.assert_allclose(row[column], expected, rtol=1e-12, atol=1e-18)
        quant = self.frame("data/quant_sim.parquet")
        self.assertEqual(len(quant), 3 * len(rows))  # the schemes of the template
        self.assertTrue(quant["error"].isna().all())
        self.assertTrue(((quant["w_rel_fro"] > 0) & (quant["w_rel_fro"] < 0.2)).all())

    def test_work_without_pyarrow_and_mlx(self) -> None:
        hidden = self.folder / "hidden"
        hidden.mkdir()
        for package in ("pyarrow", "mlx"):
            (hidden / f"{package}.py").write_text(f"raise ImportError('no {package} here')\n")
        self.init()
        out, told = self.succeed("collect_data", "--run-dir", self.path, PYTHONPATH=str(hidden))
        self.assertIn(
            "RuntimeWarning: mlx is not importable; skipping quantization simulations", told
        )
        self.assertIn(
            "[warn] parquet write failed (ImportError: no pyarrow here); wrote "
            "data/matrix_stats.csv\n",
            out,
        )
        self.assertIn("[collect] matrix_stats rows: 12 (data/matrix_stats.csv)\n", out)
        self.assertEqual(len(self.frame("data/quant_sim.csv")), 0)
        self.assertIn("w_rel_fro", self.frame("data/quant_sim.csv").columns)
        self.succeed("build_tables", "--run-dir", self.path, PYTHONPATH=str(hidden))
        self.assertEqual(len(self.frame("tables/A_weight_layer_summary.csv")), 6)
        self.assertEqual(len(self.frame("tables/B_quant_layer_summary.csv")), 0)


class Refusals(ScriptCase):
    def test_end_with_their_code_and_without_a_traceback(self) -> None:
        code, out, told = self.script("collect_data", "--run-dir", self.path)
        self.assertEqual((code, out), (2, ""))
        self.assertEqual(
            told, f"error: UsageError: run directory not found: {self.path}; run init_run first\n"
        )
        self.model.mkdir()
        name = "model.layers.0.mlp.experts.w13.weight"
        save_file({name: random_weights(2, 8, 64)}, self.model / "model.safetensors")
        self.init()
        config_path = self.path / "analysis_config.json"
        config = json.loads(config_path.read_text(encoding="utf-8"))
        config["extract_rules"][2]["enabled"] = True
        config_path.write_text(json.dumps(config), encoding="utf-8")
        code, out, told = self.script("collect_data", "--run-dir", self.path)
        self.assertEqual(code, 4)
        self.assertTrue(
            told.startswith(
                "error: PackedSplitError: packed_split failed for "
                f"rule=EXAMPLE_fused_gate_down_split_rows tensor={name}: "
            ),
            told,
        )
        self.assertNotIn("Traceback", told)
        failure = read_json(self.path / "logs" / "run_failure.json")
        self.assertEqual(failure["status"], "error")
        code, out, told = self.script("build_tables", "--run-dir", self.path)
        self.assertEqual((code, out), (5, ""))
        self.assertTrue(told.startswith("error: CheckpointError: "), told)


if __name__ == "__main__":
    unittest.main()
