from __future__ import annotations

import random
import unittest

from moe_weights.columns import Column
from moe_weights.tables.matrix_stats import block4_of, matrix_stats_schema, matrix_stats_table
from tests.support.runs import row_of

METRICS = (Column("mean", "float64", "mean of w"), Column("n_zero", "int64", "zeros"))


def row(**cells: object) -> dict[str, object]:
    return row_of(matrix_stats_schema(METRICS), **cells)


class Columns(unittest.TestCase):
    def test_are_the_keys_then_the_metrics_then_provenance(self) -> None:
        self.assertEqual(
            ", ".join(matrix_stats_schema(METRICS).column_names),
            "file, source_tensor, derived_tensor, layer, block4, proj, expert_id, "
            "is_routed_expert, is_shared_expert, rows, cols, dtype, mean, n_zero, "
            "stack, extracted_via, encoding, layout_evidence",
        )

    def test_are_all_there_with_no_rows(self) -> None:
        table = matrix_stats_table(METRICS, [])
        self.assertEqual(table.n_rows, 0)
        self.assertEqual(tuple(table.values), matrix_stats_schema(METRICS).column_names)


class Order(unittest.TestCase):
    def test_is_layer_projection_expert_name_file_whatever_came_first(self) -> None:
        ordered = [
            {"layer": -1, "proj": "down_proj"},
            {"layer": 0, "proj": "gate_proj", "expert_id": -1},
            {"layer": 0, "proj": "gate_proj", "expert_id": 2},
            {"layer": 0, "proj": "gate_proj", "expert_id": 10},
            {"layer": 0, "proj": "up_proj", "derived_tensor": "a", "file": "z"},
            {"layer": 0, "proj": "up_proj", "derived_tensor": "b", "file": "a"},
            {"layer": 0, "proj": "up_proj", "derived_tensor": "b", "file": "b"},
            {"layer": 0, "proj": "down_proj"},
            {"layer": 0, "proj": "a_proj"},
            {"layer": 0, "proj": "w9"},
            {"layer": 2, "proj": "gate_proj"},
            {"layer": 10, "proj": "gate_proj"},
        ]
        rows = [row(**cells, mean=float(number)) for number, cells in enumerate(ordered)]
        for seed in range(5):
            shuffled = random.Random(seed).sample(rows, len(rows))
            table = matrix_stats_table(METRICS, shuffled)
            self.assertEqual(table.values["mean"], [float(number) for number in range(len(rows))])


class Block(unittest.TestCase):
    def test_is_four_layers_and_null_for_an_unknown_one(self) -> None:
        self.assertEqual([block4_of(layer) for layer in (-1, 0, 3, 4, 61)], [None, 0, 0, 1, 15])
