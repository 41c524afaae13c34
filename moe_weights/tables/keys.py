"""Which columns say what a row is about, and in which order such rows stand?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_weights.columns import Cell, Column
from moe_weights.errors import InvalidDataError

if TYPE_CHECKING:  # collecting data reads no table, and starts faster without
    import pandas as pd

LAYERS_PER_BLOCK = 4
PROJ_ORDER = ("gate_proj", "up_proj", "down_proj")

KEY_COLUMNS: dict[str, Column] = {
    column.name: column
    for column in (
        Column("derived_tensor", "string", "name of the analysed matrix's tensor"),
        Column("layer", "int64", "decoder layer; -1 = unknown"),
        Column("block4", "int64", "layer // 4; null when the layer is unknown"),
        Column("proj", "string", "projection: gate_proj, up_proj, down_proj or a name kept raw"),
        Column("expert_id", "int64", "expert; -1 = shared or unknown"),
        Column("rows", "int64", "output features R", "elements"),
        Column("cols", "int64", "input features C, along which groups run", "elements"),
        Column("scheme", "string", "name of the quantisation scheme in analysis_config.json"),
        Column("stack", "string", "stack of layers the matrix belongs to"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowGroups:
    """Rows that share their keys.

    Attributes:
        keys: One tuple per group, in the order of the key names; None is a key like any other.
        group_of_row: Index into `keys` for each row, int64 (n_rows,).
    """

    keys: list[tuple[Cell, ...]]
    group_of_row: npt.NDArray[np.int64]


def key_cells(frame: pd.DataFrame, name: str, table: str) -> list[Cell]:
    """Return a key column as plain ints or texts, None for null.

    Args:
        frame: Rows that hold the column.
        name: A name of `KEY_COLUMNS`.
        table: The table's name, for the message.

    Raises:
        InvalidDataError: an integer key holds something else.
    """
    series = frame[name]
    is_null = series.isna().to_numpy()
    cells = series.tolist()
    if KEY_COLUMNS[name].dtype == "string":
        return [None if null else str(cell) for cell, null in zip(cells, is_null, strict=True)]
    keys: list[Cell] = []
    for row, (cell, null) in enumerate(zip(cells, is_null, strict=True)):
        if null:
            keys.append(None)
        elif isinstance(cell, int | float) and not isinstance(cell, bool) and cell == cell // 1:
            keys.append(int(cell))
        else:
            raise InvalidDataError(
                f"{table}.{name} holds {cell!r} in row {row}; expected integers; run collect_data "
                f"again"
            )
    return keys


def metric_values(frame: pd.DataFrame, name: str, table: str) -> npt.NDArray[np.float64]:
    """Return a metric column as float64 (n_rows,), NaN for null.

    Raises:
        InvalidDataError: the column holds text or an infinite value.
    """
    try:
        values = frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InvalidDataError(
            f"{table}.{name} holds values that are not numbers ({error}); run collect_data again"
        ) from error
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise InvalidDataError(
            f"{table}.{name} is {values[infinite[0]]} in row {infinite[0]}; what is undefined is "
            "null in tables that collect_data writes; run it again"
        )
    return values


def with_block4(frame: pd.DataFrame, table: str) -> pd.DataFrame:
    """Return the frame with a `block4` column: as it is, or recomputed where it is missing.

    Raises:
        InvalidDataError: `layer` holds something else than integers.
    """
    import pandas as pd

    if "block4" in frame.columns:
        return frame
    block4 = [
        layer // LAYERS_PER_BLOCK if isinstance(layer, int) and layer >= 0 else None
        for layer in key_cells(frame, "layer", table)
    ]
    return frame.assign(block4=pd.Series(block4, index=frame.index, dtype="Int64"))


def group_rows(frame: pd.DataFrame, keys: Sequence[str], table: str) -> RowGroups:
    """Group rows by key columns; groups stand in table order (`stack` first, see `sort_rank`).

    Raises:
        InvalidDataError: see `key_cells`.
    """
    columns = [key_cells(frame, key, table) for key in keys]
    row_keys = list(zip(*columns, strict=True))
    by_rank = sorted(range(len(keys)), key=lambda position: keys[position] != "stack")
    ordered = sorted(
        set(row_keys),
        key=lambda cells: [sort_rank(keys[position], cells[position]) for position in by_rank],
    )
    positions = {cells: position for position, cells in enumerate(ordered)}
    return RowGroups(
        keys=ordered,
        group_of_row=np.array([positions[cells] for cells in row_keys], dtype=np.int64),
    )


def sort_rank(name: str, cell: Cell) -> tuple[bool, int, Cell]:
    """Return a sort key for one cell: null last; gate, up, down, then other projections by name."""
    if cell is None:
        return (True, 0, 0)
    if name == "proj" and cell in PROJ_ORDER:
        return (False, PROJ_ORDER.index(str(cell)), cell)
    return (False, len(PROJ_ORDER), cell)


def has_several_stacks(frames: Iterable[pd.DataFrame]) -> bool:
    """Return whether the rows of all frames together name more than one stack.

    A null is an empty name: CSV has one form for both.
    """
    import pandas as pd

    stacks: set[str] = set()
    for frame in frames:
        if "stack" in frame.columns:
            stacks.update("" if pd.isna(stack) else str(stack) for stack in frame["stack"])
    return len(stacks) > 1
