"""A corpus of damaged bundles: each is refused with scope, code and place."""

from __future__ import annotations

import json
import random
import re
import unittest
from pathlib import Path

from moe_weights.errors import UsageError
from moe_weights.routing import (
    BundleError,
    load_run_bundle,
    open_run_bundle,
    summarize_bundle,
    validate_run_bundle,
    write_run_bundle,
    write_selections_parquet,
)
from moe_weights.routing.load_counts import count_events
from tests.support.routing_bundles import (
    make_bundle,
    make_manifest,
    make_routed_bundle,
    write_unchecked,
)
from tests.support.routing_damage import DAMAGE
from tests.support.routing_mutations import MUTATIONS, TRACE
from tests.support.runs import temporary_folder

RUN_IDS = (
    ".run-bundle.working-a", "a/.run-bundle.tmp-1",
    "../evil", "./run-001", "foo/.", "group//run-001", "/etc", "C:/x", "C:x", "a\\b", "\\\\host\\x",
    "a/../b", "..", ".", "a/", "a\n", "a\x00b", "x" * 201,
)  # fmt: skip


def count_loads(folder: Path) -> None:
    count_events(open_run_bundle(folder).checked_raw_events())


class Corpus(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)

    def assert_refused(self, folder: Path, scope: str, code: str, place: str) -> None:
        issues = validate_run_bundle(folder)
        wanted = (scope, code, str(folder / place))
        found = [(issue.scope, issue.code, issue.place) for issue in issues]
        self.assertIn(wanted, found)
        for load in (load_run_bundle, summarize_bundle, count_loads, write_selections_parquet):
            with self.assertRaises(BundleError) as caught:
                load(folder)
            text = str(caught.exception)
            self.assertIn(f"  {folder / place}: {scope} {code}: ", text)
            self.assertLess(len(text), 20_000)
            if scope not in {"file", "schema"}:
                self.assertRegex(
                    text, rf"^run bundle failed semantic validation: .*\b{re.escape(code)}"
                )


class DamagedRoutedEvents(Corpus):
    def test_are_refused_by_whatever_walks_over_them(self) -> None:
        for number, (field, damage) in enumerate(
            (
                ("topk_indices", lambda chosen: [chosen[0], chosen[0]]),
                ("topk_indices", lambda chosen: [chosen[0], 4]),
                ("topk_indices", lambda chosen: chosen[:1]),
                ("topk_probs", lambda probs: probs[:1]),
                ("combine_weights", lambda weights: weights[:1]),
                ("router_probs", lambda probs: [*probs, 0.0]),
                ("num_total_experts", lambda n: n - 2),
            )
        ):
            with self.subTest(field=field, number=number):
                bundle = make_routed_bundle()
                layer = bundle["raw_events"][1]["layers"][0]
                layer[field] = damage(layer[field])
                folder = write_unchecked(self.root / str(number), bundle)
                for load in (summarize_bundle, count_loads, write_selections_parquet):
                    with self.assertRaises(BundleError):
                        load(folder)


class DamagedPayloads(Corpus):
    def test_are_refused_with_scope_code_and_place_when_read(self) -> None:
        for number, (name, mutation) in enumerate(MUTATIONS.items()):
            with self.subTest(name):
                bundle = make_bundle()
                mutation.change(bundle)
                folder = write_unchecked(self.root / str(number), bundle)
                self.assert_refused(folder, mutation.scope, mutation.code, mutation.place)

    def test_are_refused_when_written_and_nothing_is_left_behind(self) -> None:
        for name, mutation in MUTATIONS.items():
            with self.subTest(name):
                bundle = make_bundle()
                mutation.change(bundle)
                manifest, events, layout = (
                    bundle.pop(key) for key in ("manifest", "raw_events", "layout")
                )
                with self.assertRaises(BundleError) as caught:
                    write_run_bundle(self.root / "runs", manifest, events, layout, **bundle)
                codes = {issue.code for issue in caught.exception.issues}
                # A number that JSON lacks breaks the schema of a field that has one.
                self.assertTrue(codes & {mutation.code, "type"}, codes)
                self.assertEqual(list(self.root.iterdir()), [])

    def test_are_many_and_name_every_code_of_the_format(self) -> None:
        self.assertGreaterEqual(len(MUTATIONS) + len(DAMAGE), 60)
        semantic = {m.code for m in MUTATIONS.values() if m.scope not in {"schema", "file"}}
        # Two of the format's 28 cannot pass the schema: test_routing_semantics.py gives them to the
        # check itself.
        self.assertEqual(len(semantic), 28 - 2)


