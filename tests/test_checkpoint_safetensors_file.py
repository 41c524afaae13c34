from __future__ import annotations

import json
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import safetensors

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.errors import CheckpointError
from tests.support.checkpoints import CODE_OF_DTYPE, entry, raw_safetensors, to_safetensors

try:
    from hypothesis import given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error

ADVICE = "\n  how to fix: download the file again, or write it again with the safetensors library"
F32 = np.arange(6, dtype=np.float32).reshape(2, 3)


class SafetensorsCase(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "m.safetensors"

    def read(self, content: bytes) -> tuple[TensorHeader, ...]:
        self.path.write_bytes(content)
        return read_safetensors_headers(self.path, "m.safetensors").tensors

    def assert_refused(self, content: bytes, *problems: str) -> None:
        count = len(problems)
        head = f"m.safetensors: {count} problem{'s' if count != 1 else ''}"
        with self.assertRaises(CheckpointError) as caught:
            self.read(content)
        expected = "\n  ".join([head, *problems]) + ADVICE
        self.assertEqual(str(caught.exception), expected)


class Reading(SafetensorsCase):
    def test_gives_tensors_in_byte_order_with_absolute_offsets(self) -> None:
        header = {"b": entry("U8", [2], 4, 6), "a": entry("F32", [], 0, 4)}
        content = raw_safetensors(header, b"123456")
        base = len(content) - 6
        self.assertEqual(
            self.read(content),
            (
                TensorHeader(
                    file="m.safetensors",
                    name="a",
                    dtype_code="F32",
                    shape=(),
                    offset=base,
                    nbytes=4,
                ),
                TensorHeader(
                    file="m.safetensors",
                    name="b",
                    dtype_code="U8",
                    shape=(2,),
                    offset=base + 4,
                    nbytes=2,
                ),
            ),
        )

    def test_gives_the_metadata(self) -> None:
        self.path.write_bytes(to_safetensors({"a": F32}, {"format": "pt"}))
        self.assertEqual(read_safetensors_headers(self.path, "m").metadata, {"format": "pt"})

    def test_an_empty_file_of_no_tensors_is_legal(self) -> None:
        self.assertEqual(self.read(raw_safetensors(b"{}  ")), ())
        self.assertEqual(self.read(raw_safetensors({"__metadata__": None})), ())

    def test_zero_size_and_unaligned_tensors_are_legal(self) -> None:
        header = {
            "a": entry("U8", [1], 0, 1),
            "none": entry("F32", [0, 4], 1, 1),
            "b": entry("F32", [1], 1, 5),
        }
        tensors = self.read(raw_safetensors(header, b"12345"))
        self.assertEqual([tensor.name for tensor in tensors], ["a", "none", "b"])

    def test_an_unknown_dtype_is_kept_whatever_its_size(self) -> None:
        (tensor,) = self.read(raw_safetensors({"a": entry("F3_X", [8], 0, 3)}, b"123"))
        self.assertEqual((tensor.dtype_code, tensor.nbytes), ("F3_X", 3))

    def test_packed_four_bit_tensors_count_elements(self) -> None:
        (tensor,) = self.read(raw_safetensors({"a": entry("F4", [4, 8], 0, 16)}, bytes(16)))
        self.assertEqual((tensor.n_elements, tensor.nbytes), (32, 16))

    def test_a_hundred_thousand_tensors_are_fine(self) -> None:
        header = {f"t{i}": entry("BF16", [4], 8 * i, 8 * i + 8) for i in range(100_000)}
        self.assertEqual(len(self.read(raw_safetensors(header, bytes(800_000)))), 100_000)


class RefusedFiles(SafetensorsCase):
    def test_too_short_a_file(self) -> None:
        self.assert_refused(b"1234567", "the file has 7 bytes; the header length alone takes 8")
        self.assert_refused(b"", "the file has 0 bytes; the header length alone takes 8")

    def test_a_git_lfs_pointer(self) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 123\n"
        with self.assertRaises(CheckpointError) as caught:
            self.read(pointer)
        self.assertEqual(
            str(caught.exception),
            "m.safetensors: it is a git-LFS pointer, not the file itself; run `git lfs pull` in "
            "the model directory",
        )

    def test_a_header_beyond_the_file(self) -> None:
        self.assert_refused(
            raw_safetensors(b"{}", header_nbytes=3),
            "the header claims 3 bytes, but only 2 follow; the file was cut off or is damaged",
        )

    def test_a_header_above_100_mb(self) -> None:
        self.assert_refused(
            raw_safetensors(b"{}", header_nbytes=100_000_001),
            "the header claims 100000001 bytes, above the limit of 100000000; this is no "
            "safetensors file or it is damaged",
        )

    def test_a_header_that_is_not_json(self) -> None:
        for header, cause in (
            (b"\xff{}", "not UTF-8 text (byte 0)"),
            (b'{"a" 1}', "not JSON (Expecting ':' delimiter: line 1 column 6 (char 5))"),
            (b"", "not JSON (Expecting value: line 1 column 1 (char 0))"),
            (b'{"a":NaN}', "not JSON (NaN is not a JSON number)"),
            (b'{"a":' + b"[" * 100_000, "not usable JSON (nested too deeply)"),
            (b'{"\\ud800":1}', "not Unicode text (half of a surrogate pair)"),
        ):
            with self.subTest(cause=cause):
                self.assert_refused(raw_safetensors(header), f"the header is {cause}")

    def test_a_whole_surrogate_pair_is_fine(self) -> None:
        (tensor,) = self.read(raw_safetensors({"\N{GRINNING FACE}": entry("U8", [0], 0, 0)}))
        self.assertEqual(tensor.name, "\N{GRINNING FACE}")

    def test_a_header_that_is_no_object(self) -> None:
        self.assert_refused(raw_safetensors(b"[]"), "the header is not a JSON object")

    def test_repeated_keys(self) -> None:
        one = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
        self.assert_refused(
            raw_safetensors(b'{"a":' + one + b',"a":' + one + b"}", b"1"),
            'the header has the key "a" twice',
        )
        self.assert_refused(
            raw_safetensors(b'{"a":{"dtype":"U8",' + one[1:] + b"}", b"1"),
            'the header has the key "dtype" twice',
        )

    def test_metadata_that_is_not_strings(self) -> None:
        self.assert_refused(
            raw_safetensors({"__metadata__": [1]}), "__metadata__ is not an object of strings"
        )
        self.assert_refused(
            raw_safetensors({"__metadata__": {"a": 1}}), '__metadata__["a"] is not a string'
        )

    def test_a_truncated_file(self) -> None:
        content = raw_safetensors({"a": entry("F32", [4], 0, 16)}, bytes(16))
        self.assert_refused(
            content[:-6],
            f"the file has {len(content) - 6} bytes, but its header promises {len(content)} "
            '(tensor "a" ends there); it was cut off',
        )

    def test_a_missing_file(self) -> None:
        with self.assertRaises(CheckpointError) as caught:
            read_safetensors_headers(self.path, "m.safetensors")
        self.assertEqual(
            str(caught.exception),
            "cannot read m.safetensors: No such file or directory; check that the file is there "
            "and that you may read it",
        )

    def test_a_folder_in_place_of_a_file(self) -> None:
        self.path.mkdir()
        with self.assertRaisesRegex(CheckpointError, "cannot read m: Is a directory"):
            read_safetensors_headers(self.path, "m")

    def test_a_status_that_is_refused(self) -> None:
        self.path.write_bytes(b"")
        with (
            mock.patch("os.fstat", side_effect=OSError(5, "Input/output error")),
            self.assertRaisesRegex(CheckpointError, "cannot read m: Input/output error"),
        ):
            read_safetensors_headers(self.path, "m")


class RefusedEntries(SafetensorsCase):
    def test_malformed_entries_are_all_told(self) -> None:
        header = {
            "a": 1,
            "b": entry(7, [1], 0, 1),
            "c": entry("U8", [-1], 0, 1),
            "d": entry("U8", [True], 0, 1),
            "e": entry("U8", [1.0], 0, 1),
            "f": {"dtype": "U8", "shape": [1], "data_offsets": [0]},
            "g": {"shape": [1]},
            "h": entry("U8", [1], 1, 0),
            "i": entry("U8", list(range(40)), 0, True),
        }
        counts = "not a list of integers of at least 0"
        self.assert_refused(
            raw_safetensors(header, b"1"),
            'tensor "a": its entry is not an object',
            'tensor "b": dtype is 7, not a string',
            f'tensor "c": shape is [-1], {counts}',
            f'tensor "d": shape is [True], {counts}',
            f'tensor "e": shape is [1.0], {counts}',
            'tensor "f": data_offsets is [0], not two integers of at least 0',
            'tensor "g": dtype is missing, not a string',
            'tensor "g": data_offsets is missing, not two integers of at least 0',
            'tensor "h": data_offsets [1, 0] end before they begin',
            'tensor "i": data_offsets is [0, True], not two integers of at least 0',
        )

    def test_long_values_are_shortened(self) -> None:
        self.assert_refused(
            raw_safetensors({"a": entry("x" * 80, "y" * 80, 0, 0)}),
            f'tensor "a": shape is \'{"y" * 56}..., not a list of integers of at least 0',
        )

    def test_at_most_twenty_problems_are_listed(self) -> None:
        content = raw_safetensors({f"t{i:02}": 1 for i in range(23)})
        problems = [f'tensor "t{i:02}": its entry is not an object' for i in range(20)]
        with self.assertRaises(CheckpointError) as caught:
            self.read(content)
        expected = "\n  ".join(["m.safetensors: 23 problems", *problems, "... and 3 more"])
        self.assertEqual(str(caught.exception), expected + ADVICE)

    def test_a_size_that_disagrees_with_dtype_and_shape(self) -> None:
        self.assert_refused(
            raw_safetensors({"a": entry("F32", [2], 0, 4)}, b"1234"),
            'tensor "a": shape [2] of F32 takes 8 bytes, but data_offsets give it 4',
        )

    def test_elements_that_end_within_a_byte(self) -> None:
        self.assert_refused(
            raw_safetensors({"a": entry("F4", [3], 0, 2)}, b"12"),
            'tensor "a": 3 elements of F4 end within a byte',
        )

    def test_a_shape_too_large_to_count(self) -> None:
        self.assert_refused(
            raw_safetensors({"a": entry("F32", [2**63, 4, 0], 0, 0)}),
            f'tensor "a": shape [{2**63}, 4, 0] is too large to count',
        )

    def test_overlap_hole_and_trailing_bytes(self) -> None:
        header = {
            "a": entry("U8", [4], 1, 5),
            "b": entry("U8", [4], 3, 7),
            "c": entry("U8", [1], 8, 9),
        }
        self.assert_refused(
            raw_safetensors(header, bytes(12)),
            'tensor "a": bytes 0 to 1 before it belong to no tensor',
            'tensor "b": data_offsets [3, 7] overlap tensor "a", which ends at 5',
            'tensor "c": bytes 7 to 8 before it belong to no tensor',
            "3 bytes after the last tensor belong to no tensor",
        )

    def test_a_tensor_inside_another_overlaps(self) -> None:
        header = {"a": entry("U8", [4], 0, 4), "b": entry("U8", [1], 1, 2)}
        self.assert_refused(
            raw_safetensors(header, bytes(4)),
            'tensor "b": data_offsets [1, 2] overlap tensor "a", which ends at 4',
        )


def _library_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


SMALL = st.integers(0, 9)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "F16", "F4", "F6_E2M3", "BOOL"]),
        "shape": st.lists(st.integers(-1, 4) | st.just(2**63), max_size=3),
        "data_offsets": st.tuples(SMALL, SMALL),
    },
    optional={"extra": st.none()},
)


