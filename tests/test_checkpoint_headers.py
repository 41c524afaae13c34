from __future__ import annotations

import os
import tempfile
import unittest
from pathlib import Path

import numpy as np

from moe_weights.checkpoint.headers import CheckpointHeaders, file_identity, read_headers
from moe_weights.checkpoint.locate import CheckpointFiles, locate_checkpoint
from moe_weights.errors import CheckpointError
from tests.support.checkpoints import make_checkpoint, write_index, write_safetensors

ONE = np.ones(3, np.float32)
TENSORS = {f"t{i}": np.full((2, i + 1), i, np.float32) for i in range(6)}


class HeadersCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)

    def locate(self) -> CheckpointFiles:
        return locate_checkpoint(
            self.root,
            extensions=(".safetensors", ".npz"),
            use_index=True,
            strict_index=False,
            max_files=None,
        )

    def read(self) -> CheckpointHeaders:
        return read_headers(self.locate())


class Reading(HeadersCase):
    def test_gives_all_tensors_in_scan_order(self) -> None:
        make_checkpoint(self.root, TENSORS, n_shards=3, index=True, metadata={"format": "pt"})
        headers = self.read()
        self.assertEqual([tensor.name for tensor in headers.tensors], list(TENSORS))
        self.assertEqual(
            sorted({tensor.file for tensor in headers.tensors}),
            [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)],
        )
        self.assertEqual(set(map(str, headers.metadata_by_file.values())), {"{'format': 'pt'}"})
        self.assertEqual((headers.shadowed, headers.findings), (frozenset(), ()))

    def test_files_outside_the_index_are_never_opened(self) -> None:
        make_checkpoint(self.root, TENSORS, index=True)
        (self.root / "corrupt.safetensors").write_bytes(b"no")
        self.assertEqual(len(self.read().tensors), 6)

    def test_archives_and_safetensors_files_mix(self) -> None:
        np.savez(self.root / "a.npz", first=ONE)
        write_safetensors(self.root / "b.safetensors", {"second": ONE})
        headers = self.read()
        self.assertEqual([tensor.name for tensor in headers.tensors], ["first", "second"])
        self.assertEqual(set(headers.metadata_by_file), {"a.npz", "b.safetensors"})

    def test_no_file_gives_no_tensor(self) -> None:
        self.assertEqual(self.read(), CheckpointHeaders(tensors=()))


class Malformed(HeadersCase):
    def test_one_file_gives_its_own_error(self) -> None:
        (self.root / "a.safetensors").write_bytes(b"no")
        with self.assertRaises(CheckpointError) as caught:
            self.read()
        self.assertEqual(
            str(caught.exception),
            "a.safetensors: 1 problem\n  the file has 2 bytes; the header length alone takes 8\n"
            "  how to fix: download the file again, or write it again with the safetensors library",
        )

    def test_many_files_are_named_in_one_error(self) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\n"
        for number in range(12):
            (self.root / f"{number:02}.safetensors").write_bytes(pointer)
        with self.assertRaises(CheckpointError) as caught:
            self.read()
        cause = (
            "it is a git-LFS pointer, not the file itself; run `git lfs pull` in the model "
            "directory"
        )
        lines = [f"{number:02}.safetensors: {cause}" for number in range(10)]
        expected = "\n".join(["12 files cannot be read", *lines, "... and 2 more files"])
        self.assertEqual(str(caught.exception), expected)

    def test_two_files_are_both_named(self) -> None:
        for name in ("a.npz", "b.safetensors"):
            (self.root / name).write_bytes(b"no")
        with self.assertRaisesRegex(
            CheckpointError, r"^2 files cannot be read\na.npz: .*"
        ) as caught:
            self.read()
        self.assertIn("\nb.safetensors: 1 problem\n", str(caught.exception))


