from __future__ import annotations

import contextlib
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.tensor_reader import read_tensor_bytes
from moe_weights.decode.raw_array import view_raw
from moe_weights.decode.resolve import codes_of_parts, decode_parts, row_cuts_of
from moe_weights.decode.row_cuts import (
    PartCut,
    RowCuts,
    cut_columns,
    cut_tensor,
    n_entries,
    part_range,
    row_ranges,
    scale_cut,
)
from moe_weights.decode.stored_tensor import WEIGHT, StoredTensor
from tests.support.encoded_forms import EncodedForm, every_form

FORMS = every_form()


class Stored:
    """A form on disk, decoded whole, and read in parts."""

    def __init__(self, form: EncodedForm, root: Path) -> None:
        self.tensor = form.write(root)
        self.root = root
        self.cuts = row_cuts_of(self.tensor)
        parts = {
            role: self.read(header, 0, header.nbytes, header.shape)
            for role, header in self.tensor.parts
        }
        self.values = decode_parts(self.tensor, parts)
        self.codes = codes_of_parts(self.tensor, parts)

    def read(self, header: TensorHeader, start: int, stop: int, shape: tuple[int, ...]):
        raw = read_tensor_bytes(self.root, header, start, stop)
        return view_raw(raw, header.dtype_code).reshape(shape)

    def cut(self, entry: int, rows: tuple[int, int], cols: tuple[int, int] | None = None):
        assert self.cuts is not None
        headers = dict(self.tensor.parts)
        parts = {}
        for role, cut in self.cuts.parts.items():
            found = part_range(self.tensor, headers[role], cut, entry, rows)
            parts[role] = self.read(headers[role], found.start, found.stop, found.shape)
        if cols is not None:
            parts = cut_columns(self.cuts, parts, cols)
        left, right = cols or (0, self.tensor.shape[-1])
        shape = (rows[1] - rows[0], right - left)
        tensor = cut_tensor(self.tensor, shape, entry * self.tensor.shape[-2] + rows[0])
        return decode_parts(tensor, parts), codes_of_parts(tensor, {WEIGHT: parts[WEIGHT]})

    def whole_entry(self, entry: int) -> tuple[np.ndarray, np.ndarray]:
        rows, cols = self.tensor.shape[-2:]
        return (
            self.values.reshape(-1, rows, cols)[entry],
            self.codes.reshape(-1, rows, cols)[entry],
        )


class EveryForm(unittest.TestCase):
    @contextlib.contextmanager
    def stored(self, label: str) -> Iterator[Stored]:
        with self.subTest(form=label), tempfile.TemporaryDirectory() as folder:
            yield Stored(FORMS[label], Path(folder))

    def assert_same_bits(self, cut: np.ndarray, whole: np.ndarray) -> None:
        self.assertEqual(cut.dtype, whole.dtype)
        np.testing.assert_array_equal(
            np.ascontiguousarray(cut).view(np.uint8), np.ascontiguousarray(whole).view(np.uint8)
        )

    def test_says_whether_rows_and_columns_can_be_decoded_apart(self) -> None:
        for label, form in FORMS.items():
            with self.stored(label) as stored:
                self.assertEqual(stored.cuts is not None, form.is_cuttable)
                if stored.cuts is not None:
                    self.assertEqual(stored.cuts.col_grain > 0, form.has_columns)

    def test_gives_a_code_of_one_byte_for_each_value(self) -> None:
        for label in FORMS:
            with self.stored(label) as stored:
                self.assertEqual(stored.codes.dtype, np.uint8)
                self.assertEqual(stored.codes.shape, stored.values.shape)

    def test_gives_the_same_rows_in_blocks_of_any_height_from_any_row_on(self) -> None:
        for label in FORMS:
            with self.stored(label) as stored:
                if stored.cuts is None:
                    continue
                grain, rows = stored.cuts.row_grain, stored.tensor.shape[-2]
                for height in (1, 2, 3, 7, 16, 17, 33, rows):
                    for top in (0, 1, rows // 2, rows - 1):
                        entry = height % n_entries(stored.tensor)
                        values, codes = stored.whole_entry(entry)
                        met = top
                        for first, last in row_ranges(stored.cuts, top, rows, height):
                            self.assertEqual(first, met)
                            self.assertLessEqual(last - first, height)
                            met = last
                            ends = first // grain * grain, min(-(-last // grain) * grain, rows)
                            cut = stored.cut(entry, ends)
                            self.assert_same_bits(cut[0], values[slice(*ends)])
                            self.assert_same_bits(cut[1], codes[slice(*ends)])
                        self.assertEqual(met, rows)

    def test_gives_the_same_columns(self) -> None:
        for label in FORMS:
            with self.stored(label) as stored:
                if stored.cuts is None or not stored.cuts.col_grain:
                    continue
                grain, (rows, cols) = stored.cuts.col_grain, stored.tensor.shape[-2:]
                entry = n_entries(stored.tensor) - 1
                values, codes = stored.whole_entry(entry)
                for left in range(0, cols, grain):
                    for right in {min(left + grain, cols), cols}:
                        cut = stored.cut(entry, (0, rows), (left, right))
                        self.assert_same_bits(cut[0], values[:, left:right])
                        self.assert_same_bits(cut[1], codes[:, left:right])


class Ranges(unittest.TestCase):
    def test_do_not_leave_a_stored_row_that_began_above_them(self) -> None:
        cuts = RowCuts(parts={"scale": PartCut(rows=16)})
        self.assertEqual(list(row_ranges(cuts, 0, 40, 20)), [(0, 16), (16, 32), (32, 40)])
        self.assertEqual(list(row_ranges(cuts, 5, 40, 20)), [(5, 16), (16, 32), (32, 40)])
        self.assertEqual(
            list(row_ranges(cuts, 0, 40, 10)), [(0, 10), (10, 16), (16, 26), (26, 32), (32, 40)]
        )
        self.assertEqual(list(row_ranges(cuts, 3, 40, 100)), [(3, 16), (16, 40)])

    def test_have_at_least_one_row(self) -> None:
        cuts = RowCuts(parts={WEIGHT: PartCut(rows=1)})
        self.assertEqual(list(row_ranges(cuts, 2, 4, 0)), [(2, 3), (3, 4)])


class ScaleCuts(unittest.TestCase):
    def test_are_unknown_for_another_number_of_scales_than_blocks(self) -> None:
        def header(name: str, *shape: int) -> TensorHeader:
            return TensorHeader(
                file="f", name=name, dtype_code="F32", shape=shape, offset=0, nbytes=4
            )

        tensor = StoredTensor(name="x", encoding="fp8", header=header("x", 4, 8), shape=(4, 8))
        self.assertIsNone(scale_cut(tensor, header("s", 3), (1, 8)))
        self.assertEqual(scale_cut(tensor, header("s", 4), (1, 8)), PartCut(rows=1, cols=0))
        self.assertEqual(scale_cut(tensor, header("s", 2, 4), (2, 2)), PartCut(rows=2, cols=2))


if __name__ == "__main__":
    unittest.main()
