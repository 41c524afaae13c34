from __future__ import annotations

import subprocess
import sys
import unittest
from importlib.metadata import PackageNotFoundError
from unittest import mock

import moe_weights
from moe_weights.atomic_files import write_json_atomic
from moe_weights.commands.build_tables import build_tables
from moe_weights.errors import CheckpointError, UsageError
from moe_weights.findings import Finding, FindingKind
from moe_weights.run_reader import open_run
from moe_weights.tables.warnings import warnings_table
from moe_weights.tables.writer import write_table
from tests.support.runs import (
    CREATED_AT,
    make_run,
    quant_row,
    stats_row,
    temporary_folder,
    write_csv,
    write_manifest_json,
    write_sources,
)


class OpenRun(unittest.TestCase):
    def setUp(self) -> None:
        self.run_directory = make_run(self)
        self.path = self.run_directory.path

    def collect(self) -> None:
        write_sources(self.run_directory, [stats_row()], [quant_row(), quant_row(scheme="q8")])
        write_csv(self.path / "data" / "tensor_inventory.csv", [{"tensor_name": "t", "nbytes": 4}])
        names = ("matrix_stats", "quant_sim", "tensor_inventory")
        write_manifest_json(
            self.run_directory,
            {name: f"data/{name}.csv" for name in names},
            matrix_stats=1,
            quant_sim=2,
            tensor_inventory=1,
        )
        for name in ("run_health", "run_context"):
            write_json_atomic(self.run_directory.log_path(f"{name}.json"), {"name": name})


class Pieces(OpenRun):
    def test_are_frames_and_dicts(self) -> None:
        self.collect()
        build_tables(self.path, quiet=True)
        run = open_run(str(self.path))
        self.assertEqual(run.path, self.path)
        self.assertEqual(run.run_manifest["model_id"], "org/model")
        self.assertEqual(run.matrix_stats["proj"].tolist(), ["gate_proj"])
        self.assertEqual(run.quant_sim["scheme"].tolist(), ["q4", "q8"])
        self.assertEqual(run.inventory["nbytes"].tolist(), [4])
        self.assertEqual(run.health["name"], "run_health")
        self.assertEqual(run.context["name"], "run_context")
        self.assertEqual(run.manifest["generated_at"], CREATED_AT)
        self.assertEqual(run.config["model_path"], "/models/m")
        self.assertIsNone(run.failure)
        self.assertIsNone(run.tables_failure)
        self.assertEqual(len(run.tables), 7)
        self.assertEqual(run.tables["B_quant_global_summary"]["n"].tolist(), [1, 1])

    def test_are_read_once(self) -> None:
        self.collect()
        build_tables(self.path, quiet=True)
        run = open_run(self.path)
        self.assertIs(run.matrix_stats, run.matrix_stats)
        self.assertIs(run.tables["B_quant_deltas"], run.tables["B_quant_deltas"])

    def test_say_which_command_writes_them(self) -> None:
        run = open_run(self.path)
        first = f"run collect_data --run-dir {self.path} first"
        logs = self.path / "logs"
        stem = self.path / "data" / "matrix_stats"
        for piece, message in (
            (lambda: run.health, f"{logs}/run_health.json does not exist; {first}"),
            (lambda: run.coverage, f"{logs}/coverage.json does not exist; {first}"),
            (lambda: run.manifest, f"{logs}/write_manifest.json does not exist; {first}"),
            (lambda: run.warnings, f"{logs}/write_manifest.json does not exist; {first}"),
            (
                lambda: run.matrix_stats,
                f"no matrix_stats in this run: neither {stem}.parquet nor matrix_stats.csv exists; "
                + first,
            ),
        ):
            with self.assertRaises(CheckpointError) as caught:
                piece()
            self.assertEqual(str(caught.exception), message)

    def test_hold_the_ledger_also_of_a_run_that_was_refused(self) -> None:
        ledger = {"complete": False, "unaccounted": []}
        write_json_atomic(self.run_directory.log_path("coverage.json"), ledger)
        failure = {"error": {"type": "ExtractionError", "message": "not complete"}}
        write_json_atomic(self.run_directory.log_path("run_failure.json"), failure)
        run = open_run(self.path)
        self.assertEqual(run.coverage, ledger)
        self.assertIn(
            "  status    collect_data failed: ExtractionError: not complete\n"
            "  coverage  INCOMPLETE\n",
            repr(run),
        )

    def test_that_were_not_dumped_are_no_empty_frame(self) -> None:
        self.collect()
        with self.assertRaises(CheckpointError) as caught:
            _ = open_run(self.path).unmatched
        self.assertIn("names no unmatched_tensors; ", str(caught.exception))

    def test_show_why_a_command_failed(self) -> None:
        failure = {"error": {"type": "CheckpointError", "message": "cut short"}}
        write_json_atomic(self.run_directory.log_path("run_failure.json"), failure)
        self.assertEqual(open_run(self.path).failure, failure)

    def test_are_refused_without_a_run(self) -> None:
        folder = temporary_folder(self)
        with self.assertRaises(UsageError):
            open_run(folder / "no")


