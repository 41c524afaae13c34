from __future__ import annotations

import unittest

from moe_weights.columns import TableSchema
from moe_weights.findings import Finding, FindingKind
from moe_weights.tables.coverage import COVERAGE_SCHEMA
from moe_weights.tables.csv_format import TEXT_COLUMNS
from moe_weights.tables.deltas import deltas_schema
from moe_weights.tables.matrix_stats import matrix_stats_schema
from moe_weights.tables.projection_report import PROJECTION_REPORT_SCHEMA
from moe_weights.tables.quant_sim import quant_sim_schema
from moe_weights.tables.tensor_inventory import tensor_inventory_schema
from moe_weights.tables.unmatched_tensors import UNMATCHED_TENSORS_SCHEMA
from moe_weights.tables.warnings import WARNINGS_SCHEMA, warnings_table


def header(schema: TableSchema) -> str:
    return ", ".join(schema.column_names)


class Texts(unittest.TestCase):
    def test_stay_texts_in_csv_whatever_they_look_like(self) -> None:
        for schema in (
            tensor_inventory_schema(index_mode=True),
            matrix_stats_schema(()),
            quant_sim_schema(()),
            UNMATCHED_TENSORS_SCHEMA,
            COVERAGE_SCHEMA,
            WARNINGS_SCHEMA,
            PROJECTION_REPORT_SCHEMA,
            deltas_schema(by_stack=True),
        ):
            texts = {column.name for column in schema.columns if column.dtype == "string"}
            self.assertEqual(texts - TEXT_COLUMNS, set(), schema.name)
            others = {column.name for column in schema.columns} - texts
            self.assertEqual(others & TEXT_COLUMNS, set(), schema.name)


class DeclaredHeaders(unittest.TestCase):
    def test_of_the_inventory_name_the_index_only_in_index_mode(self) -> None:
        base = "file, tensor_name, dtype, shape, ndim, nbytes"
        self.assertEqual(header(tensor_inventory_schema(index_mode=False)), base + ", role")
        self.assertEqual(
            header(tensor_inventory_schema(index_mode=True)), base + ", in_index, index_shard, role"
        )

    def test_of_the_other_logs_and_tables(self) -> None:
        self.assertEqual(
            header(UNMATCHED_TENSORS_SCHEMA), "file, tensor_name, dtype, shape, ndim, reason"
        )
        self.assertEqual(header(WARNINGS_SCHEMA), "warning, kind, file, tensor, count, hint")
        self.assertEqual(
            header(PROJECTION_REPORT_SCHEMA),
            "context, rule_name, raw_proj, resolved_proj, action, count, example_file, "
            "example_source_tensor, example_derived_tensor, suggested_proj, suggested_match",
        )

    def test_of_the_ledger_begin_with_the_stack(self) -> None:
        self.assertEqual(
            header(COVERAGE_SCHEMA),
            "stack, layer, proj, expected_experts, found_experts, expected_shape, found_shape, "
            "status",
        )

    def test_have_meanings(self) -> None:
        for schema in (
            tensor_inventory_schema(index_mode=True),
            UNMATCHED_TENSORS_SCHEMA,
            WARNINGS_SCHEMA,
            PROJECTION_REPORT_SCHEMA,
        ):
            for column in schema.columns:
                self.assertTrue(column.meaning)
                self.assertEqual(bool(column.unit), column.dtype in {"int64", "list<int64>"})

    def test_of_the_ledger_have_meanings_and_ids_no_unit(self) -> None:
        for column in COVERAGE_SCHEMA.columns:
            self.assertTrue(column.meaning)
            self.assertEqual(
                bool(column.unit),
                column.name != "layer" and column.dtype in {"int64", "list<int64>"},
            )


class WarningRows(unittest.TestCase):
    def test_are_the_findings_in_order(self) -> None:
        table = warnings_table(
            [
                Finding(kind=FindingKind.META, message="[meta] b"),
                Finding(
                    kind=FindingKind.READ,
                    message="[read] a",
                    file="s",
                    tensor="t",
                    count=2,
                    hint="h",
                ),
            ]
        )
        self.assertEqual(
            table.values,
            {
                "warning": ["[meta] b", "[read] a"],
                "kind": ["meta", "read"],
                "file": ["", "s"],
                "tensor": ["", "t"],
                "count": [1, 2],
                "hint": ["", "h"],
            },
        )


if __name__ == "__main__":
    unittest.main()
