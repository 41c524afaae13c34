from __future__ import annotations

import pickle
import tempfile
import unittest
import warnings
import zipfile
import zlib
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np

from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.zip_member import DamagedMemberError
from moe_weights.errors import CheckpointError
from tests.support.archives import (
    npy_bytes,
    npy_header,
    npy_with_header,
    patch_directory,
    write_archive,
)

ZIP_ADVICE = "\n  how to fix: write the file again with numpy.savez, or download it again"
NPY_ADVICE = (
    "\n  how to fix: write the file again with numpy.savez(path, **arrays) "
    "from plain numeric arrays"
)
GRID = np.arange(6, dtype=np.float32).reshape(2, 3)


class NpzCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "m.npz"

    def read(self) -> tuple[TensorHeader, ...]:
        return read_npz_headers(self.path, "m.npz")

    def assert_refused(self, *problems: str, advice: str = ZIP_ADVICE) -> None:
        count = len(problems)
        head = f"m.npz: {count} problem{'s' if count != 1 else ''}"
        with self.assertRaises(CheckpointError) as caught:
            self.read()
        self.assertEqual(str(caught.exception), "\n  ".join([head, *problems]) + advice)

    def assert_member_refused(self, content: bytes, cause: str) -> None:
        write_archive(self.path, {"a.npy": content})
        self.assert_refused(f'member "a.npy": {cause}', advice=NPY_ADVICE)


class Reading(NpzCase):
    def test_gives_name_shape_and_code_of_every_array(self) -> None:
        arrays = {
            "a": GRID,
            "deep/b": np.zeros((), np.int16),
            "none": np.zeros((0, 4), np.float64),
            "big": GRID.astype(">f4"),
            "void": np.zeros(4, ml_dtypes.bfloat16),
            "text": np.array(["ab", "c"]),
            "record": np.zeros(2, [("x", "<f4"), ("y", "u1")]),
            "pair": np.zeros(2, [("half", "<f2")]),
            "e5m2": np.zeros(4, ml_dtypes.float8_e5m2),
        }
        for save in (np.savez, np.savez_compressed):
            save(self.path, **arrays)
            codes = [(tensor.name, tensor.dtype_code, tensor.shape) for tensor in self.read()]
            self.assertEqual(
                codes,
                [
                    ("a", "F32", (2, 3)),
                    ("deep/b", "I16", ()),
                    ("none", "F64", (0, 4)),
                    ("big", ">f4", (2, 3)),
                    ("void", "|V2", (4,)),
                    ("text", "<U2", (2,)),
                    ("record", "structured40", (2,)),
                    ("pair", "structured16", (2,)),
                    ("e5m2", "<f1", (4,)),
                ],
            )

    def test_places_the_values_within_the_member(self) -> None:
        np.savez(self.path, a=GRID)
        (tensor,) = self.read()
        self.assertEqual((tensor.member, tensor.offset, tensor.nbytes), ("a.npy", 128, 24))

    def test_fortran_order_is_told_only_where_it_matters(self) -> None:
        header = npy_header("<f4", (1, 3), fortran_order=True)
        write_archive(
            self.path,
            {
                "grid.npy": npy_bytes(np.asfortranarray(GRID)),
                "row.npy": npy_with_header(header, bytes(12)),
            },
        )
        self.assertEqual([tensor.fortran_order for tensor in self.read()], [True, False])

    def test_knows_the_three_format_versions(self) -> None:
        for version in ((1, 0), (2, 0), (3, 0)):
            content = npy_with_header(npy_header("<f4", (1,)), b"1234", version=version)
            write_archive(self.path, {"a.npy": content})
            self.assertEqual([tensor.nbytes for tensor in self.read()], [4])

    def test_other_members_are_ignored(self) -> None:
        write_archive(self.path, {"readme.txt": b"x", "a.npy": npy_bytes(GRID)})
        self.assertEqual([tensor.name for tensor in self.read()], ["a"])

    def test_the_file_is_closed_after_use(self) -> None:
        np.savez(self.path, a=GRID)
        with mock.patch("os.close", wraps=__import__("os").close) as close:
            self.read()
        self.assertEqual(close.call_count, 1)

    def test_names_beyond_ascii_are_found(self) -> None:
        write_archive(self.path, {"größe.npy": npy_bytes(GRID)})
        self.assertEqual([tensor.name for tensor in self.read()], ["größe"])


