"""How are the artifacts of a run read back, and which file of a run is the one to read?

What a write manifest names is read; only a run without one is searched (Parquet before CSV).
Unknown columns are allowed, missing key columns are refused; a file with neither rows nor columns
counts as zero rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias, cast

import numpy as np
import pandas as pd

from moe_weights.errors import CheckpointError, InvalidDataError
from moe_weights.run_directory import RunDirectory
from moe_weights.tables.csv_format import parse_csv
from moe_weights.tables.json_object import JsonObject, describe_cause, load_json_object
from moe_weights.tables.writer import SUFFIXES, table_file

TableFolder: TypeAlias = Literal["data", "tables", "logs"]

MANIFEST_NAMES: dict[TableFolder, str] = {
    "data": "write_manifest.json",
    "logs": "write_manifest.json",
    "tables": "tables_write_manifest.json",
}
_WRITERS: dict[TableFolder, str] = {
    "data": "collect_data",
    "logs": "collect_data",
    "tables": "build_tables",
}
_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LocatedTable:
    """Where a table of a run lies.

    Attributes:
        path: The file to read.
        manifest_rows: Row count that the write manifest states; None when no manifest names the
            file.
    """

    path: Path
    manifest_rows: int | None


def manifest_entries(run: RunDirectory, folder: TableFolder) -> dict[str, JsonObject] | None:
    """Return the entries of the manifest that covers a folder, by name; None without a manifest.

    Raises:
        CheckpointError: the manifest cannot be read or is malformed.
    """
    manifest_path = run.log_path(MANIFEST_NAMES[folder])
    if not manifest_path.exists():
        return None
    artifacts = load_json_object(manifest_path).get("artifacts")
    if not isinstance(artifacts, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("path"), str)
        for entry in artifacts.values()
    ):
        raise CheckpointError(
            f'cannot read {manifest_path}: "artifacts" must map each name to an object with a '
            f'"path"; '
            f"run {_WRITERS[folder]} again"
        )
    return cast("dict[str, JsonObject]", artifacts)


def locate_table(run: RunDirectory, name: str, folder: TableFolder) -> LocatedTable:
    """Find the file of a table.

    Raises:
        InvalidDataError: the manifest names a path outside the run directory.
        CheckpointError: the manifest is malformed or does not name the table, or there is no such
            file.
    """
    entries = manifest_entries(run, folder)
    writer = _WRITERS[folder]
    if entries is None:
        stem = run.path / folder / name
        for table_format in SUFFIXES:
            path = table_file(stem, table_format)
            if path.is_file():
                return LocatedTable(path=path, manifest_rows=None)
        raise CheckpointError(
            f"no {name} in this run: neither {stem}.parquet nor {name}.csv exists; "
            f"run {writer} --run-dir {run.path} first"
        )
    manifest_path = run.log_path(MANIFEST_NAMES[folder])
    if name not in entries:
        raise CheckpointError(
            f"{manifest_path} names no {name}; it names {', '.join(sorted(entries)) or 'nothing'}; "
            f"run {writer} --run-dir {run.path} again"
        )
    path = _inside_run(run, str(entries[name]["path"]), f"{manifest_path}: artifacts.{name}.path")
    if not path.is_file():
        raise CheckpointError(
            f"{path} is named in {manifest_path} but does not exist; "
            f"run {writer} --run-dir {run.path} again"
        )
    rows = entries[name].get("rows")
    return LocatedTable(path=path, manifest_rows=rows if isinstance(rows, int) else None)


def read_table_file(path: Path) -> pd.DataFrame:
    """Read a table, Parquet or CSV by its suffix, into the same types.

    Returns:
        int64 (Int64 with nulls), float64 (NaN for null), bool (boolean with nulls), and object
        columns: texts with None for null, lists of int. In CSV an empty text reads as null.

    Raises:
        CheckpointError: the file cannot be read.
    """
    advice = "the file is damaged or incomplete: run the command that writes it again"
    try:
        if path.suffix == SUFFIXES["csv"]:
            text = path.read_bytes().decode("utf-8-sig")
            if not text:
                raise ValueError("the file is empty (0 bytes)")
            return parse_csv(text)
        frame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
        # A file that pandas wrote restores its index, by which columns would be joined, not by row.
        frame = frame.reset_index(drop=list(frame.index.names) == [None])
        return pd.DataFrame({str(name): _plain_series(frame[name]) for name in frame.columns})
    except ImportError as error:
        advice = (
            "install pyarrow, or set output.format to csv and run the command that writes it again"
        )
        raise CheckpointError(f"cannot read {path}: {describe_cause(error)}; {advice}") from error
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"cannot read {path}: {describe_cause(error)}; {advice}") from error


def require_columns(frame: pd.DataFrame, names: Iterable[str], table: str) -> None:
    """Refuse a table that lacks columns it cannot be understood without; more columns are welcome.

    Args:
        frame: The table; with neither rows nor columns it passes as zero rows.
        names: Columns that must be there.
        table: File or name, for the message.

    Raises:
        InvalidDataError: names every missing column.
    """
    missing = [name for name in names if name not in frame.columns]
    if missing and len(frame.columns):
        raise InvalidDataError(
            f"{table} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(frame.columns)}; run collect_data again"
        )


def _inside_run(run: RunDirectory, text: str, where: str) -> Path:
    path = run.path / text
    is_inside = not (PurePosixPath(text).is_absolute() or "\\" in text) and (
        path.resolve().is_relative_to(run.path.resolve())
    )
    if not is_inside:
        raise InvalidDataError(
            f'{where} is "{text}", which does not lie in the run directory {run.path}; '
            "nothing outside it is read; run the command that writes the manifest again"
        )
    return path


def _plain_series(series: pd.Series) -> pd.Series:
    dtype = series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return series.astype("boolean" if series.isna().any() else "bool")
    if pd.api.types.is_integer_dtype(dtype):
        if pd.api.types.is_unsigned_integer_dtype(dtype) and series.max() > _INT64_MAX:
            raise ValueError(f"{series.name} holds {series.max()}, which is beyond int64")
        return series.astype("Int64" if series.isna().any() else "int64")
    if pd.api.types.is_float_dtype(dtype):
        return pd.Series(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return pd.Series([_plain_object(cell) for cell in series], dtype=object)


def _plain_object(cell: object) -> object:
    if isinstance(cell, np.ndarray):
        return cell.tolist()
    is_null = cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell))
    return None if is_null else cell
