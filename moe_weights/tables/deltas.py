"""How much more does one quantisation scheme lose than another, matrix by matrix?

Schemes are joined on the matrix keys, not pivoted: null keys, unknown schemes and missing partners
keep their rows, with null deltas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from moe_weights.columns import Cell, Column, Table, TableSchema
from moe_weights.config.schema import DeltaPair
from moe_weights.errors import InvalidDataError
from moe_weights.tables.keys import KEY_COLUMNS, key_cells, metric_values

DELTAS_NAME = "B_quant_deltas"
MATRIX_KEYS = ("derived_tensor", "layer", "block4", "proj", "expert_id", "rows", "cols")

_N_EXAMPLES = 3


def deltas_schema(*, by_stack: bool) -> TableSchema:
    """Return the columns of `B_quant_deltas`; `stack` comes last where there are several."""
    columns = [
        *(KEY_COLUMNS[key] for key in MATRIX_KEYS),
        Column("delta_name", "string", "name of the pair in delta_pairs"),
        Column(
            "delta_w_rel_fro",
            "float64",
            "w_rel_fro of scheme a minus w_rel_fro of scheme b; null when either is missing",
            "relative, negative = a is closer",
        ),
        Column(
            "delta_w_rel_max",
            "float64",
            "w_rel_max of scheme a minus w_rel_max of scheme b; null when either is missing",
            "relative, negative = a is closer",
        ),
    ]
    if by_stack:
        columns.append(KEY_COLUMNS["stack"])
    return TableSchema(DELTAS_NAME, tuple(columns))


def check_unique_matrices(quant_sim: pd.DataFrame) -> None:
    """Refuse a table in which one matrix has two rows for one scheme.

    No delta and no mean of it would be right.

    Args:
        quant_sim: One row per matrix and scheme; passes when it lacks a key column.

    Raises:
        InvalidDataError: names up to three such rows.
    """
    keys = [*MATRIX_KEYS, "scheme"]
    if not set(keys) <= set(quant_sim.columns):
        return
    keys += ["stack"] if "stack" in quant_sim.columns else []
    seen: set[tuple[Cell, ...]] = set()
    repeated: dict[tuple[Cell, ...], None] = {}
    for row in zip(*(key_cells(quant_sim, key, "quant_sim") for key in keys), strict=True):
        if row in seen:
            repeated[row] = None
        seen.add(row)
    if not repeated:
        return
    examples = "; ".join(
        ", ".join(
            f"{key}={'null' if cell is None else cell}" for key, cell in zip(keys, row, strict=True)
        )
        for row in list(repeated)[:_N_EXAMPLES]
    )
    raise InvalidDataError(
        f"quant_sim has more than one row for {len(repeated)} "
        f"pair{'s' if len(repeated) > 1 else ''} of matrix "
        f"and scheme, for example {examples}; the checkpoint probably holds a tensor in two "
        f"files: remove one "
        "copy or let its index decide, then run collect_data again; no table was written"
    )


def quant_deltas(quant_sim: pd.DataFrame, pairs: Sequence[DeltaPair], *, by_stack: bool) -> Table:
    """Compute `B_quant_deltas`.

    Args:
        quant_sim: One row per matrix and scheme, unique (`check_unique_matrices`).
        pairs: Comparisons, at least one.
        by_stack: Whether to write the column `stack`; where quant_sim has it, it is part of a
            matrix's key anyway.

    Returns:
        One row per matrix and pair: matrices in input order, then pairs in their order.

    Raises:
        InvalidDataError: a key or metric column holds values of another kind.
    """
    schema = deltas_schema(by_stack=by_stack)
    if not len(quant_sim):
        return Table.from_rows(schema, ())
    keys = [*MATRIX_KEYS, *(["stack"] if "stack" in quant_sim.columns else [])]
    columns = [key_cells(quant_sim, key, "quant_sim") for key in keys]
    matrices: dict[tuple[Cell, ...], int] = {}
    matrix_of_row = np.array(
        [matrices.setdefault(row, len(matrices)) for row in zip(*columns, strict=True)],
        dtype=np.int64,
    )
    scheme_of_row = np.array(key_cells(quant_sim, "scheme", "quant_sim"), dtype=object)
    names = schema.column_names
    values: dict[str, list[Cell]] = {
        key: [cells[position] for cells in matrices for _ in pairs]
        for position, key in enumerate(keys)
        if key in names
    }
    values["delta_name"] = [pair.name for _ in matrices for pair in pairs]
    for metric in ("w_rel_fro", "w_rel_max"):
        by_scheme: dict[str, npt.NDArray[np.float64]] = {}
        measured = (
            metric_values(quant_sim, metric, "quant_sim")
            if metric in quant_sim.columns
            else np.full(len(quant_sim), np.nan)
        )
        for scheme in {name for pair in pairs for name in (pair.a, pair.b)}:
            rows = scheme_of_row == scheme
            by_scheme[scheme] = np.full(len(matrices), np.nan)
            by_scheme[scheme][matrix_of_row[rows]] = measured[rows]
        deltas = np.stack([by_scheme[pair.a] - by_scheme[pair.b] for pair in pairs], axis=1)
        values[f"delta_{metric}"] = [float(delta) for delta in deltas.ravel()]
    return Table(schema, values)
