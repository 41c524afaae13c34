"""What does the checkpoint hold, tensor by tensor? Columns of `data/tensor_inventory`."""

from __future__ import annotations

from moe_weights.columns import Column, TableSchema

_COLUMNS = (
    Column("file", "string", "shard, relative to the model directory, with /"),
    Column("tensor_name", "string", "name as stored"),
    Column("dtype", "string", "stored type by its NumPy or ml_dtypes name; else as written"),
    Column("shape", "list<int64>", "axis lengths as stored; [] for a scalar", "elements"),
    Column("ndim", "int64", "number of axes", "axes"),
    Column("nbytes", "int64", "length of the stored values", "bytes"),
)
_INDEX_COLUMNS = (
    Column("in_index", "bool", "the index's weight_map names the tensor"),
    Column("index_shard", "string", "shard that the index names; empty for tensors not in it"),
)
_ROLE = Column(
    "role",
    "string",
    "routed_expert, shared_expert, router, router_bias, dense_mlp, attention, embedding, norm "
    "or other",
)


def tensor_inventory_schema(*, index_mode: bool) -> TableSchema:
    """Return the columns of the inventory.

    Args:
        index_mode: The index chose the shards; only then `in_index` and `index_shard` exist.
    """
    # CONTRACT SURFACE: data/tensor_inventory.*
    columns = (*_COLUMNS, *(_INDEX_COLUMNS if index_mode else ()), _ROLE)
    return TableSchema("tensor_inventory", columns)
