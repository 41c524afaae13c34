"""Bundles and records of which a file is a pipe, a socket, a device or a link to nothing."""

from __future__ import annotations

import unittest

from moe_weights.errors import CheckpointError, OutputError
from moe_weights.routing import (
    BundleError,
    MissingFileError,
    create_working_bundle,
    load_run_bundle,
    resume_working_bundle,
    validate_run_bundle,
    write_run_bundle,
)
from moe_weights.routing.importers.record_files import read_record
from moe_weights.routing.working_folder import working_path
from tests.support.odd_files import NOT_FILES, make_dangling_link, make_pipe, no_waiting
from tests.support.routing_bundles import make_bundle, make_event, make_manifest
from tests.support.runs import temporary_folder

FILES = (
    "manifest.json",
    "raw_trace.ndjson",
    "layout.json",
    "derived.ndjson",
    "motif_ledger.json",
    "contingency.json",
)


class Bundles(unittest.TestCase):
    def setUp(self) -> None:
        self.run_dir = write_run_bundle(temporary_folder(self), **make_bundle())

    def test_with_something_in_place_of_a_file_are_refused_at_once(self) -> None:
        for name in FILES:
            path = self.run_dir / name
            kept = path.read_bytes()
            for what, make in NOT_FILES.items():
                path.unlink()
                make(path)
                with (
                    self.subTest(name, what=what),
                    no_waiting(),
                    self.assertRaises(BundleError) as caught,
                ):
                    load_run_bundle(self.run_dir)
                self.assertEqual(
                    str(caught.exception),
                    "run bundle cannot be read: unreadable_file\n"
                    f"  {path}: file unreadable_file: cannot be read: {what}",
                )
            path.unlink()
            path.write_bytes(kept)
        self.assertEqual(validate_run_bundle(self.run_dir), [])

    def test_a_link_to_nothing_is_not_taken_for_an_absent_file(self) -> None:
        for name in FILES:
            path = self.run_dir / name
            kept = path.read_bytes()
            path.unlink()
            make_dangling_link(path)
            with self.subTest(name), self.assertRaises(MissingFileError) as caught:
                load_run_bundle(self.run_dir)
            self.assertEqual(
                str(caught.exception),
                "run bundle cannot be read: missing_file\n"
                f"  {path}: file missing_file: the file is a link whose target is not there; copy "
                "the file itself",
            )
            path.unlink()
            path.write_bytes(kept)

    def test_a_link_to_a_file_is_a_file(self) -> None:
        path = self.run_dir / "derived.ndjson"
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))
        self.assertEqual(len(load_run_bundle(self.run_dir)["derived_events"]), 3)


class UnfinishedRuns(unittest.TestCase):
    def test_whose_trace_is_a_pipe_are_refused_at_once(self) -> None:
        root = temporary_folder(self)
        create_working_bundle(root, make_manifest(), durable=False).close()
        trace = working_path(root / "run-001") / "raw_trace.ndjson"
        trace.unlink()
        make_pipe(trace)
        with no_waiting(), self.assertRaises(OutputError) as caught:
            resume_working_bundle(root, "run-001")
        self.assertEqual(
            str(caught.exception),
            f"cannot write {trace.parent}: it is a named pipe and no regular file; check the "
            "folder of bundles",
        )
        trace.unlink()
        bundle = resume_working_bundle(root, "run-001", durable=False)
        bundle.append(make_event())
        bundle.promote()


class Records(unittest.TestCase):
    def test_that_are_pipes_are_refused_at_once(self) -> None:
        folder = temporary_folder(self)
        for name in ("record.json", "record.npy", "record.npz"):
            make_pipe(folder / name)
            with self.subTest(name), no_waiting(), self.assertRaises(CheckpointError) as caught:
                read_record(folder / name)
            self.assertEqual(
                str(caught.exception),
                f"cannot read {folder / name}: it is a named pipe and no regular file",
            )

    def test_with_an_integer_of_too_many_digits_are_no_traceback(self) -> None:
        path = temporary_folder(self) / "record.json"
        path.write_text("9" * 5000, encoding="utf-8")
        with self.assertRaisesRegex(CheckpointError, "is not JSON: Exceeds the limit"):
            read_record(path)


if __name__ == "__main__":
    unittest.main()
