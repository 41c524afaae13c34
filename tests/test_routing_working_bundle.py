from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tracemalloc
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.errors import InvalidDataError, OutputError, UsageError
from moe_weights.routing import (
    BundleError,
    BundleExistsError,
    MissingFileError,
    WorkingBundle,
    create_working_bundle,
    discard_working_bundle,
    load_run_bundle,
    open_run_bundle,
    resume_working_bundle,
    trace_file,
    write_run_bundle,
)
from moe_weights.routing.trace_file import TraceFile
from moe_weights.routing.working_folder import working_path
from tests.support.routing_bundles import (
    make_bundle,
    make_event,
    make_layout,
    make_manifest,
    make_routed_event,
)
from tests.support.runs import temporary_folder

REPO_ROOT = Path(__file__).resolve().parent.parent
DYING_PROGRAM = """
import os, sys
from moe_weights.routing import create_working_bundle
from tests.support.routing_bundles import make_event, make_manifest
bundle = create_working_bundle(sys.argv[1], make_manifest(), durable=False)
for number in range(5):
    bundle.append(make_event(number))
os._exit(9)
"""


class WorkingCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)
        self.run_dir = self.root / "run-001"
        self.trace = working_path(self.run_dir) / "raw_trace.ndjson"

    def create(self, n_events: int = 0, manifest: object = None) -> WorkingBundle:
        bundle = create_working_bundle(
            self.root, make_manifest() if manifest is None else manifest, durable=False
        )  # type: ignore[arg-type]
        self.addCleanup(bundle.close)
        for number in range(n_events):
            bundle.append(make_event(number))
        return bundle

    def resume(self) -> WorkingBundle:
        bundle = resume_working_bundle(self.root, "run-001", durable=False)
        self.addCleanup(bundle.close)
        return bundle


