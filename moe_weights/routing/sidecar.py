"""How does a trace become a table for analysis: one row per token, layer and chosen expert?

A layer whose choice was not captured has no rows, so a token counts for a layer only where it was
seen. The trace stays the contract; the table can be made again from it at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moe_weights.columns import Column, Row, Table, TableSchema
from moe_weights.routing.artifacts import JsonObject
from moe_weights.routing.bundle_reader import open_run_bundle

SELECTIONS_FILE = "routing_selections.parquet"
SELECTIONS = TableSchema(
    "routing_selections",
    (
        Column("token_index", "int64", "position of the token in the run, from 0"),
        Column("phase", "string", "prefill or decode; decode in v0.1.0 traces"),
        Column("token_id", "int64", "id in the tokenizer's vocabulary; null: not captured"),
        Column("layer", "int64", "decoder layer, from 0"),
        Column("slot", "int64", "place among the token's chosen experts, from 0"),
        Column("expert_id", "int64", "the chosen expert, from 0"),
        Column("router_prob", "float64", "its score; null: not captured", "probability or score"),
        Column(
            "combine_weight",
            "float64",
            "weight of its output; null: not captured, as in v0.1.0 traces",
            "relative",
        ),
        Column("num_total_experts", "int64", "routed experts of the layer", "experts"),
        Column("num_active_experts", "int64", "experts chosen for the token", "experts"),
        Column("entropy", "float64", "entropy of the layer's router; null: has none", "nats"),
    ),
)
_ROWS_PER_GROUP = 65536


def write_selections_parquet(
    run_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> int:
    """Write the Parquet side-car of a bundle, holding one event and one row group at a time.

    Args:
        run_dir: Folder of a bundle; it is checked on the way.
        path: The file; None takes `routing_selections.parquet` in the bundle's folder.

    Returns:
        Row count: sum over tokens and captured layers of the experts chosen.

    Raises:
        BundleError: the bundle is refused; nothing is written.
        BackendUnavailableError: pyarrow cannot be imported.
        OutputError: the file cannot be written; it is as it was before.
    """
    # Loads pandas and pyarrow: whoever only imports the package's names must not need them.
    from moe_weights.tables.writer import write_parquet_stream

    reader = open_run_bundle(run_dir)
    target = Path(run_dir) / SELECTIONS_FILE if path is None else Path(path)
    tables = _tables(reader.checked_raw_events())
    return write_parquet_stream(target, tables, SELECTIONS)


def selection_rows(event: JsonObject) -> Iterator[Row]:
    """Give the rows of one event, by layer and slot; columns as in `SELECTIONS`."""
    for layer in event["layers"]:
        chosen = layer["topk_indices"]
        if chosen is None:
            continue
        probs = layer["topk_probs"] or [None] * len(chosen)
        weights: list[Any] = layer.get("combine_weights") or [None] * len(chosen)
        for slot, expert in enumerate(chosen):
            yield {
                "token_index": event["token_index"],
                "phase": event.get("phase", "decode"),
                "token_id": event["token_id"],
                "layer": layer["layer_index"],
                "slot": slot,
                "expert_id": expert,
                "router_prob": probs[slot],
                "combine_weight": weights[slot],
                "num_total_experts": layer["num_total_experts"],
                "num_active_experts": layer["num_active_experts"],
                "entropy": layer["entropy"],
            }


def _tables(events: Iterable[JsonObject]) -> Iterator[Table]:
    rows: list[Row] = []
    for event in events:
        rows.extend(selection_rows(event))
        if len(rows) >= _ROWS_PER_GROUP:
            yield Table.from_rows(SELECTIONS, rows)
            rows = []
    if rows:
        yield Table.from_rows(SELECTIONS, rows)