class LibraryAsOracle(SafetensorsCase):
    @settings(max_examples=300, deadline=None)
    @given(st.dictionaries(st.sampled_from("abc"), ENTRIES, max_size=3), SMALL)
    def test_accepts_what_the_library_accepts(self, header: dict[str, object], size: int) -> None:
        content = raw_safetensors(header, bytes(size))
        if _library_accepts(content):
            self.assertEqual({tensor.name for tensor in self.read(content)}, set(header))
        else:
            with self.assertRaises(CheckpointError):
                self.read(content)

    @settings(max_examples=200, deadline=None)
    @given(st.data())
    def test_accepts_exactly_whole_files(self, data: st.DataObject) -> None:
        content = to_safetensors({"a": F32, "b": F32[:0], "c": F32.astype(np.uint8)}, {"k": "v"})
        place = data.draw(st.integers(0, len(content) - 1))
        changed = bytearray(content)
        changed[place] = data.draw(st.integers(0, 255))
        cut = bytes(changed[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        try:
            self.read(cut)
        except CheckpointError:
            # Stricter than the library on purpose: repeated keys.
            self.assertTrue(not _library_accepts(cut) or self.has_repeated_keys(cut))
        else:
            self.assertTrue(_library_accepts(cut) or self.has_foreign_dtype())

    def has_foreign_dtype(self) -> bool:
        tensors = read_safetensors_headers(self.path, "m").tensors
        return not {tensor.dtype_code for tensor in tensors} <= set(CODE_OF_DTYPE.values())

    def has_repeated_keys(self, content: bytes) -> bool:
        keys: list[list[str]] = []
        text = content[8 : 8 + int.from_bytes(content[:8], "little")]
        json.loads(text, object_pairs_hook=lambda pairs: keys.append([key for key, _ in pairs]))
        return any(len(set(names)) < len(names) for names in keys)


if __name__ == "__main__":
    unittest.main()
