"""How does a table stand in CSV text, and how are its types found again?

Quoting follows RFC 4180, lines end in LF, text is UTF-8. The header line always stands. An empty
cell is null, so an empty text reads back as null; lists are JSON text; floats are written by
`repr`, which reads back to the same bits.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from moe_weights.columns import Cell

if TYPE_CHECKING:  # collecting data reads no table, and starts faster without
    import pandas as pd

# Columns that hold text even where every value looks like a number (a scheme named "4", a tensor
# named "7").
TEXT_COLUMNS = frozenset(
    {
        "action",
        "backend",
        "context",
        "delta_name",
        "derived_tensor",
        "dtype",
        "encoding",
        "error",
        "example_derived_tensor",
        "example_file",
        "example_source_tensor",
        "extracted_via",
        "file",
        "hint",
        "index_shard",
        "kind",
        "layout_evidence",
        "mode",
        "proj",
        "quant_dtype",
        "raw_proj",
        "reason",
        "resolved_proj",
        "role",
        "rule_name",
        "scheme",
        "source_tensor",
        "stack",
        "status",
        "suggested_match",
        "suggested_proj",
        "tensor",
        "tensor_name",
        "warning",
    }
)

_T = TypeVar("_T")
_NEEDS_QUOTES = re.compile(r'[,"\r\n]')
_INTEGER = re.compile(r"[+-]?[0-9]+")
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_BOOLEANS = {"true": True, "false": False}
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def format_csv(values: Mapping[str, Sequence[Cell]]) -> str:
    """Return the columns as CSV text.

    Args:
        values: Cells by column name, all columns of one length; floats finite.
    """
    lines = [",".join(_quoted(name) for name in values)]
    columns = [[_cell_text(cell) for cell in cells] for cells in values.values()]
    if len(columns) == 1:
        # A blank line would be no row at all.
        columns = [[text or '""' for text in columns[0]]]
    lines.extend(",".join(cells) for cells in zip(*columns, strict=True))
    return "\n".join(lines) + "\n"


def parse_csv(text: str) -> pd.DataFrame:
    """Return CSV text as a frame with the types its cells show.

    A column is int64 (Int64 with nulls), bool (boolean with nulls), list or float64 when every
    filled cell reads as such, else text (object, None for null). Columns of `TEXT_COLUMNS` are
    always text.

    Raises:
        ValueError: broken quoting, a row of another length than the header, a column name that
            occurs twice.
    """
    import pandas as pd

    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"not readable as CSV: {error}") from error
    if not rows:
        return pd.DataFrame()
    header, *body = rows
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f'column "{name}" occurs twice')
    for number, row in enumerate(body, start=1):
        if len(row) != len(header):
            raise ValueError(f"row {number} has {len(row)} cells, the header has {len(header)}")
    cells = zip(*body, strict=True) if body else ((),) * len(header)
    return pd.DataFrame(
        {name: _typed_column(name, column) for name, column in zip(header, cells, strict=True)},
    )


def _quoted(text: str) -> str:
    if _NEEDS_QUOTES.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def _cell_text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return _quoted(cell)
    if isinstance(cell, tuple):
        return _quoted(json.dumps(list(cell)))
    return repr(cell)


def _typed_column(name: str, cells: Sequence[str]) -> pd.Series:
    import pandas as pd

    distinct = set(cells) - {""}
    if name not in TEXT_COLUMNS:
        if not distinct:
            return pd.Series(np.full(len(cells), np.nan))
        if all(_INTEGER.fullmatch(text) for text in distinct):
            integers = _parsed(cells, distinct, int)
            if all(cell is None or _INT64_MIN <= cell <= _INT64_MAX for cell in integers):
                return pd.Series(integers, dtype="Int64" if "" in cells else "int64")
        elif all(text.lower() in _BOOLEANS for text in distinct):
            booleans = _parsed(cells, distinct, lambda text: _BOOLEANS[text.lower()])
            return pd.Series(booleans, dtype="boolean" if "" in cells else "bool")
        elif all(_LIST.fullmatch(text) for text in distinct):
            try:
                return pd.Series(_parsed(cells, distinct, json.loads), dtype=object)
            except ValueError:
                pass
        else:
            try:
                return pd.Series([float(text) if text else np.nan for text in cells])
            except ValueError:
                pass
    return pd.Series([text or None for text in cells], dtype=object)


def _parsed(
    cells: Sequence[str], distinct: set[str], parse: Callable[[str], _T]
) -> list[_T | None]:
    values = {text: parse(text) for text in distinct}
    return [values.get(text) for text in cells]