class RefusedArchives(NpzCase):
    def test_no_zip_archive(self) -> None:
        self.path.write_bytes(b"plain text")
        self.assert_refused("it is no readable zip archive (File is not a zip file)")

    def test_a_git_lfs_pointer(self) -> None:
        self.path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with self.assertRaises(CheckpointError) as caught:
            self.read()
        self.assertEqual(
            str(caught.exception),
            "m.npz: it is a git-LFS pointer, not the file itself; run `git lfs pull` in the model "
            "directory",
        )

    def test_an_archive_that_was_cut_off(self) -> None:
        np.savez(self.path, a=GRID)
        self.path.write_bytes(self.path.read_bytes()[:-30])
        self.assert_refused("it is no readable zip archive (File is not a zip file)")

    def test_a_directory_that_cannot_be_read(self) -> None:
        np.savez(self.path, a=GRID)
        with (
            mock.patch("zipfile.ZipFile", side_effect=OSError(5, "Input/output error")),
            self.assertRaisesRegex(CheckpointError, "^cannot read m.npz: Input/output error$"),
        ):
            self.read()

    def test_a_member_twice(self) -> None:
        with warnings.catch_warnings(), zipfile.ZipFile(self.path, "w") as archive:
            warnings.simplefilter("ignore")
            archive.writestr("a.npy", npy_bytes(GRID))
            archive.writestr("a.npy", npy_bytes(GRID))
        self.assert_refused('the archive has the member "a.npy" twice')

    def test_an_encrypted_member(self) -> None:
        np.savez(self.path, a=GRID)
        patch_directory(self.path, "a.npy", flags=1)
        self.assert_refused('member "a.npy": it is encrypted')

    def test_another_compression_method(self) -> None:
        write_archive(self.path, {"a.npy": npy_bytes(GRID)}, method=zipfile.ZIP_BZIP2)
        self.assert_refused(
            'member "a.npy": compression method 12 is not supported; use stored or deflated'
        )

    def test_a_stored_member_that_declares_another_size(self) -> None:
        np.savez(self.path, a=GRID)
        patch_directory(self.path, "a.npy", size=1 << 30)
        self.assert_refused(f'member "a.npy": it is stored in 152 bytes but declares {1 << 30}')

    def test_a_deflated_member_that_claims_the_impossible(self) -> None:
        np.savez_compressed(self.path, a=np.zeros(1000))
        compressed = zipfile.ZipFile(self.path).infolist()[0].compress_size
        patch_directory(self.path, "a.npy", size=1 << 30)
        self.assert_refused(
            f'member "a.npy": it declares {1 << 30} bytes; {compressed} compressed bytes cannot '
            f"give more than {compressed * 1032 + 1024}"
        )

    def test_a_member_beyond_the_end_of_the_file(self) -> None:
        np.savez(self.path, a=GRID)
        patch_directory(self.path, "a.npy", size=9999, compressed=9999)
        begin = 30 + len("a.npy") + 20
        size = self.path.stat().st_size
        self.assert_refused(
            f'member "a.npy": its 9999 bytes from byte {begin} reach beyond the end of the file '
            f"({size} bytes)"
        )

    def test_a_member_that_does_not_begin_where_the_directory_says(self) -> None:
        for offset in (7, 100_000):
            np.savez(self.path, a=GRID, b=GRID)
            patch_directory(self.path, "b.npy", offset=offset)
            self.assert_refused(
                'member "b.npy": the directory points to a place where it does not begin'
            )
        np.savez(self.path, a=GRID, b=GRID)
        patch_directory(self.path, "b.npy", offset=0)
        self.assert_refused(
            'member "b.npy": the directory points to a place where it does not begin'
        )