class Growing(WorkingCase):
    def test_ends_as_the_same_bundle_that_would_be_written_at_once(self) -> None:
        run_dir = self.create(3).promote()
        self.assertEqual(run_dir, self.run_dir)
        self.assertEqual(load_run_bundle(run_dir), make_bundle(derived=False))
        self.assertEqual([path.name for path in self.root.iterdir()], ["run-001"])
        other = temporary_folder(self)
        write_run_bundle(other, make_manifest(), map(make_event, range(3)), make_layout())
        for path in run_dir.iterdir():
            self.assertEqual(path.read_bytes(), (other / "run-001" / path.name).read_bytes())

    def test_flushes_each_token_to_the_disk_when_asked(self) -> None:
        with create_working_bundle(self.root, make_manifest()) as bundle:
            with mock.patch("os.fsync") as flush:
                bundle.append(make_event())
            self.assertEqual(flush.call_count, 1)
        self.assertTrue(self.trace.exists())

    def test_keeps_newer_events_and_nests(self) -> None:
        manifest = make_manifest("a/b", bundle_version="v0.2.0")
        bundle = self.create(manifest=manifest)
        bundle.append(make_routed_event(run_id="a/b"))
        self.assertEqual(bundle.layer_expert_counts, [(0, 4), (3, 8)])
        self.assertEqual(bundle.promote(), self.root / "a" / "b")

    def test_takes_a_layout_and_may_then_have_no_events(self) -> None:
        bundle = self.create()
        with self.assertRaises(InvalidDataError):
            bundle.promote()
        self.assertEqual(load_run_bundle(bundle.promote(make_layout()))["raw_events"], [])

    def test_refuses_an_event_and_goes_on(self) -> None:
        bundle = self.create(1)
        broken = make_event(1)
        broken["layers"][0]["entropy"] = 9.0
        for event, told in (
            (make_event(0), "duplicate_raw_token_index"),
            (make_event(5), "raw_token_index_sequence_invalid"),
            ({}, "raw_events[1].event_type: required key is missing"),
            (make_event(1, run_id="other"), "run_id_mismatch"),
            (make_event(1, token_text="\ud800"), "not_unicode"),
            (broken, "entropy_mismatch"),
        ):
            with self.subTest(told), self.assertRaises(BundleError) as caught:
                bundle.append(event)
            self.assertIn(told, str(caught.exception))
        bundle.append(make_event(1))
        self.assertEqual(len(load_run_bundle(bundle.promote())["raw_events"]), 2)

    def test_refuses_a_layout_and_stays(self) -> None:
        bundle = self.create(1)
        for layout in ({}, make_layout(counts=[(0, 4)])):
            with self.assertRaises(BundleError):
                bundle.promote(layout)
        bundle.promote()

    def test_never_replaces_a_bundle(self) -> None:
        bundle = self.create(1)
        self.run_dir.mkdir()
        with self.assertRaises(BundleExistsError):
            bundle.promote()
        self.run_dir.rmdir()
        bundle.promote()
        with self.assertRaises(BundleExistsError):
            self.create()

    def test_on_a_full_disk_leaves_the_trace_as_it_was(self) -> None:
        bundle = create_working_bundle(self.root, make_manifest())
        self.addCleanup(bundle.close)
        bundle.append(make_event())
        before = self.trace.read_bytes()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with mock.patch("os.fsync", side_effect=full), self.assertRaises(OutputError) as caught:
            bundle.append(make_event(1))
        self.assertEqual(
            str(caught.exception),
            f"cannot append to {self.trace}: No space left on device; the file is as it was before",
        )
        self.assertEqual((self.trace.read_bytes(), bundle.n_events), (before, 1))
        bundle.append(make_event(1))
        bundle.promote()

    def test_interrupted_while_it_writes_leaves_the_trace_as_it_was(self) -> None:
        bundle = create_working_bundle(self.root, make_manifest())
        self.addCleanup(bundle.close)
        with (
            mock.patch("os.fsync", side_effect=KeyboardInterrupt),
            self.assertRaises(KeyboardInterrupt),
        ):
            bundle.append(make_event())
        bundle.append(make_event())
        self.assertEqual(len(load_run_bundle(bundle.promote())["raw_events"]), 1)

    def test_can_be_given_up(self) -> None:
        self.create(1).discard()
        self.assertEqual(list(self.root.iterdir()), [])
        create_working_bundle(self.root / "a" / "b", make_manifest("c/d")).discard()
        self.assertEqual(list(self.root.iterdir()), [])
        self.create(1).close()
        self.assertTrue(discard_working_bundle(self.root, "run-001"))
        self.assertFalse(discard_working_bundle(self.root, "run-001"))
        self.assertEqual(list(self.root.iterdir()), [])

    def test_given_up_removes_nothing_where_somebody_else_put_a_file_into_it(self) -> None:
        self.create(1).close()
        foreign = self.trace.parent / "notes"
        foreign.write_text("mine", encoding="utf-8")
        before = sorted(path.name for path in foreign.parent.iterdir())
        with self.assertRaises(OutputError) as caught:
            discard_working_bundle(self.root, "run-001")
        self.assertEqual(
            str(caught.exception),
            f"{foreign} is no part of a bundle; move it away and run the same command again; "
            "nothing was removed",
        )
        self.assertEqual(sorted(path.name for path in foreign.parent.iterdir()), before)
        foreign.unlink()
        self.assertTrue(discard_working_bundle(self.root, "run-001"))

    def test_given_up_keeps_what_others_put_beside_it(self) -> None:
        bundle = create_working_bundle(self.root / "a", make_manifest())
        (self.root / "a" / "notes").write_text("mine", encoding="utf-8")
        bundle.discard()
        self.assertEqual([path.name for path in (self.root / "a").iterdir()], ["notes"])

    def test_of_which_another_process_was_faster_is_left_alone(self) -> None:
        def start_after_another(path: Path, *, durable: bool) -> TraceFile:
            patch.stop()
            self.create(1).close()
            return TraceFile(path, durable=durable)

        patch = mock.patch("moe_weights.routing.working_bundle.TraceFile", start_after_another)
        patch.start()
        with self.assertRaisesRegex(UsageError, "holds an unfinished run"):
            self.create()
        self.assertEqual(self.resume().n_events, 1)

    def test_that_was_promoted_in_the_meantime_is_left_alone(self) -> None:
        bundle = self.create(1)
        lock = fcntl.flock

        def promote_first(descriptor: int, operation: int) -> None:
            bundle.promote()
            lock(descriptor, operation)

        with (
            mock.patch("fcntl.flock", promote_first),
            self.assertRaisesRegex(UsageError, "is written by another process"),
        ):
            resume_working_bundle(self.root, "run-001", durable=False)
        self.assertEqual(len(load_run_bundle(self.run_dir)["raw_events"]), 1)


class Starting(WorkingCase):
    def test_refuses_an_unfinished_run(self) -> None:
        self.create(1).close()
        with self.assertRaises(UsageError) as caught:
            self.create()
        self.assertEqual(
            str(caught.exception),
            f"{working_path(self.run_dir)} holds an unfinished run; go on with it "
            "(resume_working_bundle), or keep or remove it: moe-weights capture --unfinished "
            "salvage, or discard",
        )

    def test_takes_over_a_start_that_came_to_nothing(self) -> None:
        self.trace.parent.mkdir()
        self.trace.write_bytes(b"rest")
        run_dir = self.create(1).promote()
        self.assertEqual(len(load_run_bundle(run_dir)["raw_events"]), 1)

    def test_refuses_what_makes_no_bundle(self) -> None:
        with self.assertRaises(BundleError):
            self.create(manifest={})
        with self.assertRaises(BundleError):
            self.create(manifest=make_manifest(capture_config={"x": float("inf")}))
        with self.assertRaises(UsageError):
            self.create(manifest={**make_manifest(), "run_id": "../evil"})
        self.assertEqual(list(self.root.iterdir()), [])

    def test_says_when_no_file_system_takes_the_folder(self) -> None:
        with self.assertRaisesRegex(OutputError, "File name too long"):
            create_working_bundle(self.root / ("x" * 300), make_manifest())

    def test_says_when_the_folder_cannot_be_made(self) -> None:
        (self.root / "file").write_text("", encoding="utf-8")
        with self.assertRaises(OutputError):
            create_working_bundle(self.root / "file", make_manifest())


