from __future__ import annotations

import time
import unittest
from collections.abc import Sequence

import pandas as pd

from moe_weights.columns import Cell, Table
from moe_weights.config.schema import DeltaPair
from moe_weights.errors import InvalidDataError
from moe_weights.tables.deltas import check_unique_matrices, quant_deltas
from moe_weights.tables.writer import checked_values
from tests.support.runs import quant_row

PAIR = DeltaPair(name="a_minus_b", a="a", b="b")


def deltas_of(
    rows: Sequence[dict[str, object]], *pairs: DeltaPair, by_stack: bool = False
) -> Table:
    return quant_deltas(pd.DataFrame(list(rows)), pairs or (PAIR,), by_stack=by_stack)


def column(table: Table, name: str) -> list[Cell]:
    return checked_values(table)[name]


class Deltas(unittest.TestCase):
    def test_are_a_minus_b(self) -> None:
        table = deltas_of(
            [
                quant_row(scheme="a", w_rel_fro=0.15, w_rel_max=0.20),
                quant_row(scheme="b", w_rel_fro=0.09, w_rel_max=0.12),
            ]
        )
        self.assertEqual(
            list(table.schema.column_names),
            [
                "derived_tensor",
                "layer",
                "block4",
                "proj",
                "expert_id",
                "rows",
                "cols",
                "delta_name",
                "delta_w_rel_fro",
                "delta_w_rel_max",
            ],
        )
        (row,) = zip(*checked_values(table).values(), strict=True)
        self.assertEqual(row[:8], ("t", 0, 0, "gate_proj", 0, 4, 8, "a_minus_b"))
        self.assertAlmostEqual(float(str(row[8])), 0.06, places=15)
        self.assertAlmostEqual(float(str(row[9])), 0.08, places=15)

    def test_stand_in_input_order_then_pair_order(self) -> None:
        rows = [
            quant_row(derived_tensor=tensor, scheme=scheme, w_rel_fro=value)
            for tensor, value in (("z", 3.0), ("a", 1.0))
            for scheme, value in (("b", value), ("a", 2 * value))
        ]
        table = deltas_of(rows, PAIR, DeltaPair(name="back", a="b", b="a"))
        self.assertEqual(column(table, "derived_tensor"), ["z", "z", "a", "a"])
        self.assertEqual(column(table, "delta_name"), ["a_minus_b", "back"] * 2)
        self.assertEqual(column(table, "delta_w_rel_fro"), [3.0, -3.0, 1.0, -1.0])

    def test_keep_matrices_of_unknown_layers(self) -> None:
        rows = [
            quant_row(layer=-1, block4=None, scheme="a", w_rel_fro=0.5),
            quant_row(layer=-1, block4=None, scheme="b", w_rel_fro=0.25),
        ]
        table = deltas_of(rows)
        self.assertEqual(column(table, "block4"), [None])
        self.assertEqual(column(table, "delta_w_rel_fro"), [0.25])

    def test_are_null_for_an_unknown_scheme(self) -> None:
        table = deltas_of([quant_row(scheme="a")], DeltaPair(name="d", a="a", b="never"))
        self.assertEqual(table.n_rows, 1)
        self.assertEqual(column(table, "delta_w_rel_fro"), [None])
        self.assertEqual(column(table, "delta_w_rel_max"), [None])

    def test_are_null_for_a_missing_or_failed_partner(self) -> None:
        rows = [
            quant_row(expert_id=0, scheme="a"),
            quant_row(expert_id=1, scheme="b"),
            quant_row(expert_id=2, scheme="a"),
            quant_row(expert_id=2, scheme="b", w_rel_fro=None, w_rel_max=None, error="E: no"),
            quant_row(expert_id=3, scheme="c"),
        ]
        table = deltas_of(rows)
        self.assertEqual(column(table, "expert_id"), [0, 1, 2, 3])
        self.assertEqual(column(table, "delta_w_rel_fro"), [None] * 4)

    def test_are_null_for_a_metric_that_was_not_measured(self) -> None:
        row = quant_row(scheme="a")
        del row["w_rel_max"]
        self.assertEqual(column(deltas_of([row]), "delta_w_rel_max"), [None])

    def test_tell_stacks_apart(self) -> None:
        rows = [
            quant_row(stack=stack, scheme=scheme, w_rel_fro=value)
            for stack, scheme, value in (
                ("model", "a", 4.0),
                ("mtp", "a", 2.0),
                ("model", "b", 3.0),
                ("mtp", "b", 0.5),
            )
        ]
        table = deltas_of(rows, by_stack=True)
        self.assertEqual(table.schema.column_names[-1], "stack")
        self.assertEqual(column(table, "stack"), ["model", "mtp"])
        self.assertEqual(column(table, "delta_w_rel_fro"), [1.0, 1.5])
        unnamed = deltas_of(rows)
        self.assertEqual(column(unnamed, "delta_w_rel_fro"), [1.0, 1.5])
        self.assertNotIn("stack", unnamed.schema.column_names)

    def test_have_the_full_header_without_rows(self) -> None:
        for frame in (pd.DataFrame(), pd.DataFrame({"layer": []})):
            table = quant_deltas(frame, [PAIR], by_stack=False)
            self.assertEqual((table.n_rows, len(table.schema.columns)), (0, 10))

    def test_of_two_hundred_thousand_rows_take_seconds(self) -> None:
        n_matrices = 100_000
        frame = pd.DataFrame(
            {
                **quant_row(),
                "derived_tensor": [f"t{position // 2}" for position in range(2 * n_matrices)],
                "scheme": ["a", "b"] * n_matrices,
            }
        )
        start = time.perf_counter()
        check_unique_matrices(frame)
        table = quant_deltas(frame, [PAIR], by_stack=False)
        self.assertEqual(table.n_rows, n_matrices)
        # A pivot in plain Python loops would need minutes; this takes about 1.5 s.
        self.assertLess(time.perf_counter() - start, 15.0)


