"""The same content everywhere: any number of workers, threads or processes, shards, kills."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from moe_weights.atomic_files import RunLock
from moe_weights.commands import collect_data, parts
from tests.support.checkpoints import entry, make_checkpoint, raw_safetensors
from tests.support.command_line import CommandCase, expert_tensors
from tests.support.killed_runs import run_and_kill, start_run
from tests.support.worker_pools import has_ended, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
# `MOE_WEIGHTS_KILLS=100 python -m pytest tests/test_commands_resume.py` for a long look.
KILLS = int(os.environ.get("MOE_WEIGHTS_KILLS", "12"))
TABLES = ("data/matrix_stats", "data/quant_sim")
SCHEMES = [
    {"name": "q4", "mode": "affine", "bits": 4, "group_size": 32},
    {"name": "fp4", "mode": "mxfp4", "bits": 4, "group_size": 32},
    {"name": "wide", "mode": "affine", "bits": 8, "group_size": 64},  # fails for down_proj
]
SIMULATED = {"mlx.enabled": True, "mlx.backend": "native", "quant_schemes": SCHEMES,
             "delta_pairs": []}  # fmt: skip


def layers(n_layers: int) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for layer in range(n_layers):
        tensors |= expert_tensors(3, layer=layer)
    return tensors


class ContentCase(CommandCase):
    def tables(self) -> dict[str, pd.DataFrame]:
        return {name: self.frame(name) for name in TABLES}

    def assert_same(
        self, found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame], *without: str
    ) -> None:
        """Compare every cell; the order of rows and columns is part of the content."""
        for name, frame in expected.items():
            pd.testing.assert_frame_equal(
                found[name].drop(columns=list(without)),
                frame.drop(columns=list(without)),
                check_exact=True,
            )


class SameContentEverywhere(ContentCase):
    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.object(parts, "_MAX_UNITS_PER_BATCH", 1))
        self.write_model(layers(3))
        self.collected(SIMULATED, "--workers", 1)
        self.expected = self.tables()
        self.assertEqual([len(table) for table in self.expected.values()], [27, 81])

    def test_for_any_number_of_threads(self) -> None:
        for n_workers in (2, 7):
            self.collected(SIMULATED, "--workers", n_workers)
            self.assert_same(self.tables(), self.expected)

    def test_for_processes(self) -> None:
        self.collected(SIMULATED, "--workers", 2, "--executor", "processes")
        self.assert_same(self.tables(), self.expected)

    def test_for_any_number_of_shards(self) -> None:
        for n_shards in (5, 31):
            model = make_checkpoint(self.folder / str(n_shards), layers(3), n_shards=n_shards)
            self.collected(SIMULATED | {"model_path": str(model)}, "--workers", 2)
            self.assert_same(self.tables(), self.expected, "file")

    def test_by_mlx_itself_and_verified_against_it(self) -> None:
        names = self.expected["data/quant_sim"]
        for backend, said in (("mlx", "mlx"), ("auto", "native_verified")):
            self.collected(SIMULATED | {"mlx.backend": backend})
            found = self.tables()
            self.assertEqual(set(found["data/quant_sim"]["backend"]), {said})
            texts = found["data/quant_sim"].drop(columns="backend")
            pd.testing.assert_frame_equal(texts, names.drop(columns="backend"), check_exact=True)


class KilledAtAnyMoment(ContentCase):
    def test_a_run_ends_with_the_content_of_one_that_was_not(self) -> None:
        self.write_model(layers(6))
        self.configure(SIMULATED)
        for _time in range(2):  # before the first one the server has to load everything
            started = time.monotonic()
            run = start_run(self.path, "--workers", 2)
            run.join()
            self.assertEqual(run.exitcode, 0)
            seconds = time.monotonic() - started
        expected = self.tables()
        self.assertEqual(len(expected["data/matrix_stats"]), 54)
        self.remove_results()
        drawn = random.Random(int(os.environ.get("MOE_WEIGHTS_SEED", "5")))
        n_kills = n_resumed = 0
        while n_kills < KILLS:
            n_resumed += bool(list(self.path.glob("cache/parts/*/part-*.json")))
            code = run_and_kill(self.path, drawn.uniform(0, seconds), "--workers", 2)
            if code is None:
                n_kills += 1
                self.assert_nothing_half_written(expected)
                continue
            self.assertEqual(code, 0)
            self.assert_finished(expected)
            self.remove_results()
        self.assertGreater(n_resumed, 0)
        run = start_run(self.path, "--workers", 2)
        run.join()
        self.assertEqual(run.exitcode, 0)
        self.assert_finished(expected)

    def remove_results(self) -> None:
        for folder in ("data", "logs", "cache"):
            shutil.rmtree(self.path / folder)

    def assert_nothing_half_written(self, expected: dict[str, pd.DataFrame]) -> None:
        """What lies under its own name is whole; success is told by the last file."""
        for name in TABLES:
            if (self.path / f"{name}.parquet").exists():
                self.assert_same({name: self.frame(name)}, {name: expected[name]})
        if self.run_directory.log_path("write_manifest.json").exists():
            self.assertEqual(self.log("run_health.json")["status"], "success")
            self.assert_same(self.tables(), expected)

    def assert_finished(self, expected: dict[str, pd.DataFrame]) -> None:
        self.assert_same(self.tables(), expected)
        self.assertEqual(self.log("run_health.json")["status"], "success")
        self.assertFalse((self.path / "cache" / "parts").exists())
        self.assertEqual([file for file in self.files(".") if ".tmp" in file], [])


class Unfinished(ContentCase):
    """A run that was interrupted after some batches, and what the next one makes of its parts."""

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(mock.patch.object(parts, "_MAX_UNITS_PER_BATCH", 1))
        self.enterContext(mock.patch.object(parts, "_SECONDS_BETWEEN_PARTS", 0.0))
        self.write_model(layers(2))
        self.collected(SIMULATED)
        self.expected = self.tables()
        commit, calls = parts.PartStore.commit, []

        def stop(store: Any, *arguments: Any) -> None:
            calls.append(1)
            if len(calls) > 5:
                raise KeyboardInterrupt
            commit(store, *arguments)

        with mock.patch.object(parts.PartStore, "commit", stop):
            outcome = self.collect("--workers", 1)
        self.assertEqual(outcome.code, 130)
        self.assertEqual(len(self.parts()), 5)

    def parts(self) -> list[str]:
        return [file for file in self.files("cache") if "/part-" in file]

    def go_on(self, *arguments: object) -> list[str]:
        """Run again, which must succeed; return what is said about parts."""
        outcome = self.collect(*arguments)
        self.assertEqual((outcome.code, outcome.err), (0, ""))
        self.assertFalse((self.path / "cache" / "parts").exists())
        return [
            line.removeprefix("[collect] ")
            for line in outcome.out.splitlines()
            if re.search("parts|resumed|restart", line)
        ]

    def test_goes_on_from_its_parts(self) -> None:
        self.assertEqual(self.go_on(), ["resumed: 5 of 18 parts taken from an unfinished run"])
        self.assert_same(self.tables(), self.expected)

    def test_goes_on_with_other_workers_and_memory(self) -> None:
        said = self.go_on("--workers", 5, "--max-memory", "2GiB")
        self.assertEqual(said, ["resumed: 5 of 18 parts taken from an unfinished run"])
        self.assert_same(self.tables(), self.expected)

    def test_takes_no_damaged_part(self) -> None:
        part = self.path / self.parts()[2]
        part.write_bytes(part.read_bytes()[:-20])
        self.assertEqual(self.go_on(), ["resumed: 4 of 18 parts taken from an unfinished run"])
        self.assert_same(self.tables(), self.expected)

    def test_with_another_config_begins_anew(self) -> None:
        self.configure(SIMULATED | {"stats.eps": 1e-6})
        self.assertEqual(
            self.go_on(), ["parts of an unfinished run were discarded: config changed"]
        )

    def test_with_another_shard_begins_anew(self) -> None:
        os.utime(self.model / "model.safetensors", (1, 1))
        self.assertEqual(
            self.go_on(), ["parts of an unfinished run were discarded: checkpoint changed"]
        )
        self.assert_same(self.tables(), self.expected)

    def test_with_a_description_that_was_not_there_begins_anew(self) -> None:
        (self.model / "config.json").write_text('{"hidden_size": 64}', encoding="utf-8")
        self.configure(SIMULATED | {"metadata.enabled": True})
        self.assertEqual(
            self.go_on(),
            ["parts of an unfinished run were discarded: checkpoint, config changed"],
        )

    def test_with_another_version_begins_anew(self) -> None:
        with mock.patch.object(parts, "code_digest", return_value="another"):
            said = self.go_on()
        self.assertEqual(said, ["parts of an unfinished run were discarded: code changed"])
        self.assert_same(self.tables(), self.expected)

    def test_begins_anew_when_asked(self) -> None:
        self.assertEqual(
            self.go_on("--restart"), ["restart: finished parts of earlier runs were discarded"]
        )
        self.assert_same(self.tables(), self.expected)

    def test_is_left_alone_by_a_plan(self) -> None:
        before = self.parts()
        self.assertEqual(self.collect("--plan").code, 0)
        self.assertEqual(self.parts(), before)

    def test_of_a_checkpoint_that_changes_meanwhile_is_refused(self) -> None:
        commit = parts.PartStore.commit

        def touch(store: Any, *arguments: Any) -> None:
            os.utime(self.model / "model.safetensors", (2, 2))
            commit(store, *arguments)

        with mock.patch.object(parts.PartStore, "commit", touch):
            outcome = self.collect()
        self.assertEqual(outcome.code, 5)
        self.assertEqual(
            outcome.err,
            "error: CheckpointError: the checkpoint changed while it was read; let its writer "
            "finish, then run again: everything will be measured anew\n",
        )
        self.assertIn("parts of an unfinished run were discarded: checkpoint", self.go_on()[0])

    def test_takes_nothing_of_a_shard_that_was_another_one_for_a_while(self) -> None:
        shard = self.model / "model.safetensors"
        sound, times = shard.read_bytes(), shard.stat()
        commit = parts.PartStore.commit

        def overwrite(store: Any, *arguments: Any) -> None:
            shard.write_bytes(sound[:-2000] + bytes(2000))
            commit(store, *arguments)

        with mock.patch.object(parts.PartStore, "commit", overwrite):
            self.assertEqual(self.collect("--workers", 1).code, 5)
        shard.write_bytes(sound)  # as `rsync -t` would
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
        self.assertEqual(self.go_on(), ["resumed: 5 of 18 parts taken from an unfinished run"])
        self.assert_same(self.tables(), self.expected)


class ReplacedBeforeTheFirstWeight(ContentCase):
    def test_a_shard_is_not_read_by_the_header_of_the_one_before(self) -> None:
        self.write_model(layers(1))
        self.configure()
        choose = collect_data.choose_simulation

        def replace_shard(*arguments: Any) -> Any:
            self.write_model({"in_front": np.zeros(1000, np.float32)} | layers(1))
            return choose(*arguments)

        with mock.patch.object(collect_data, "choose_simulation", replace_shard):
            outcome = self.collect()
        self.assertEqual(outcome.code, 5)
        self.assertEqual(
            outcome.err,
            "error: CheckpointError: the checkpoint changed while it was read; let its writer "
            "finish, then run again: everything will be measured anew\n",
        )
        self.assertEqual(self.files("data"), [])
        self.assertEqual(self.collect().code, 0)


class ControlC(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        nbytes = 2**37  # a hole: zeros that take no room and minutes to read
        name = "model.layers.0.mlp.experts.gate_proj.weight"
        head = raw_safetensors({name: entry("BF16", [4096, 4096, 4096], 0, nbytes)})
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(head)
        try:
            os.truncate(self.model / "model.safetensors", len(head) + nbytes)
        except OSError as error:
            self.skipTest(f"no sparse files here: {error}")
        layout = {"expert_axis": 0, "rows_axis": 1, "cols_axis": 2}
        rule = {"name": "bank", "match": ".*experts.*", "ndim": 3, "layout": layout,
                "proj": "gate_proj"}  # fmt: skip
        self.configure({"extract_rules": [rule]})

    def interrupt(self, executor: str) -> None:
        arguments = ["--run-dir", str(self.path), "--workers", "2", "--executor", executor]
        run = subprocess.Popen(
            [sys.executable, "-m", "moe_weights", "collect-data", *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            # Where no test before has compiled them, the kernels come first.
            begun = wait_until(lambda: bool(list(self.path.glob("cache/parts/*/part-*"))), 120)
            self.assertTrue(begun)
            children = children_of(run.pid)
            started = time.monotonic()
            os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to everyone
            _out, err = run.communicate(timeout=20)
            seconds = time.monotonic() - started
        finally:
            run.kill()
            run.communicate()
        self.assertEqual(run.returncode, 130)
        self.assertEqual(
            err,
            "interrupted; finished files are whole. The same command, run again, goes on from what "
            "is finished or says what it finds there\n",
        )
        # A second or two on an idle machine; what was begun would take minutes.
        self.assertLess(seconds, 15)
        self.assertTrue(wait_until(lambda: all(has_ended(pid) for pid in children), 5))
        self.assertEqual([file for file in self.files(".") if ".tmp" in file], [])
        with RunLock(self.run_directory.lock_path):
            pass

    def test_ends_threads_long_before_their_work_would_end(self) -> None:
        self.interrupt("threads")

    def test_ends_processes_long_before_their_work_would_end(self) -> None:
        self.interrupt("processes")

    def test_ends_a_cluster_of_this_machine_as_quietly(self) -> None:
        self.interrupt("dask")  # it tells its workers to close, and waits for that


def children_of(pid: int) -> list[int]:
    """Return the children of a process, where the system tells them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii", errors="replace").rsplit(")", 1)[-1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


if __name__ == "__main__":
    unittest.main()
