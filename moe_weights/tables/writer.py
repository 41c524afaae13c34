"""How does a declared table become a file, whole and with its full schema?

1. Cells are checked against the declared types, column by column; NaN becomes null, Inf is refused.
2. Parquet is encoded in memory, so that a failure there is a failure of the backend and falls back
   to CSV.
3. The bytes are written atomically; a failure there is a failure of the disk and ends the command.
4. The sibling of the other format is removed: one stem, one file.

This and `arrow_arrays` are the only doors to pyarrow.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from moe_weights.atomic_files import atomic_path, remove_file
from moe_weights.columns import Cell, Column, Table, TableSchema
from moe_weights.errors import BackendUnavailableError, InvalidDataError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.arrow_arrays import arrow_array
from moe_weights.tables.csv_format import format_csv

TableFormat: TypeAlias = Literal["parquet", "csv"]

SUFFIXES: dict[TableFormat, str] = {"parquet": ".parquet", "csv": ".csv"}

_EXACT_TYPES: dict[str, set[type]] = {
    "int64": {int, type(None)},
    "float64": {float, type(None)},
    "bool": {bool, type(None)},
    "string": {str, type(None)},
    "list<int64>": {type(None)},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactEntry:
    """What was written for one table; one entry of a write manifest.

    Attributes:
        name: Name of the artifact, for example "matrix_stats".
        path: File, relative to the run directory, with `/`.
        format: Format of the file.
        fallback: Whether CSV stands in for Parquet that could not be written.
        error: "<Type>: <message>" of the Parquet failure; None without one.
        rows: Row count.
    """

    name: str
    path: str
    format: TableFormat
    fallback: bool
    error: str | None
    rows: int

    @property
    def console_warning(self) -> str | None:
        """The line to show when CSV stands in for Parquet; None otherwise."""
        if not self.fallback:
            return None
        return f"[warn] parquet write failed ({self.error}); wrote {self.path}"


def write_table(
    run: RunDirectory,
    table: Table,
    stem: Path,
    *,
    requested_format: TableFormat,
    compression: str | None,
) -> ArtifactEntry:
    """Write a table; equal input gives equal bytes.

    Args:
        run: The run the file belongs to.
        table: Values with their declared columns; zero rows still carry the full schema.
        stem: Path without suffix, below `run.path`.
        requested_format: Parquet falls back to CSV when it cannot be encoded, for whatever reason.
        compression: Parquet codec; None writes uncompressed. CSV ignores it.

    Raises:
        InvalidDataError: a float is infinite.
        TypeError: a cell is not of its column's type, or columns differ in length.
        OutputError: the file cannot be written; it is as it was before.
    """
    # CONTRACT SURFACE: data/*, tables/*, logs/*.{parquet|csv}, one file per stem
    encoded: bytes | None = None
    error: str | None = None
    if requested_format == "parquet":
        try:
            encoded = _encode_parquet(table, compression)
        except (InvalidDataError, _CellTypeError):
            raise
        except Exception as failure:
            # W-152: Parquet degrades for any reason but a bad value.
            error = f"{type(failure).__name__}: {failure}"
    written_format: TableFormat = "csv" if encoded is None else "parquet"
    if encoded is None:
        encoded = format_csv(checked_values(table)).encode("utf-8")
    path = table_file(stem, written_format)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
    remove_file(table_file(stem, "parquet" if written_format == "csv" else "csv"))
    return ArtifactEntry(
        name=table.schema.name,
        path=run.relative(path),
        format=written_format,
        fallback=error is not None,
        error=error,
        rows=table.n_rows,
    )


def load_parquet() -> None:
    """Load the package that encodes Parquet, if it is there, so that its memory is known early."""
    with contextlib.suppress(ImportError):
        import pyarrow.parquet  # noqa: F401


def write_parquet_stream(path: Path, tables: Iterable[Table], schema: TableSchema) -> int:
    """Write one Parquet file from tables that come one after the other, one row group each.

    Holds one table at a time; equal input gives equal bytes. There is no fallback: who asks for a
    table larger than the memory asks for Parquet.

    Args:
        path: The file, with suffix.
        tables: All of `schema`; none at all still gives the full schema.
        schema: Names, types, units and meanings.

    Returns:
        Row count.

    Raises:
        InvalidDataError: a float is infinite, or an integer does not fit its column.
        BackendUnavailableError: pyarrow cannot be imported.
        OutputError: the file cannot be written; it is as it was before.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BackendUnavailableError(
            f"{path.name} needs pyarrow ({error}); install it with: pip install pyarrow"
        ) from error
    n_rows = 0
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, _arrow_schema(schema), compression="zstd") as writer,
    ):
        for table in tables:
            try:
                writer.write_table(_arrow_table(table))
            except (pa.ArrowInvalid, OverflowError) as error:
                raise InvalidDataError(
                    f"{schema.name} cannot be written as Parquet: {error}; the file is as it was "
                    "before"
                ) from error
            n_rows += table.n_rows
    return n_rows


