from __future__ import annotations

import os
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.errors import CheckpointError, ShardIndexError, UsageError
from moe_weights.findings import Finding, FindingKind
from tests.support.checkpoints import write_index
from tests.support.locating import LocateCase

HOW_TO_SET = "\n  how to fix: set model_path in analysis_config.json or pass --model-path"
NO_INDEX_FIX = "\n  how to fix: provide a usable index or set scan.strict_index to false"


class ModelPaths(LocateCase):
    def test_an_empty_path(self) -> None:
        for empty in ("", "  "):
            self.assert_fails(UsageError, f"model_path is empty{HOW_TO_SET}", empty)

    def test_a_missing_path(self) -> None:
        missing = self.root / "nowhere"
        message = f"model_path does not exist: {missing}{HOW_TO_SET}"
        self.assert_fails(UsageError, message, missing)

    def test_a_file_with_another_suffix(self) -> None:
        self.touch("model.bin")
        path = self.root / "model.bin"
        self.assert_fails(
            UsageError,
            'model_path is a file whose suffix ".bin" is not in scan.extensions (.safetensors, '
            f".npz): {path}\n  how to fix: pass the model directory or a file with one of these "
            "suffixes",
            path,
        )

    def test_a_path_that_no_file_can_have(self) -> None:
        with mock.patch.object(Path, "is_dir", side_effect=PermissionError("no")):
            self.assert_fails(
                UsageError, f"model_path cannot be reached: {self.root} (no)", self.root
            )

    def test_a_path_that_no_log_could_name(self) -> None:
        folder = self.root.parent / "model\udcff"
        folder.mkdir()
        (self.root / "a\udcff.npz").write_bytes(b"")
        for path in (folder, self.root / "a\udcff.npz"):
            self.assert_fails(
                UsageError,
                f"model_path is not UTF-8, so no JSON file can name it: {str(path)!r}\n"
                "  how to fix: rename the folder or file",
                path,
            )

    def test_an_index_that_no_log_could_name(self) -> None:
        write_index(self.root, {"t": "a.npz"}, name="a\udcff.safetensors.index.json")
        self.assert_fails(
            CheckpointError,
            r"'a\udcff.safetensors.index.json': the name of the shard index is not UTF-8, "
            "so no log can hold it; rename the file",
        )

    def test_a_home_that_nobody_has(self) -> None:
        with self.assertRaisesRegex(UsageError, "^model_path cannot be expanded: ~nobody-at-all/x"):
            self.locate("~nobody-at-all/x")

    def test_the_home_folder_is_expanded_and_the_path_made_absolute(self) -> None:
        with mock.patch.dict(os.environ, {"HOME": str(self.root.parent)}):
            self.assertEqual(self.locate("~/model").model_path, self.root)

    def test_a_folder_that_cannot_be_listed(self) -> None:
        with mock.patch("os.scandir", side_effect=PermissionError(13, "Permission denied")):
            self.assert_fails(
                CheckpointError,
                f"cannot list {self.root}: Permission denied; make the folder readable",
            )

    def test_a_file_alone_needs_no_listing_of_its_folder(self) -> None:
        self.touch("a.npz")
        with mock.patch("os.scandir", side_effect=PermissionError(13, "Permission denied")):
            files = self.locate(self.root / "a.npz", use_index=False)
        self.assertEqual(files.files, ("a.npz",))


