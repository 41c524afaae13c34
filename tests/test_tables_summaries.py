from __future__ import annotations

import math
import statistics
import unittest
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from moe_weights.columns import Cell, Table
from moe_weights.errors import InvalidDataError
from moe_weights.quantize.error import ERROR_COLUMNS
from moe_weights.tables.keys import group_rows, has_several_stacks, key_cells, with_block4
from moe_weights.tables.summaries import (
    QUANT_METRICS,
    SUMMARIES,
    Summary,
    summarise,
    without_shared,
)
from moe_weights.tables.writer import checked_values
from tests.support.runs import METRICS, quant_row, stats_row

BY_NAME = {summary.name: summary for summary in SUMMARIES}

WEIGHT_SPREAD = ("median", "mean", "std", "p90", "p99")
QUANT_SPREAD = ("median", "mean", "p90", "p99")
RANGE = ("min", "p01", "median", "p99", "max")
QUANT = ("w_rel_fro", "w_rel_max", "scale_mean", "scale_max", "bias_mean", "bias_max")

# An independent, slow statement of each aggregate over the values that are not null.
ORACLE: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "max": max,
    "median": statistics.median,
    "mean": statistics.fmean,
    "std": statistics.stdev,
    "p01": lambda values: float(np.percentile(values, 1)),
    "p90": lambda values: float(np.percentile(values, 90)),
    "p99": lambda values: float(np.percentile(values, 99)),
}


def columns_of(metrics: Sequence[str], aggregates: Sequence[str]) -> list[str]:
    return [f"{metric}__{aggregate}" for metric in metrics for aggregate in aggregates]


def summary_of(name: str, rows: Sequence[dict[str, object]], *, by_stack: bool = False) -> Table:
    return summarise(BY_NAME[name], pd.DataFrame(list(rows)), by_stack=by_stack)


def column(table: Table, name: str) -> list[Cell]:
    return checked_values(table)[name]


