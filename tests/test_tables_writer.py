from __future__ import annotations

import errno
import math
import os
import unittest
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq

from moe_weights.columns import Column, Table, TableSchema
from moe_weights.errors import InvalidDataError, OutputError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.reader import read_table_file
from moe_weights.tables.writer import (
    ArtifactEntry,
    TableFormat,
    checked_values,
    remove_table,
    write_table,
)
from tests.support.runs import temporary_folder

SCHEMA = TableSchema(
    "sample",
    (
        Column("proj", "string", "projection"),
        Column("layer", "int64", "decoder layer"),
        Column("x", "float64", "a measure", "weight"),
        Column("flag", "bool", "a claim"),
        Column("shape", "list<int64>", "axis lengths", "elements"),
    ),
)
TABLE = Table(
    SCHEMA,
    {
        "proj": ["gate_proj", "up,proj", None],
        "layer": [2**62 + 1, None, -1],
        "x": [0.1, math.nan, None],
        "flag": [True, None, False],
        "shape": [(2, 4, 4), (), None],
    },
)
EMPTY = Table.from_rows(SCHEMA, ())
GOLDEN_CSV = (
    b"proj,layer,x,flag,shape\n"
    b'gate_proj,4611686018427387905,0.1,True,"[2, 4, 4]"\n'
    b'"up,proj",,,,[]\n'
    b",-1,,False,\n"
)


class Writing(unittest.TestCase):
    def setUp(self) -> None:
        self.run_directory = RunDirectory(temporary_folder(self))
        self.stem = self.run_directory.data_path("sample")

    def write(
        self,
        table: Table = TABLE,
        requested_format: TableFormat = "parquet",
        compression: str | None = "zstd",
    ) -> ArtifactEntry:
        return write_table(
            self.run_directory,
            table,
            self.stem,
            requested_format=requested_format,
            compression=compression,
        )

    def files(self) -> list[str]:
        return sorted(path.name for path in self.stem.parent.iterdir())


class CsvFiles(Writing):
    def test_hold_golden_bytes(self) -> None:
        entry = self.write(requested_format="csv")
        self.assertEqual((self.stem.parent / "sample.csv").read_bytes(), GOLDEN_CSV)
        self.assertEqual(
            entry,
            ArtifactEntry(
                name="sample",
                path="data/sample.csv",
                format="csv",
                fallback=False,
                error=None,
                rows=3,
            ),
        )
        self.assertIsNone(entry.console_warning)

    def test_ignore_the_compression(self) -> None:
        self.assertIsNone(self.write(requested_format="csv", compression="invalid-codec").error)

    def test_hold_the_header_without_rows(self) -> None:
        self.write(EMPTY, requested_format="csv")
        self.assertEqual(
            (self.stem.parent / "sample.csv").read_bytes(), b"proj,layer,x,flag,shape\n"
        )


class ParquetFiles(Writing):
    def schema(self) -> Any:
        return pq.read_schema(self.stem.parent / "sample.parquet")

    def test_hold_the_declared_types_units_and_meanings(self) -> None:
        self.write()
        self.assertEqual(
            [(field.name, str(field.type)) for field in self.schema()],
            [
                ("proj", "string"),
                ("layer", "int64"),
                ("x", "double"),
                ("flag", "bool"),
                ("shape", "list<element: int64>"),
            ],
        )
        self.assertEqual(
            self.schema().field("x").metadata[b"meaning"]
            + self.schema().field("x").metadata[b"unit"],
            b"a measureweight",
        )

    def test_hold_the_same_schema_without_rows(self) -> None:
        self.write()
        full = self.schema()
        entry = self.write(EMPTY)
        self.assertEqual(entry.rows, 0)
        self.assertTrue(self.schema().equals(full))

    def test_hold_null_for_nan(self) -> None:
        self.write()
        column = pq.read_table(self.stem.parent / "sample.parquet")["x"]
        self.assertEqual(column.to_pylist(), [0.1, None, None])

    def test_are_equal_bytes_for_equal_tables(self) -> None:
        self.write()
        first = (self.stem.parent / "sample.parquet").read_bytes()
        self.write()
        self.assertEqual((self.stem.parent / "sample.parquet").read_bytes(), first)

    def test_can_be_uncompressed(self) -> None:
        self.write(compression=None)
        metadata = pq.read_metadata(self.stem.parent / "sample.parquet")
        self.assertEqual(metadata.row_group(0).column(0).compression, "UNCOMPRESSED")

    def test_read_back_as_the_csv_does(self) -> None:
        self.write()
        parquet = read_table_file(self.stem.parent / "sample.parquet")
        self.write(requested_format="csv")
        csv = read_table_file(self.stem.parent / "sample.csv")
        self.assertEqual(parquet.dtypes.tolist(), csv.dtypes.tolist())
        self.assertEqual(parquet.to_json(), csv.to_json())


