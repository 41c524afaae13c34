from __future__ import annotations

import contextlib
import os
import unittest
from collections.abc import Mapping
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import safetensors.numpy

from moe_weights.checkpoint import file_access
from moe_weights.checkpoint.npz_file import read_npz_headers
from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import open_tensor, read_tensor_bytes
from moe_weights.errors import CheckpointError
from tests.support.checkpoints import write_safetensors
from tests.support.tensor_reading import ReaderCase, read_whole

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

DTYPES = ("float64", "float32", "float16", "bfloat16", "int32", "uint8", "bool", "int64")


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


if __name__ == "__main__":
    unittest.main()
