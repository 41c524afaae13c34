from __future__ import annotations

import os
import tempfile
import tracemalloc
import unittest
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy

from moe_weights.checkpoint import tensor_reader
from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.errors import CheckpointError
from tests.support.archives import npy_bytes, patch_directory, write_archive
from tests.support.checkpoints import write_safetensors

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

ADVICE = "\n  how to fix: write the file again with numpy.savez, or download it again"
DTYPES = ("float64", "float32", "float16", "bfloat16", "int32", "uint8", "bool", "int64")


def read_whole(root: Path, header: TensorHeader) -> bytes:
    return bytes(read_tensor_bytes(root, header, 0, header.nbytes))


class ReaderCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.path = self.root / "m.npz"

    def npz_header(self, name: str = "a") -> TensorHeader:
        headers = read_npz_headers(self.path, "m.npz")
        return next(header for header in headers if header.name == name)


class SafetensorsRanges(ReaderCase):
    @settings(max_examples=60, deadline=None)
    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
                lambda name: name != "__metadata__"
            ),
            st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
            max_size=5,
        ),
        st.integers(0, 2**32 - 1),
    )
    def test_what_the_library_wrote_comes_back_bit_for_bit(
        self, wanted: Mapping[str, tuple[str, list[int]]], seed: int
    ) -> None:
        bits = np.random.default_rng(seed)
        arrays = {}
        for name, (dtype_name, shape) in wanted.items():
            dtype = np.dtype(getattr(ml_dtypes, dtype_name, dtype_name))
            raw = bits.integers(0, 2, (*shape, dtype.itemsize), dtype=np.uint8)
            arrays[name] = raw.view(dtype).reshape(shape) if shape else raw.view(dtype)[0]
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        safetensors.numpy.save_file(arrays, self.root / "m.safetensors")
        headers = read_safetensors_headers(self.root / "m.safetensors", "m.safetensors").tensors
        self.assertEqual({header.name for header in headers}, set(arrays))
        for header in headers:
            self.assertEqual(header.shape, arrays[header.name].shape)
            self.assertEqual(read_whole(self.root, header), arrays[header.name].tobytes())

    def test_every_range_is_a_slice(self) -> None:
        values = np.arange(16, dtype=np.uint8)
        write_safetensors(self.root / "sub/m.safetensors", {"x": values[:3], "a": values})
        path = self.root / "sub/m.safetensors"
        header = read_safetensors_headers(path, "sub/m.safetensors").tensors[1]
        for start, stop in ((0, 16), (0, 0), (3, 9), (16, 16)):
            found = bytes(read_tensor_bytes(self.root, header, start, stop))
            self.assertEqual(found, values.tobytes()[start:stop])

    def test_long_reads_are_put_together(self) -> None:
        values = np.arange(100, dtype=np.uint8)
        write_safetensors(self.root / "m", {"a": values})
        header = read_safetensors_headers(self.root / "m", "m").tensors[0]
        with mock.patch("moe_weights.checkpoint.file_access._MAX_READ_NBYTES", 7):
            self.assertEqual(read_whole(self.root, header), values.tobytes())

    def test_a_range_outside_the_tensor_is_a_programming_mistake(self) -> None:
        header = TensorHeader(file="m", name="a", dtype_code="U8", shape=(4,), offset=0, nbytes=4)
        for start, stop in ((-1, 2), (2, 1), (0, 5)):
            with self.assertRaises(ValueError) as caught:
                read_tensor_bytes(self.root, header, start, stop)
            self.assertEqual(
                str(caught.exception),
                f'bytes {start} to {stop} do not lie within tensor "a" (4 bytes)',
            )


class ChangedFiles(ReaderCase):
    def setUp(self) -> None:
        super().setUp()
        self.shard = write_safetensors(self.root / "m.st", {"a": np.zeros(8, np.uint8)})
        self.header = read_safetensors_headers(self.shard, "m.st").tensors[0]

    def assert_refused(self, message: str) -> None:
        with self.assertRaises(CheckpointError) as caught:
            read_whole(self.root, self.header)
        self.assertEqual(str(caught.exception), message)

    def test_a_file_that_became_shorter(self) -> None:
        os.truncate(self.shard, self.header.offset + 5)
        begin = self.header.offset
        self.assert_refused(
            f"m.st: bytes {begin} to {begin + 8} were asked for, but it ends at byte {begin + 5}; "
            "the file changed while it was read: let its writer finish, then run again"
        )

    def test_a_file_that_vanished(self) -> None:
        self.shard.unlink()
        self.assert_refused(
            "cannot read m.st: No such file or directory; check that the file is there and that "
            "you may read it"
        )

    def test_a_file_that_may_not_be_read(self) -> None:
        with mock.patch("os.open", side_effect=PermissionError(13, "Permission denied")):
            self.assert_refused(
                "cannot read m.st: Permission denied; check that the file is there and that you "
                "may read it"
            )

    def test_a_disk_that_fails(self) -> None:
        with mock.patch("os.pread", side_effect=OSError(5, "Input/output error")):
            self.assert_refused(
                "cannot read m.st: Input/output error; check that the file is there and that you "
                "may read it"
            )

    def test_an_archive_that_changed_after_its_headers_were_read(self) -> None:
        np.savez(self.path, a=np.zeros(8))
        self.header = self.npz_header()
        np.savez(self.path, a=np.zeros(9))
        message = (
            'm.npz: member "a.npy" is not what its header said; the file changed while it was '
            "read: let its writer finish, then run again"
        )
        self.assert_refused(message)
        np.savez(self.path, b=np.zeros(8))
        self.assert_refused(message)


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
            for header in read_npz_headers(self.path, "m.npz"):
                order = "F" if header.fortran_order else "C"
                expected = np.asarray(arrays[header.name]).tobytes(order)
                self.assertEqual(read_whole(self.root, header), expected, header.name)
                middle = header.nbytes // 2
                part = bytes(read_tensor_bytes(self.root, header, middle // 2, middle))
                self.assertEqual(part, expected[middle // 2 : middle])

    def test_consecutive_ranges_inflate_once(self) -> None:
        np.savez_compressed(self.path, a=np.arange(10), b=np.arange(10))
        first, second = self.npz_header("a"), self.npz_header("b")
        with mock.patch.object(
            tensor_reader, "iter_member_chunks", wraps=tensor_reader.iter_member_chunks
        ) as chunks:
            for header in (first, first, second, second, first):
                read_tensor_bytes(self.root, header, 8, 16)
        self.assertEqual(chunks.call_count, 3)

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
            for header, values in zip(headers, found, strict=True):
                self.assertEqual(values, arrays[header.name].tobytes())

    def test_only_a_few_archive_directories_are_kept(self) -> None:
        for number in range(12):
            path = self.root / f"{number}.npz"
            np.savez(path, a=np.full(3, number))
            (header,) = read_npz_headers(path, path.name)
            read_whole(self.root, header)
        self.assertLessEqual(len(tensor_reader._NPZ_READER._directories), 8)


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
        header = replace(header, shape=(99_999_872,), nbytes=99_999_872)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assert_refused(header, "it declares 100000000 bytes but holds 100000")
        self.assertLess(tracemalloc.get_traced_memory()[1], 8_000_000)


if __name__ == "__main__":
    unittest.main()