class RefusedMembers(NpzCase):
    def test_pickled_objects(self) -> None:
        content = npy_bytes(np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
        with mock.patch.object(pickle, "load", side_effect=AssertionError("unpickled")):
            self.assert_member_refused(
                content, "it holds pickled Python objects, which are never loaded"
            )

    def test_objects_within_a_record(self) -> None:
        self.assert_member_refused(
            npy_with_header(npy_header([("x", "|O")], (1,)), bytes(8)),
            "it holds pickled Python objects, which are never loaded",
        )

    def test_a_member_without_npy_header(self) -> None:
        self.assert_member_refused(b"", "it does not begin with a .npy header")
        self.assert_member_refused(b"plain", "it does not begin with a .npy header")

    def test_an_unknown_version(self) -> None:
        self.assert_member_refused(
            npy_with_header("", version=(4, 1)), ".npy format version 4.1 is not known"
        )

    def test_a_header_that_claims_too_much(self) -> None:
        magic = b"\x93NUMPY\x01\x00"
        self.assert_member_refused(
            magic + (20_000).to_bytes(2, "little"),
            "its header claims 20000 bytes, above the limit of 10000",
        )
        self.assert_member_refused(
            magic + (100).to_bytes(2, "little"), "its header claims 100 bytes, beyond its end"
        )

    def test_a_header_that_is_no_literal(self) -> None:
        for text in ("open('x')", "{", "(" * 9000):
            self.assert_member_refused(npy_with_header(text), "its header is not a Python literal")

    def test_other_keys(self) -> None:
        for text in ("[]", "{'descr': '<f4'}"):
            self.assert_member_refused(
                npy_with_header(text),
                "its header does not have the keys descr, fortran_order and shape",
            )

    def test_values_of_the_wrong_kind(self) -> None:
        for header, cause in (
            (npy_header("<f4", (1,), fortran_order=1), "fortran_order is 1, not True or False"),
            (npy_header("<f4", [1]), "shape is [1], not a tuple of integers of at least 0"),
            (npy_header("<f4", (-1,)), "shape is (-1,), not a tuple of integers of at least 0"),
            (npy_header("<f4", (True,)), "shape is (True,), not a tuple of integers of at least 0"),
            (npy_header("no type", (1,)), "dtype 'no type' is not known"),
            (npy_header(7, (1,)), "dtype 7 is not known"),
            (npy_header("<f4,(2", (1,)), "dtype '<f4,(2' is not known"),
        ):
            self.assert_member_refused(npy_with_header(header, b"1234"), cause)

    def test_a_shape_that_disagrees_with_the_bytes(self) -> None:
        for shape, declared in (((2**40,), 2**42), ((0,), 0)):
            self.assert_member_refused(
                npy_with_header(npy_header("<f4", shape), b"12345678"),
                f"shape {list(shape)} of F32 takes {declared} bytes, but 8 follow its header",
            )

    def test_all_broken_members_are_told(self) -> None:
        write_archive(
            self.path,
            {"a.npy": b"x", "b.npy": npy_bytes(GRID), "c.npy": npy_bytes(GRID)},
        )
        patch_directory(self.path, "c.npy", crc=1)
        crc = zlib.crc32(npy_bytes(GRID))
        self.assert_refused(
            'member "a.npy": it does not begin with a .npy header',
            f'member "c.npy": wrong CRC: its bytes give {crc:08x}, the archive says 00000001',
            advice=NPY_ADVICE,
        )


class Pickling(unittest.TestCase):
    def test_a_damaged_member_error_survives_a_process_boundary(self) -> None:
        error = DamagedMemberError("m.npz", "a.npy", "wrong CRC")
        copy = pickle.loads(pickle.dumps(error))
        self.assertEqual((str(copy), copy.problem), (str(error), 'member "a.npy": wrong CRC'))


if __name__ == "__main__":
    unittest.main()
