from __future__ import annotations

import os
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from moe_weights.checkpoint.folder_walk import walk_folder
from moe_weights.errors import CheckpointError
from tests.support.runs import temporary_folder

SUFFIXES = (".safetensors",)


class WhatAWalkLeavesOut(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self) / "model"
        self.root.mkdir()

    def messages(self) -> list[str]:
        return [finding.message for finding in walk_folder(self.root, SUFFIXES).findings]

    def test_a_linked_folder_is_told_for_its_shards_are_not_scanned(self) -> None:
        elsewhere = self.root.parent / "shards"
        elsewhere.mkdir()
        (elsewhere / "b.safetensors").write_bytes(b"")
        (self.root / "a.safetensors").write_bytes(b"")
        (self.root / "linked").symlink_to(elsewhere)
        walked = walk_folder(self.root, SUFFIXES)
        self.assertEqual(walked.files, ("a.safetensors",))
        self.assertEqual(
            [(finding.message, finding.file) for finding in walked.findings],
            [("[scan] linked folder not entered: linked", "linked")],
        )

    def test_a_link_in_circles_ends(self) -> None:
        (self.root / "a.safetensors").write_bytes(b"")
        (self.root / "self").symlink_to(self.root)
        self.assertEqual(self.messages(), ["[scan] linked folder not entered: self"])

    def test_a_folder_whose_files_may_not_be_looked_at_is_told(self) -> None:
        closed = self.root / "closed"
        (closed / "sub").mkdir(parents=True)
        (closed / "a.safetensors").write_bytes(b"")
        (closed / "sub" / "b.safetensors").write_bytes(b"")

        def refusing(ask: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
            def answer(path: str | Path, *args: Any, **options: Any) -> os.stat_result:
                if closed in Path(path).parents:
                    raise PermissionError(13, "Permission denied", str(path))
                return ask(path, *args, **options)

            return answer

        with (
            mock.patch("os.stat", refusing(os.stat)),
            mock.patch("os.lstat", refusing(os.lstat)),
        ):
            messages = self.messages()
        skipped = "[scan] file out of reach (Permission denied) skipped: closed/"
        self.assertEqual(messages[:2], [f"{skipped}a.safetensors", f"{skipped}sub/b.safetensors"])

    def test_what_is_left_out_may_have_any_name(self) -> None:
        (self.root / "a.safetensors").write_bytes(b"")
        (self.root / "gone\udcff.safetensors").symlink_to("nowhere")
        self.assertEqual(self.messages(), ["[scan] dangling link skipped: gone\\udcff.safetensors"])

    def test_what_is_scanned_must_have_a_name_that_tables_can_hold(self) -> None:
        (self.root / "a\udcff.safetensors").write_bytes(b"")
        with self.assertRaises(CheckpointError) as caught:
            walk_folder(self.root, SUFFIXES)
        self.assertEqual(
            str(caught.exception),
            r"'a\udcff.safetensors': the file name is not UTF-8, so no table can hold it; "
            "rename the file",
        )

    def test_path_order_is_folder_by_folder(self) -> None:
        for file in ("a.safetensors", "a/b.safetensors", "a-/c.safetensors"):
            path = self.root / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"")
        self.assertEqual(
            walk_folder(self.root, SUFFIXES).files,
            ("a/b.safetensors", "a-/c.safetensors", "a.safetensors"),
        )


if __name__ == "__main__":
    unittest.main()