class Headers(unittest.TestCase):
    def test_of_a_tables(self) -> None:
        for name, keys, aggregates in (
            ("A_weight_layer_summary", ["layer", "proj"], WEIGHT_SPREAD),
            ("A_weight_block4_summary", ["block4", "proj"], WEIGHT_SPREAD),
            ("A_weight_global_summary", ["proj"], RANGE),
        ):
            self.assertEqual(
                list(summary_of(name, [stats_row()]).schema.column_names),
                [*keys, *columns_of(METRICS, aggregates), "n"],
            )

    def test_of_b_tables(self) -> None:
        for name, keys, aggregates in (
            ("B_quant_layer_summary", ["layer", "proj", "scheme"], QUANT_SPREAD),
            ("B_quant_block4_summary", ["block4", "proj", "scheme"], QUANT_SPREAD),
            ("B_quant_global_summary", ["proj", "scheme"], RANGE),
        ):
            self.assertEqual(
                list(summary_of(name, [quant_row()]).schema.column_names),
                [*keys, *columns_of(QUANT, aggregates), "n", "n_error"],
            )

    def test_literally(self) -> None:
        self.assertEqual(
            ",".join(summary_of("B_quant_global_summary", [quant_row()]).schema.column_names),
            "proj,scheme,"
            "w_rel_fro__min,w_rel_fro__p01,w_rel_fro__median,w_rel_fro__p99,w_rel_fro__max,"
            "w_rel_max__min,w_rel_max__p01,w_rel_max__median,w_rel_max__p99,w_rel_max__max,"
            "scale_mean__min,scale_mean__p01,scale_mean__median,scale_mean__p99,scale_mean__max,"
            "scale_max__min,scale_max__p01,scale_max__median,scale_max__p99,scale_max__max,"
            "bias_mean__min,bias_mean__p01,bias_mean__median,bias_mean__p99,bias_mean__max,"
            "bias_max__min,bias_max__p01,bias_max__median,bias_max__p99,bias_max__max,n,n_error",
        )

    def test_follow_the_group_outliers_of_the_source(self) -> None:
        row = stats_row(gain=1.0, g128_p99_9_outlier=2.0, other_outlier=3.0)
        names = summary_of("A_weight_global_summary", [row]).schema.column_names
        outliers = ["g32_p95_outlier", "g32_max_outlier", "g128_p99_9_outlier"]
        self.assertEqual(list(names[1 + 11 * len(RANGE) :]), [*columns_of(outliers, RANGE), "n"])

    def test_cover_the_metrics_that_quant_sim_has(self) -> None:
        row = {key: quant_row()[key] for key in ("layer", "proj", "scheme", "w_rel_max")}
        table = summary_of("B_quant_global_summary", [row])
        self.assertEqual(
            list(table.schema.column_names),
            ["proj", "scheme", *columns_of(["w_rel_max"], RANGE), "n", "n_error"],
        )
        self.assertEqual(column(table, "n_error"), [0])
        bare = {key: quant_row()[key] for key in ("layer", "proj", "scheme")}
        table = summary_of("B_quant_global_summary", [bare])
        self.assertEqual(list(table.schema.column_names), ["proj", "scheme", "n", "n_error"])

    def test_stand_without_rows(self) -> None:
        for summary in SUMMARIES:
            source = stats_row() if summary.source == "matrix_stats" else quant_row()
            empty = pd.DataFrame({name: [] for name in source})
            table = summarise(summary, empty, by_stack=False)
            self.assertEqual(table.n_rows, 0)
            self.assertEqual(
                table.schema.column_names,
                summary_of(summary.name, [source]).schema.column_names,
            )

    def test_stand_without_rows_and_columns(self) -> None:
        for summary in SUMMARIES:
            table = summarise(summary, pd.DataFrame(), by_stack=False)
            metrics = METRICS[:11] if summary.source == "matrix_stats" else QUANT
            counts = ["n"] if summary.source == "matrix_stats" else ["n", "n_error"]
            self.assertEqual(
                list(table.schema.column_names),
                [*summary.keys, *columns_of(metrics, summary.aggregates), *counts],
            )
            self.assertEqual(table.n_rows, 0)

    def test_say_unit_and_meaning_of_every_column(self) -> None:
        for summary in SUMMARIES:
            for declared in summarise(summary, pd.DataFrame(), by_stack=True).schema.columns:
                self.assertTrue(declared.meaning, declared.name)
                self.assertTrue(declared.unit or declared.name in {*summary.keys, "stack"})

    def test_have_the_units_of_what_they_summarise(self) -> None:
        self.assertEqual(QUANT_METRICS, {column.name: column.unit for column in ERROR_COLUMNS})


