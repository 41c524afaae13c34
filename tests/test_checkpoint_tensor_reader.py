from __future__ import annotations

import contextlib
import os
import tempfile
import tracemalloc
import unittest
import zipfile
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy

from moe_weights.checkpoint import file_access, tensor_reader
from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import open_tensor, read_tensor_bytes
from moe_weights.errors import CheckpointError, OutputError
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
            with open_tensor(self.root, header) as stored:
                target = bytearray(93)
                stored.read_into(5, memoryview(target))
        self.assertEqual(bytes(target), values.tobytes()[5:98])

    def test_a_range_outside_the_tensor_is_a_programming_mistake(self) -> None:
        header = TensorHeader(file="m", name="a", dtype_code="U8", shape=(4,), offset=0, nbytes=4)
        (self.root / "m").write_bytes(bytes(9))
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
            for header, values in zip(headers, found, strict=True):
                self.assertEqual(values, arrays[header.name].tobytes())

    def test_only_a_few_archive_directories_are_kept(self) -> None:
        for number in range(12):
            path = self.root / f"{number}.npz"
            np.savez(path, a=np.full(3, number))
            (header,) = read_npz_headers(path, path.name)
            read_whole(self.root, header)
        self.assertLessEqual(len(tensor_reader._NPZ_MEMBERS._directories), 8)


class IntoBuffers(ReaderCase):
    """Bytes are read where they will be used, with or without `preadv`."""

    def setUp(self) -> None:
        super().setUp()
        self.values = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8)
        write_safetensors(self.root / "m.safetensors", {"a": self.values})
        np.savez(self.root / "s.npz", a=self.values)
        np.savez_compressed(self.root / "d.npz", a=self.values)
        self.headers = [
            read_safetensors_headers(self.root / "m.safetensors", "m.safetensors").tensors[0],
            *(read_npz_headers(self.root / name, name)[0] for name in ("s.npz", "d.npz")),
        ]

    def without_preadv(self) -> Any:
        """Make `os` as macOS has it."""
        names = {name: value for name, value in vars(os).items() if name != "preadv"}
        return mock.patch.dict(vars(os), names, clear=True)

    def assert_filled(self) -> None:
        for header in self.headers:
            with open_tensor(self.root, header, self.root) as stored:
                for start, stop in ((0, 5000), (0, 0), (17, 4999), (5000, 5000)):
                    target = bytearray(b"x" * (stop - start + 2))
                    stored.read_into(start, memoryview(target)[1:-1])
                    expected = b"x" + self.values[start:stop].tobytes() + b"x"
                    self.assertEqual(bytes(target), expected)

    def test_come_from_every_kind_of_file(self) -> None:
        self.assert_filled()

    def test_come_without_preadv_as_well(self) -> None:
        with self.without_preadv():
            self.assertFalse(hasattr(os, "preadv"))
            self.assert_filled()

    def test_outside_the_tensor_are_refused_and_nothing_is_written(self) -> None:
        for header in self.headers:
            with open_tensor(self.root, header) as stored:
                for start in (-1, 4999, 5001):
                    target = bytearray(2)
                    with self.assertRaises(ValueError) as caught:
                        stored.read_into(start, memoryview(target))
                    self.assertEqual(
                        str(caught.exception),
                        f'bytes {start} to {start + 2} do not lie within tensor "a" (5000 bytes)',
                    )
                    self.assertEqual(target, bytes(2))

    def test_from_a_file_that_became_shorter_are_refused(self) -> None:
        header = self.headers[0]
        begin = header.offset
        os.truncate(self.root / "m.safetensors", begin + 10)
        for patch in (contextlib.nullcontext(), self.without_preadv()):
            with (
                patch,
                open_tensor(self.root, header) as stored,
                self.assertRaises(CheckpointError) as caught,
            ):
                stored.read_into(4, memoryview(bytearray(20)))
            self.assertEqual(
                str(caught.exception),
                f"m.safetensors: bytes {begin + 4} to {begin + 24} were asked for, but it ends at "
                f"byte {begin + 10}; the file changed while it was read: let its writer finish, "
                "then run again",
            )

    def test_from_a_disk_that_fails_are_refused(self) -> None:
        with (
            mock.patch.object(
                file_access, "_pread_into", side_effect=OSError(5, "Input/output error")
            ),
            open_tensor(self.root, self.headers[0]) as stored,
            self.assertRaises(CheckpointError) as caught,
        ):
            stored.read_into(0, memoryview(bytearray(3)))
        self.assertEqual(
            str(caught.exception),
            "cannot read m.safetensors: Input/output error; check that the file is there and that "
            "you may read it",
        )


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
        self.assertLess(tracemalloc.get_traced_memory()[1], 8_000_000)


if __name__ == "__main__":
    unittest.main()