class DuplicateMatrices(unittest.TestCase):
    def test_are_refused_with_at_most_three_examples(self) -> None:
        rows = [quant_row(expert_id=expert, file=file) for file in "xyz" for expert in range(4)]
        with self.assertRaises(InvalidDataError) as caught:
            check_unique_matrices(pd.DataFrame(rows))
        examples = "; ".join(
            f"derived_tensor=t, layer=0, block4=0, proj=gate_proj, expert_id={expert}, rows=4, "
            f"cols=8, "
            "scheme=q4"
            for expert in range(3)
        )
        self.assertEqual(
            str(caught.exception),
            f"quant_sim has more than one row for 4 pairs of matrix and scheme, for example "
            f"{examples}; "
            "the checkpoint probably holds a tensor in two files: remove one copy or let its index "
            "decide, then run collect_data again; no table was written",
        )

    def test_are_found_beside_null_keys(self) -> None:
        rows = [quant_row(layer=-1, block4=None)] * 2
        with self.assertRaises(InvalidDataError) as caught:
            check_unique_matrices(pd.DataFrame(rows))
        self.assertIn("for 1 pair of matrix and scheme", str(caught.exception))
        self.assertIn("layer=-1, block4=null, ", str(caught.exception))

    def test_are_not_rows_of_other_schemes_or_stacks(self) -> None:
        for key, one, other in (("scheme", "a", "b"), ("stack", "model", "mtp")):
            check_unique_matrices(pd.DataFrame([quant_row(**{key: x}) for x in (one, other)]))
            with self.assertRaises(InvalidDataError):
                check_unique_matrices(pd.DataFrame([quant_row(**{key: one})] * 2))

    def test_are_not_asked_for_without_the_keys(self) -> None:
        rows = pd.DataFrame([quant_row()] * 2)
        check_unique_matrices(rows[["layer"]])
        with self.assertRaises(InvalidDataError):
            check_unique_matrices(rows)


if __name__ == "__main__":
    unittest.main()
