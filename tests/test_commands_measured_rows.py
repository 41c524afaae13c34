from __future__ import annotations

import unittest

import numpy as np

from moe_weights.measure.metric_table import metric_columns
from moe_weights.quantize.error import EXTRA_COLUMNS
from moe_weights.tables.matrix_stats import matrix_stats_schema
from moe_weights.tables.quant_sim import quant_sim_schema
from tests.support.matrices import matrix_of, normal_matrix
from tests.support.runs import temporary_folder
from tests.support.work_units import (
    AFFINE_Q4,
    MXFP4,
    bank_units,
    make_unit,
    make_work_settings,
    plan_matrix,
    row_major,
    rows_of,
    run_rows,
    run_units,
    write_headers,
)


class RowCase(unittest.TestCase):
    def setUp(self) -> None:
        self.root = temporary_folder(self)
        self.settings = make_work_settings(self.root, schemes=[AFFINE_Q4, MXFP4])


class Columns(RowCase):
    def test_are_those_of_the_tables(self) -> None:
        (header,) = write_headers(self.root, {"t": normal_matrix(4, 64)})
        unit = make_unit(header, [plan_matrix(row_major(4, 64))])
        rows, quant_rows = run_rows([unit], self.settings)
        schema = matrix_stats_schema(metric_columns(self.settings.measure))
        self.assertEqual(set(rows[0]), set(schema.column_names))
        self.assertEqual(len(rows[0]), len(schema.columns))
        schema = quant_sim_schema(EXTRA_COLUMNS)
        for column in schema.columns:
            cell = quant_rows[0][column.name]
            kinds = {"int64": int, "float64": float, "string": str, "bool": bool}
            self.assertIsInstance(cell, (kinds[column.dtype], type(None)), column.name)

    def test_tell_where_the_matrix_comes_from(self) -> None:
        (header,) = write_headers(self.root, {"t": normal_matrix(4, 6, "bfloat16")})
        matrix = plan_matrix(
            row_major(2, 6, 12), derived_tensor="t::up", layer=9, proj="up_proj", expert_id=-1,
            is_shared_expert=True,
        )  # fmt: skip
        rows, quant_rows = run_rows([make_unit(header, [matrix])], self.settings)
        expected = {
            "file": "model.safetensors", "source_tensor": "t", "derived_tensor": "t::up",
            "layer": 9, "block4": 2, "proj": "up_proj", "expert_id": -1,
            "is_routed_expert": False, "is_shared_expert": True, "rows": 2, "cols": 6,
            "dtype": "bfloat16", "stack": "", "extracted_via": "rule:r", "encoding": "plain",
            "layout_evidence": "rule",
        }  # fmt: skip
        for row in (*rows, *quant_rows):
            self.assertEqual({name: row[name] for name in expected}, expected)

    def test_name_the_stack_only_where_the_checkpoint_has_several(self) -> None:
        (header,) = write_headers(self.root, {"t": normal_matrix(2, 32)})
        unit = make_unit(header, [plan_matrix(row_major(2, 32), stack="encoder")])
        results = [run_units([unit], self.settings)]
        for several, stack in ((False, ""), (True, "encoder")):
            found = rows_of([unit], results, self.settings, has_several_stacks=several)
            self.assertEqual([row["stack"] for rows in found for row in rows], [stack] * 3)

    def test_have_no_block_without_a_layer(self) -> None:
        (header,) = write_headers(self.root, {"t": normal_matrix(2, 2)})
        for layer, block4 in ((-1, None), (0, 0), (3, 0), (4, 1), (11, 2)):
            unit = make_unit(header, [plan_matrix(row_major(2, 2), layer=layer)])
            rows, _quant_rows = run_rows([unit], self.settings)
            self.assertEqual(rows[0]["block4"], block4)


class Cells(RowCase):
    def test_are_null_where_there_is_no_number_and_counts_are_whole(self) -> None:
        (header,) = write_headers(self.root, {"t": matrix_of([[np.nan, 0.0, -0.0]])})
        rows, quant_rows = run_rows(
            [make_unit(header, [plan_matrix(row_major(1, 3))])], self.settings
        )
        row = rows[0]
        self.assertEqual((row["mean"], row["n_zero"], row["n_nan"]), (None, 2, 1))
        self.assertIs(type(row["n_zero"]), int)
        self.assertIsNone(row["n_distinct"])
        self.assertEqual([quant["w_rel_fro"] for quant in quant_rows], [None, None])

    def test_do_not_exist_for_other_names(self) -> None:
        (header,) = write_headers(self.root, {"t": normal_matrix(1, 32)})
        rows, quant_rows = run_rows(
            [make_unit(header, [plan_matrix(row_major(1, 32))])], self.settings
        )
        for row in (rows[0], quant_rows[0]):
            self.assertNotIn("no_such_column", row)
            with self.assertRaises(KeyError):
                row["no_such_column"]


class Order(RowCase):
    def setUp(self) -> None:
        super().setUp()
        bank = normal_matrix(12, 32).reshape(3, 4, 32)
        self.units = bank_units(write_headers(self.root, {"a": bank, "b": bank}))

    def test_is_that_of_the_plan_then_of_the_schemes(self) -> None:
        results = [run_units([unit], self.settings) for unit in self.units]
        rows, quant_rows = rows_of(self.units, results, self.settings)
        places = [(layer, expert) for layer in (0, 1) for expert in range(3)]
        self.assertEqual([(row["layer"], row["expert_id"]) for row in rows], places)
        self.assertEqual(
            [(row["layer"], row["expert_id"], row["scheme"]) for row in quant_rows],
            [(*place, scheme.name) for place in places for scheme in self.settings.schemes],
        )

    def test_can_be_asked_for_from_either_end_and_ends(self) -> None:
        rows, quant_rows = run_rows(self.units, self.settings)
        self.assertEqual((rows[-1]["layer"], rows[-1]["expert_id"]), (1, 2))
        self.assertEqual(quant_rows[-1]["scheme"], MXFP4.name)
        with self.assertRaises(IndexError):
            rows[6]

    def test_is_never_guessed_when_results_are_missing(self) -> None:
        result = run_units(self.units[1:], self.settings)
        with self.assertRaisesRegex(AssertionError, "the results are not those of the plan"):
            rows_of(self.units, [result], self.settings)


if __name__ == "__main__":
    unittest.main()
