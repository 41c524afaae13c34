from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.atomic_files import publish_folder
from moe_weights.errors import OutputError
from moe_weights.routing import (
    BundleError,
    BundleExistsError,
    bundle_files,
    load_run_bundle,
    open_run_bundle,
    validate_run_bundle,
    write_run_bundle,
)
from tests.support.routing_bundles import (
    make_bundle,
    make_event,
    make_layout,
    make_manifest,
    make_routed_bundle,
    write_unchecked,
)
from tests.support.runs import temporary_folder


class BundleCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def write(self, **bundle: object) -> Path:
        return write_run_bundle(self.root, **{**make_bundle(), **bundle})  # type: ignore[arg-type]


class Written(BundleCase):
    def test_hold_golden_bytes(self) -> None:
        folder = self.write(**make_bundle(1))
        self.assertEqual(
            sorted(path.name for path in folder.iterdir()),
            ["contingency.json", "derived.ndjson", "layout.json", "manifest.json",
             "motif_ledger.json", "raw_trace.ndjson"],
        )  # fmt: skip
        manifest = (folder / "manifest.json").read_text(encoding="utf-8")
        self.assertTrue(manifest.startswith('{\n  "artifact_versions": {\n    "contingency_'))
        self.assertTrue(manifest.endswith('  "tokenizer_id": "org/model"\n}\n'))
        self.assertEqual(
            (folder / "derived.ndjson").read_bytes(),
            b'{"derivation_config_id":"motifs/default-alpha","derivation_version":"motifs/v0.1.0-'
            b'alpha","derived_payload":{"global_motif":{"motif_id":"g_000"},"layer_motifs":['
            b'{"layer_index":0,"motif_id":"l00_000"},{"layer_index":1,"motif_id":"l01_000"}]},'
            b'"event_type":"token_derived","run_id":"run-001","schema_version":"derived/v0.1.0-'
            b'provisional","token_index":0}\n',
        )

    def test_read_back_as_they_were(self) -> None:
        for bundle in (make_bundle(), make_routed_bundle(), make_bundle(0, derived=False)):
            root = temporary_folder(self)
            folder = write_run_bundle(root, **bundle)
            self.assertEqual(load_run_bundle(folder), bundle)
            self.assertEqual(validate_run_bundle(str(folder)), [])

    def test_without_optional_files_and_events_have_empty_traces(self) -> None:
        folder = write_run_bundle(self.root, make_manifest(), [], make_layout())
        self.assertEqual((folder / "raw_trace.ndjson").read_bytes(), b"")
        self.assertEqual(len(list(folder.iterdir())), 3)
        other = self.write(
            manifest=make_manifest("b"), raw_events=[], layout=make_layout("b"),
            derived_events=[], motif_ledger=None, contingency=None,
        )  # fmt: skip
        self.assertEqual((other / "derived.ndjson").read_bytes(), b"")
        self.assertEqual(load_run_bundle(other)["derived_events"], [])

    def test_take_text_of_any_script(self) -> None:
        event = make_event(token_text="\u2028 ü 🎈\x85\n")
        folder = write_run_bundle(self.root, make_manifest(), [event], make_layout())
        self.assertIn("🎈".encode(), (folder / "raw_trace.ndjson").read_bytes())
        self.assertEqual(load_run_bundle(folder)["raw_events"], [event])

    def test_nest_as_their_run_id_says(self) -> None:
        run_id = "group/run-001"
        folder = write_run_bundle(
            self.root / "new", make_manifest(run_id), [make_event(run_id=run_id)],
            make_layout(run_id),
        )  # fmt: skip
        self.assertEqual(folder, self.root / "new" / "group" / "run-001")
        with self.assertNoLogs("moe_weights.routing"):
            load_run_bundle(folder)

    def test_take_events_from_a_generator(self) -> None:
        events = (make_event(number) for number in range(2))
        folder = write_run_bundle(self.root, make_manifest(), events, make_layout())
        self.assertEqual(len(load_run_bundle(folder)["raw_events"]), 2)


