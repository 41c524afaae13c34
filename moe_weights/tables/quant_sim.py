"""What would quantisation cost? Columns of `data/quant_sim`, one row per matrix and scheme."""

from __future__ import annotations

from collections.abc import Sequence

from moe_weights.columns import Column, Row, Table, TableSchema
from moe_weights.quantize.error import ERROR_COLUMNS, SCALE_ABS_MAX
from moe_weights.tables.keys import KEY_COLUMNS
from moe_weights.tables.matrix_stats import PROVENANCE_COLUMNS, matrix_sort_key

_COLUMNS = (
    Column("file", "string", "shard, relative to the model directory, with /"),
    Column("source_tensor", "string", "tensor as stored"),
    KEY_COLUMNS["derived_tensor"],
    KEY_COLUMNS["layer"],
    KEY_COLUMNS["block4"],
    KEY_COLUMNS["proj"],
    KEY_COLUMNS["expert_id"],
    Column("is_shared_expert", "bool", "every token uses this expert"),
    KEY_COLUMNS["rows"],
    KEY_COLUMNS["cols"],
    KEY_COLUMNS["scheme"],
    Column("mode", "string", "MLX quantisation mode"),
    Column("bits", "int64", "bits per code", "bits"),
    Column("group_size", "int64", "consecutive columns that share a scale", "elements"),
    *ERROR_COLUMNS,
    Column("error", "string", "why there are no numbers, <Type>: <message>; null on success"),
    SCALE_ABS_MAX,
)
_PROVENANCE = (
    Column(
        "backend",
        "string",
        "what quantised: mlx; native_verified, equal to MLX bit for bit at the start of the run; "
        "or native, not compared",
    ),
    Column("quant_dtype", "string", "dtype in which the matrix was quantised"),
    *PROVENANCE_COLUMNS,
)


def quant_sim_schema(extra: Sequence[Column]) -> TableSchema:
    """Return the columns of quant_sim.

    Args:
        extra: Additive numbers, in order.
    """
    # CONTRACT SURFACE: data/quant_sim.*
    return TableSchema("quant_sim", (*_COLUMNS, *extra, *_PROVENANCE))


def quant_sim_table(
    rows: Sequence[Row], scheme_names: Sequence[str], extra: Sequence[Column]
) -> Table:
    """Return the table of all simulations, ordered as matrix_stats, then by scheme.

    Args:
        rows: One per matrix and scheme.
        scheme_names: In the order of the config.
        extra: Additive numbers, in order.
    """
    rank = {name: position for position, name in enumerate(scheme_names)}
    ordered = sorted(rows, key=lambda row: (*matrix_sort_key(row), rank[str(row["scheme"])]))
    return Table.over_rows(quant_sim_schema(extra), ordered)