class Aggregates(unittest.TestCase):
    def expect_oracle(self, summary: Summary, rows: list[dict[str, object]]) -> None:
        metrics = METRICS if summary.source == "matrix_stats" else QUANT
        table = summarise(summary, pd.DataFrame(rows), by_stack=False)
        keys = list(zip(*(column(table, key) for key in summary.keys), strict=True))
        self.assertEqual(len(keys), len(set(keys)))
        for position, group in enumerate(keys):
            members = [row for row in rows if tuple(row[key] for key in summary.keys) == group]
            self.assertEqual(column(table, "n")[position], len(members))
            for metric in metrics:
                values = [float(str(row[metric])) for row in members if row[metric] is not None]
                for aggregate in summary.aggregates:
                    found = column(table, f"{metric}__{aggregate}")[position]
                    if len(values) < (2 if aggregate == "std" else 1):
                        self.assertIsNone(found)
                        continue
                    self.assertIsInstance(found, float)
                    assert isinstance(found, float)
                    expected = ORACLE[aggregate](values)
                    self.assertTrue(
                        math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-15),
                        (summary.name, group, metric, aggregate, found, expected),
                    )

    def test_equal_slow_loops(self) -> None:
        generator = np.random.default_rng(7)
        rows: list[dict[str, object]] = []
        for layer in (-1, 0, 1, 5):
            for proj in ("down_proj", "gate_proj", None):
                for expert in range(1 if layer == 5 else 5):
                    values = generator.standard_normal(len(METRICS)) ** 3
                    cells: dict[str, object] = {
                        metric: None if generator.random() < 0.2 else float(value)
                        for metric, value in zip(METRICS, values, strict=True)
                    }
                    block4 = layer // 4 if layer >= 0 else None
                    rows.append(
                        stats_row(layer=layer, block4=block4, proj=proj, expert_id=expert, **cells)
                    )
        for summary in SUMMARIES[:3]:
            self.expect_oracle(summary, rows)

    def test_equal_slow_loops_per_scheme(self) -> None:
        generator = np.random.default_rng(8)
        rows = [
            quant_row(
                layer=layer,
                block4=layer // 4,
                proj=proj,
                expert_id=expert,
                scheme=scheme,
                w_rel_fro=float(generator.random()),
                w_rel_max=float(generator.random()),
                scale_mean=float(generator.standard_normal()) * 1e-7,
                bias_mean=None if scheme == "mxfp4" else float(generator.standard_normal()),
            )
            for layer in (0, 3, 4)
            for proj in ("gate_proj", "w9")
            for expert in range(4)
            for scheme in ("q4", "mxfp4")
        ]
        for summary in SUMMARIES[3:]:
            self.expect_oracle(summary, rows)

    def test_have_no_spread_for_a_single_row(self) -> None:
        table = summary_of("A_weight_layer_summary", [stats_row(mean=2.0)])
        self.assertEqual(column(table, "mean__std"), [None])
        self.assertEqual(column(table, "mean__p90"), [2.0])

    def test_leave_out_failed_rows_but_count_them(self) -> None:
        nothing = dict.fromkeys(QUANT)
        rows = [
            quant_row(w_rel_fro=0.5),
            quant_row(expert_id=1, error="ValueError: no", **nothing),
            quant_row(expert_id=2, error="", w_rel_fro=0.7),
            quant_row(scheme="q8", error="ValueError: no", **nothing),
        ]
        table = summary_of("B_quant_global_summary", rows)
        self.assertEqual(column(table, "scheme"), ["q4", "q8"])
        self.assertEqual(column(table, "n"), [3, 1])
        self.assertEqual(column(table, "n_error"), [1, 1])
        self.assertEqual(column(table, "w_rel_fro__max"), [0.7, None])
        self.assertEqual(column(table, "bias_max__median"), [None, None])

    def test_are_null_where_they_lie_beyond_float64(self) -> None:
        rows = [stats_row(expert_id=expert, rms=1.5e308) for expert in range(2)]
        table = summary_of("A_weight_layer_summary", rows)
        self.assertEqual(column(table, "rms__mean"), [None])
        self.assertEqual(column(table, "mean__mean"), [1.0])


class GroupOrder(unittest.TestCase):
    def test_is_by_layer_then_projection_with_nulls_last(self) -> None:
        rows = [
            stats_row(layer=layer, proj=proj)
            for layer in (10, 2, -1)
            for proj in (None, "w9", "down_proj", "a", "up_proj", "gate_proj")
        ]
        table = summary_of("A_weight_layer_summary", rows)
        self.assertEqual(
            list(zip(column(table, "layer"), column(table, "proj"), strict=True)),
            [
                (layer, proj)
                for layer in (-1, 2, 10)
                for proj in ("gate_proj", "up_proj", "down_proj", "a", "w9", None)
            ],
        )

    def test_keeps_unknown_layers_as_a_null_block(self) -> None:
        rows = [
            stats_row(layer=-1, block4=None),
            stats_row(layer=5, block4=1),
            stats_row(layer=-1, block4=None, expert_id=1),
        ]
        table = summary_of("A_weight_block4_summary", rows)
        self.assertEqual(column(table, "block4"), [1, None])
        self.assertEqual(column(table, "n"), [1, 2])

    def test_puts_stacks_first_and_their_column_after_the_named_ones(self) -> None:
        rows = [
            stats_row(stack=stack, layer=layer) for stack in ("model", "mtp") for layer in (1, 0)
        ]
        table = summary_of("A_weight_layer_summary", rows, by_stack=True)
        self.assertEqual(list(table.schema.column_names)[-2:], ["stack", "n"])
        self.assertEqual(column(table, "stack"), ["model", "model", "mtp", "mtp"])
        self.assertEqual(column(table, "layer"), [0, 1, 0, 1])
        table = summary_of("B_quant_global_summary", [quant_row(stack="mtp")], by_stack=True)
        self.assertEqual(list(table.schema.column_names)[-3:], ["stack", "n", "n_error"])

    def test_does_not_depend_on_the_row_order(self) -> None:
        rows = [stats_row(layer=layer, proj=proj) for layer in (0, 1) for proj in ("b", "a")]
        self.assertEqual(
            checked_values(summary_of("A_weight_layer_summary", rows)),
            checked_values(summary_of("A_weight_layer_summary", rows[::-1])),
        )


