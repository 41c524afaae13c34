from __future__ import annotations

import unittest

from moe_weights.extract.coverage import CoverageStatus
from moe_weights.tables.coverage import COVERAGE_SCHEMA, coverage_table
from tests.support.extraction import make_headers, plan_headers

DECLARED = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "num_experts": 1,
    "num_hidden_layers": 1,
}
NAME = "model.layers.{}.mlp.experts.{}.{}.weight"


class CoverageTable(unittest.TestCase):
    def test_has_the_columns_of_the_contract(self) -> None:
        self.assertEqual(
            COVERAGE_SCHEMA.column_names,
            (
                "stack", "layer", "proj", "expected_experts", "found_experts", "expected_shape",
                "found_shape", "status",
            ),
        )  # fmt: skip

    def test_names_every_status_in_its_meaning(self) -> None:
        meaning = COVERAGE_SCHEMA.columns[-1].meaning
        self.assertEqual(
            {word for word in meaning.replace(",", "").split() if word != "or"},
            {str(status) for status in CoverageStatus},
        )

    def test_has_a_row_per_layer_and_projection_with_null_where_nothing_is_known(self) -> None:
        headers = make_headers(
            {
                NAME.format(0, 0, "gate_proj"): (32, 64),
                NAME.format(0, 0, "down_proj"): (64, 32),
                "encoder.layers.0.mlp.experts.0.up_proj.weight": (32, 64),
            }
        )
        table = coverage_table(plan_headers(headers, model_config=DECLARED).coverage)
        self.assertEqual(
            list(zip(*(table.values[name] for name in COVERAGE_SCHEMA.column_names), strict=True)),
            [
                ("encoder", 0, "up_proj", None, 1, None, (32, 64), "unknown"),
                ("text", 0, "gate_proj", 1, 1, (32, 64), (32, 64), "complete"),
                ("text", 0, "up_proj", 1, 0, (32, 64), None, "missing"),
                ("text", 0, "down_proj", 1, 1, (64, 32), (64, 32), "complete"),
            ],
        )

    def test_without_entries_has_every_column(self) -> None:
        table = coverage_table(plan_headers([]).coverage)
        self.assertEqual({len(values) for values in table.values.values()}, {0})
        self.assertEqual(table.schema, COVERAGE_SCHEMA)


if __name__ == "__main__":
    unittest.main()
