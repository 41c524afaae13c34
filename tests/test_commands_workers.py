"""Threads, processes and a cluster give the same results, also when workers die."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import unittest
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.commands import dask_workers, matrix_blocks, parts, work
from moe_weights.commands.dask_workers import DaskWorkers, run_units_as
from moe_weights.commands.matrix_blocks import PlainUnit
from moe_weights.commands.work import StoppedError, run_units
from moe_weights.commands.workers import (
    ProcessWorkers,
    ThreadWorkers,
    open_workers,
)
from moe_weights.errors import CheckpointError, OutputError, WorkerError
from tests.support.command_line import CommandCase
from tests.support.work_units import content_of
from tests.support.worker_pools import KillingStore, Poison, has_ended, wait_until
from tests.test_commands_measuring import OWN, MeasuringCase

REPOSITORY = Path(__file__).resolve().parent.parent


class Threads(MeasuringCase):
    def test_stop_at_their_next_block(self) -> None:
        begun = []

        def endless(_source: PlainUnit, _view: Any) -> Iterator[np.ndarray]:
            begun.append(1)
            while True:
                time.sleep(0.005)
                yield np.zeros((0, 64), dtype=np.float32)

        pool = ThreadWorkers(2)
        with mock.patch.object(matrix_blocks.PlainUnit, "blocks", endless):
            futures = [pool.submit([unit], self.settings) for unit in self.units]
            self.assertTrue(wait_until(lambda: len(begun) == 2, 5))
            started = time.monotonic()
            pool.stop()
        self.assertLess(time.monotonic() - started, 1)
        for future in futures[:2]:
            self.assertIsInstance(future.exception(), StoppedError)
        self.assertTrue(all(future.cancelled() for future in futures[2:]))
        self.assertFalse(work.STOPPING.is_set())

    def test_are_never_renewed(self) -> None:
        pool = ThreadWorkers(1)
        pool.renew()
        self.assertEqual(pool.died, ())
        future = pool.submit(self.units[:1], self.settings)
        self.assertEqual(content_of([future.result()]), self.expected[:1])
        pool.stop()


class Processes(MeasuringCase):
    def test_killed_during_the_run_are_replaced_and_the_results_equal(self) -> None:
        pool = ProcessWorkers(2)
        self.addCleanup(pool.stop)
        killed = []

        def kill() -> None:
            killed.append(next(iter(pool._executor._processes)))
            os.kill(killed[0], signal.SIGKILL)

        self.store = KillingStore(self.folder / "parts", OWN)
        self.store.kill = kill
        self.assertEqual(self.measure_in(pool), self.expected)
        self.assertEqual(len(killed), 1)
        self.assertEqual(self.said.count("[warn] a worker died; "), 1)
        self.assertNotIn(killed[0], pool._executor._processes)

    def test_that_a_batch_always_kills_are_given_up(self) -> None:
        self.settings = Poison()  # type: ignore[assignment]
        with (
            mock.patch("moe_weights.commands.measuring._MAX_ATTEMPTS", 2),
            open_workers("processes", 1) as pool,
            self.assertRaises(WorkerError) as caught,
        ):
            self.measure_in(pool)
        self.assertIsInstance(caught.exception.__cause__, BrokenProcessPool)
        self.assertRegex(
            str(caught.exception),
            r"^workers died 2 times while they measured bank0 of model\.safetensors or its "
            r"neighbours \(BrokenProcessPool: .*\); the machine may lack memory: use fewer "
            r"--workers or a smaller --max-memory, then run the same command again: finished "
            r"parts are kept$",
        )

    def test_end_with_their_parent(self) -> None:
        program = textwrap.dedent(
            """
            import time
            from moe_weights.commands.workers import ProcessWorkers
            if __name__ == "__main__":
                pool = ProcessWorkers(2)
                for future in [pool._executor.submit(time.sleep, 0.1) for _ in range(2)]:
                    future.result()
                print(*pool._executor._processes, flush=True)
                time.sleep(600)
            """
        )
        script = self.folder / "parent.py"
        script.write_text(program, encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        ) as parent:
            assert parent.stdout is not None
            children = [int(pid) for pid in parent.stdout.readline().split()]
            alive = [pid for pid in children if not has_ended(pid)]
            parent.kill()
        self.assertEqual((len(children), alive), (2, children))
        self.assertTrue(wait_until(lambda: all(has_ended(pid) for pid in children), 10))


class ProcessesThatDoNotLook(unittest.TestCase):
    def test_are_ended_when_the_pool_is_left(self) -> None:
        # As one that still loads its packages, this one looks at no flag, for a minute.
        pool = ProcessWorkers(1)
        pool._executor.submit(time.sleep, 60)
        (process,) = pool._executor._processes.values()
        started = time.monotonic()
        pool.stop()
        process.join(10)
        self.assertFalse(process.is_alive())
        self.assertLess(time.monotonic() - started, 30)


class Cluster(MeasuringCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        import distributed

        cls.distributed: Any = distributed
        cls.cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        )
        cls.addClassCleanup(cls.cluster.close)

    def test_with_a_worker_killed_during_the_run_gives_equal_results(self) -> None:
        address = self.cluster.scheduler_address
        killed = []
        with self.distributed.Client(address) as client:

            def kill() -> None:
                killed.append(next(iter(client.run(os.getpid).values())))
                os.kill(killed[0], signal.SIGKILL)

            self.store = KillingStore(self.folder / "parts", OWN)
            self.store.kill = kill
            with open_workers("dask", 1, address) as pool:
                self.assertEqual(pool.n_workers, 2)
                self.assertEqual(self.measure_in(pool), self.expected)
        self.assertTrue(has_ended(killed[0]))
        self.assertEqual(self.committed(), list(range(12)))

    def test_of_another_version_is_refused(self) -> None:
        with (
            mock.patch.object(dask_workers, "code_digest", return_value="another"),
            self.assertRaises(WorkerError) as caught,
            open_workers("dask", 1, self.cluster.scheduler_address),
        ):
            raise AssertionError("the workers were taken")
        self.assertRegex(
            str(caught.exception),
            r"^the worker tcp://127\.0\.0\.1:\d+ has another version of moe-weights than this "
            r"machine; install the same one on all workers, restart them, and run the same command "
            r"again$",
        )

    def test_without_this_package_is_refused(self) -> None:
        missing = dask_workers._CODE.replace("moe_weights", "no_such_package")
        with (
            mock.patch.object(dask_workers, "_CODE", missing),
            self.assertRaises(WorkerError) as caught,
            open_workers("dask", 1, self.cluster.scheduler_address),
        ):
            raise AssertionError("the workers were taken")
        self.assertRegex(
            str(caught.exception),
            r"^the worker tcp://127\.0\.0\.1:\d+ cannot load moe-weights \(No module named "
            r"'no_such_package'\); install this machine's version on all workers, restart them, "
            r"and run the same command again$",
        )

    def test_without_the_model_says_which_worker_needs_it(self) -> None:
        self.settings = replace(self.settings, root=self.folder / "elsewhere")
        with (
            self.assertRaises(CheckpointError) as caught,
            open_workers("dask", 1, self.cluster.scheduler_address) as pool,
        ):
            self.measure_in(pool)
        self.assertEqual(
            str(caught.exception),
            "cannot read model.safetensors: No such file or directory; check that the file is "
            f"there and that you may read it (told by the worker {socket.gethostname()}, which "
            f"needs the model below {self.folder / 'elsewhere'} as this machine does)",
        )

    def test_whose_scheduler_is_lost_ends_the_run(self) -> None:
        address = self.cluster.scheduler_address
        closed = self.distributed.client.ClosedClientError("after closing")
        for error in (OSError("connection reset by peer"), CancelledError("gone"), closed):
            with self.assertRaises(WorkerError) as caught, open_workers("dask", 1, address):
                raise error
            self.assertEqual(
                str(caught.exception),
                f"the Dask scheduler at {address} was lost ({error}); start it again, then run the "
                "same command again: finished parts are kept",
            )
        with self.assertRaises(WorkerError) as caught, open_workers("dask", 1, address):
            raise CancelledError
        self.assertIn(" was lost (CancelledError); start it again", str(caught.exception))

    def test_has_nothing_to_do_with_errors_of_this_machine(self) -> None:
        with (
            self.assertRaises(OutputError),
            open_workers("dask", 1, self.cluster.scheduler_address),
        ):
            raise OutputError("no room")

    def test_that_loses_its_patience_has_died(self) -> None:
        pool = DaskWorkers(mock.Mock(), self.distributed.KilledWorker)
        self.assertEqual(pool.died, (self.distributed.KilledWorker,))
        pool.renew()


class ClusterWithoutWorkers(unittest.TestCase):
    def setUp(self) -> None:
        self.client = mock.Mock(**{"scheduler.address": "tcp://a:1", "nthreads.return_value": {}})
        self.pool = DaskWorkers(self.client, KeyError)
        self.now = 100.0
        self.enterContext(mock.patch("time.monotonic", lambda: self.now))

    def test_is_told_once_and_given_up_after_a_minute(self) -> None:
        self.assertEqual(
            self.pool.look_after(),
            "the Dask cluster at tcp://a:1 has no workers; waiting 60 s for one: dask worker "
            "tcp://a:1",
        )
        self.now += 59
        self.assertIsNone(self.pool.look_after())
        self.now += 1
        with self.assertRaises(WorkerError) as caught:
            self.pool.look_after()
        self.assertEqual(
            str(caught.exception),
            "the Dask cluster at tcp://a:1 has had no workers for 60 s; start some with `dask "
            "worker tcp://a:1` where this machine's version of moe-weights is installed, then run "
            "the same command again: finished parts are kept",
        )

    def test_goes_on_when_one_comes(self) -> None:
        self.assertIsNotNone(self.pool.look_after())
        self.client.nthreads.return_value = {"b": 3}
        self.now += 70
        self.assertEqual(self.pool.n_workers, 3)
        self.client.nthreads.return_value = {}
        self.assertEqual(self.pool.n_workers, 1)
        self.assertIn("has no workers; waiting", str(self.pool.look_after()))


class LocalCluster(unittest.TestCase):
    def test_is_made_where_no_address_is_given(self) -> None:
        client = mock.Mock(**{"nthreads.return_value": {"a": 1, "b": 2}, "run.return_value": {}})
        fake = mock.MagicMock(KilledWorker=KeyError)
        fake.Client.return_value.__enter__.return_value = client
        with (
            mock.patch.dict(sys.modules, {"distributed": fake}),
            open_workers("dask", 3) as pool,
        ):
            self.assertEqual(pool.n_workers, 3)
        fake.LocalCluster.assert_called_once_with(
            n_workers=3, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL
        )
        fake.LocalCluster.return_value.__exit__.assert_called_once()
        client.get_executor.return_value.shutdown.assert_called_once_with(wait=False)


class ClusterOnThisMachine(CommandCase):
    def test_says_nothing_on_standard_error(self) -> None:
        self.write_model()
        self.configure()
        done = subprocess.run(
            [sys.executable, "-m", "moe_weights", "collect-data", "--run-dir", str(self.path),
             "--executor", "dask", "--workers", "1"],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("[collect] matrix_stats rows: 6 ", done.stdout)


class OtherMachines(MeasuringCase):
    def test_measure_with_the_same_code_alone(self) -> None:
        own = parts.code_digest()
        found = run_units_as(own, self.units[:1], self.settings)
        self.assertEqual(content_of([found]), self.expected[:1])
        with self.assertRaises(WorkerError):
            run_units_as("another", self.units[:1], self.settings)

    def test_do_not_need_the_scratch_folder_of_this_one(self) -> None:
        settings = replace(self.settings, scratch_folder=self.folder / "gone")
        found = run_units(self.units[:1], settings)
        self.assertEqual(content_of([found]), self.expected[:1])


class Refusals(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.write_model()

    def test_without_distributed_say_what_to_install(self) -> None:
        with mock.patch.dict(sys.modules, {"distributed": None}):
            message = self.refused(2, None, "--executor", "dask")
        self.assertEqual(
            message,
            "UsageError: --executor dask needs the package distributed (import of distributed "
            "halted; None in sys.modules); install it with: pip install 'moe-weights[dask]'",
        )

    def test_without_a_scheduler_say_how_to_start_one(self) -> None:
        import distributed

        client = distributed.Client
        with mock.patch.object(
            distributed, "Client", lambda where, timeout: client(where, timeout="0.2s")
        ):
            message = self.refused(2, None, "--scheduler", "tcp://127.0.0.1:9")
        self.assertRegex(
            message,
            r"^UsageError: cannot reach the Dask scheduler at tcp://127\.0\.0\.1:9: .*; start it "
            r"with `dask scheduler` and give its address as --scheduler tcp://HOST:8786$",
        )


if __name__ == "__main__":
    unittest.main()
