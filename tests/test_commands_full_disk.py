"""Runs that find the disk full: what stays, what is said, how the next run goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.checkpoints import make_checkpoint
from tests.support.command_line import CommandCase, Outcome, expert_tensors, run_command, tree

FULL = OSError(errno.ENOSPC, "No space left on device")
_REPLACE = os.replace
REPOSITORY = Path(__file__).resolve().parent.parent


def full_at(name: str) -> Callable[[Any, Any], None]:
    """Return an `os.replace` that finds the disk full when a file of this name is finished."""

    def replace(source: Any, target: Any) -> None:
        if Path(target).name.startswith(name):
            raise FULL
        _REPLACE(source, target)

    return replace


class FullDisk(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_model(config={"hidden_size": 64})

    def collect_with(self, patch: Any) -> Outcome:
        with patch:
            return self.collect()

    def assert_told(self, outcome: Outcome, target: str, kept: str) -> None:
        self.assertEqual(outcome.code, 6)
        self.assertEqual(
            outcome.err,
            f"error: OutputError: cannot write {self.path}/{target}: No space left on device; free "
            f"some space and run the same command again; the file is as it was before; {kept}\n",
        )

    def assert_kept(self, outcome: Outcome, target: str, complete: list[str]) -> None:
        """Check what is told of a run that measured everything, and that the next one takes it."""
        tables = "no table is complete yet"
        if complete:
            tables = f"complete so far: {', '.join(complete)}"
        kept = "what was measured is kept below cache/parts, and the same command goes on from it"
        self.assert_told(outcome, target, f"{tables}; {kept}")
        resumed = self.collect()
        self.assertEqual((resumed.code, resumed.err), (0, ""))
        self.assertIn("[collect] resumed: 1 of 1 parts taken from an unfinished run", resumed.out)

    def assert_nothing_half_written(self) -> None:
        self.assertEqual([file for file in self.files(".") if ".tmp" in file], [])
        for name in ("write_manifest.json", "run_health.json", "run_context.json"):
            self.assertFalse(self.run_directory.log_path(name).exists(), name)

    def test_at_any_table_or_log(self) -> None:
        tables = ["tensor_inventory", "unmatched_tensors", "coverage", "matrix_stats", "quant_sim"]
        complete = [f"data/{name}.parquet" for name in tables]
        for name, target, n_complete in [
            ("tensor_inventory", "data/tensor_inventory.parquet", 0),
            ("coverage.parquet", "data/coverage.parquet", 2),
            ("matrix_stats", "data/matrix_stats.parquet", 3),
            ("warnings", "logs/warnings.parquet", 5),
            ("model_shape", "logs/model_shape_budget.json", 6),
            ("coverage.json", "logs/coverage.json", 6),
            ("run_context", "logs/run_context.json", 6),
            ("run_health", "logs/run_health.json", 6),
            ("write_manifest", "logs/write_manifest.json", 6),
        ]:
            with self.subTest(name=name):
                self.configure({"metadata.enabled": True, "colour": 1})
                outcome = self.collect_with(mock.patch("os.replace", full_at(name)))
                self.assertEqual([file for file in self.files(".") if ".tmp" in file], [])
                self.assertFalse(self.run_directory.log_path("write_manifest.json").exists())
                self.assertEqual(self.log("run_failure.json")["error"]["type"], "OutputError")
                self.assertEqual(
                    self.log("run_failure.json")["error"]["message"],
                    outcome.err.removeprefix("error: OutputError: ").removesuffix("\n"),
                )
                done = [*complete, "logs/warnings.parquet"][:n_complete]
                self.assert_kept(outcome, target, done)
        self.collected({"metadata.enabled": True})
        self.assertNotIn("logs/run_failure.json", self.files("logs"))

    def test_while_bytes_are_flushed(self) -> None:
        self.configure()
        outcome = self.collect_with(mock.patch("os.fsync", side_effect=FULL))
        self.assertEqual(outcome.code, 6)
        self.assertIn("No space left on device", outcome.err)
        self.assert_nothing_half_written()
        self.assertEqual(self.files("data", "logs"), [])

    def test_while_bytes_are_written(self) -> None:
        self.configure()
        with mock.patch.object(Path, "write_bytes", side_effect=FULL):
            outcome = self.collect()
        self.assert_nothing_half_written()
        self.assert_kept(outcome, "data/tensor_inventory.parquet", [])

    def test_while_parts_are_committed_keeps_an_earlier_run_and_the_finished_parts(self) -> None:
        self.collected()
        before = tree(self.path / "data")
        (self.model / "config.json").unlink()
        make_checkpoint(self.model, expert_tensors(n_experts=3))
        outcome = self.collect_with(mock.patch("os.replace", full_at("part-")))
        self.assertEqual(outcome.code, 6)
        self.assertRegex(
            outcome.err,
            r"^error: OutputError: cannot write .*/cache/parts/[0-9a-f]+/part-0000000\.json: No "
            r"space left on device; free some space and run the same command again; the file is as "
            r"it was before; tables and logs are as they were before; nothing that was measured "
            r"could be kept\n$",
        )
        self.assertEqual(tree(self.path / "data"), before)
        self.assertIn("logs/run_health.json", self.files("logs"))
        self.assertIn("logs/run_failure.json", self.files("logs"))

    def test_at_a_later_part_says_that_the_others_are_kept(self) -> None:
        self.configure()
        self.enterContext(mock.patch("moe_weights.commands.parts._MAX_UNITS_PER_BATCH", 1))
        self.enterContext(mock.patch("moe_weights.commands.parts._SECONDS_BETWEEN_PARTS", 0.0))
        with mock.patch("os.replace", full_at("part-0000003")):
            outcome = self.collect("--workers", 1)
        (folder,) = (self.path / "cache" / "parts").iterdir()
        self.assert_told(
            outcome,
            f"cache/parts/{folder.name}/part-0000003.json",
            "tables and logs are as they were before; what was measured is kept below cache/parts, "
            "and the same command goes on from it",
        )
        resumed = self.collect()
        self.assertIn("[collect] resumed: 3 of 6 parts taken from an unfinished run", resumed.out)

    def test_at_a_summary_table(self) -> None:
        self.collected()
        with mock.patch("os.replace", full_at("A_weight_block4")):
            outcome = run_command("build-tables", "--run-dir", self.path)
        self.assert_told(
            outcome,
            "tables/A_weight_block4_summary.parquet",
            "complete so far: tables/A_weight_layer_summary.parquet",
        )
        self.assertEqual(self.log("tables_failure.json")["error"]["type"], "OutputError")
        self.assertEqual(run_command("build-tables", "--run-dir", self.path).code, 0)
        self.assertNotIn("logs/tables_failure.json", self.files("logs"))

    @unittest.skipUnless(Path("/dev/full").exists(), "this system has no full device")
    def test_behind_standard_output(self) -> None:
        self.configure()
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "moe_weights", "collect-data", "--run-dir", str(self.path)],
                cwd=REPOSITORY,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        self.assertEqual(done.returncode, 6)
        self.assertEqual(
            done.stderr,
            "error: OutputError: cannot write to standard output: No space left on device; free "
            "some space or send it elsewhere\n",
        )

    def test_at_a_fresh_run(self) -> None:
        with mock.patch("os.replace", full_at("analysis_config.json")):
            outcome = run_command(
                "init-run", "--root", self.folder / "r", "--model-id", "m", "--run-name", "n"
            )
        self.assertEqual(outcome.code, 6)
        run = self.folder / "r" / "m" / "n"
        self.assertFalse((run / "analysis_config.json").exists())


if __name__ == "__main__":
    unittest.main()
