"""Which expert-looking tensors were not measured, and why? Columns of `data/unmatched_tensors`."""

from __future__ import annotations

from moe_weights.columns import Column, TableSchema

# CONTRACT SURFACE: data/unmatched_tensors.*
UNMATCHED_TENSORS_SCHEMA = TableSchema(
    "unmatched_tensors",
    (
        Column("file", "string", "shard, relative to the model directory, with /"),
        Column("tensor_name", "string", "name as stored"),
        Column("dtype", "string", "stored type by its NumPy or ml_dtypes name; else as written"),
        Column("shape", "list<int64>", "axis lengths as stored; [] for a scalar", "elements"),
        Column("ndim", "int64", "number of axes", "axes"),
        Column("reason", "string", "why it was not measured, from a closed list"),
    ),
)
