"""What should an auditor know besides the numbers? `logs/warnings`, one row per finding."""

from __future__ import annotations

from collections.abc import Iterable

from moe_weights.columns import Column, Table, TableSchema
from moe_weights.findings import Finding

# CONTRACT SURFACE: logs/warnings.*
WARNINGS_SCHEMA = TableSchema(
    "warnings",
    (
        Column("warning", "string", "the whole text; starts with its kind in brackets"),
        Column("kind", "string", "where the fact comes from, from a closed list"),
        Column("file", "string", "shard it concerns, relative to the model directory; or empty"),
        Column("tensor", "string", "tensor it concerns; empty when none or many"),
        Column("count", "int64", "how many cases the text stands for", "cases"),
        Column("hint", "string", "what can be done about it; or empty"),
    ),
)


def warnings_table(findings: Iterable[Finding]) -> Table:
    """Return the findings as rows, in their order."""
    return Table.from_rows(
        WARNINGS_SCHEMA,
        (
            {
                "warning": finding.message,
                "kind": finding.kind.value,
                "file": finding.file,
                "tensor": finding.tensor,
                "count": finding.count,
                "hint": finding.hint,
            }
            for finding in findings
        ),
    )
