from __future__ import annotations

import unittest
from collections.abc import Mapping
from typing import Any

from tests.support.checkpoints import write_index, write_safetensors
from tests.support.command_line import expert_tensors, random_weights
from tests.support.indexed_models import (
    COUNTS,
    EXTRA_LAYER,
    FIRST,
    OFF,
    SECOND,
    STRICT,
    IndexCase,
)


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
                "extra_files_not_read": [],
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
        report = self.report()
        self.assertEqual(report["extra_safetensors_files_on_disk"], ["zz.safetensors"])
        self.assertEqual(report["extra_files_not_read"], ["other.npz", "sub/deep.safetensors"])
        self.assertEqual(
            self.warnings(),
            [
                "[index] extra safetensors files on disk: zz.safetensors",
                "[index] extra files not read: other.npz, sub/deep.safetensors",
            ],
        )

    def test_tells_experts_in_a_subfolder_that_the_index_does_not_name(self) -> None:
        (self.model / "experts").mkdir()
        write_safetensors(self.model / "experts" / "more.safetensors", expert_tensors(layer=2))
        outcome = self.collected({"metadata.enabled": True})
        self.assertNotIn(2, set(self.frame("data/matrix_stats")["layer"]))
        self.assertIsNone(self.log("coverage.json")["complete"])
        told = "[index] extra files not read: experts/more.safetensors"
        self.assertIn(f"[warn] {told}", outcome.out)
        warnings = self.frame("logs/warnings").set_index("warning")
        self.assertEqual(warnings["file"][told], "experts/more.safetensors")
        self.collected(OFF)
        self.assertIn(2, set(self.frame("data/matrix_stats")["layer"]))

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
        not_scanned = "[index] shards with a suffix that is not scanned: rest.bin"
        self.assertEqual(self.warnings(), [not_scanned])

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


if __name__ == "__main__":
    unittest.main()
