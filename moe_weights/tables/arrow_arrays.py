"""How do checked cells become Arrow arrays without a copy in Python objects?

Buffers are made with NumPy and handed over: `pyarrow.array` would first import pandas, a quarter of
a second of every command, to ask whether a plain list is one of its series.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.columns import Cell, ColumnType

# Offsets of strings are int32; beyond, the library splits the column into chunks itself.
_LARGEST_STRINGS = 2**31 - 1


def arrow_array(cells: Sequence[Cell], dtype: ColumnType) -> Any:
    """Return a `pyarrow.Array` (or `ChunkedArray`, for more than 2 GiB of text) of a column.

    Args:
        cells: Values of exactly the declared type; None is null.
        dtype: The declared type.

    Raises:
        OverflowError: an integer is beyond int64.
    """
    return _BUILDERS[dtype](cells)


def _float64(cells: Sequence[Any]) -> Any:
    import pyarrow as pa

    numbers = np.array(cells, dtype=np.float64)  # None becomes NaN, which cells never hold
    return _from_buffers(pa.float64(), numbers, ~np.isnan(numbers))


def _int64(cells: Sequence[Any]) -> Any:
    import pyarrow as pa

    return _from_buffers(pa.int64(), _integers(cells), _present(cells))


def _bool(cells: Sequence[Any]) -> Any:
    import pyarrow as pa

    bits = np.packbits(np.array(cells, dtype=np.bool_), bitorder="little")
    return _from_buffers(pa.bool_(), bits, _present(cells))


def _string(cells: Sequence[Any]) -> Any:
    import pyarrow as pa

    texts = [b"" if cell is None else cell.encode("utf-8") for cell in cells]
    if sum(map(len, texts)) > _LARGEST_STRINGS:
        return pa.array(cells, type=pa.string())
    present = _present(cells)
    buffers = [_validity(present), pa.py_buffer(_offsets(texts)), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(cells), buffers)


def _list_int64(cells: Sequence[Any]) -> Any:
    import pyarrow as pa

    lists = [() if cell is None else cell for cell in cells]
    items = _integers(list(chain.from_iterable(lists)))
    return pa.Array.from_buffers(
        pa.list_(pa.int64()),
        len(cells),
        [_validity(_present(cells)), pa.py_buffer(_offsets(lists))],
        children=[_from_buffers(pa.int64(), items, np.ones(len(items), dtype=np.bool_))],
    )


_BUILDERS: dict[ColumnType, Callable[[Sequence[Any]], Any]] = {
    "int64": _int64,
    "float64": _float64,
    "bool": _bool,
    "string": _string,
    "list<int64>": _list_int64,
}


def _from_buffers(arrow_type: Any, values: NDArray[Any], present: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    return pa.Array.from_buffers(
        arrow_type, len(present), [_validity(present), pa.py_buffer(values)]
    )


def _validity(present: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))


def _present(cells: Sequence[Any]) -> NDArray[np.bool_]:
    return np.fromiter((cell is not None for cell in cells), dtype=np.bool_, count=len(cells))


def _integers(cells: Sequence[Any]) -> NDArray[np.int64]:
    numbers = (0 if cell is None else cell for cell in cells)
    return np.fromiter(numbers, dtype=np.int64, count=len(cells))


def _offsets(items: Sequence[Any]) -> NDArray[np.int32]:
    return np.fromiter(accumulate(map(len, items), initial=0), dtype=np.int32)
