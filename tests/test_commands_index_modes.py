from __future__ import annotations

import unittest

from tests.support.indexed_models import (
    FIRST,
    OFF,
    SECOND,
    STRICT,
    IndexCase,
)


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


if __name__ == "__main__":
    unittest.main()