class Walking(LocateCase):
    def test_finds_allowed_suffixes_recursively_in_path_order(self) -> None:
        self.touch("b.safetensors", "a/z.npz", "a.safetensors", "x.SAFETENSORS", "a/y.bin")
        files = self.locate()
        self.assertEqual(files.files, ("a/z.npz", "a.safetensors", "b.safetensors"))
        self.assertEqual((files.kind, files.scan_mode, files.root), ("dir", "walk", self.root))
        self.assertEqual((files.index.status, files.findings), ("not_found", ()))

    def test_an_index_in_a_subfolder_is_told(self) -> None:
        self.touch("snapshots/a/x.npz", "snapshots/b/x.npz")
        for snapshot in ("b", "a"):
            write_index(self.root / "snapshots" / snapshot, {"t": "x.npz", "u": "gone.npz"})
        files = self.locate()
        self.assertEqual(files.files, ("snapshots/a/x.npz", "snapshots/b/x.npz"))
        self.assertEqual((files.index.status, files.index.found), ("not_found", False))
        name = self.index_path.name
        self.assertEqual(
            files.findings,
            (
                Finding(
                    kind=FindingKind.INDEX,
                    message="[index] indexes in subfolders are not used: "
                    f"snapshots/a/{name}, snapshots/b/{name}",
                    count=2,
                    hint="point model_path at the folder of an index to have its shards held "
                    "against it",
                ),
            ),
        )
        self.assertEqual(self.locate(use_index=False).findings, ())
        self.assertEqual(self.locate(self.root / "snapshots" / "a").findings, ())

    def test_max_files_cuts_after_sorting(self) -> None:
        self.touch("c.npz", "a.npz", "b.npz")
        files = self.locate(max_files=1)
        self.assertEqual(files.files, ("a.npz",))
        self.assertEqual(files.not_scanned_due_to_max_files, ("b.npz", "c.npz"))

    def test_nothing_found_is_no_error(self) -> None:
        self.assertEqual(self.locate().files, ())

    def test_links_to_files_keep_their_own_name_and_dangling_ones_are_told(self) -> None:
        self.touch("blob")
        (self.root / "a.safetensors").symlink_to("blob")
        (self.root / "gone.safetensors").symlink_to("nowhere")
        (self.root / "gone.txt").symlink_to("nowhere")
        files = self.locate()
        self.assertEqual(files.files, ("a.safetensors",))
        self.assertEqual(
            [finding.message for finding in files.findings],
            ["[scan] dangling link skipped: gone.safetensors"],
        )

    def test_what_is_no_file_is_told(self) -> None:
        os.mkfifo(self.root / "pipe.npz")
        (self.root / "folder.npz").mkdir()
        files = self.locate()
        self.assertEqual(files.files, ())
        self.assertEqual(
            [finding.message for finding in files.findings],
            [
                "[scan] no regular file skipped: pipe.npz",
                f"[scan] no file with suffix .safetensors or .npz in {self.root}",
            ],
        )

    def test_a_subfolder_that_cannot_be_listed_is_told(self) -> None:
        self.touch("a.npz")
        refused = PermissionError(13, "Permission denied", str(self.root / "sub"))
        real_walk = os.walk

        def walk(top: Path, onerror: object) -> object:
            onerror(refused)
            return real_walk(top)

        with mock.patch("os.walk", side_effect=walk):
            files = self.locate()
        self.assertEqual(files.files, ("a.npz",))
        self.assertEqual(
            files.findings[0].message, "[scan] folder cannot be listed: sub: Permission denied"
        )

    def test_a_name_that_is_not_utf8_is_refused(self) -> None:
        self.touch("\udcff.npz")
        self.assert_fails(
            CheckpointError,
            r"'\udcff.npz': the file name is not UTF-8, so no table can hold it; rename the file",
        )


