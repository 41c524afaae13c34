from __future__ import annotations

import contextlib
import errno
import io
import unittest
from pathlib import Path
from unittest import mock

from moe_weights.atomic_files import RunLock, write_json_atomic
from moe_weights.commands.build_tables import build_tables
from moe_weights.errors import (
    CheckpointError,
    ConfigError,
    InvalidDataError,
    MoeWeightsError,
    OutputError,
    UsageError,
)
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.reader import read_table_file
from tests.support.runs import (
    make_run,
    quant_row,
    read_json,
    stats_row,
    write_manifest_json,
    write_sources,
)

SIX = (
    "A_weight_block4_summary",
    "A_weight_global_summary",
    "A_weight_layer_summary",
    "B_quant_block4_summary",
    "B_quant_global_summary",
    "B_quant_layer_summary",
)
FINAL_LINE = "[build_tables] wrote tables/ A_* and B_*\n"
STATS = [
    stats_row(layer=layer, block4=None if layer < 0 else layer // 4, expert_id=expert)
    for layer in (-1, 0, 4)
    for expert in (0, 1)
] + [stats_row(expert_id=-1, is_shared_expert=True, mean=9.0)]
QUANT = [
    quant_row(layer=layer, block4=None if layer < 0 else 0, scheme=scheme, w_rel_fro=value)
    for layer in (-1, 0)
    for scheme, value in (("affine_q4_g32", 0.09), ("mxfp4_g32", 0.15), ("affine_q8_g32", 0.01))
]


class BuildTables(unittest.TestCase):
    def setUp(self) -> None:
        self.use(make_run(self))

    def use(self, run: RunDirectory) -> None:
        self.run_directory = run
        self.tables = run.path / "tables"
        write_sources(run, STATS, QUANT)

    def build(self, *, routed_only: bool = False, quiet: bool = False) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = build_tables(self.run_directory.path, routed_only=routed_only, quiet=quiet)
        self.assertEqual(code, 0)
        return output.getvalue()

    def refused(self, kind: type[MoeWeightsError]) -> str:
        with self.assertRaises(kind) as caught, contextlib.redirect_stdout(io.StringIO()):
            build_tables(self.run_directory.path)
        return str(caught.exception)

    def written(self) -> list[str]:
        return sorted(path.name for path in self.tables.glob("*"))

    def failure(self) -> dict[str, object]:
        return dict(read_json(self.run_directory.log_path("tables_failure.json")))


class WrittenTables(BuildTables):
    def test_are_the_six_summaries_the_deltas_and_a_manifest_of_them(self) -> None:
        self.assertEqual(self.build(), FINAL_LINE)
        names = sorted([*SIX, "B_quant_deltas"])
        self.assertEqual(self.written(), [f"{name}.parquet" for name in names])
        manifest = read_json(self.run_directory.log_path("tables_write_manifest.json"))
        self.assertEqual(
            sorted(manifest),
            ["artifacts", "generated_at", "requested_compression", "requested_format"],
        )
        artifacts = manifest["artifacts"]
        assert isinstance(artifacts, dict)
        self.assertEqual(sorted(artifacts), names)
        for name, entry in artifacts.items():
            rows = len(read_table_file(self.tables / f"{name}.parquet"))
            self.assertEqual(
                entry,
                {
                    "path": f"tables/{name}.parquet",
                    "format": "parquet",
                    "fallback": False,
                    "error": None,
                    "rows": rows,
                },
            )

    def test_hold_the_numbers_of_the_sources(self) -> None:
        self.build()
        layers = read_table_file(self.tables / "A_weight_layer_summary.parquet")
        self.assertEqual(layers["layer"].tolist(), [-1, 0, 4])
        self.assertEqual(layers["n"].tolist(), [2, 3, 2])
        deltas = read_table_file(self.tables / "B_quant_deltas.parquet")
        self.assertEqual(deltas["layer"].tolist(), [-1, -1, 0, 0])
        self.assertEqual(deltas["delta_name"].tolist(), ["mxfp4_minus_q4", "q8_minus_mxfp4"] * 2)
        for found, expected in zip(deltas["delta_w_rel_fro"], [0.06, -0.14] * 2, strict=True):
            self.assertAlmostEqual(found, expected, places=15)

    def test_are_the_same_bytes_again(self) -> None:
        self.build()
        first = {path.name: path.read_bytes() for path in self.tables.iterdir()}
        self.build()
        self.assertEqual({path.name: path.read_bytes() for path in self.tables.iterdir()}, first)

    def test_come_silently_when_asked(self) -> None:
        self.assertEqual(self.build(quiet=True), "")

    def test_lose_the_deltas_of_an_earlier_run_without_pairs(self) -> None:
        self.build()
        write_json_atomic(
            self.run_directory.config_path,
            {**read_json(self.run_directory.config_path), "delta_pairs": []},
        )
        self.build()
        self.assertEqual(self.written(), [f"{name}.parquet" for name in SIX])

    def test_have_a_routed_variant_while_asked_for(self) -> None:
        self.build(routed_only=True)
        everything = read_table_file(self.tables / "A_weight_global_summary.parquet")
        routed = read_table_file(self.tables / "A_weight_global_summary_routed.parquet")
        self.assertEqual((everything["n"][0], routed["n"][0]), (7, 6))
        self.assertEqual((everything["mean__max"][0], routed["mean__max"][0]), (9.0, 1.0))
        self.assertEqual(len(self.written()), 13)
        self.build()
        self.assertEqual(len(self.written()), 7)

    def test_fall_back_to_csv_and_say_so(self) -> None:
        output = {"format": "parquet", "compression": "invalid-codec"}
        self.use(make_run(self, output=output))
        names = sorted([*SIX, "B_quant_deltas"])
        lines = self.build().splitlines(keepends=True)
        self.assertEqual(
            sorted(lines[:-1]),
            [
                "[warn] parquet write failed (ArrowException: Unsupported compression: "
                f"invalid-codec); wrote tables/{name}.csv\n"
                for name in names
            ],
        )
        self.assertEqual(lines[-1], FINAL_LINE)
        self.assertEqual(self.written(), [f"{name}.csv" for name in names])

    def test_group_by_stack_where_there_are_several(self) -> None:
        stacks = ("model", "mtp")
        stats = [stats_row(stack=stack) for stack in stacks]
        quant = [quant_row(stack=stack) for stack in stacks]
        write_sources(self.run_directory, stats, quant)
        self.build()
        for path in self.tables.iterdir():
            frame = read_table_file(path)
            expected = ["model", "model", "mtp", "mtp"] if "deltas" in path.name else [*stacks]
            self.assertEqual(frame["stack"].tolist(), expected)
        write_sources(self.run_directory, stats[:1], quant[:1])
        self.build()
        for path in self.tables.iterdir():
            self.assertNotIn("stack", read_table_file(path).columns)


class Sources(BuildTables):
    def test_without_rows_give_all_headers(self) -> None:
        for row_of in (stats_row, quant_row):
            name = "matrix_stats" if row_of is stats_row else "quant_sim"
            header = ",".join(row_of()) + "\n"
            (self.run_directory.path / "data" / f"{name}.csv").write_text(header, encoding="utf-8")
        self.assertEqual(self.build(), FINAL_LINE)
        for path in self.tables.iterdir():
            frame = read_table_file(path)
            self.assertEqual(len(frame), 0)
            self.assertGreaterEqual(len(frame.columns), 10)

    def test_without_columns_count_as_zero_rows(self) -> None:
        for name in ("matrix_stats", "quant_sim"):
            (self.run_directory.path / "data" / f"{name}.csv").write_bytes(b"\n")
        self.assertEqual(self.build(routed_only=True), FINAL_LINE)
        self.assertEqual(len(self.written()), 13)
        for path in self.tables.iterdir():
            self.assertEqual(len(read_table_file(path)), 0)

    def test_are_what_the_manifest_names_not_a_stale_parquet(self) -> None:
        data = self.run_directory.path / "data"
        (data / "matrix_stats.parquet").write_bytes(b"stale")
        (data / "quant_sim.parquet").write_bytes(b"stale")
        paths = {name: f"data/{name}.csv" for name in ("matrix_stats", "quant_sim")}
        write_manifest_json(
            self.run_directory, paths, matrix_stats=len(STATS), quant_sim=len(QUANT)
        )
        self.assertEqual(self.build(), FINAL_LINE)

    def test_that_changed_after_collect_data_are_told(self) -> None:
        paths = {name: f"data/{name}.csv" for name in ("matrix_stats", "quant_sim")}
        write_manifest_json(self.run_directory, paths, matrix_stats=1, quant_sim=len(QUANT))
        self.assertEqual(
            self.build(quiet=True),
            f"[warn] data/matrix_stats.csv has {len(STATS)} rows, logs/write_manifest.json says "
            f"1; the "
            "file was changed after collect_data\n",
        )

    def test_of_a_failed_collect_data_are_told(self) -> None:
        write_json_atomic(self.run_directory.log_path("run_failure.json"), {})
        self.assertEqual(
            self.build(),
            "[warn] the last collect_data of this run failed (see logs/run_failure.json); these "
            "tables "
            f"come from what an earlier one wrote\n{FINAL_LINE}",
        )

    def test_without_block4_have_it_recomputed(self) -> None:
        def without_block4(row: dict[str, object]) -> dict[str, object]:
            return {name: cell for name, cell in row.items() if name != "block4"}

        write_sources(
            self.run_directory,
            [without_block4(row) for row in STATS],
            [without_block4(row) for row in QUANT],
        )
        self.build()
        blocks = read_table_file(self.tables / "A_weight_block4_summary.parquet")
        self.assertEqual(blocks["block4"].astype(object).tolist()[:2], [0, 1])
        self.assertTrue(blocks["block4"].isna().tolist()[2])
        self.assertEqual(blocks["n"].tolist(), [3, 2, 2])


class Refusals(BuildTables):
    def test_of_no_run_directory_write_nothing(self) -> None:
        missing = self.run_directory.path / "no"
        with self.assertRaises(UsageError) as caught:
            build_tables(missing)
        self.assertEqual(
            str(caught.exception), f"run directory not found: {missing}; run init_run first"
        )
        self.assertFalse(missing.exists())

    def test_of_a_run_in_use_write_nothing(self) -> None:
        with RunLock(self.run_directory.lock_path):
            message = self.refused(UsageError)
        self.assertTrue(message.startswith("run directory is in use by another process: "))
        self.assertFalse((self.run_directory.path / "logs").exists())
        self.assertEqual(self.written(), [])

    def test_of_a_wrong_config_are_recorded(self) -> None:
        self.use(make_run(self, delta_pairs=[{"name": "x"}]))
        self.refused(ConfigError)
        error = self.failure()["error"]
        assert isinstance(error, dict)
        self.assertEqual(error["type"], "ConfigError")

    def test_of_uncollected_data_say_what_to_run_first(self) -> None:
        (self.run_directory.path / "data" / "quant_sim.csv").unlink()
        stem = self.run_directory.path / "data" / "quant_sim"
        message = (
            f"no quant_sim in this run: neither {stem}.parquet nor quant_sim.csv exists; "
            f"run collect_data --run-dir {self.run_directory.path} first"
        )
        self.assertEqual(self.refused(CheckpointError), message)
        failure = self.failure()
        self.assertEqual(failure["status"], "error")
        self.assertEqual(failure["error"], {"type": "CheckpointError", "message": message})
        self.assertNotIn("traceback", failure)

    def test_of_duplicates_come_before_any_table(self) -> None:
        write_sources(self.run_directory, STATS, [*QUANT, QUANT[0]])
        self.assertIn("for 1 pair of matrix and scheme", self.refused(InvalidDataError))
        self.assertEqual(self.written(), [])

    def test_of_infinite_values_come_before_any_table(self) -> None:
        write_sources(self.run_directory, STATS, [quant_row(bias_max=float("inf"))])
        self.assertTrue(
            self.refused(InvalidDataError).startswith(
                "quant_sim.bias_max is inf in row 0; what is undefined is null in tables"
            )
        )
        self.assertEqual(self.written(), [])

    def test_of_missing_columns_name_them_and_the_file(self) -> None:
        def without(row: dict[str, object], *names: str) -> dict[str, object]:
            return {name: cell for name, cell in row.items() if name not in names}

        data = self.run_directory.path / "data"
        write_sources(self.run_directory, STATS, [without(row, "scheme", "cols") for row in QUANT])
        self.assertTrue(
            self.refused(InvalidDataError).startswith(
                f"{data}/quant_sim.csv lacks the columns scheme, cols; it has "
            )
        )
        write_sources(self.run_directory, [without(row, "rms") for row in STATS], QUANT)
        self.assertTrue(
            self.refused(InvalidDataError).startswith(
                f"{data}/matrix_stats.csv lacks the column rms; it has "
            )
        )

    def test_are_forgotten_after_a_success(self) -> None:
        write_sources(self.run_directory, STATS, [*QUANT, QUANT[0]])
        self.refused(InvalidDataError)
        write_sources(self.run_directory, STATS, QUANT)
        self.build()
        self.assertFalse(self.run_directory.log_path("tables_failure.json").exists())

    def test_of_an_unforeseen_kind_are_recorded_with_a_traceback(self) -> None:
        with (
            mock.patch("moe_weights.commands.build_tables.quant_deltas", side_effect=KeyError("x")),
            self.assertRaises(KeyError),
        ):
            build_tables(self.run_directory.path)
        self.assertIn("KeyError: 'x'", str(self.failure()["traceback"]))

    def test_of_the_disk_say_what_is_complete(self) -> None:
        self.build()
        full = OSError(errno.ENOSPC, "No space left on device")
        write_bytes = Path.write_bytes

        def write_or_fail(path: Path, encoded: bytes) -> int:
            if "A_weight_block4_summary" in path.name:
                raise full
            return write_bytes(path, encoded)

        with mock.patch.object(Path, "write_bytes", write_or_fail):
            message = self.refused(OutputError)
        self.assertEqual(
            message,
            f"cannot write {self.tables}/A_weight_block4_summary.parquet: No space left on "
            f"device; free "
            "some space and run the same command again; the file is as it was before; complete so "
            "far: "
            "tables/A_weight_layer_summary.parquet",
        )
        self.assertFalse(self.run_directory.log_path("tables_write_manifest.json").exists())

    def test_of_a_full_disk_are_not_hidden_by_the_failure_log(self) -> None:
        full = OutputError("disk full")
        with (
            mock.patch("moe_weights.commands.build_tables.write_failure", side_effect=full),
            self.assertRaises(InvalidDataError),
        ):
            write_sources(self.run_directory, STATS, [*QUANT, QUANT[0]])
            build_tables(self.run_directory.path)


if __name__ == "__main__":
    unittest.main()
