"""How large are the weights? Columns of `data/matrix_stats`, one row per matrix."""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.columns import Cell, Column, Row, Table, TableSchema
from moe_weights.tables.keys import KEY_COLUMNS, LAYERS_PER_BLOCK, sort_rank

_KEYS = (
    Column("file", "string", "shard, relative to the model directory, with /"),
    Column("source_tensor", "string", "tensor as stored"),
    KEY_COLUMNS["derived_tensor"],
    KEY_COLUMNS["layer"],
    KEY_COLUMNS["block4"],
    KEY_COLUMNS["proj"],
    KEY_COLUMNS["expert_id"],
    Column("is_routed_expert", "bool", "a router chooses this expert"),
    Column("is_shared_expert", "bool", "every token uses this expert"),
    KEY_COLUMNS["rows"],
    KEY_COLUMNS["cols"],
    Column("dtype", "string", "stored type by its NumPy or ml_dtypes name"),
)
PROVENANCE_COLUMNS = (
    Column("stack", "string", "stack of layers; empty where the checkpoint has one stack"),
    Column(
        "extracted_via",
        "string",
        "rule:<name>, preset:<name>, fallback or fallback_after_packed_split",
    ),
    Column("encoding", "string", "how the stored bytes were turned into numbers"),
    Column(
        "layout_evidence",
        "string",
        "why the axes are read as they are: rule, preset, config (config.json confirms) or "
        "convention",
    ),
)


def matrix_stats_schema(metrics: Sequence[Column]) -> TableSchema:
    """Return the columns of matrix_stats.

    Args:
        metrics: What each matrix is measured for, in order.
    """
    # CONTRACT SURFACE: data/matrix_stats.*
    return TableSchema("matrix_stats", (*_KEYS, *metrics, *PROVENANCE_COLUMNS))


def matrix_stats_table(metrics: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Return the table of all matrices, ordered by stack, layer, projection, expert, name, file."""
    return Table.over_rows(matrix_stats_schema(metrics), sorted(rows, key=matrix_sort_key))


def matrix_sort_key(row: Row) -> tuple[object, ...]:
    """Return what rows about matrices are ordered by; a total order within a run."""
    return (
        row["stack"],
        row["layer"],
        sort_rank("proj", row["proj"]),
        row["expert_id"],
        row["derived_tensor"],
        row["file"],
    )


def block4_of(layer: int) -> Cell:
    """Return layer // 4, or None when the layer is unknown."""
    return layer // LAYERS_PER_BLOCK if layer >= 0 else None
