"""What a table column is: name, type, unit and meaning, declared once where its values are made.

Stands above the rooms so that metrics can declare columns without knowing tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

ColumnType: TypeAlias = Literal["int64", "float64", "bool", "string", "list<int64>"]
Cell: TypeAlias = "bool | int | float | str | tuple[int, ...] | None"
Row: TypeAlias = Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of an artifact.

    Attributes:
        name: Column name, a contract surface.
        dtype: Type of its values; every column may hold null.
        meaning: What it says, with its formula where it has one.
        unit: Unit of the values; "" for names, labels and flags.
    """

    name: str
    dtype: ColumnType
    meaning: str
    unit: str = ""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The full list of columns that an artifact always carries, also with zero rows.

    Attributes:
        name: Stem of the artifact's file name.
        columns: In file order.
    """

    name: str
    columns: tuple[Column, ...]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names in file order."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Values for a schema, column by column.

    Attributes:
        schema: Names and types.
        values: One list per column name, all of one length.
    """

    schema: TableSchema
    values: Mapping[str, list[Cell]]

    @classmethod
    def from_rows(cls, schema: TableSchema, rows: Iterable[Row]) -> Table:
        """Build a table from one mapping per row.

        Raises:
            KeyError: a row lacks a column of the schema.
        """
        values: dict[str, list[Cell]] = {name: [] for name in schema.column_names}
        columns = list(values.items())
        for row in rows:
            for name, cells in columns:
                cells.append(row[name])
        return cls(schema, values)

    @classmethod
    def over_rows(cls, schema: TableSchema, rows: Sequence[Row]) -> Table:
        """Build a table whose columns are made when they are asked for, and not kept.

        Args:
            schema: Names and types.
            rows: One mapping per row; must stay as they are.
        """
        return cls(schema, _ColumnsOfRows(schema, rows))

    @property
    def n_rows(self) -> int:
        """How many rows the table has."""
        name = next(iter(self.schema.column_names), None)
        return 0 if name is None else len(self.values[name])


class _ColumnsOfRows(Mapping[str, list[Cell]]):
    """Columns of rows that are too many to be held as cells all at once."""

    def __init__(self, schema: TableSchema, rows: Sequence[Row]) -> None:
        self._schema = schema
        self._rows = rows

    def __getitem__(self, name: str) -> list[Cell]:
        if name not in self._schema.column_names:
            raise KeyError(name)
        return [row[name] for row in self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schema.column_names)

    def __len__(self) -> int:
        return len(self._schema.columns)