class Resuming(WorkingCase):
    def test_loses_at_most_the_token_that_was_being_written(self) -> None:
        self.create(3).close()
        whole = self.trace.read_bytes()
        ends = [position + 1 for position, byte in enumerate(whole) if byte == 10]
        for cut in (*range(0, len(whole), 97), len(whole)):
            self.trace.write_bytes(whole[:cut])
            with self.subTest(cut=cut):
                bundle = self.resume()
                self.assertEqual(bundle.n_events, sum(end <= cut for end in ends))
                kept = ([0, *ends])[bundle.n_events]
                self.assertEqual(bundle.n_dropped_bytes, cut - kept)
                bundle.close()
                self.assertEqual(self.trace.read_bytes(), whole[:kept])

    def test_goes_on_after_a_process_that_died(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", DYING_PROGRAM, str(self.root)], cwd=REPO_ROOT, check=False
        )
        self.assertEqual(done.returncode, 9)
        bundle = self.resume()
        self.assertEqual((bundle.n_events, bundle.n_dropped_bytes), (5, 0))
        bundle.append(make_event(5))
        self.assertEqual(len(load_run_bundle(bundle.promote())["raw_events"]), 6)

    def test_finds_the_last_line_in_a_long_rest(self) -> None:
        self.create(1).close()
        whole = self.trace.read_bytes()
        self.trace.write_bytes(whole + b"x" * 1000)
        with (
            mock.patch.object(trace_file, "_BLOCK_BYTES", 64),
            self.assertLogs("moe_weights.routing.working_bundle", "WARNING") as logs,
        ):
            self.assertEqual(self.resume().n_events, 1)
        self.assertEqual(
            logs.records[0].getMessage(), f"{self.trace}: cut off 1000 bytes of a token"
        )

    def test_removes_what_a_half_done_promotion_left(self) -> None:
        self.create(1).close()
        (self.trace.parent / "layout.json").write_text("{}", encoding="utf-8")
        self.resume().promote()
        layout = load_run_bundle(self.run_dir)["layout"]
        self.assertEqual(layout["run_id"], make_manifest()["run_id"])

    def test_refuses_damage_that_no_crash_makes(self) -> None:
        self.create(2).close()
        whole = self.trace.read_bytes()
        for damaged, told in (
            (b"x" + whole, "invalid_json"),
            (b"{}\n" + whole, "required key is missing"),
            (whole + whole, "duplicate_raw_token_index"),
        ):
            self.trace.write_bytes(damaged)
            with self.subTest(told), self.assertRaises(BundleError) as caught:
                self.resume()
            self.assertIn(told, str(caught.exception))
            self.assertIn(f"{self.trace}:", str(caught.exception))
        self.trace.write_bytes(whole)
        self.resume()

    def test_needs_an_unfinished_run(self) -> None:
        with self.assertRaises(MissingFileError):
            self.resume()
        self.create(1).close()
        (self.trace.parent / "manifest.json").write_text("{}", encoding="utf-8")
        with self.assertRaises(BundleError):
            self.resume()

    def test_refuses_a_folder_it_cannot_write_to(self) -> None:
        self.create(1).close()
        self.trace.unlink()
        self.trace.mkdir()
        with self.assertRaises(OutputError):
            self.resume()

    def test_is_for_one_process_at_a_time(self) -> None:
        self.create(1)
        with self.assertRaises(UsageError) as caught:
            self.resume()
        self.assertEqual(
            str(caught.exception),
            f"{self.trace} is written by another process; wait for it or use another run_id",
        )


class Memory(WorkingCase):
    def test_does_not_grow_with_the_trace(self) -> None:
        bundle = self.create(1)
        event = make_event(1)
        peaks = []
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        for count in (200, 2000):
            tracemalloc.reset_peak()
            while bundle.n_events < count:
                event["token_index"] = bundle.n_events
                bundle.append(event)
            peaks.append(tracemalloc.get_traced_memory()[1])
        run_dir = bundle.promote()
        for count in (200, 2000):
            tracemalloc.reset_peak()
            events = open_run_bundle(run_dir).raw_events()
            for _event, _number in zip(events, range(count), strict=False):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
        self.assertLess(peaks[1], peaks[0] + 100_000)
        self.assertLess(peaks[3], peaks[2] + 100_000)


if __name__ == "__main__":
    unittest.main()
