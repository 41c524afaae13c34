"""How do matrices and schemes compare per layer, per block of four layers, and over all?

A tables summarise `matrix_stats`, B tables `quant_sim`. Null values are left out of every
aggregate; null keys form a group of their own. Quantiles interpolate linearly; `std` is the sample
one (ddof 1), null for a single value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_weights.columns import Cell, Column, Table, TableSchema
from moe_weights.measure.metric_table import magnitude_columns
from moe_weights.tables.keys import KEY_COLUMNS, group_rows, metric_values
from moe_weights.tables.reader import require_columns

Grouped: TypeAlias = "pd.api.typing.DataFrameGroupBy[tuple[Hashable, ...], Literal[True]]"
Aggregate: TypeAlias = Callable[[Grouped], pd.DataFrame]

WEIGHT_METRICS = {column.name: column.unit for column in magnitude_columns()}
# Those of `quantize.error.ERROR_COLUMNS`, which comes with compiled kernels.
QUANT_METRICS = {
    "w_rel_fro": "relative",
    "w_rel_max": "relative",
    "scale_mean": "weight",
    "scale_max": "weight",
    "bias_mean": "weight",
    "bias_max": "weight",
}

_AGGREGATES: dict[str, tuple[str, Aggregate]] = {
    "min": ("smallest value", lambda grouped: grouped.min()),
    "p01": ("1st percentile", lambda grouped: grouped.quantile(0.01)),
    "median": ("median", lambda grouped: grouped.median()),
    "mean": ("mean", lambda grouped: grouped.mean()),
    "std": ("sample standard deviation", lambda grouped: grouped.std(ddof=1)),
    "p90": ("90th percentile", lambda grouped: grouped.quantile(0.90)),
    "p99": ("99th percentile", lambda grouped: grouped.quantile(0.99)),
    "max": ("largest value", lambda grouped: grouped.max()),
}
_WEIGHT_SPREAD = ("median", "mean", "std", "p90", "p99")
_QUANT_SPREAD = ("median", "mean", "p90", "p99")
_RANGE = ("min", "p01", "median", "p99", "max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One of the six summary tables.

    Attributes:
        name: Stem of its file.
        source: Table it summarises.
        keys: Columns it groups by.
        aggregates: What it says of each metric.
    """

    name: str
    source: str
    keys: tuple[str, ...]
    aggregates: tuple[str, ...]


# CONTRACT SURFACE: tables/A_* and B_*, names and headers
SUMMARIES = (
    Summary(
        name="A_weight_layer_summary",
        source="matrix_stats",
        keys=("layer", "proj"),
        aggregates=_WEIGHT_SPREAD,
    ),
    Summary(
        name="A_weight_block4_summary",
        source="matrix_stats",
        keys=("block4", "proj"),
        aggregates=_WEIGHT_SPREAD,
    ),
    Summary(
        name="A_weight_global_summary",
        source="matrix_stats",
        keys=("proj",),
        aggregates=_RANGE,
    ),
    Summary(
        name="B_quant_layer_summary",
        source="quant_sim",
        keys=("layer", "proj", "scheme"),
        aggregates=_QUANT_SPREAD,
    ),
    Summary(
        name="B_quant_block4_summary",
        source="quant_sim",
        keys=("block4", "proj", "scheme"),
        aggregates=_QUANT_SPREAD,
    ),
    Summary(
        name="B_quant_global_summary",
        source="quant_sim",
        keys=("proj", "scheme"),
        aggregates=_RANGE,
    ),
)


def summary_metrics(summary: Summary, frame: pd.DataFrame) -> dict[str, str]:
    """Return the metrics a summary covers, name to unit, in header order.

    Args:
        summary: The table to make.
        frame: Its source; without any columns (a zero-row file) the seed's metrics stand.

    Returns:
        A tables: the 11 fixed ones, then group outlier columns in input order. B tables: those of
        the six that the source has.
    """
    if summary.source == "quant_sim":
        if not len(frame.columns):
            return QUANT_METRICS
        return {name: unit for name, unit in QUANT_METRICS.items() if name in frame.columns}
    outliers = [name for name in frame.columns if name.startswith("g") and "_outlier" in name]
    return WEIGHT_METRICS | dict.fromkeys(outliers, "relative")