class RepeatedNames(HeadersCase):
    def setUp(self) -> None:
        super().setUp()
        for file in ("a", "b", "c"):
            write_safetensors(self.root / f"{file}.safetensors", {"same": ONE, f"own.{file}": ONE})

    def test_are_told_and_all_kept_in_walk_mode(self) -> None:
        headers = self.read()
        self.assertEqual(len(headers.tensors), 6)
        self.assertEqual(headers.shadowed, frozenset())
        (finding,) = headers.findings
        self.assertEqual(
            finding.message,
            "[scan] duplicate tensor name: same (a.safetensors, b.safetensors, c.safetensors)",
        )
        self.assertEqual((finding.tensor, finding.count), ("same", 1))

    def test_the_copy_that_the_index_names_counts(self) -> None:
        own = {f"own.{file}": f"{file}.safetensors" for file in "abc"}
        write_index(self.root, {**own, "same": "b.safetensors"})
        headers = self.read()
        self.assertEqual(headers.shadowed, {("a.safetensors", "same"), ("c.safetensors", "same")})
        self.assertEqual(headers.findings[0].tensor, "same")

    def test_the_first_copy_counts_when_the_index_names_none_of_them(self) -> None:
        own = {f"own.{file}": f"{file}.safetensors" for file in "abc"}
        for named in ({}, {"same": "gone.safetensors"}):
            write_index(self.root, {**own, **named})
            self.assertEqual(
                self.read().shadowed, {("b.safetensors", "same"), ("c.safetensors", "same")}
            )

    def test_in_very_many_files_are_told_with_some_of_them(self) -> None:
        for number in range(9):
            write_safetensors(self.root / f"z{number}.safetensors", {"same": ONE})
        (finding,) = self.read().findings
        files = [f"{stem}.safetensors" for stem in ("a", "b", "c", *(f"z{i}" for i in range(7)))]
        self.assertEqual(
            finding.message,
            f"[scan] duplicate tensor name: same ({', '.join(files)}, ... (2 more, 12 in all))",
        )

    def test_several_are_one_finding_with_a_count(self) -> None:
        for file in ("d", "e"):
            write_safetensors(self.root / f"{file}.safetensors", {"other": ONE})
        (finding,) = self.read().findings
        self.assertEqual(
            finding.message,
            "[scan] duplicate tensor name: other (d.safetensors, e.safetensors), "
            "same (a.safetensors, b.safetensors, c.safetensors)",
        )
        self.assertEqual((finding.tensor, finding.count), ("", 2))


class Identity(HeadersCase):
    def test_changes_with_size_time_and_header(self) -> None:
        path = write_safetensors(self.root / "a.safetensors", {"t": ONE})
        first = file_identity(self.root, "a.safetensors")
        self.assertEqual(first, file_identity(self.root, "a.safetensors"))
        self.assertEqual((first.file, first.size), ("a.safetensors", path.stat().st_size))
        os.utime(path, ns=(1, 1))
        touched = file_identity(self.root, "a.safetensors")
        self.assertEqual((touched.mtime_ns, touched.header_sha256), (1, first.header_sha256))
        write_safetensors(path, {"u": ONE})
        self.assertNotEqual(
            file_identity(self.root, "a.safetensors").header_sha256, first.header_sha256
        )

    def test_of_an_archive_changes_with_its_values(self) -> None:
        digests = set()
        for value in (1, 2):
            np.savez(self.root / "a.npz", t=ONE * value)
            digests.add(file_identity(self.root, "a.npz").header_sha256)
        self.assertEqual(len(digests), 2)

    def test_is_taken_of_each_file_before_its_header_is_read(self) -> None:
        np.savez(self.root / "a.npz", first=ONE)
        write_safetensors(self.root / "b.safetensors", {"second": ONE})
        expected = tuple(file_identity(self.root, file) for file in ("a.npz", "b.safetensors"))
        self.assertEqual(self.read().identities, expected)

    def test_of_a_missing_file_is_an_error(self) -> None:
        with self.assertRaisesRegex(CheckpointError, "^cannot read a.npz: No such file"):
            file_identity(self.root, "a.npz")


if __name__ == "__main__":
    unittest.main()