class Warnings(OpenRun):
    def test_are_zero_rows_when_there_were_none(self) -> None:
        self.collect()
        warnings = open_run(self.path).warnings
        self.assertEqual(
            list(warnings.columns), ["warning", "kind", "file", "tensor", "count", "hint"]
        )
        self.assertEqual(len(warnings), 0)

    def test_are_one_row_each(self) -> None:
        entry = write_table(
            self.run_directory,
            warnings_table([Finding(kind=FindingKind.META, message="[meta] x")]),
            self.run_directory.log_table_path("warnings"),
            requested_format="parquet",
            compression=None,
        )
        write_manifest_json(self.run_directory, {"warnings": entry.path}, warnings=1)
        self.assertEqual(open_run(self.path).warnings["warning"].tolist(), ["[meta] x"])


class Tables(OpenRun):
    def test_list_what_there_is_when_a_name_is_wrong(self) -> None:
        with self.assertRaises(KeyError) as caught:
            _ = open_run(self.path).tables["A"]
        self.assertEqual(
            caught.exception.args, ('no table "A"; there are: none yet: run build_tables first',)
        )
        self.collect()
        build_tables(self.path, quiet=True)
        tables = open_run(self.path).tables
        with self.assertRaises(KeyError) as caught:
            _ = tables["A"]
        self.assertEqual(
            caught.exception.args[0],
            'no table "A"; there are: A_weight_block4_summary, A_weight_global_summary, '
            "A_weight_layer_summary, B_quant_block4_summary, B_quant_deltas, "
            "B_quant_global_summary, B_quant_layer_summary",
        )
        self.assertEqual(
            repr(tables),
            "SummaryTables(A_weight_block4_summary, A_weight_global_summary, "
            "A_weight_layer_summary, B_quant_block4_summary, B_quant_deltas, "
            "B_quant_global_summary, B_quant_layer_summary)",
        )

    def test_are_those_on_disk_without_a_manifest(self) -> None:
        write_csv(self.run_directory.path / "tables" / "mine.csv", [{"n": 1}])
        (self.run_directory.path / "tables" / "notes.txt").write_text("x", encoding="utf-8")
        tables = open_run(self.path).tables
        self.assertEqual(list(tables), ["mine"])
        self.assertEqual(tables["mine"]["n"].tolist(), [1])


