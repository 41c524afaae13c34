from __future__ import annotations

import unittest

from moe_weights.checkpoint.locate import index_ignored_line
from moe_weights.errors import ExitCode, ShardIndexError, UsageError
from tests.support.checkpoints import write_index
from tests.support.locating import LocateCase

NO_INDEX_FIX = "\n  how to fix: provide a usable index or set scan.strict_index to false"


class TruthTable(LocateCase):
    """Every row of use_index, strict_index, kind of model path, index."""

    def setUp(self) -> None:
        super().setUp()
        self.touch("a.safetensors", "b.safetensors", "extra.safetensors", "sub/deep.safetensors")
        self.all_files = (
            "a.safetensors",
            "b.safetensors",
            "extra.safetensors",
            "sub/deep.safetensors",
        )
        self.anchor = self.root / "b.safetensors"

    def write_valid_index(self, *more: str) -> None:
        shards = ("b.safetensors", "a.safetensors", "notes.txt", *more)
        write_index(self.root, {f"t{i}": shard for i, shard in enumerate(shards)})

    def write_broken_index(self) -> None:
        self.index_path.write_text("{}")

    def broken_finding(self) -> list[str]:
        return [f"[index] failed to parse index {self.index_path}: it has no weight_map"]

    def test_off_lenient_walks(self) -> None:
        self.write_valid_index()
        files = self.locate(use_index=False)
        self.assertEqual((files.files, files.scan_mode), (self.all_files, "walk"))
        state = files.index
        self.assertEqual((state.status, state.searched, state.found), ("disabled", False, False))

    def test_off_strict_fails(self) -> None:
        for path in (self.root, self.anchor):
            self.assert_fails(
                UsageError,
                "strict_index requires use_safetensors_index_json=true\n  how to fix: set "
                "scan.use_safetensors_index_json to true or scan.strict_index to false",
                path,
                use_index=False,
                strict_index=True,
            )

    def test_on_lenient_folder_without_index_walks_without_a_finding(self) -> None:
        files = self.locate()
        self.assertEqual((files.files, files.scan_mode), (self.all_files, "walk"))
        self.assertEqual((files.index.status, files.findings), ("not_found", ()))

    def test_on_folder_with_index_scans_its_shards_in_order(self) -> None:
        self.write_valid_index()
        for strict_index in (False, True):
            files = self.locate(strict_index=strict_index)
            self.assertEqual(files.files, ("a.safetensors", "b.safetensors"))
            self.assertEqual((files.scan_mode, files.index.status), ("index", "active"))
            self.assertTrue(files.index.active and files.index.used_for_scan)
            self.assertEqual(files.expected_shards, files.files)
            self.assertEqual(files.missing_shards, ())
            self.assertEqual(files.extra_safetensors_files_on_disk, ("extra.safetensors",))
            self.assertEqual(
                [finding.message for finding in files.findings],
                ["[index] shards with a suffix that is not scanned: notes.txt"],
            )

    def test_on_lenient_folder_with_broken_index_walks_with_a_finding(self) -> None:
        self.write_broken_index()
        files = self.locate()
        self.assertEqual((files.files, files.scan_mode), (self.all_files, "walk"))
        self.assertEqual([finding.message for finding in files.findings], self.broken_finding())
        state = files.index
        self.assertEqual((state.status, state.index_path), ("error", self.index_path))
        self.assertEqual(state.error, "it has no weight_map")

    def test_on_lenient_file_with_index_scans_the_anchor_alone(self) -> None:
        self.write_valid_index("gone.safetensors")
        for strict_index in (False, True):
            files = self.locate(self.anchor, strict_index=strict_index)
            self.assertEqual((files.files, files.scan_mode), (("b.safetensors",), "walk"))
            self.assertEqual((files.kind, files.root), ("file", self.root))
            state = files.index
            self.assertEqual((state.status, state.parsed, state.active), ("active", True, False))
            self.assertTrue(files.index_ignored_due_to_file)
            self.assertEqual((files.expected_shards, files.missing_shards), ((), ()))
            self.assertEqual(
                index_ignored_line(files),
                f"[index] index found at {self.index_path}; but model_path is a file; scanning "
                "only the anchor file. To scan the full indexed shard set, pass the model "
                "directory instead.",
            )

    def test_on_lenient_file_without_index_scans_the_anchor_alone(self) -> None:
        files = self.locate(self.anchor)
        self.assertEqual(files.files, ("b.safetensors",))
        self.assertFalse(files.index_ignored_due_to_file)
        self.assertIsNone(index_ignored_line(files))

    def test_on_lenient_file_with_broken_index_scans_the_anchor_with_a_finding(self) -> None:
        self.write_broken_index()
        files = self.locate(self.anchor)
        self.assertEqual(files.files, ("b.safetensors",))
        self.assertEqual([finding.message for finding in files.findings], self.broken_finding())

    def test_on_strict_without_index_fails(self) -> None:
        for path in (self.root, self.anchor):
            self.assert_fails(
                ShardIndexError,
                "strict_index requires an active index (status: not_found)\n"
                f"  no *.safetensors.index.json in {self.root}{NO_INDEX_FIX}",
                path,
                strict_index=True,
            )

    def test_on_strict_with_broken_index_fails(self) -> None:
        self.write_broken_index()
        for path in (self.root, self.anchor):
            self.assert_fails(
                ShardIndexError,
                "strict_index requires an active index (status: error)\n"
                f"  {self.index_path}: it has no weight_map{NO_INDEX_FIX}",
                path,
                strict_index=True,
            )

    def test_on_strict_folder_with_missing_shards_fails(self) -> None:
        self.write_valid_index("gone.safetensors", "also.npz", "no-shard.md")
        self.assert_fails(
            ShardIndexError,
            "[index] missing shard(s) referenced by index: also.npz, gone.safetensors\n"
            "  how to fix: complete the download or set scan.strict_index to false",
            strict_index=True,
        )
        self.assertEqual(ShardIndexError.exit_code, ExitCode.INDEX)

    def test_on_lenient_folder_with_missing_shards_goes_on(self) -> None:
        self.write_valid_index("gone.safetensors")
        files = self.locate()
        self.assertEqual(files.files, ("a.safetensors", "b.safetensors"))
        self.assertEqual(files.missing_shards, ("gone.safetensors",))


if __name__ == "__main__":
    unittest.main()
