from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.support.checkpoints import shard_name, write_index, write_safetensors
from tests.support.command_line import CommandCase, expert_tensors, random_weights

FIRST, SECOND = shard_name(1, 2), shard_name(2, 2)
EXTRA_LAYER = expert_tensors(layer=1)
INDEX = "model.safetensors.index.json"
STRICT = {"scan.strict_index": True}
OFF = {"scan.use_safetensors_index_json": False}
COUNTS = (
    "expected_shards",
    "scanned_shards",
    "missing_shards",
    "extra_scanned_shards",
    "missing_tensors",
    "extra_tensors",
    "extra_safetensors_files_on_disk",
)


class IndexCase(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.tensors = expert_tensors() | EXTRA_LAYER
        self.write_model(self.tensors, n_shards=2, index=True)
        self.index_path = self.model / INDEX

    def remove_index(self) -> None:
        self.index_path.unlink()

    def break_index(self) -> None:
        self.index_path.write_text("{", encoding="utf-8")

    def weight_map(self) -> dict[str, str]:
        return dict(json.loads(self.index_path.read_text(encoding="utf-8"))["weight_map"])

    def assert_index_state(self, status: str, *, is_used: bool, has_path: bool = True) -> None:
        context = self.log("run_context.json")
        state = dict(context["index"])
        error = state.pop("error", None)
        self.assertEqual(error is not None, status == "error")
        parsed = status == "active"
        self.assertEqual(
            state,
            {
                "status": status,
                "searched": status != "disabled",
                "found": status in {"active", "error"},
                "parsed": parsed,
                "active": is_used,
                "used_for_scan": is_used,
                "index_path": str(self.index_path) if has_path else None,
            },
        )
        self.assertEqual(context["scan_plan"]["scan_mode"], "index" if is_used else "walk")
        summary = self.log("run_health.json")["index_summary"]
        self.assertEqual(
            {key: summary[key] for key in ("active", "parsed", "used_for_scan", "index_path")},
            {key: state[key] for key in ("active", "parsed", "used_for_scan", "index_path")},
        )
        self.assertEqual((self.path / "logs/index_report.json").exists(), is_used)
        self.assertEqual(
            self.log("run_health.json")["outputs_written"]["wrote_index_report"], is_used
        )
        columns = list(self.frame("data/tensor_inventory").columns)
        self.assertEqual(
            [name for name in columns if "index" in name],
            ["in_index", "index_shard"] if is_used else [],
        )
        if not is_used:
            self.assertEqual([summary[f"{name}_count"] for name in COUNTS], [0] * 7)

    def assert_failed(self) -> None:
        """A refused run leaves its reason and none of the marks of success."""
        self.assertEqual(self.files("data", "logs"), ["logs/run_failure.json"])


class TruthTable(IndexCase):
    """use_index / strict / kind of model path / index, as `on_strict_dir_valid`."""

    def test_off_loose_dir_valid_walks(self) -> None:
        self.collected(OFF)
        self.assert_index_state("disabled", is_used=False, has_path=False)
        self.assert_shards([FIRST, SECOND])
        self.assertEqual(self.warnings(), [])

    def test_off_loose_file_valid_reads_the_file(self) -> None:
        self.collected(OFF | {"model_path": str(self.model / SECOND)})
        self.assert_index_state("disabled", is_used=False, has_path=False)
        self.assert_shards([SECOND])

    def test_off_strict_is_refused_whatever_the_path(self) -> None:
        for path in (self.model, self.model / FIRST):
            self.assertEqual(
                self.refused(2, OFF | STRICT | {"model_path": str(path)}),
                "UsageError: strict_index requires use_safetensors_index_json=true\n"
                "  how to fix: set scan.use_safetensors_index_json to true or scan.strict_index "
                "to false",
            )
            self.assert_failed()

    def test_on_loose_dir_none_walks_without_a_warning(self) -> None:
        self.remove_index()
        self.collected()
        self.assert_index_state("not_found", is_used=False, has_path=False)
        self.assertEqual(self.warnings(), [])
        self.assert_shards([FIRST, SECOND])

    def test_on_loose_dir_valid_uses_the_index(self) -> None:
        self.collected()
        self.assert_index_state("active", is_used=True)
        self.assert_shards([FIRST, SECOND])
        self.assertEqual(self.warnings(), [])

    def test_on_loose_dir_broken_walks_with_a_warning(self) -> None:
        self.break_index()
        self.collected()
        self.assert_index_state("error", is_used=False)
        self.assertEqual(
            self.warnings(),
            [
                (
                    f"[index] failed to parse index {self.index_path}: it is not JSON (Expecting "
                    "property name enclosed in double quotes: line 1 column 2 (char 1))"
                )
            ],
        )
        self.assert_shards([FIRST, SECOND])

    def test_on_loose_file_none_reads_the_file(self) -> None:
        self.remove_index()
        self.collected({"model_path": str(self.model / FIRST)})
        self.assert_index_state("not_found", is_used=False, has_path=False)
        self.assert_shards([FIRST])

    def test_on_loose_file_valid_reads_the_file_and_says_so(self) -> None:
        outcome = self.collected({"model_path": str(self.model / FIRST)})
        self.assert_index_state("active", is_used=False)
        self.assert_shards([FIRST])
        self.assertEqual(
            outcome.out.splitlines()[0],
            f"[index] index found at {self.index_path}; but model_path is a file; scanning only "
            "the anchor file. To scan the full indexed shard set, pass the model directory "
            "instead.",
        )
        plan = self.log("run_context.json")["scan_plan"]
        self.assertEqual(plan["model_path_kind"], "file")
        self.assertTrue(plan["index_discovered_but_ignored_due_to_file_model_path"])
        self.assertEqual(self.warnings(), [])

    def test_on_loose_file_broken_reads_the_file_with_a_warning(self) -> None:
        self.break_index()
        self.collected({"model_path": str(self.model / FIRST)})
        self.assert_index_state("error", is_used=False)
        self.assertEqual(len(self.warnings()), 1)
        self.assert_shards([FIRST])
        plan = self.log("run_context.json")["scan_plan"]
        self.assertFalse(plan["index_discovered_but_ignored_due_to_file_model_path"])

    def test_on_strict_none_is_refused(self) -> None:
        self.remove_index()
        for path in (self.model, self.model / FIRST):
            self.assertEqual(
                self.refused(3, STRICT | {"model_path": str(path)}),
                "ShardIndexError: strict_index requires an active index (status: not_found)\n"
                f"  no *.safetensors.index.json in {self.model}\n"
                "  how to fix: provide a usable index or set scan.strict_index to false",
            )
            self.assert_failed()

    def test_on_strict_broken_is_refused(self) -> None:
        self.index_path.write_text('{"metadata": {}}', encoding="utf-8")
        for path in (self.model, self.model / FIRST):
            self.assertEqual(
                self.refused(3, STRICT | {"model_path": str(path)}),
                "ShardIndexError: strict_index requires an active index (status: error)\n"
                f"  {self.index_path}: it has no weight_map\n"
                "  how to fix: provide a usable index or set scan.strict_index to false",
            )
            self.assert_failed()

    def test_on_strict_dir_valid_uses_the_index(self) -> None:
        self.collected(STRICT)
        self.assert_index_state("active", is_used=True)
        self.assertTrue(self.log("run_health.json")["index_summary"]["strict_index"])

    def test_on_strict_dir_valid_with_a_missing_shard_is_refused(self) -> None:
        (self.model / FIRST).unlink()
        (self.model / SECOND).unlink()
        self.assertEqual(
            self.refused(3, STRICT),
            f"ShardIndexError: [index] missing shard(s) referenced by index: {FIRST}, {SECOND}\n"
            "  how to fix: complete the download or set scan.strict_index to false",
        )
        self.assert_failed()

    def test_on_strict_dir_checks_missing_shards_before_max_files(self) -> None:
        (self.model / SECOND).unlink()
        self.assertIn(SECOND, self.refused(3, STRICT | {"scan.max_files": 1}))

    def test_on_strict_file_valid_needs_no_other_shard(self) -> None:
        (self.model / SECOND).unlink()
        self.collected(STRICT | {"model_path": str(self.model / FIRST)})
        self.assert_index_state("active", is_used=False)
        self.assert_shards([FIRST])

    def test_plan_refuses_what_the_run_refuses(self) -> None:
        (self.model / SECOND).unlink()
        self.refused(3, STRICT, "--plan")
        self.assertEqual(self.files("data", "logs"), [])


class IndexReport(IndexCase):
    def report(self, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.collected(changes)
        report = self.log("index_report.json")
        summary = self.log("run_health.json")["index_summary"]
        for name in COUNTS:
            self.assertEqual(summary[f"{name}_count"], len(report[name]), name)
        self.assertEqual(summary.get("index_metadata"), report.get("index_metadata"))
        return report

    def test_of_a_sound_checkpoint_lists_shards_and_nothing_else(self) -> None:
        total_size = sum(array.nbytes for array in self.tensors.values())
        self.assertEqual(
            self.report(),
            {
                "expected_shards": [FIRST, SECOND],
                "scanned_shards": [FIRST, SECOND],
                "missing_shards": [],
                "extra_scanned_shards": [],
                "missing_tensors": [],
                "extra_tensors": [],
                "misplaced_tensors": [],
                "not_scanned_due_to_max_files": [],
                "extra_safetensors_files_on_disk": [],
                "index_metadata": {"total_size": total_size},
            },
        )

    def test_leaves_out_empty_metadata(self) -> None:
        for metadata in (None, {}, "text"):
            write_index(self.model, self.weight_map(), metadata=metadata)
            self.assertNotIn("index_metadata", self.report())

    def test_tells_a_missing_shard_and_its_tensors(self) -> None:
        held = [name for name, shard in self.weight_map().items() if shard == SECOND]
        (self.model / SECOND).unlink()
        report = self.report()
        self.assertEqual(report["missing_shards"], [SECOND])
        self.assertEqual(report["scanned_shards"], [FIRST])
        self.assertEqual(report["missing_tensors"], sorted(held))
        self.assertEqual(
            self.warnings(),
            [
                f"[index] missing shards: {SECOND}",
                f"[index] missing tensors: {', '.join(sorted(held))}",
            ],
        )

    def test_tells_a_folder_and_a_dangling_link_in_place_of_a_shard_as_missing(self) -> None:
        (self.model / FIRST).unlink()
        (self.model / FIRST).mkdir()
        (self.model / SECOND).unlink()
        (self.model / SECOND).symlink_to(self.folder / "gone")
        self.assertEqual(self.report()["missing_shards"], [FIRST, SECOND])
        self.assertEqual(len(self.frame("data/matrix_stats")), 0)
        self.refused(3, STRICT)

    def test_keeps_apart_what_max_files_cut_off(self) -> None:
        report = self.report({"scan.max_files": 1})
        self.assertEqual(report["not_scanned_due_to_max_files"], [SECOND])
        self.assertEqual(report["scanned_shards"], [FIRST])
        self.assertEqual((report["missing_shards"], report["missing_tensors"]), ([], []))
        self.assertEqual(self.warnings(), [])

    def test_tells_tensors_that_the_index_does_not_know(self) -> None:
        weight_map = self.weight_map()
        unknown = next(iter(EXTRA_LAYER))
        del weight_map[unknown]
        write_index(self.model, weight_map)
        self.assertEqual(self.report()["extra_tensors"], [unknown])
        self.assertEqual(self.warnings(), [f"[index] extra tensors: {unknown}"])
        inventory = self.frame("data/tensor_inventory").set_index("tensor_name")
        self.assertEqual(inventory["in_index"].sum(), len(self.tensors) - 1)
        self.assertFalse(inventory["in_index"][unknown])
        self.assertEqual(inventory["index_shard"][unknown], "")
        known = next(iter(weight_map))
        self.assertEqual(inventory["index_shard"][known], weight_map[known])
        self.assertIn(unknown, set(self.frame("data/matrix_stats")["source_tensor"]))

    def test_tells_tensors_that_lie_in_another_shard(self) -> None:
        weight_map = self.weight_map()
        moved = next(name for name, shard in weight_map.items() if shard == FIRST)
        weight_map[moved] = SECOND
        write_index(self.model, weight_map)
        report = self.report()
        self.assertEqual(
            report["misplaced_tensors"],
            [{"tensor": moved, "index_shard": SECOND, "found_in": FIRST}],
        )
        self.assertEqual((report["missing_tensors"], report["extra_tensors"]), ([], []))
        self.assertEqual(
            self.warnings(),
            [f"[index] misplaced tensors: {moved} (index: {SECOND}, found in: {FIRST})"],
        )
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        self.assertEqual(rows["file"][moved], FIRST)

    def test_measures_the_copy_that_the_index_names(self) -> None:
        name = next(name for name, shard in self.weight_map().items() if shard == SECOND)
        first = {n: a for n, a in self.tensors.items() if self.weight_map()[n] == FIRST}
        copy = random_weights(*self.tensors[name].shape, seed=99)
        write_safetensors(self.model / FIRST, first | {name: copy})
        self.collected()
        rows = self.frame("data/matrix_stats").set_index("source_tensor")
        self.assertEqual(rows["file"][name], SECOND)
        self.assertEqual(rows["max_abs"][name], float(abs(self.tensors[name]).max()))
        self.assertIn(f"[scan] duplicate tensor name: {name} ({FIRST}, {SECOND})", self.warnings())
        self.assertEqual(list(self.frame("data/tensor_inventory")["tensor_name"]).count(name), 2)

    def test_never_opens_files_that_the_index_does_not_name(self) -> None:
        (self.model / "zz.safetensors").write_bytes(b"no safetensors at all")
        (self.model / "other.npz").write_bytes(b"no zip")
        (self.model / "sub").mkdir()
        (self.model / "sub" / "deep.safetensors").write_bytes(b"x")
        self.assertEqual(self.report()["extra_safetensors_files_on_disk"], ["zz.safetensors"])
        self.assertEqual(
            self.warnings(), ["[index] extra safetensors files on disk: zz.safetensors"]
        )

    def test_warns_of_a_total_size_that_disagrees(self) -> None:
        total_size = sum(array.nbytes for array in self.tensors.values())
        write_index(self.model, self.weight_map(), metadata={"total_size": total_size - 2})
        self.report()
        self.assertEqual(
            self.warnings(),
            [
                (
                    f"[index] metadata.total_size is {total_size - 2}, the headers add up to "
                    f"{total_size}"
                )
            ],
        )
        self.collected({"scan.max_files": 1})
        self.assertEqual(self.warnings(), [])

    def test_does_not_judge_the_total_size_of_shards_with_other_suffixes(self) -> None:
        weight_map = self.weight_map() | {"other": "rest.bin"}
        write_index(self.model, weight_map, metadata={"total_size": 10**9})
        report = self.report()
        self.assertEqual(report["expected_shards"], [FIRST, SECOND])
        self.assertEqual(report["missing_tensors"], [])
        self.assertEqual(self.warnings(), [])

    def test_caps_long_lists_in_warnings_only(self) -> None:
        names = [f"gone.{number:03d}" for number in range(25)]
        write_index(self.model, self.weight_map() | dict.fromkeys(names, FIRST))
        self.assertEqual(self.report()["missing_tensors"], names)
        self.assertEqual(
            self.warnings(),
            [
                f"[index] missing tensors: {', '.join(names[:20])}, ... (5 more, 25 in all)",
            ],
        )

    def test_goes_away_with_the_next_run_that_uses_no_index(self) -> None:
        self.report()
        self.collected(OFF)
        self.assertFalse((self.path / "logs/index_report.json").exists())


class IndexedShards(IndexCase):
    def test_may_be_npz(self) -> None:
        import numpy as np

        np.savez(self.model / "rest.npz", **{"experts.7.up_proj.weight": random_weights(32, 64)})
        write_index(self.model, self.weight_map() | {"experts.7.up_proj.weight": "rest.npz"})
        self.collected()
        self.assert_shards([FIRST, SECOND, "rest.npz"])
        self.assertEqual(self.warnings(), [])

    def test_may_lie_in_subfolders_written_with_backslashes(self) -> None:
        (self.model / "sub").mkdir()
        (self.model / SECOND).rename(self.model / "sub" / SECOND)
        weight_map = {
            name: f"sub\\{shard}" if shard == SECOND else shard
            for name, shard in self.weight_map().items()
        }
        write_index(self.model, weight_map)
        self.collected()
        self.assert_shards([FIRST, f"sub/{SECOND}"])
        self.assertEqual(set(self.frame("data/matrix_stats")["file"]), {FIRST, f"sub/{SECOND}"})
        self.assertEqual(self.warnings(), [])

    def test_may_be_links_to_real_files_elsewhere(self) -> None:
        blobs = self.folder / "blobs"
        blobs.mkdir()
        for number, name in enumerate((FIRST, SECOND, INDEX)):
            (self.model / name).rename(blobs / str(number))
            (self.model / name).symlink_to(blobs / str(number))
        self.collected(STRICT)
        self.assert_shards([FIRST, SECOND])

    def test_are_scanned_in_sorted_order_and_shown_by_the_context(self) -> None:
        self.collected()
        plan = self.log("run_context.json")["scan_plan"]
        self.assertEqual(plan["scanned_files_count"], 2)
        self.assertEqual(plan["scanned_files_example"], [FIRST, SECOND])

    def test_an_index_of_another_name_serves_and_the_usual_name_wins(self) -> None:
        other = self.model / "a.safetensors.index.json"
        self.index_path.rename(other)
        self.collected()
        self.assertEqual(self.log("run_context.json")["index"]["index_path"], str(other))
        write_index(self.model, {"x": FIRST})
        self.collected()
        self.assertEqual(self.log("run_context.json")["index"]["index_path"], str(self.index_path))


class UntrustedIndex(IndexCase):
    """Without strictness the walk decides; with it the run ends."""

    ABSOLUTE = "is an absolute path; shards must lie beside the index"
    LEAVES = "leaves the folder of the index; shards must lie beside it"

    def test_with_a_traversal_in_any_form(self) -> None:
        for entry, cause in {
            "../x.safetensors": self.LEAVES,
            "a/../x.safetensors": self.LEAVES,
            "..\\x.safetensors": self.LEAVES,
            "a\\..\\..\\x.safetensors": self.LEAVES,
            "/x.safetensors": self.ABSOLUTE,
            "\\x.safetensors": self.ABSOLUTE,
            "\\\\server\\x.safetensors": self.ABSOLUTE,
            "C:\\x.safetensors": self.ABSOLUTE,
            "c:x.safetensors": self.ABSOLUTE,
        }.items():
            with self.subTest(entry=entry):
                write_index(self.model, self.weight_map() | {"t": entry})
                self.collected()
                message = f'{self.index_path}: weight_map["t"] = "{entry}" {cause}'
                self.assertEqual(self.warnings(), [f"[index] failed to parse index {message}"])
                self.assert_index_state("error", is_used=False)
                self.assertEqual(
                    self.refused(3, STRICT),
                    "ShardIndexError: strict_index requires an active index (status: error)\n"
                    f"  {message}\n"
                    "  how to fix: provide a usable index or set scan.strict_index to false",
                )

    def test_with_entries_that_are_no_strings(self) -> None:
        for entry, word in {
            "1": 1,
            "null": None,
            "list": ["a"],
            "object": {},
            "true": True,
        }.items():
            with self.subTest(entry=entry):
                write_index(self.model, self.weight_map() | {"t": word})
                self.collected()
                self.assertIn('weight_map["t"] is ', self.warnings()[0])
                self.assertIn(", not a file name", self.warnings()[0])
                self.refused(3, STRICT)

    def test_in_every_other_broken_form(self) -> None:
        for content, cause in {
            "": "it is empty",
            "[]": "it is not a JSON object",
            "{}": "it has no weight_map",
            '{"weight_map": []}': "weight_map is not an object",
        }.items():
            with self.subTest(content=content):
                self.index_path.write_text(content, encoding="utf-8")
                self.collected()
                self.assertEqual(
                    self.warnings(), [f"[index] failed to parse index {self.index_path}: {cause}"]
                )
                self.assertEqual(self.log("run_context.json")["index"]["error"], cause)

    def test_that_is_a_dangling_link(self) -> None:
        self.index_path.unlink()
        self.index_path.symlink_to(self.folder / "gone")
        self.collected()
        self.assertEqual(
            self.warnings(),
            [
                (
                    f"[index] failed to parse index {self.index_path}: it cannot be read "
                    "(No such file or directory)"
                )
            ],
        )
