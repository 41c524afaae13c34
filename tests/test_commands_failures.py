"""Runs that are stopped half-way: what stays, what is said, how the next run goes on."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from moe_weights.commands import workers
from tests.support.command_line import (
    CommandCase,
    Outcome,
    expert_tensors,
    random_weights,
    run_command,
    tree,
)


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