class IndexedShards(LocateCase):
    def test_a_folder_or_dangling_link_is_a_missing_shard_and_a_link_to_a_file_is_none(
        self,
    ) -> None:
        blob = self.root.parent / "blob"
        blob.write_bytes(b"")
        (self.root / "link.safetensors").symlink_to(blob)
        (self.root / "dangling.safetensors").symlink_to("nowhere")
        (self.root / "folder.safetensors").mkdir()
        long_name = f"{'x' * 300}.safetensors"
        shards = ("link.safetensors", "dangling.safetensors", "folder.safetensors", long_name)
        write_index(self.root, {shard: shard for shard in shards})
        files = self.locate()
        self.assertEqual(files.files, ("link.safetensors",))
        self.assertEqual(
            files.missing_shards, ("dangling.safetensors", "folder.safetensors", long_name)
        )
        self.assertEqual(files.extra_safetensors_files_on_disk, ())

    def test_max_files_cuts_present_shards_and_is_not_missing(self) -> None:
        self.touch("b.safetensors", "c.npz", "d.safetensors")
        shards = ("a.safetensors", "b.safetensors", "c.npz", "d.safetensors")
        write_index(self.root, {shard: shard for shard in shards})
        files = self.locate(max_files=1)
        self.assertEqual(files.files, ("b.safetensors",))
        self.assertEqual(files.missing_shards, ("a.safetensors",))
        self.assertEqual(files.not_scanned_due_to_max_files, ("c.npz", "d.safetensors"))

    def test_shards_in_subfolders_and_behind_backslashes_are_found(self) -> None:
        self.touch("sub/a.safetensors")
        write_index(self.root, {"x": "sub\\a.safetensors"})
        self.assertEqual(self.locate().files, ("sub/a.safetensors",))

    def test_a_file_beside_the_index_may_have_any_name(self) -> None:
        self.touch("a.npz", "b\udcff.safetensors")
        write_index(self.root, {"t": "a.npz"})
        self.assertEqual(self.locate().extra_safetensors_files_on_disk, ("b\\udcff.safetensors",))

    def test_other_files_that_a_walk_would_scan_are_told(self) -> None:
        self.touch(
            "a.npz",
            "b.npz",
            "c.safetensors",
            "notes.txt",
            "original/a.npz",
            "original/sub/d\udcff.safetensors",
            "original/notes.txt",
            "named/e.safetensors",
            "named/f.safetensors",
            ".cache/g.safetensors",
            "original/._____temp/h.safetensors",
        )
        write_index(self.root, {"t": "a.npz", "u": "named/e.safetensors"})
        files = self.locate()
        self.assertEqual(files.files, ("a.npz", "named/e.safetensors"))
        self.assertEqual(files.extra_safetensors_files_on_disk, ("c.safetensors",))
        self.assertEqual(
            files.extra_files_not_read,
            (
                "b.npz",
                "named/f.safetensors",
                "original/a.npz",
                "original/sub/d\\udcff.safetensors",
            ),
        )
        self.assertEqual(files.findings, ())
        files = self.locate(extensions=(".npz",))
        self.assertEqual(files.extra_safetensors_files_on_disk, ("c.safetensors",))
        self.assertEqual(files.extra_files_not_read, ("b.npz", "original/a.npz"))

    def test_linked_folders_are_told_unless_the_index_names_what_is_in_them(self) -> None:
        elsewhere = self.root.parent / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "a.npz").write_bytes(b"")
        for link in ("named", "other", ".hidden"):
            (self.root / link).symlink_to(elsewhere)
        write_index(self.root, {"t": "named/a.npz"})
        files = self.locate()
        self.assertEqual(files.files, ("named/a.npz",))
        self.assertEqual(
            [finding.message for finding in files.findings],
            ["[scan] linked folder not entered: other"],
        )

    def test_what_lies_in_place_of_a_shard_is_told(self) -> None:
        os.mkfifo(self.root / "pipe.npz")
        (self.root / "folder.npz").mkdir()
        (self.root / "gone.npz").symlink_to("nowhere")
        (self.root / "long.npz").symlink_to("x" * 300)
        shards = ("absent.npz", "folder.npz", "gone.npz", "long.npz", "pipe.npz")
        write_index(self.root, {shard: shard for shard in shards})
        files = self.locate()
        self.assertEqual(files.missing_shards, shards)
        named = "[scan] shard named by the index is "
        self.assertEqual(
            [finding.message for finding in files.findings],
            [
                f"{named}a folder: folder.npz",
                f"{named}a dangling link: gone.npz",
                f"{named}a file out of reach (File name too long): long.npz",
                f"{named}no regular file: pipe.npz",
            ],
        )

    def test_shards_that_are_not_scanned_are_told(self) -> None:
        self.touch("a.safetensors")
        hint = (
            "convert such shards, mend the index, or set scan.use_safetensors_index_json to false"
        )
        not_scanned = "[index] shards with a suffix that is not scanned: "
        for weight_map, scanned, message, count in (
            ({}, (), "[index] the index names no shards, so nothing is scanned", 1),
            ({"t": "c.bin", "u": "b.bin"}, (), not_scanned + "b.bin, c.bin", 2),
            (
                {"t": "a.safetensors", "u": "b.safetensors "},
                ("a.safetensors",),
                not_scanned + "b.safetensors ",
                1,
            ),
        ):
            write_index(self.root, weight_map)
            files = self.locate()
            self.assertEqual((files.scan_mode, files.files), ("index", scanned))
            (finding,) = files.findings
            self.assertEqual((finding.message, finding.count), (message, count))
            self.assertEqual((finding.file, finding.hint), (self.index_path.name, hint))

    def test_missing_shards_beyond_twenty_are_counted(self) -> None:
        write_index(self.root, {f"t{i}": f"{i:02}.npz" for i in range(22)})
        names = ", ".join(f"{i:02}.npz" for i in range(20))
        self.assert_fails(
            ShardIndexError,
            f"[index] missing shard(s) referenced by index: {names}, ... (2 more, 22 in all)\n"
            "  how to fix: complete the download or set scan.strict_index to false",
            strict_index=True,
        )


if __name__ == "__main__":
    unittest.main()
