"""Runs that are stopped half-way: what stays, what is said, how the next run goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from moe_weights.commands import workers
from tests.support.checkpoints import make_checkpoint
from tests.support.command_line import (
    CommandCase,
    Outcome,
    expert_tensors,
    random_weights,
    run_command,
    tree,
)

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


class ReadOnlyRun(CommandCase):
    DENIED = PermissionError(errno.EACCES, "Permission denied")

    def test_is_refused_before_anything_is_read(self) -> None:
        self.write_model()
        self.configure()
        before = tree(self.path)
        opened = Path.open

        def deny(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax+"):
                raise self.DENIED
            return opened(path, mode, *args, **kwargs)

        for command in ("collect-data", "build-tables"):
            with mock.patch.object(Path, "open", deny):
                outcome = run_command(command, "--run-dir", self.path)
            self.assertEqual(outcome.code, 6)
            self.assertEqual(
                outcome.err,
                f"error: OutputError: cannot write {self.path}/cache/run.lock: Permission denied; "
                "make the run directory writable or use another --root; the file is as it was "
                "before\n",
            )
        self.assertEqual(set(tree(self.path)) - set(before), {"cache"})

    def test_a_root_that_cannot_be_written(self) -> None:
        blocked = self.folder / "file"
        blocked.write_text("")
        outcome = run_command("init-run", "--root", blocked, "--model-id", "m", "--run-name", "n")
        self.assertEqual(outcome.code, 6)
        self.assertEqual(
            outcome.err,
            f"error: OutputError: cannot make run directory {blocked}/m/n: Not a directory; use "
            "another --root or make it writable\n",
        )


class RunInUse(CommandCase):
    HOLDER = textwrap.dedent(
        """
        import fcntl, sys
        stream = open(sys.argv[1], "ab")
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        print("held", flush=True)
        sys.stdin.read()
        """
    )

    def test_by_another_process_is_refused_by_every_command_and_not_touched(self) -> None:
        self.write_model()
        self.collected()
        before = tree(self.path)
        lock_path = self.run_directory.lock_path
        with subprocess.Popen(
            [sys.executable, "-c", self.HOLDER, str(lock_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder:
            assert holder.stdout is not None
            self.assertEqual(holder.stdout.readline(), "held\n")
            runs = [
                ("collect-data", "--run-dir", self.path),
                ("build-tables", "--run-dir", self.path),
                ("init-run", "--root", self.folder / "runs", "--model-id", "org/model",
                 "--run-name", "first"),
            ]  # fmt: skip
            for command in runs:
                outcome = run_command(*command)
                self.assertEqual(outcome.code, 2, command)
                self.assertEqual(
                    outcome.err,
                    f"error: UsageError: run directory is in use by another process: {self.path}; "
                    "wait for it or choose another --run-name; nothing was written\n",
                )
            plan = self.collect("--plan")
            self.assertEqual(plan.code, 0)
            after = tree(self.path)
            self.assertEqual(
                {path: content for path, (content, _mtime) in after.items() if path in before},
                {path: content for path, (content, _mtime) in before.items()},
            )
            self.assertEqual(
                list(self.files("data", "logs", "tables")),
                sorted(
                    path
                    for path in before
                    if path.split("/")[0] in {"data", "logs", "tables"} and "/" in path
                ),
            )
            holder.kill()
        # The lock died with its process.
        self.assertEqual(self.collect().code, 0)


class Interrupted(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        tensors = {}
        for layer in range(3):
            tensors |= expert_tensors(layer=layer)
        self.write_model(tensors)
        self.configure()
        # One batch per matrix, so that a run can end between two of them.
        self.enterContext(mock.patch("moe_weights.commands.parts._MAX_UNITS_PER_BATCH", 1))

    def interrupt_after(self, n_batches: int, error: BaseException) -> Outcome:
        run_units, calls = workers.run_units, []

        def run(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) > n_batches:
                raise error
            return run_units(*arguments)

        with mock.patch.object(workers, "run_units", run):
            return self.collect("--workers", 1)

    def parts(self) -> list[str]:
        return [file for file in self.files("cache") if "/part-" in file]

    def test_by_the_keyboard_ends_with_130_and_goes_on_later(self) -> None:
        outcome = self.interrupt_after(7, KeyboardInterrupt())
        self.assertEqual(outcome.code, 130)
        self.assertEqual(
            outcome.err,
            "interrupted; finished files are whole. The same command, run again, goes on from what "
            "is finished or says what it finds there\n",
        )
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
        failure = self.log("run_failure.json")
        self.assertEqual(failure["error"]["type"], "KeyboardInterrupt")
        self.assertNotIn("traceback", failure)
        self.assertEqual(len(self.parts()), 1)  # everything that was finished, in one file
        outcome = self.collect()
        self.assertEqual(outcome.code, 0)
        self.assertRegex(
            outcome.out, r"\[collect\] resumed: [67] of 18 parts taken from an unfinished run\n"
        )
        self.assertEqual(self.parts(), [])
        self.assertNotIn("logs/run_failure.json", self.files("logs"))
        resumed = self.frame("data/matrix_stats")
        self.configure()
        self.collect()
        self.assertTrue(resumed.equals(self.frame("data/matrix_stats")))

    def test_by_an_unforeseen_error_leaves_its_traceback(self) -> None:
        with self.assertRaises(ZeroDivisionError):
            self.interrupt_after(2, ZeroDivisionError("boom"))
        failure = self.log("run_failure.json")
        self.assertEqual(failure["status"], "error")
        self.assertEqual(failure["error"], {"type": "ZeroDivisionError", "message": "boom"})
        self.assertIn("ZeroDivisionError: boom", failure["traceback"])
        self.assertEqual(
            failure["run"],
            {
                "run_dir": str(self.path),
                "model_id": "org/model",
                "run_name": "first",
                "created_at": "2026-01-02T03:04:05Z",
            },
        )
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])
        self.assertEqual(self.collect().code, 0)
        self.assertNotIn("logs/run_failure.json", self.files("logs"))

    def test_parts_of_another_config_or_checkpoint_are_never_taken(self) -> None:
        self.interrupt_after(5, KeyboardInterrupt())
        self.assertTrue(self.parts())
        self.configure({"stats.eps": 1e-6})
        outcome = self.collect()
        self.assertEqual(outcome.code, 0)
        self.assertIn(
            "[collect] parts of an unfinished run were discarded: config changed\n",
            outcome.out,
        )
        self.assertNotIn("resumed", outcome.out)


class LeftoversOfKilledWrites(CommandCase):
    def test_are_removed_by_whoever_comes_next(self) -> None:
        self.write_model()
        self.configure()
        left = [
            self.path / "data" / ".matrix_stats.parquet.tmp-123",
            self.path / "logs" / ".run_health.json.tmp-123-4",
            self.path / "cache" / "parts" / "x" / ".part-0000000.json.tmp-9-0",
        ]
        kept = self.path / "data" / "notes.tmp-1"
        for path in (*left, kept):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        self.assertEqual(self.collect().code, 0)
        self.assertEqual([path for path in left if path.exists()], [])
        self.assertTrue(kept.exists())


class SampledRun(CommandCase):
    def test_many_workers_may_draw_the_same_sample_at_once(self) -> None:
        names = [f"layers.0.experts.{n}.up_proj.weight" for n in range(24)]
        self.write_model({name: random_weights(33, 61, seed=n) for n, name in enumerate(names)})
        self.configure({"stats.sample_per_matrix": 100, "stats.sample_seed": 7})
        with mock.patch("moe_weights.commands.parts._MAX_UNITS_PER_BATCH", 1):
            outcome = self.collect("--workers", 16)
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertEqual(
            self.files("cache/sampled_indices"),
            ["cache/sampled_indices/idx_N2013_k100_seed7.npy"],
        )


if __name__ == "__main__":
    unittest.main()