class RoutedRows(unittest.TestCase):
    def test_are_those_not_shared(self) -> None:
        frame = pd.DataFrame(
            {"is_shared_expert": pd.array([True, False, None], dtype="boolean"), "n": [0, 1, 2]}
        )
        self.assertEqual(without_shared(frame)["n"].tolist(), [1, 2])
        self.assertEqual(len(without_shared(pd.DataFrame())), 0)


class Keys(unittest.TestCase):
    def test_are_whole_numbers_also_from_floats(self) -> None:
        frame = pd.DataFrame({"block4": [0.0, math.nan, 3.0]})
        self.assertEqual(key_cells(frame, "block4", "quant_sim"), [0, None, 3])

    def test_refuse_anything_else(self) -> None:
        for cells in (["x"], [0.5], [True], [math.inf]):
            with self.assertRaises(InvalidDataError) as caught:
                key_cells(pd.DataFrame({"layer": cells}), "layer", "quant_sim")
            self.assertEqual(
                str(caught.exception),
                f"quant_sim.layer holds {cells[0]!r} in row 0; expected integers; run collect_data "
                "again",
            )

    def test_recompute_a_missing_block(self) -> None:
        frame = pd.DataFrame({"layer": [-1, 0, 3, 4, 9]})
        self.assertEqual(
            key_cells(with_block4(frame, "matrix_stats"), "block4", "matrix_stats"),
            [None, 0, 0, 1, 2],
        )
        frame["block4"] = 7
        self.assertEqual(with_block4(frame, "matrix_stats")["block4"].tolist(), [7] * 5)

    def test_refuse_metrics_that_are_text(self) -> None:
        with self.assertRaises(InvalidDataError) as caught:
            summary_of("A_weight_global_summary", [stats_row(rms="much")])
        self.assertTrue(
            str(caught.exception).startswith("matrix_stats.rms holds values that are not numbers (")
        )

    def test_refuse_rows_that_lack_a_column(self) -> None:
        with self.assertRaises(InvalidDataError) as caught:
            summarise(
                BY_NAME["B_quant_global_summary"],
                pd.DataFrame({"proj": ["up_proj"], "scheme": ["s"]}),
                by_stack=True,
            )
        self.assertEqual(
            str(caught.exception),
            "quant_sim lacks the column stack; it has proj, scheme; run collect_data again",
        )

    def test_group_nothing_into_nothing(self) -> None:
        groups = group_rows(pd.DataFrame({"proj": []}), ["proj"], "matrix_stats")
        self.assertEqual((groups.keys, groups.group_of_row.tolist()), ([], []))

    def test_count_stacks_over_all_frames(self) -> None:
        one, other = pd.DataFrame({"stack": ["model"]}), pd.DataFrame({"stack": ["mtp"]})
        self.assertTrue(has_several_stacks([one, other]))
        self.assertFalse(has_several_stacks([one, one, pd.DataFrame()]))

    def test_take_an_empty_stack_and_none_for_the_same(self) -> None:
        # CSV has one form for both, and one of the two tables may have fallen back to it.
        frames = [pd.DataFrame({"stack": [stack]}) for stack in ("", None, float("nan"))]
        self.assertFalse(has_several_stacks(frames))
        self.assertTrue(has_several_stacks([*frames, pd.DataFrame({"stack": ["mtp"]})]))


if __name__ == "__main__":
    unittest.main()