class ParquetFallback(Writing):
    def test_writes_csv_for_an_invalid_codec(self) -> None:
        entry = self.write(compression="invalid-codec")
        self.assertEqual(
            entry,
            ArtifactEntry(
                name="sample",
                path="data/sample.csv",
                format="csv",
                fallback=True,
                error="ArrowException: Unsupported compression: invalid-codec",
                rows=3,
            ),
        )
        self.assertEqual(
            entry.console_warning,
            "[warn] parquet write failed (ArrowException: Unsupported compression: invalid-codec); "
            "wrote data/sample.csv",
        )
        self.assertEqual((self.stem.parent / "sample.csv").read_bytes(), GOLDEN_CSV)

    def test_writes_csv_without_pyarrow(self) -> None:
        with mock.patch.dict("sys.modules", {"pyarrow": None, "pyarrow.parquet": None}):
            entry = self.write()
        self.assertTrue(entry.fallback)
        self.assertEqual(
            entry.error,
            "ModuleNotFoundError: import of pyarrow halted; None in sys.modules",
        )
        self.assertEqual(self.files(), ["sample.csv"])

    def test_writes_csv_for_what_only_parquet_cannot_hold(self) -> None:
        table = Table.from_rows(
            TableSchema("sample", (Column("n", "int64", "a count"),)), [{"n": 2**70}]
        )
        entry = self.write(table)
        self.assertTrue(str(entry.error).startswith(("OverflowError: ", "ArrowInvalid: ")))
        self.assertEqual((self.stem.parent / "sample.csv").read_bytes(), b"n\n%d\n" % 2**70)


class Siblings(Writing):
    def test_of_the_other_format_are_removed(self) -> None:
        self.write()
        self.assertEqual(self.files(), ["sample.parquet"])
        self.write(compression="invalid-codec")
        self.assertEqual(self.files(), ["sample.csv"])
        self.write()
        self.assertEqual(self.files(), ["sample.parquet"])

    def test_of_other_stems_stay(self) -> None:
        self.write(requested_format="csv")
        self.stem = self.run_directory.data_path("sample.v2")
        self.write()
        self.assertEqual(self.files(), ["sample.csv", "sample.v2.parquet"])

    def test_go_together_when_the_table_is_removed(self) -> None:
        self.write()
        (self.stem.parent / "sample.csv").write_bytes(b"old")
        remove_table(self.stem)
        self.assertEqual(self.files(), [])
        remove_table(self.stem)


class RefusedCells(Writing):
    def refused(self, kind: type[Exception], name: str, cells: list[Any]) -> str:
        column = next(column for column in SCHEMA.columns if column.name == name)
        with self.assertRaises(kind) as caught:
            self.write(Table(TableSchema("sample", (column,)), {name: cells}))
        self.assertFalse(self.stem.parent.exists())
        return str(caught.exception)

    def test_are_infinite_floats(self) -> None:
        for infinite in (math.inf, -math.inf):
            self.assertEqual(
                self.refused(InvalidDataError, "x", [0.0, None, infinite]),
                f"sample.x is {infinite} in row 2; tables never hold infinite values, undefined is "
                "null; check the values this column is computed from; the table was not written",
            )

    def test_are_of_another_type(self) -> None:
        for name, cell in (
            ("layer", True),
            ("layer", 1.0),
            ("x", "1.0"),
            ("x", False),
            ("flag", 1),
            ("proj", 7),
            ("shape", "[1]"),
        ):
            dtype = next(column.dtype for column in SCHEMA.columns if column.name == name)
            self.assertEqual(
                self.refused(TypeError, name, [cell]),
                f"sample.{name} is declared {dtype} but holds {cell!r}",
            )

    def test_are_missing(self) -> None:
        values = {**TABLE.values, "x": [0.1]}
        with self.assertRaises(TypeError) as caught:
            self.write(Table(SCHEMA, values))
        self.assertEqual(str(caught.exception), "sample.x has 1 cells, the table has 3 rows")


class NearTypes(unittest.TestCase):
    def test_become_plain_python(self) -> None:
        class Reason(StrEnum):
            SIDE = "side_tensor"

        table: Any = Table(
            SCHEMA,
            {
                "proj": [Reason.SIDE, None],
                "layer": [np.int64(3), None],
                "x": [np.float32(0.5), 1],
                "flag": [np.bool_(True), None],
                "shape": [[np.int64(2), 3], None],
            },
        )
        checked = checked_values(table)
        self.assertEqual(
            checked,
            {
                "proj": ["side_tensor", None],
                "layer": [3, None],
                "x": [0.5, 1.0],
                "flag": [True, None],
                "shape": [(2, 3), None],
            },
        )
        types = [[type(cell) for cell in cells] for cells in checked.values()]
        self.assertEqual([kinds[0] for kinds in types], [str, int, float, bool, tuple])

    def test_escape_half_a_surrogate_pair(self) -> None:
        schema = TableSchema("sample", (Column("tensor", "string", "name"),))
        checked = checked_values(Table(schema, {"tensor": ["a\ud800b", None]}))
        self.assertEqual(checked, {"tensor": ["a\\ud800b", None]})


class FullDisk(Writing):
    def test_is_no_reason_to_fall_back(self) -> None:
        self.write()
        before = (self.stem.parent / "sample.parquet").read_bytes()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with (
            mock.patch.object(Path, "write_bytes", side_effect=full),
            self.assertRaises(OutputError) as caught,
        ):
            self.write(EMPTY)
        self.assertEqual(
            str(caught.exception),
            f"cannot write {self.stem}.parquet: No space left on device; free some space and run "
            f"the "
            "same command again; the file is as it was before",
        )
        self.assertEqual(self.files(), ["sample.parquet"])
        self.assertEqual((self.stem.parent / "sample.parquet").read_bytes(), before)


if __name__ == "__main__":
    unittest.main()