def summary_schema(
    summary: Summary, metrics: dict[str, str], *, by_stack: bool, name: str | None = None
) -> TableSchema:
    """Return the columns of a summary: keys, `<metric>__<aggregate>` by metric, then counts.

    Args:
        summary: The table.
        metrics: Name to unit, in header order.
        by_stack: Whether the checkpoint has several stacks; adds the key `stack` after the named
            columns.
        name: Stem of the file when it is not the summary's own.
    """
    columns = [KEY_COLUMNS[key] for key in summary.keys]
    columns += [
        Column(
            f"{metric}__{label}",
            "float64",
            f"{_AGGREGATES[label][0]} of {summary.source}.{metric} over the matrices of the group",
            unit,
        )
        for metric, unit in metrics.items()
        for label in summary.aggregates
    ]
    if by_stack:
        columns.append(KEY_COLUMNS["stack"])
    columns.append(Column("n", "int64", f"rows of {summary.source} in the group", "rows"))
    if summary.source == "quant_sim":
        columns.append(
            Column("n_error", "int64", "rows of the group whose simulation failed", "rows")
        )
    return TableSchema(name or summary.name, tuple(columns))


def summarise(
    summary: Summary, frame: pd.DataFrame, *, by_stack: bool, name: str | None = None
) -> Table:
    """Compute a summary table.

    Args:
        summary: Which one.
        frame: Its source with the key columns, one row per matrix (and scheme); zero rows are fine.
        by_stack: Whether to group by `stack` too.
        name: Stem of the file when it is not the summary's own.

    Returns:
        One row per group, ordered by stack, then keys; null keys last.

    Raises:
        InvalidDataError: a key or metric column is missing or holds values of another kind.
    """
    metrics = summary_metrics(summary, frame)
    schema = summary_schema(summary, metrics, by_stack=by_stack, name=name)
    if not len(frame):
        return Table.from_rows(schema, ())
    keys = (*summary.keys, "stack") if by_stack else summary.keys
    require_columns(frame, (*keys, *metrics), summary.source)
    groups = group_rows(frame, keys, summary.source)
    measured = pd.DataFrame(
        {metric: metric_values(frame, metric, summary.source) for metric in metrics},
        index=range(len(frame)),
    )
    grouped = measured.groupby(groups.group_of_row)
    values: dict[str, list[Cell]] = {
        key: [cells[position] for cells in groups.keys] for position, key in enumerate(keys)
    }
    for label in summary.aggregates if metrics else ():
        with np.errstate(over="ignore", invalid="ignore"):
            aggregated = _AGGREGATES[label][1](grouped)
        for metric in metrics:
            # An aggregate beyond the range of float64 is undefined, hence null.
            column = aggregated[metric].to_numpy(dtype=np.float64)
            values[f"{metric}__{label}"] = np.where(np.isfinite(column), column, np.nan).tolist()
    n_groups = len(groups.keys)
    values["n"] = [int(n) for n in np.bincount(groups.group_of_row, minlength=n_groups)]
    if summary.source == "quant_sim":
        failed = groups.group_of_row[_has_error(frame)]
        values["n_error"] = [int(n) for n in np.bincount(failed, minlength=n_groups)]
    return Table(schema, values)


def without_shared(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are not shared experts; `is_shared_expert` null counts as not shared."""
    if not len(frame.columns):
        return frame
    is_shared = frame["is_shared_expert"].astype("boolean").fillna(False).to_numpy(dtype=bool)
    return frame[~is_shared]


def _has_error(frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    if "error" not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    return (frame["error"].notna() & (frame["error"] != "")).to_numpy(dtype=bool)