class DamagedFiles(Corpus):
    def test_are_refused_with_scope_code_and_place(self) -> None:
        for number, (name, (file, change, code, place)) in enumerate(DAMAGE.items()):
            with self.subTest(name):
                folder = write_unchecked(self.root / str(number), make_bundle())
                content = (folder / file).read_bytes()
                self.assertNotEqual(change(content), content)
                (folder / file).write_bytes(change(content))
                self.assert_refused(folder, "file", code, place)

    def test_that_are_missing_are_named(self) -> None:
        for file in ("manifest.json", TRACE, "layout.json"):
            with self.subTest(file):
                folder = write_unchecked(self.root / file, make_bundle())
                (folder / file).unlink()
                with self.assertRaises(FileNotFoundError) as caught:
                    load_run_bundle(folder)
                self.assertIsInstance(caught.exception, ValueError)
                self.assert_refused(folder, "file", "missing_file", file)

    def test_that_are_folders_are_named(self) -> None:
        for file in ("layout.json", "derived.ndjson"):
            with self.subTest(file):
                folder = write_unchecked(self.root / file, make_bundle())
                (folder / file).unlink()
                (folder / file).mkdir()
                self.assert_refused(folder, "file", "unreadable_file", file)


class RandomDamage(Corpus):
    def test_is_refused_with_a_place_or_harmless_and_never_anything_else(self) -> None:
        rng = random.Random(7)
        pieces = (
            b"0",
            b"9" * 30,
            b"e999",
            b'"',
            b"\\ud800",
            b"[",
            b"}",
            b",",
            b"\n",
            b"null",
            b"-",
        )
        folder = write_unchecked(self.root, make_bundle(2))
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        refused = 0
        for _ in range(300):
            name = rng.choice(list(files))
            content = bytearray(files[name])
            place = rng.randrange(len(content))
            content[place : place + rng.choice((0, 0, 1, 3))] = rng.choice(pieces)
            (folder / name).write_bytes(content)
            try:
                load_run_bundle(folder)
            except BundleError as error:
                refused += 1
                self.assertTrue(all(issue.place for issue in error.issues))
            (folder / name).write_bytes(files[name])
        self.assertGreater(refused, 200)


class RunIds(Corpus):
    def test_that_are_no_plain_path_are_refused_on_write_and_on_load(self) -> None:
        for number, run_id in enumerate(RUN_IDS):
            with self.subTest(run_id):
                bundle = json.loads(json.dumps(make_bundle()).replace(
                    json.dumps("run-001"), json.dumps(run_id)
                ))  # fmt: skip
                with self.assertRaises(UsageError):
                    write_run_bundle(
                        self.root / "runs", bundle["manifest"], bundle["raw_events"],
                        bundle["layout"],
                    )  # fmt: skip
                self.assertFalse((self.root / "runs").exists())
                folder = write_unchecked(self.root / str(number), bundle)
                with self.assertRaises(ValueError):
                    load_run_bundle(folder)
                (issue,) = validate_run_bundle(folder)
                self.assertEqual(
                    (issue.scope, issue.code, issue.place),
                    ("manifest", "run_id_not_a_path", str(folder / "manifest.json")),
                )

    def test_say_what_is_wrong(self) -> None:
        with self.assertRaises(UsageError) as caught:
            make_manifest("../evil")
        self.assertEqual(
            str(caught.exception),
            "run_id '../evil' has the segment '..'; use segments of ordinary names joined by /, "
            'for example "group/run-001"',
        )


if __name__ == "__main__":
    unittest.main()
