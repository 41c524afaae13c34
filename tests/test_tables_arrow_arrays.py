"""Arrays made from buffers equal those that pyarrow makes cell by cell."""

from __future__ import annotations

import subprocess
import sys
import unittest
from unittest import mock

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from moe_weights.tables import arrow_arrays
from moe_weights.tables.arrow_arrays import arrow_array

_INT64 = st.integers(-(2**63), 2**63 - 1)
_CELLS = {
    "int64": (_INT64, pa.int64()),
    "float64": (st.floats(allow_nan=False, allow_infinity=False), pa.float64()),
    "bool": (st.booleans(), pa.bool_()),
    "string": (st.text(st.characters(exclude_categories=["Cs"])), pa.string()),
    "list<int64>": (st.lists(_INT64).map(tuple), pa.list_(pa.int64())),
}


class ArrowArrays(unittest.TestCase):
    @given(st.data(), st.sampled_from(sorted(_CELLS)))
    def test_they_equal_what_pyarrow_makes_of_the_same_cells(self, data, dtype) -> None:
        values, arrow_type = _CELLS[dtype]
        cells = data.draw(st.lists(st.none() | values, max_size=40))
        array = arrow_array(cells, dtype)
        array.validate(full=True)
        self.assertEqual(array, pa.array(cells, type=arrow_type))
        lists = [list(cell) if isinstance(cell, tuple) else cell for cell in cells]
        self.assertEqual(array.to_pylist(), lists)
        self.assertEqual(array.null_count, cells.count(None))

    def test_signed_zeros_and_denormals_stay(self) -> None:
        cells = [-0.0, 0.0, 5e-324, None]
        self.assertEqual(list(map(repr, arrow_array(cells, "float64").to_pylist())),
                         ["-0.0", "0.0", "5e-324", "None"])  # fmt: skip

    def test_an_integer_beyond_int64_is_refused(self) -> None:
        for cells, dtype in (([2**63], "int64"), ([(0, 2**63)], "list<int64>")):
            with self.subTest(dtype=dtype), self.assertRaises(OverflowError):
                arrow_array(cells, dtype)

    def test_more_text_than_offsets_reach_is_left_to_pyarrow(self) -> None:
        cells = ["abc", None, "", "é"]
        with mock.patch.object(arrow_arrays, "_LARGEST_STRINGS", 4):
            self.assertEqual(arrow_array(cells, "string").to_pylist(), cells)

    def test_a_table_is_written_without_importing_pandas(self) -> None:
        code = (
            "import sys\n"
            "from moe_weights.tables.arrow_arrays import arrow_array\n"
            "for cells, dtype in (([1, None], 'int64'), ([.5], 'float64'), ([True], 'bool'),\n"
            "                     (['a'], 'string'), ([(1, 2)], 'list<int64>')):\n"
            "    arrow_array(cells, dtype)\n"
            "print('pandas' in sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        self.assertEqual(done.stdout, "False\n")
