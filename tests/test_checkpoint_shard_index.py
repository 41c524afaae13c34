from __future__ import annotations

import json
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.checkpoint.file_access import LFS_POINTER_CAUSE
from moe_weights.checkpoint.shard_index import load_shard_index, search_shard_index
from moe_weights.errors import ShardIndexError
from tests.support.checkpoints import write_index


class IndexCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "model.safetensors.index.json"

    def assert_refused(self, content: str | bytes, cause: str) -> None:
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with self.assertRaises(ShardIndexError) as caught:
            load_shard_index(self.path)
        self.assertEqual(str(caught.exception), cause)

    def assert_entry_refused(self, entry: object, problem: str) -> None:
        content = json.dumps({"weight_map": {"t": entry}})
        self.assert_refused(content, f'weight_map["t"] {problem}')


class Parsing(IndexCase):
    def test_gives_map_metadata_and_sorted_shards(self) -> None:
        write_index(self.folder, {"x": "b.st", "y": "a.st", "z": "b.st"}, metadata={"n": 1})
        index = load_shard_index(self.path)
        self.assertEqual(index.weight_map, {"x": "b.st", "y": "a.st", "z": "b.st"})
        self.assertEqual((index.shards, index.metadata), (("a.st", "b.st"), {"n": 1}))

    def test_backslashes_and_idle_segments_are_normalised(self) -> None:
        write_index(self.folder, {"x": "sub\\a.st", "y": "./sub//a.st", "z": "a..b.st"})
        index = load_shard_index(self.path)
        self.assertEqual(index.weight_map, {"x": "sub/a.st", "y": "sub/a.st", "z": "a..b.st"})

    def test_metadata_that_is_no_object_is_empty(self) -> None:
        for metadata in ([1], "text", 7):
            write_index(self.folder, {}, metadata=metadata)
            self.assertEqual(load_shard_index(self.path).metadata, {})


class Refusals(IndexCase):
    def test_unreadable(self) -> None:
        self.path.mkdir()
        with self.assertRaises(ShardIndexError) as caught:
            load_shard_index(self.path)
        self.assertEqual(str(caught.exception), "it cannot be read (Is a directory)")
        self.path.rmdir()
        os.mkfifo(self.path)
        with self.assertRaises(ShardIndexError) as caught:
            load_shard_index(self.path)
        self.assertEqual(
            str(caught.exception), "it cannot be read (it is a named pipe and no regular file)"
        )

    def test_text_that_is_no_index(self) -> None:
        for content, cause in (
            ("", "it is empty"),
            (" \n", "it is empty"),
            ('{"a" 1}', "it is not JSON (Expecting ':' delimiter: line 1 column 6 (char 5))"),
            (b"\xff", "it is not UTF-8 text (byte 0)"),
            ('{"a": -1e999}', "it is not JSON (-1e999 is beyond what a number can be)"),
            ("[]", "it is not a JSON object"),
            ("{}", "it has no weight_map"),
            ('{"weight_map": []}', "weight_map is not an object"),
            ('{"weight_map": {"a": "x", "a": "y"}}', 'the key "a" occurs twice'),
            (
                "version https://git-lfs.github.com/spec/v1\n",
                LFS_POINTER_CAUSE,
            ),
            (
                '{"weight_map": {}, "metadata": ' + '{"a":' * 100 + "0" + "}" * 101,
                "it is not usable JSON (nested too deeply)",
            ),
        ):
            with self.subTest(content=content):
                self.assert_refused(content, cause)

    def test_entries_that_are_no_text(self) -> None:
        for entry, kind in (
            (None, "null"),
            (True, "a boolean"),
            (1, "a number"),
            (1.5, "a number"),
            ([], "a list"),
            ({}, "an object"),
        ):
            self.assert_entry_refused(entry, f"is {kind}, not a file name")

    def test_absolute_shards(self) -> None:
        for entry in ("/etc/x.st", "\\x.st", "C:\\x.st", "c:x.st", "\\\\host\\x.st"):
            self.assert_entry_refused(
                entry, f'= "{entry}" is an absolute path; shards must lie beside the index'
            )

    def test_shards_that_leave_the_folder(self) -> None:
        for entry in ("../x.st", "a/../x.st", "..\\x.st", "a\\..\\..\\x.st", ".."):
            self.assert_entry_refused(
                entry,
                f'= "{entry}" leaves the folder of the index; shards must lie beside it',
            )

    def test_shards_that_name_no_file(self) -> None:
        for entry in ("", ".", "./", "a\0.st"):
            self.assert_entry_refused(entry, f'= "{entry}" names no file')

    def test_a_few_of_many_problems_are_told(self) -> None:
        content = json.dumps({"weight_map": dict.fromkeys("abcde", 1)})
        shown = "; ".join(f'weight_map["{t}"] is a number, not a file name' for t in "abc")
        self.assert_refused(content, f"{shown}; and 2 more")


class Searching(IndexCase):
    def test_no_index(self) -> None:
        (self.folder / "sub").mkdir()
        write_index(self.folder / "sub", {})
        (self.folder / "model.safetensors.index.fp16.json").write_text("{}")
        state = search_shard_index(self.folder, is_usable=True)
        self.assertEqual((state.status, state.searched, state.found), ("not_found", True, False))
        self.assertIsNone(state.index_path)

    def test_the_usual_name_goes_before_others_and_these_by_alphabet(self) -> None:
        for name in ("b", "a", "model"):
            write_index(self.folder, {}, name=f"{name}.safetensors.index.json")
        state = search_shard_index(self.folder, is_usable=True)
        self.assertEqual(state.index_path, self.path)
        self.path.unlink()
        state = search_shard_index(self.folder, is_usable=True)
        self.assertEqual(state.index_path, self.folder / "a.safetensors.index.json")

    def test_a_parsed_index_is_active_only_where_it_may_be_used(self) -> None:
        write_index(self.folder, {"t": "a.st"})
        for is_usable in (True, False):
            state = search_shard_index(self.folder, is_usable=is_usable)
            self.assertEqual((state.status, state.found, state.parsed), ("active", True, True))
            self.assertEqual((state.active, state.used_for_scan), (is_usable, is_usable))

    def test_a_broken_index_keeps_path_and_cause(self) -> None:
        self.path.symlink_to(self.folder / "nowhere")
        state = search_shard_index(self.folder, is_usable=True)
        self.assertEqual((state.status, state.found, state.parsed), ("error", True, False))
        self.assertEqual(state.index_path, self.path)
        self.assertEqual(state.error, "it cannot be read (No such file or directory)")

    def test_an_index_behind_a_link_is_read_under_its_own_name(self) -> None:
        target = write_index(self.folder, {"t": "a.st"}, name="blob")
        self.path.symlink_to(target)
        state = search_shard_index(self.folder, is_usable=True)
        self.assertEqual((state.status, state.index_path), ("active", self.path))

    def test_reading_fails_without_a_system_text(self) -> None:
        with (
            mock.patch.object(Path, "stat", side_effect=OSError("odd")),
            self.assertRaisesRegex(ShardIndexError, r"^it cannot be read \(odd\)$"),
        ):
            load_shard_index(self.path)


if __name__ == "__main__":
    unittest.main()
