"""Which projection tokens have no canonical name? Columns of `logs/proj_canonicalization_report`.

One row per distinct (context, rule, raw, resolved, action); examples are the first seen.
"""

from __future__ import annotations

from moe_weights.columns import Column, TableSchema

# CONTRACT SURFACE: logs/proj_canonicalization_report.*, written only when rows exist
PROJECTION_REPORT_SCHEMA = TableSchema(
    "proj_canonicalization_report",
    (
        Column("context", "string", "packed_split or proj_group"),
        Column("rule_name", "string", "extraction rule that met the token"),
        Column("raw_proj", "string", "the token as met"),
        Column("resolved_proj", "string", "the name that was used for it; empty when dropped"),
        Column("action", "string", "kept_raw or dropped_strict"),
        Column("count", "int64", "how often this decision was made", "decisions"),
        Column("example_file", "string", "first shard it was met in"),
        Column("example_source_tensor", "string", "first tensor it was met in"),
        Column(
            "example_derived_tensor",
            "string",
            "first matrix it gave; the tensor itself when dropped",
        ),
        Column("suggested_proj", "string", "canonical name of the closest match; or empty"),
        Column("suggested_match", "string", "closest canonical name or alias; or empty"),
    ),
)
