"""Is every expected expert there? Columns of `data/coverage`, a row per layer and projection."""

from __future__ import annotations

from moe_weights.columns import Column, Row, Table, TableSchema
from moe_weights.extract.coverage import Coverage

# CONTRACT SURFACE: data/coverage.*
COVERAGE_SCHEMA = TableSchema(
    "coverage",
    (
        Column("stack", "string", "stack of layers the experts belong to"),
        Column("layer", "int64", "layer id as stored; -1 = unknown"),
        Column("proj", "string", "projection"),
        Column(
            "expected_experts", "int64", "routed experts by config.json; null = not said", "experts"
        ),
        Column("found_experts", "int64", "distinct routed experts that are measured", "experts"),
        Column(
            "expected_shape",
            "list<int64>",
            "[rows, cols] by config.json; null = not said",
            "elements",
        ),
        Column(
            "found_shape",
            "list<int64>",
            "[rows, cols] found; null for none or several",
            "elements",
        ),
        Column(
            "status",
            "string",
            "complete, missing, extra, wrong_shape, refused, not_expected or unknown",
        ),
    ),
)


def coverage_table(coverage: Coverage) -> Table:
    """Return one row per entry of the ledger."""
    rows: list[Row] = [
        {
            "stack": entry.stack,
            "layer": entry.layer,
            "proj": entry.proj,
            "expected_experts": entry.expected_experts,
            "found_experts": entry.found_experts,
            "expected_shape": entry.expected_shape,
            "found_shape": entry.found_shape,
            "status": str(entry.status),
        }
        for entry in coverage.entries
    ]
    return Table.from_rows(COVERAGE_SCHEMA, rows)
