from __future__ import annotations

import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moe_weights.errors import CheckpointError, InvalidDataError, MoeWeightsError
from moe_weights.tables.json_object import load_json_object
from moe_weights.tables.reader import (
    LocatedTable,
    locate_table,
    read_table_file,
    require_columns,
)
from tests.support.runs import make_run, temporary_folder, write_manifest_json


class ReadingTables(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self)

    def refused(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.write_bytes(content)
        with self.assertRaises(CheckpointError) as caught:
            read_table_file(path)
        return str(caught.exception)

    def test_gives_plain_types_for_foreign_parquet(self) -> None:
        path = self.folder / "t.parquet"
        pq.write_table(
            pa.table(
                {
                    "small": pa.array([1, 2], pa.int8()),
                    "layer": pa.array([1, None], pa.int64()),
                    "x": pa.array([0.5, None], pa.float32()),
                    "flag": pa.array([True, None]),
                    "sure": pa.array([True, False]),
                    "proj": pa.array(["a", None]).dictionary_encode(),
                    "shape": pa.array([[1, 2], None], pa.list_(pa.int64())),
                }
            ),
            path,
        )
        frame = read_table_file(path)
        self.assertEqual(
            [str(dtype) for dtype in frame.dtypes],
            ["int64", "Int64", "float64", "boolean", "bool", "object", "object"],
        )
        self.assertEqual(frame["shape"].tolist(), [[1, 2], None])
        self.assertEqual(frame["proj"].tolist(), ["a", None])
        self.assertTrue(np.isnan(frame["x"][1]))

    def test_keeps_rows_together_whatever_index_pandas_stored_with_them(self) -> None:
        path = self.folder / "t.parquet"
        columns = {"layer": [0, 1, 2], "x": [0.5, 1.5, 2.5], "flag": [True, False, True]}
        whole = pd.DataFrame({**columns, "proj": ["a", "b", "c"]})
        rows = whole.to_numpy().tolist()
        for changed, expected in (
            (whole.sort_values("x", ascending=False), rows[::-1]),
            (whole[whole["layer"] != 1], [rows[0], rows[2]]),
            (whole[1:], rows[1:]),
            (whole.set_index("layer"), rows),
        ):
            changed.to_parquet(path)
            self.assertEqual(read_table_file(path).to_numpy().tolist(), expected)

    def test_refuses_integers_that_it_cannot_hold(self) -> None:
        path = self.folder / "t.parquet"
        pq.write_table(pa.table({"n": pa.array([1, None, 2**63 - 1], pa.uint64())}), path)
        self.assertEqual(read_table_file(path)["n"].tolist(), [1, pd.NA, 2**63 - 1])
        pq.write_table(pa.table({"n": pa.array([1, None, 2**63], pa.uint64())}), path)
        self.assertEqual(
            self.refused("t.parquet", path.read_bytes()),
            f"cannot read {path}: n holds 9223372036854775808, which is beyond int64; "
            "the file is damaged or incomplete: run the command that writes it again",
        )

    def test_takes_files_without_columns_as_zero_rows(self) -> None:
        (self.folder / "t.csv").write_bytes(b"\n")
        pd.DataFrame().to_parquet(self.folder / "t.parquet")
        for name in ("t.csv", "t.parquet"):
            frame = read_table_file(self.folder / name)
            self.assertEqual((len(frame), len(frame.columns)), (0, 0))

    def test_takes_a_byte_order_mark(self) -> None:
        (self.folder / "t.csv").write_bytes(b"\xef\xbb\xbfproj,n\r\nx,1\r\n")
        self.assertEqual(
            read_table_file(self.folder / "t.csv").to_dict("list"), {"proj": ["x"], "n": [1]}
        )

    def test_refuses_damaged_files_by_name(self) -> None:
        again = "the file is damaged or incomplete: run the command that writes it again"
        self.assertEqual(
            self.refused("t.csv", b""),
            f"cannot read {self.folder}/t.csv: the file is empty (0 bytes); {again}",
        )
        self.assertEqual(
            self.refused("t.csv", b"a,b\n1\n"),
            f"cannot read {self.folder}/t.csv: row 1 has 1 cells, the header has 2; {again}",
        )
        self.assertIn("codec can't decode", self.refused("t.csv", b"a\n\xff\n"))
        message = self.refused("t.parquet", b"PAR1 cut short")
        self.assertTrue(message.startswith(f"cannot read {self.folder}/t.parquet: "))
        self.assertTrue(message.endswith(again))

    def test_refuses_a_missing_file(self) -> None:
        with self.assertRaises(CheckpointError) as caught:
            read_table_file(self.folder / "t.csv")
        self.assertIn("t.csv: No such file or directory; ", str(caught.exception))

    def test_says_that_parquet_needs_pyarrow(self) -> None:
        (self.folder / "t.parquet").write_bytes(b"")
        with mock.patch("pandas.read_parquet", side_effect=ImportError("no pyarrow")):
            self.assertEqual(
                self.refused("t.parquet", b""),
                f"cannot read {self.folder}/t.parquet: no pyarrow; install pyarrow, or set "
                "output.format to csv and run the command that writes it again",
            )


class RequiredColumns(unittest.TestCase):
    def test_are_all_named_when_missing(self) -> None:
        frame = pd.DataFrame({"layer": [1], "more": [2]})
        with self.assertRaises(InvalidDataError) as caught:
            require_columns(frame, ["layer", "proj", "scheme"], "data/quant_sim.csv")
        self.assertEqual(
            str(caught.exception),
            "data/quant_sim.csv lacks the columns proj, scheme; it has layer, more; run "
            "collect_data "
            "again",
        )
        with self.assertRaises(InvalidDataError) as caught:
            require_columns(frame, ["proj"], "t")
        self.assertTrue(str(caught.exception).startswith("t lacks the column proj; "))

    def test_may_stand_among_unknown_ones(self) -> None:
        frame = pd.DataFrame({"layer": [1], "more": [2]})
        require_columns(frame, ["layer"], "t")
        with self.assertRaises(InvalidDataError):
            require_columns(frame, ["layer", "less"], "t")

    def test_are_not_asked_of_a_file_without_columns(self) -> None:
        require_columns(pd.DataFrame(), ["layer"], "t")
        with self.assertRaises(InvalidDataError):
            require_columns(pd.DataFrame(columns=["more"]), ["layer"], "t")


class LocatingTables(unittest.TestCase):
    def setUp(self) -> None:
        self.run_directory = make_run(self)
        self.data = self.run_directory.path / "data"
        self.data.mkdir()
        self.manifest = self.run_directory.log_path("write_manifest.json")

    def refused(self, kind: type[MoeWeightsError]) -> str:
        with self.assertRaises(kind) as caught:
            locate_table(self.run_directory, "matrix_stats", "data")
        return str(caught.exception)

    def test_reads_the_path_of_the_manifest_also_beside_a_stale_parquet(self) -> None:
        (self.data / "matrix_stats.parquet").write_bytes(b"stale")
        (self.data / "matrix_stats.csv").write_bytes(b"a\n")
        write_manifest_json(
            self.run_directory, {"matrix_stats": "data/matrix_stats.csv"}, matrix_stats=4
        )
        self.assertEqual(
            locate_table(self.run_directory, "matrix_stats", "data"),
            LocatedTable(path=self.data / "matrix_stats.csv", manifest_rows=4),
        )

    def test_searches_parquet_then_csv_without_a_manifest(self) -> None:
        (self.data / "matrix_stats.csv").write_bytes(b"a\n")
        self.assertEqual(
            locate_table(self.run_directory, "matrix_stats", "data"),
            LocatedTable(path=self.data / "matrix_stats.csv", manifest_rows=None),
        )
        (self.data / "matrix_stats.parquet").write_bytes(b"x")
        self.assertEqual(
            locate_table(self.run_directory, "matrix_stats", "data").path,
            self.data / "matrix_stats.parquet",
        )

    def test_says_which_command_to_run_when_there_is_no_file(self) -> None:
        self.assertEqual(
            self.refused(CheckpointError),
            f"no matrix_stats in this run: neither {self.data}/matrix_stats.parquet nor "
            f"matrix_stats.csv exists; run collect_data --run-dir {self.run_directory.path} first",
        )

    def test_refuses_what_the_manifest_does_not_name(self) -> None:
        (self.data / "matrix_stats.csv").write_bytes(b"a\n")
        write_manifest_json(self.run_directory, {"quant_sim": "data/quant_sim.csv"})
        self.assertEqual(
            self.refused(CheckpointError),
            f"{self.manifest} names no matrix_stats; it names quant_sim; "
            f"run collect_data --run-dir {self.run_directory.path} again",
        )

    def test_refuses_a_named_file_that_is_gone(self) -> None:
        write_manifest_json(self.run_directory, {"matrix_stats": "data/matrix_stats.csv"})
        self.assertEqual(
            self.refused(CheckpointError),
            f"{self.data}/matrix_stats.csv is named in {self.manifest} but does not exist; "
            f"run collect_data --run-dir {self.run_directory.path} again",
        )

    def test_refuses_paths_outside_the_run_directory(self) -> None:
        outside = self.run_directory.path.parent / "elsewhere"
        outside.mkdir()
        (outside / "matrix_stats.csv").write_bytes(b"a\n")
        (self.data / "link").symlink_to(outside)
        (self.data / "matrix_stats.csv").symlink_to(outside / "matrix_stats.csv")
        for path in (
            "../elsewhere/matrix_stats.csv",
            str(outside / "matrix_stats.csv"),
            str(self.data / "matrix_stats.csv"),
            "data/link/matrix_stats.csv",
            "data/matrix_stats.csv",
            "..\\elsewhere\\matrix_stats.csv",
        ):
            with self.subTest(path):
                write_manifest_json(self.run_directory, {"matrix_stats": path})
                self.assertEqual(
                    self.refused(InvalidDataError),
                    f'{self.manifest}: artifacts.matrix_stats.path is "{path}", which does not '
                    f"lie in "
                    f"the run directory {self.run_directory.path}; nothing outside it is read; "
                    f"run the "
                    "command that writes the manifest again",
                )

    def test_takes_a_run_directory_behind_a_link(self) -> None:
        (self.data / "matrix_stats.csv").write_bytes(b"a\n")
        write_manifest_json(self.run_directory, {"matrix_stats": "data/matrix_stats.csv"})
        link = self.run_directory.path.parent / "link"
        link.symlink_to(self.run_directory.path)
        located = locate_table(type(self.run_directory)(link), "matrix_stats", "data")
        self.assertEqual(located.path, link / "data" / "matrix_stats.csv")

    def test_refuses_a_malformed_manifest(self) -> None:
        self.manifest.parent.mkdir(exist_ok=True)
        for text in ("{}", '{"artifacts": []}', '{"artifacts": {"a": {"path": 1}}}'):
            self.manifest.write_text(text, encoding="utf-8")
            self.assertEqual(
                self.refused(CheckpointError),
                f'cannot read {self.manifest}: "artifacts" must map each name to an object with a '
                '"path"; run collect_data again',
            )


class ReadingJson(unittest.TestCase):
    def refused(self, path: Path) -> str:
        with self.assertRaises(CheckpointError) as caught:
            load_json_object(path)
        return str(caught.exception)

    def test_refuses_what_is_no_object(self) -> None:
        path = temporary_folder(self) / "x.json"
        again = "run the command that writes it again"
        self.assertEqual(
            self.refused(path), f"cannot read {path}: No such file or directory; {again}"
        )
        path.write_text("[1]", encoding="utf-8")
        self.assertEqual(
            self.refused(path), f"cannot read {path}: it holds list, not an object; {again}"
        )
        path.write_text("{", encoding="utf-8")
        self.assertEqual(
            self.refused(path),
            f"cannot read {path}: Expecting property name enclosed in double quotes: line 1 "
            f"column 2 "
            f"(char 1); {again}",
        )


if __name__ == "__main__":
    unittest.main()