def remove_table(stem: Path) -> None:
    """Remove a table in both formats, as far as it exists.

    Raises:
        OutputError: a file exists and cannot be removed.
    """
    for table_format in SUFFIXES:
        remove_file(table_file(stem, table_format))


def table_file(stem: Path, table_format: TableFormat) -> Path:
    """Return `stem` with the suffix of a format; dots in the stem's name stay."""
    return stem.with_name(stem.name + SUFFIXES[table_format])


def checked_values(table: Table) -> dict[str, list[Cell]]:
    """Return the table's cells as plain Python values of the declared types, NaN as None.

    Raises:
        InvalidDataError: a float is infinite; names table, column and row (from 0).
        TypeError: a cell is not of its column's type, or columns differ in length.
    """
    n_rows = table.n_rows
    return {column.name: _checked_cells(table, column, n_rows) for column in table.schema.columns}


class _CellTypeError(TypeError):
    """A cell is not what its column declares; never a reason to fall back to CSV."""


def _checked_cells(table: Table, column: Column, n_rows: int) -> list[Cell]:
    cells = table.values[column.name]
    where = f"{table.schema.name}.{column.name}"
    if len(cells) != n_rows:
        raise _CellTypeError(f"{where} has {len(cells)} cells, the table has {n_rows} rows")
    if not set(map(type, cells)) <= _EXACT_TYPES[column.dtype]:
        cells = [None if cell is None else _plain_cell(cell, column, where) for cell in cells]
    if column.dtype == "float64":
        return _finite_or_null(cells, where)
    return _encodable(cells) if column.dtype == "string" else cells


def _plain_cell(cell: object, column: Column, where: str) -> Cell:
    is_bool = isinstance(cell, bool | np.bool_)
    if column.dtype == "bool" and is_bool:
        return bool(cell)
    if column.dtype == "string" and isinstance(cell, str):
        return str(cell)
    if column.dtype == "int64" and isinstance(cell, int | np.integer) and not is_bool:
        return int(cell)
    if column.dtype == "float64" and isinstance(cell, Real) and not is_bool:
        return float(cell)
    if column.dtype == "list<int64>" and isinstance(cell, tuple | list):
        return tuple(operator.index(length) for length in cell)
    raise _CellTypeError(f"{where} is declared {column.dtype} but holds {cell!r}")


def _finite_or_null(cells: list[Cell], where: str) -> list[Cell]:
    numbers = np.array(cells, dtype=np.float64)
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(np.argmax(infinite))
        raise InvalidDataError(
            f"{where} is {cells[row]} in row {row}; tables never hold infinite values, undefined "
            f"is null; "
            "check the values this column is computed from; the table was not written"
        )
    if np.count_nonzero(np.isnan(numbers)) == sum(cell is None for cell in cells):
        return cells
    return [None if is_nan else cell for cell, is_nan in zip(cells, np.isnan(numbers), strict=True)]


def _encodable(cells: list[Cell]) -> list[Cell]:
    """Escape lone surrogates, which UTF-8 cannot carry: an error may quote any file name."""
    texts = [str(cell) for cell in cells if cell is not None]
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return [
            None if cell is None else str(cell).encode("utf-8", "backslashreplace").decode("utf-8")
            for cell in cells
        ]
    return cells


def _encode_parquet(table: Table, compression: str | None) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # Stubs list the codecs they know; which ones exist is for the library to say.
    codec: Any = compression or "none"
    pq.write_table(_arrow_table(table), sink, compression=codec)
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _arrow_table(table: Table) -> Any:
    import pyarrow as pa

    n_rows = table.n_rows
    arrays = [  # one column's cells at a time: a large model's rows would not fit as Python objects
        arrow_array(_checked_cells(table, column, n_rows), column.dtype)
        for column in table.schema.columns
    ]
    return pa.Table.from_arrays(arrays, schema=_arrow_schema(table.schema))


def _arrow_schema(schema: TableSchema) -> Any:
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "string": pa.string(),
        "list<int64>": pa.list_(pa.int64()),
    }
    return pa.schema(
        [
            pa.field(
                column.name,
                types[column.dtype],
                metadata={"meaning": column.meaning, "unit": column.unit},
            )
            for column in schema.columns
        ]
    )