class Representation(OpenRun):
    def head(self) -> str:
        return (
            f"OpenedRun({str(self.path)!r})\n"
            f"  model     org/model, run first, created {CREATED_AT}\n"
        )

    def test_of_a_fresh_run_says_what_to_do(self) -> None:
        self.assertEqual(
            repr(open_run(self.path)),
            self.head() + "  status    not collected yet\n"
            "  tables    none yet\n"
            f"  look at   nothing yet: run collect_data --run-dir {self.path}",
        )

    def test_says_whether_every_declared_expert_is_there(self) -> None:
        self.collect()
        path = self.run_directory.log_path("coverage.json")
        for complete, verdict, look_at in (
            (True, "complete", "run.matrix_stats; "),
            (False, "INCOMPLETE", "run.coverage, run.matrix_stats; "),
            (
                None,
                "unknown: config.json declares no experts, not how many, or not in which layers",
                "run.matrix_stats; ",
            ),
        ):
            with self.subTest(complete=complete):
                write_json_atomic(path, {"complete": complete})
                text = repr(open_run(self.path))
                self.assertIn(f"Z\n  coverage  {verdict}\n  rows", text)
                self.assertIn(f"  look at   {look_at}run.tables", text)

    def test_of_a_complete_run_gives_counts_and_where_to_look(self) -> None:
        self.collect()
        self.assertEqual(
            repr(open_run(self.path)),
            self.head() + f"  status    collected {CREATED_AT}\n"
            "  rows      matrix_stats 1 · quant_sim 2 · tensor_inventory 1\n"
            "  warnings  0\n"
            "  tables    none yet\n"
            "  look at   run.matrix_stats; run.tables after build_tables",
        )
        build_tables(self.path, quiet=True)
        lines = repr(open_run(self.path)).splitlines()
        self.assertTrue(lines[5].startswith("  tables    A_weight_block4_summary, "))
        self.assertEqual(lines[6], '  look at   run.tables["B_quant_global_summary"]')

    def test_points_at_warnings_first(self) -> None:
        write_manifest_json(self.run_directory, {"warnings": "logs/warnings.csv"}, warnings=3)
        lines = repr(open_run(self.path)).splitlines()
        self.assertEqual(lines[3], "  warnings  3")
        self.assertEqual(
            lines[-1],
            "  look at   run.warnings, then run.matrix_stats; run.tables after build_tables",
        )

    def test_of_a_failed_run_gives_the_cause(self) -> None:
        failure = {"error": {"type": "CheckpointError", "message": "cut short"}}
        write_json_atomic(self.run_directory.log_path("run_failure.json"), failure)
        write_json_atomic(self.run_directory.log_path("tables_failure.json"), {})
        self.assertEqual(
            repr(open_run(self.path)),
            self.head() + "  status    collect_data failed: CheckpointError: cut short\n"
            "  tables    build_tables failed: unknown error\n"
            "  look at   run.failure",
        )

    def test_of_a_damaged_run_does_not_raise(self) -> None:
        self.run_directory.log_path("x").parent.mkdir()
        self.run_directory.log_path("write_manifest.json").write_text("{", encoding="utf-8")
        lines = repr(open_run(self.path)).splitlines()
        self.assertTrue(lines[-1].startswith("  damaged   cannot read "))


class Package(unittest.TestCase):
    def test_is_light_until_a_name_is_used(self) -> None:
        code = (
            "import sys, moe_weights; "
            "print([m for m in ('pandas', 'numpy', 'pydantic', 'pyarrow') if m in sys.modules])"
        )
        output = subprocess.run(  # the interpreter is the one running this test
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        self.assertEqual(output.stdout, "[]\n")

    def test_offers_open_run_and_its_version(self) -> None:
        self.assertIs(moe_weights.open_run, open_run)
        self.assertIn("open_run", dir(moe_weights))
        with mock.patch("importlib.metadata.version", return_value="1.2"):
            self.assertEqual(moe_weights.__version__, "1.2")
        with mock.patch("importlib.metadata.version", side_effect=PackageNotFoundError):
            self.assertEqual(moe_weights.__version__, "0+unknown")

    def test_has_no_other_names(self) -> None:
        with self.assertRaises(AttributeError) as caught:
            _ = moe_weights.nothing
        self.assertEqual(str(caught.exception), "module 'moe_weights' has no attribute 'nothing'")


if __name__ == "__main__":
    unittest.main()