class Refused(BundleCase):
    def assert_nothing_left(self) -> None:
        self.assertEqual(list(self.root.iterdir()), [])

    def test_where_something_is(self) -> None:
        self.write()
        with self.assertRaises(FileExistsError) as caught:
            self.write()
        self.assertIsInstance(caught.exception, OutputError)
        self.assertEqual(
            str(caught.exception),
            f"there is something at {self.root / 'run-001'} already; a bundle is never replaced: "
            "use another run_id or remove it",
        )
        for number, make in enumerate((Path.mkdir, Path.touch, lambda path: path.symlink_to("x"))):
            run_id = f"taken-{number}"
            make(self.root / run_id)
            with self.assertRaises(BundleExistsError):
                write_run_bundle(self.root, make_manifest(run_id), [], make_layout(run_id))

    def test_when_another_writer_is_first(self) -> None:
        def race(_folder: Path) -> None:
            (self.root / "run-001").mkdir()

        with (
            mock.patch("moe_weights.routing.bundle_writer.refuse_existing", side_effect=race),
            self.assertRaises(BundleExistsError),
        ):
            self.write()
        self.assertEqual([path.name for path in self.root.iterdir()], ["run-001"])

    def test_for_the_first_schema_fault_and_list_all(self) -> None:
        manifest = {**make_manifest(), "seed": "x", "model_id": ""}
        with self.assertRaises(ValueError) as caught:
            self.write(manifest=manifest)
        self.assertEqual(
            str(caught.exception).split("\n"),
            [
                ("run bundle failed schema validation: manifest.model_id: must have at least 1 "
                'character, got ""'),
                ('  manifest: schema minLength: manifest.model_id: must have at least 1 character, '
                'got ""'),
                '  manifest: schema type: manifest.seed: expected integer or null, got "x"',
            ],
        )  # fmt: skip
        self.assert_nothing_left()

    def test_for_contradictions_with_all_their_codes(self) -> None:
        events = [make_event(0), make_event(0)]
        with self.assertRaises(ValueError) as caught:
            write_run_bundle(self.root, make_manifest(), events, make_layout())
        head, *rest = str(caught.exception).split("\n")
        self.assertEqual(
            head,
            "run bundle failed semantic validation: duplicate_raw_token_index, "
            "raw_token_index_sequence_invalid",
        )
        self.assertEqual(rest[0], "  bundle duplicate_raw_token_index: token 0 is given twice")
        self.assert_nothing_left()

    def test_for_values_that_json_lacks(self) -> None:
        for config, told in (
            (
                {"t": float("nan")},
                ("non_standard_number: CONFIG.t: nan is refused; no non-standard JSON numeric "
                "values"),
            ),
            ({1: "a"}, "not_json: CONFIG: the key 1 is not text"),
            ({"a": [{1, 2}]}, "not_json: CONFIG.a[0]: JSON has no set"),
            ({"a": "\ud800"}, "not_unicode: CONFIG.a: a text has half of a surrogate pair"),
        ):  # fmt: skip
            manifest = make_manifest(generation_config=config)
            with self.subTest(told), self.assertRaises(BundleError) as caught:
                self.write(manifest=manifest)
            head = caught.exception.head.replace("manifest.generation_config", "CONFIG")
            self.assertEqual(head, f"run bundle cannot be written: {told}")
        with self.assertRaises(BundleError):
            self.write(raw_events=[make_event(token_text="\udfff")])
        circle: list[object] = []
        circle.append(circle)
        manifest = make_manifest()
        manifest["capture_config"] = {"a": circle}
        with self.assertRaises(BundleError) as caught:
            self.write(manifest=manifest)
        self.assertEqual(caught.exception.issues[0].code, "nested_too_deeply")
        self.assert_nothing_left()

    def test_with_a_manifest_that_is_none(self) -> None:
        for manifest in (None, {"run_id": 5}):
            with self.assertRaises(BundleError) as caught:
                self.write(manifest=manifest)
            self.assertIn("run bundle failed schema validation: manifest", str(caught.exception))

    def test_on_a_full_disk_and_leave_nothing(self) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        nested = make_manifest("a/b")
        for target in ("moe_weights.routing.bundle_writer.write_lines", "os.fsync"):
            with mock.patch(target, side_effect=full), self.assertRaises(OutputError) as caught:
                write_run_bundle(self.root, nested, [make_event(run_id="a/b")], make_layout("a/b"))
            self.assertIn("No space left on device", str(caught.exception))
            self.assert_nothing_left()

    def test_with_many_faults_in_a_short_message(self) -> None:
        events = [{"token_index": number} for number in range(1000)]
        with self.assertRaises(BundleError) as caught:
            self.write(raw_events=events)
        self.assertEqual(len(caught.exception.issues), 100)
        self.assertTrue(str(caught.exception).endswith("\n  and 80 more"))
        again = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((str(again), again.issues), (str(caught.exception), again.issues))


