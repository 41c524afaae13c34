from __future__ import annotations

import tempfile
import tracemalloc
import unittest
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from moe_weights.checkpoint import tensor_reader
from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import open_tensor, read_tensor_bytes
from moe_weights.errors import CheckpointError, OutputError
from tests.support.archives import npy_bytes, patch_directory, write_archive
from tests.support.tensor_reading import ReaderCase, read_whole

ADVICE = "\n  how to fix: write the file again with numpy.savez, or download it again"


class NpzRanges(ReaderCase):
    def test_stored_and_deflated_values_come_back_bit_for_bit(self) -> None:
        random = np.random.default_rng(0)
        arrays = {
            "a": random.standard_normal((7, 5)),
            "zeros": np.zeros((300_000,), np.float32),
            "noise": random.integers(0, 256, 2_000_000, dtype=np.uint8),
            "none": np.zeros((0, 3), np.float32),
            "scalar": np.float32(3),
            "fortran": np.asfortranarray(random.standard_normal((3, 4))),
        }
        for save in (np.savez, np.savez_compressed):
            save(self.path, **arrays)
            headers = read_npz_headers(self.path, "m.npz")
            self.assertEqual(
                [(header.name, header.fortran_order) for header in headers],
                [(name, name == "fortran") for name in arrays],
            )
            for header in headers:
                order = "F" if header.fortran_order else "C"
                expected = np.asarray(arrays[header.name]).tobytes(order)
                self.assertEqual(read_whole(self.root, header), expected, header.name)
                middle = header.nbytes // 2
                part = bytes(read_tensor_bytes(self.root, header, middle // 2, middle))
                self.assertEqual(part, expected[middle // 2 : middle])

    def test_ranges_of_a_few_members_inflate_each_once(self) -> None:
        np.savez_compressed(self.path, a=np.arange(10), b=np.arange(10))
        first, second = self.npz_header("a"), self.npz_header("b")
        with mock.patch.object(
            tensor_reader, "iter_member_chunks", wraps=tensor_reader.iter_member_chunks
        ) as chunks:
            for header in (first, first, second, second, first):
                read_tensor_bytes(self.root, header, 8, 16)
        self.assertEqual(chunks.call_count, 2)

    def test_a_stored_member_is_verified_once(self) -> None:
        np.savez(self.path, a=np.arange(10), b=np.arange(10))
        first, second = self.npz_header("a"), self.npz_header("b")
        with mock.patch.object(
            tensor_reader, "iter_member_chunks", wraps=tensor_reader.iter_member_chunks
        ) as chunks:
            for header in (first, second, first, second):
                read_tensor_bytes(self.root, header, 8, 16)
        self.assertEqual(chunks.call_count, 2)

    def test_many_threads_get_the_right_bytes(self) -> None:
        arrays = {f"t{i}": np.full(5000, i, np.int64) for i in range(6)}
        for save in (np.savez, np.savez_compressed):
            save(self.path, **arrays)
            headers = read_npz_headers(self.path, "m.npz") * 5
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda header: read_whole(self.root, header), headers))
            self.assertEqual(len(found), 30)
            for header, values in zip(headers, found, strict=True):
                self.assertEqual(values, arrays[header.name].tobytes())

    def test_only_a_few_archive_directories_are_kept(self) -> None:
        for number in range(12):
            path = self.root / f"{number}.npz"
            np.savez(path, a=np.full(3, number))
            (header,) = read_npz_headers(path, path.name)
            read_whole(self.root, header)
        self.assertEqual(len(tensor_reader._NPZ_MEMBERS._directories), 8)


class Inflating(ReaderCase):
    """Deflated members lie in files without a name, a few at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.enterContext(
            mock.patch.object(tensor_reader, "_NPZ_MEMBERS", tensor_reader._NpzMembers())
        )
        self.scratch = self.root / "scratch"
        self.scratch.mkdir()

    def write(self, n_members: int) -> list[TensorHeader]:
        arrays = {f"t{i}": np.full(4000, i, np.int32) for i in range(n_members)}
        np.savez_compressed(self.path, **arrays)
        return list(read_npz_headers(self.path, "m.npz"))

    def counting(self) -> Any:
        return mock.patch.object(
            tensor_reader, "iter_member_chunks", wraps=tensor_reader.iter_member_chunks
        )

    def test_goes_to_the_folder_that_is_asked_for_and_leaves_no_name_there(self) -> None:
        (header,) = self.write(1)
        with (
            mock.patch.object(
                tensor_reader.tempfile, "TemporaryFile", wraps=tempfile.TemporaryFile
            ) as made,
            open_tensor(self.root, header, self.scratch) as stored,
        ):
            self.assertEqual(list(self.scratch.iterdir()), [])
            self.assertEqual(stored.read(0, 4), bytes(4))
        made.assert_called_once_with(dir=self.scratch)

    def test_is_done_once_for_four_members_and_again_for_the_one_unused_longest(self) -> None:
        headers = self.write(5)
        with self.counting() as chunks:
            for _round in range(3):
                for header in headers[:4]:
                    read_whole(self.root, header)
            self.assertEqual(chunks.call_count, 4)
            for place in (0, 4, 0):
                read_whole(self.root, headers[place])
            self.assertEqual(chunks.call_count, 5)
            read_whole(self.root, headers[1])
            self.assertEqual(chunks.call_count, 6)
        self.assertEqual(len(tensor_reader._NPZ_MEMBERS._inflated), 4)

    def test_leaves_a_dropped_member_to_who_has_it_open(self) -> None:
        headers = self.write(7)
        with open_tensor(self.root, headers[1]) as stored:
            for header in headers[2:]:
                read_whole(self.root, header)
            self.assertEqual(stored.read(0, 4), np.int32(1).tobytes())

    def test_by_many_threads_at_once_happens_once(self) -> None:
        (header,) = self.write(1)
        with self.counting() as chunks, ThreadPoolExecutor(8) as pool:
            found = set(pool.map(lambda _n: read_whole(self.root, header), range(40)))
        self.assertEqual((chunks.call_count, found), (1, {bytes(16_000)}))

    def test_without_room_says_where_and_what_to_do(self) -> None:
        (header,) = self.write(1)
        full = OSError(28, "No space left on device")
        with mock.patch.object(tensor_reader.tempfile, "TemporaryFile", side_effect=full):
            for folder, told in ((self.scratch, self.scratch), (None, tempfile.gettempdir())):
                with (
                    self.assertRaises(OutputError) as caught,
                    open_tensor(self.root, header, folder),
                ):
                    pass
                self.assertEqual(
                    str(caught.exception),
                    f'cannot inflate member "t0.npy" of m.npz (16128 bytes) into {told}: No space '
                    "left on device; free some space there, or store the file uncompressed with "
                    "numpy.savez",
                )
        self.assertEqual(read_whole(self.root, header), bytes(16_000))


class DamagedMembers(ReaderCase):
    def assert_refused(self, header: TensorHeader, cause: str) -> None:
        for _again in range(2):
            with self.assertRaises(CheckpointError) as caught:
                read_tensor_bytes(self.root, header, 0, 8)
            self.assertEqual(
                str(caught.exception), f'm.npz: 1 problem\n  member "a.npy": {cause}{ADVICE}'
            )

    def test_a_wrong_crc_is_found_whatever_the_range(self) -> None:
        content = npy_bytes(np.arange(5000))
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            write_archive(self.path, {"a.npy": content}, method=method)
            patch_directory(self.path, "a.npy", crc=1)
            self.assert_refused(
                self.npz_header(),
                f"wrong CRC: its bytes give {zlib.crc32(content):08x}, the archive says 00000001",
            )

    def write_deflated(self, stream: bytes, nbytes: int) -> TensorHeader:
        """Put a raw stream in a deflated member that claims `nbytes`; the header claims it too."""
        write_archive(self.path, {"a.npy": stream})
        patch_directory(self.path, "a.npy", method=8, size=nbytes)
        return TensorHeader(
            file="m.npz",
            name="a",
            dtype_code="U8",
            shape=(nbytes - 128,),
            offset=128,
            nbytes=nbytes - 128,
            member="a.npy",
        )

    def test_more_bytes_than_declared(self) -> None:
        stream = zlib.compress(bytes(5_000_000), wbits=-15)
        self.assert_refused(
            self.write_deflated(stream, 2000), "it holds more than the 2000 bytes it declares"
        )

    def test_fewer_bytes_than_declared(self) -> None:
        stream = zlib.compress(bytes(1000), wbits=-15)
        self.assert_refused(
            self.write_deflated(stream, 2000), "it declares 2000 bytes but holds 1000"
        )

    def test_a_stream_that_ends_early(self) -> None:
        stream = zlib.compress(np.random.default_rng(0).bytes(4000), wbits=-15)
        self.assert_refused(
            self.write_deflated(stream[:3000], 4000), "its compressed bytes end too early"
        )

    def test_bytes_after_the_stream(self) -> None:
        stream = zlib.compress(bytes(2000), wbits=-15)
        self.assert_refused(
            self.write_deflated(stream + b"more", 2000),
            "bytes follow the end of its compressed stream",
        )

    def test_a_stream_that_is_not_deflate(self) -> None:
        self.assert_refused(
            self.write_deflated(b"\xff" * 40, 2000),
            "it cannot be inflated (Error -3 while decompressing data: invalid block type)",
        )

    def test_no_memory_is_taken_on_a_claim(self) -> None:
        stream = zlib.compress(np.random.default_rng(0).bytes(100_000), wbits=-15)
        header = self.write_deflated(stream, 100_000_000)
        header = header._replace(shape=(99_999_872,), nbytes=99_999_872)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assert_refused(header, "it declares 100000000 bytes but holds 100000")
        # It inflates 1 MiB at a time; the claim alone would be 100 MB.
        self.assertLess(tracemalloc.get_traced_memory()[1], 8_000_000)


if __name__ == "__main__":
    unittest.main()
