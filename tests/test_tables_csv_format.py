from __future__ import annotations

import math
import struct
import unittest

import pandas as pd

from moe_weights.tables.csv_format import format_csv, parse_csv

try:
    from hypothesis import given
    from hypothesis import strategies as st
except ImportError as error:
    raise unittest.SkipTest("hypothesis is not installed") from error


class CsvText(unittest.TestCase):
    def test_is_golden_text(self) -> None:
        text = format_csv(
            {
                "name": ['a,"b"', "line\r\nbreak", None],
                "n": [1, None, -3],
                "x": [0.1, 1e-300, None],
                "flag": [True, False, None],
                "shape": [(2, 4, 4), (), None],
            }
        )
        self.assertEqual(
            text,
            "name,n,x,flag,shape\n"
            '"a,""b""",1,0.1,True,"[2, 4, 4]"\n'
            '"line\r\nbreak",,1e-300,False,[]\n'
            ",-3,,,\n",
        )

    def test_has_a_header_without_rows(self) -> None:
        self.assertEqual(format_csv({"a": [], "b": []}), "a,b\n")

    def test_quotes_an_empty_cell_that_stands_alone_so_that_it_stays_a_row(self) -> None:
        text = format_csv({"warning": [None, "x", ""]})
        self.assertEqual(text, 'warning\n""\nx\n""\n')
        self.assertEqual(len(parse_csv(text)), 3)


class ParsedTypes(unittest.TestCase):
    def test_follow_what_the_cells_show(self) -> None:
        frame = parse_csv('i,i0,x,b,b0,l,t,none\n1,1,0.5,True,true,"[2, 3]",x,\n-2,,,False,,[],,\n')
        self.assertEqual(
            {name: str(dtype) for name, dtype in frame.dtypes.items()},
            {
                "i": "int64",
                "i0": "Int64",
                "x": "float64",
                "b": "bool",
                "b0": "boolean",
                "l": "object",
                "t": "object",
                "none": "float64",
            },
        )
        self.assertEqual(frame["l"].tolist(), [[2, 3], []])
        self.assertEqual(frame["t"].tolist(), ["x", None])
        self.assertIs(frame["i0"][1], pd.NA)
        self.assertTrue(math.isnan(frame["x"][1]))

    def test_are_text_for_columns_that_are_text_by_name(self) -> None:
        frame = parse_csv("scheme,error,tensor_name\n4,,1e5\n8,,True\n")
        self.assertEqual(frame["scheme"].tolist(), ["4", "8"])
        self.assertEqual(frame["error"].tolist(), [None, None])
        self.assertEqual(frame["tensor_name"].tolist(), ["1e5", "True"])

    def test_are_text_where_nothing_else_fits(self) -> None:
        frame = parse_csv("big,list,mixed\n99999999999999999999,[1,1\n1,[2,x\n")
        self.assertEqual(frame["big"].tolist(), ["99999999999999999999", "1"])
        self.assertEqual(frame["list"].tolist(), ["[1", "[2"])
        self.assertEqual(frame["mixed"].tolist(), ["1", "x"])

    def test_are_text_for_brackets_that_are_no_list(self) -> None:
        self.assertEqual(parse_csv("l\n[a]\n")["l"].tolist(), ["[a]"])

    def test_keep_columns_of_a_table_without_rows(self) -> None:
        frame = parse_csv("a,proj\n")
        self.assertEqual((list(frame.columns), len(frame)), (["a", "proj"], 0))

    def test_are_none_for_a_single_newline(self) -> None:
        frame = parse_csv("\n")
        self.assertEqual((len(frame.columns), len(frame)), (0, 0))

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
    def test_floats_come_back_bit_for_bit(self, numbers: list[float]) -> None:
        back = parse_csv(format_csv({"x": list(numbers)}))["x"].tolist()
        self.assertEqual(
            [struct.pack("<d", number) for number in back],
            [struct.pack("<d", number) for number in numbers],
        )

    @given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1))
    def test_integers_come_back_whole_beside_nulls(self, numbers: list[int | None]) -> None:
        back = parse_csv(format_csv({"i": list(numbers), "proj": ["p"] * len(numbers)}))["i"]
        self.assertEqual([None if pd.isna(cell) else cell for cell in back], numbers)

    @given(st.lists(st.none() | st.text(st.characters(codec="utf-8"), min_size=1), min_size=1))
    def test_texts_come_back(self, texts: list[str | None]) -> None:
        back = parse_csv(format_csv({"error": list(texts), "n": [0] * len(texts)}))["error"]
        self.assertEqual(back.tolist(), texts)


class RefusedCsv(unittest.TestCase):
    def refused(self, text: str) -> str:
        with self.assertRaises(ValueError) as caught:
            parse_csv(text)
        return str(caught.exception)

    def test_names_a_row_of_another_length(self) -> None:
        self.assertEqual(self.refused("a,b\n1,2\n3\n"), "row 2 has 1 cells, the header has 2")

    def test_names_a_repeated_column(self) -> None:
        self.assertEqual(self.refused("a,b,a\n"), 'column "a" occurs twice')

    def test_tells_broken_quoting(self) -> None:
        self.assertEqual(self.refused('a\n"x'), "not readable as CSV: unexpected end of data")


if __name__ == "__main__":
    unittest.main()