class Read(BundleCase):
    def test_one_event_at_a_time(self) -> None:
        folder = self.write()
        reader = open_run_bundle(folder)
        events = reader.raw_events()
        self.assertEqual(next(events)["token_index"], 0)
        self.assertEqual([event["token_index"] for event in events], [1, 2])
        self.assertEqual(len(list(reader.derived_events())), 3)
        self.assertEqual(reader.manifest["run_id"], "run-001")

    def test_one_at_a_time_stop_at_the_first_fault(self) -> None:
        bundle = make_bundle()
        bundle["raw_events"][1]["layers"][0]["entropy"] = 9.0
        events = open_run_bundle(write_unchecked(self.root, bundle)).raw_events()
        self.assertEqual(next(events)["token_index"], 0)
        with self.assertRaises(BundleError) as caught:
            next(events)
        self.assertEqual([issue.code for issue in caught.exception.issues], ["entropy_mismatch"])

    def test_one_at_a_time_read_nothing_behind_the_first_fault(self) -> None:
        for field in ("entropy", "layer_kind"):  # of an event, of its schema
            bundle = make_bundle()
            bundle["raw_events"][1]["layers"][0][field] = 9.0
            folder = write_unchecked(self.root / field, bundle)
            with (folder / "raw_trace.ndjson").open("ab") as trace:
                trace.write(b"no JSON\n")
            events = open_run_bundle(folder).raw_events()
            self.assertEqual(next(events)["token_index"], 0)
            with self.assertRaises(BundleError) as caught:
                next(events)
            places = {issue.place for issue in caught.exception.issues}
            self.assertEqual(places, {str(folder / "raw_trace.ndjson:2")})

    def test_one_derived_event_at_a_time_stop_at_a_broken_one(self) -> None:
        bundle = make_bundle()
        del bundle["derived_events"][2]["token_index"]
        reader = open_run_bundle(write_unchecked(self.root, bundle))
        with self.assertRaises(BundleError):
            list(reader.derived_events())

    def test_with_blank_lines_and_carriage_returns(self) -> None:
        folder = self.write()
        trace = folder / "raw_trace.ndjson"
        trace.write_bytes(b"\n \t\n" + trace.read_bytes().replace(b"\n", b"\r\n") + b"\n")
        self.assertEqual(load_run_bundle(folder), make_bundle())
        trace.write_bytes(trace.read_bytes().rstrip())
        self.assertEqual(load_run_bundle(folder), make_bundle())

    def test_under_another_name_with_a_warning(self) -> None:
        folder = self.write().rename(self.root / "moved")
        with self.assertLogs("moe_weights.routing.bundle_reader", "WARNING") as logs:
            self.assertEqual(load_run_bundle(folder), make_bundle())
        self.assertEqual(
            logs.records[0].getMessage(), f"{folder} holds the bundle of run_id run-001"
        )

    def test_with_a_line_without_end_are_refused_within_bounds(self) -> None:
        folder = self.write()
        with mock.patch.object(bundle_files, "_MAX_LINE_BYTES", 100):
            (issue,) = validate_run_bundle(folder)
        self.assertEqual(issue.code, "line_too_long")
        self.assertEqual(issue.place, str(folder / "raw_trace.ndjson:1"))

    def test_with_a_thousand_faults_end_at_a_hundred(self) -> None:
        bundle = make_bundle(1, derived=False)
        bundle["raw_events"] *= 1000
        folder = write_unchecked(self.root, bundle)
        self.assertEqual(len(validate_run_bundle(folder)), 100)
        with self.assertRaises(BundleError) as caught:
            load_run_bundle(folder)
        self.assertEqual(str(caught.exception).count("duplicate_raw_token_index"), 98 + 20)

    def test_with_a_trace_that_cannot_be_read(self) -> None:
        folder = self.write()
        reader = open_run_bundle(folder)
        (folder / "raw_trace.ndjson").unlink()
        with self.assertRaises(BundleError) as caught:
            list(reader.raw_events())
        self.assertEqual(caught.exception.issues[0].code, "unreadable_file")

    def test_from_many_threads(self) -> None:
        folder = self.write()
        results: list[object] = []
        threads = [
            threading.Thread(target=lambda: results.append(load_run_bundle(folder)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(results, [make_bundle()] * 4)


class PublishedFolders(BundleCase):
    def test_never_replace_anything(self) -> None:
        source = self.root / "source"
        source.mkdir()
        (source / "a").write_text("x", encoding="utf-8")
        target = self.root / "target"
        target.mkdir()
        with self.assertRaises(FileExistsError):
            publish_folder(source, target)
        target.rmdir()
        publish_folder(source, target)
        self.assertEqual((target / "a").read_text(encoding="utf-8"), "x")
        with self.assertRaises(OutputError):
            publish_folder(source, self.root / "other")

    def test_hold_what_json_says(self) -> None:
        folder = self.write()
        lines = (folder / "raw_trace.ndjson").read_text(encoding="utf-8").splitlines()
        self.assertEqual([json.loads(line) for line in lines], make_bundle()["raw_events"])


if __name__ == "__main__":
    unittest.main()
