from __future__ import annotations

import unittest

import numpy as np

from tests.support.checkpoints import write_index
from tests.support.command_line import random_weights
from tests.support.indexed_models import (
    FIRST,
    INDEX,
    SECOND,
    STRICT,
    IndexCase,
)


class IndexedShards(IndexCase):
    def test_may_be_npz(self) -> None:
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


if __name__ == "__main__":
    unittest.main()
