"""How do arrays lie beside a document?

In one `.npz`, named by the SHA-256 of its bytes; each member is named by the SHA-256 of its own, so
equal arrays are stored once and equal runs give equal files. Nothing is compressed or pickled.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_weights.atomic_files import JsonValue, atomic_path, file_sha256
from moe_weights.errors import InvalidDataError
from moe_weights.tracing.array_summary import summarise_array
from moe_weights.tracing.captures import Array
from moe_weights.tracing.documents import DocumentProblem

# Sums depend on the order in which a NumPy release adds.
_SUMMARY_RELATIVE_TOLERANCE = 1e-9
_SUFFIX = ".npy"
# As the schemas list them.
STORED_DTYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
    "float32", "float64",
}  # fmt: skip
_USER_DEFINED = 2  # as NumPy tells dtypes that another package brings


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayEntry:
    """Where a document says that an array lies.

    Attributes:
        place: JSON path of the entry.
        entry: The entry, of the form that the schemas call `array`.
    """

    place: str
    entry: Mapping[str, Any]


def write_arrays(
    folder: Path, arrays: Mapping[str, Array]
) -> tuple[JsonValue, dict[str, dict[str, JsonValue]]]:
    """Write arrays into one side file; an existing one of the same content is left alone.

    Args:
        folder: Folder of the document.
        arrays: By any key.

    Returns:
        `arrays_file` of the document (None without arrays), and an entry per key.

    Raises:
        InvalidDataError: an array does not hold real numbers.
        OutputError: the file cannot be written.
    """
    if not arrays:
        return None, {}
    members: dict[str, bytes] = {}
    entries: dict[str, dict[str, JsonValue]] = {}
    for key, array in arrays.items():
        plain = storable(array)
        encoded = _to_npy(plain)
        member = hashlib.sha256(encoded).hexdigest()
        members[member] = encoded
        entries[key] = {
            "member": member,
            "shape": list(plain.shape),
            "dtype": plain.dtype.name,
            "summary": summarise_array(plain).to_dict(),
        }
    archive = _to_archive(members)
    sha256 = hashlib.sha256(archive).hexdigest()
    target = folder / f"{sha256}.npz"
    if not _is_written(target, sha256):
        with atomic_path(target) as temporary:
            temporary.write_bytes(archive)
    return {"path": target.name, "sha256": sha256, "n_bytes": len(archive)}, entries


def _is_written(target: Path, sha256: str) -> bool:
    try:
        return target.is_file() and file_sha256(target) == sha256
    except OSError:
        return False  # writing it tells what is wrong


def storable(array: Array) -> Array:
    """Return an array in a form that every NumPy reads: little-endian, no 8- or 16-bit extras.

    Raises:
        InvalidDataError: it does not hold real numbers.
    """
    if array.dtype.name in STORED_DTYPES:
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
    if array.dtype.isbuiltin == _USER_DEFINED:
        try:  # bfloat16 and FP8 of ml_dtypes; float32 holds each of their values
            return np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape)
        except (TypeError, ValueError) as error:
            raise InvalidDataError(f"array of {array.dtype} cannot be stored") from error
    raise InvalidDataError(f"array of {array.dtype} cannot be stored; give real numbers")


def read_arrays(
    folder: Path, arrays_file: Mapping[str, Any] | None, entries: Iterable[ArrayEntry]
) -> tuple[dict[str, Array], list[DocumentProblem]]:
    """Read the arrays of a document, checking every byte.

    Args:
        folder: Folder of the document.
        arrays_file: Its `arrays_file`.
        entries: Every array entry of it.

    Returns:
        Arrays by member, and what is wrong; with problems the arrays are not to be used.
    """
    wanted = list(entries)
    if arrays_file is None:
        return {}, [
            _problem("arrays_file_missing", item.place, "there is no arrays_file")
            for item in wanted
        ]
    try:
        problem = _file_problem(folder, arrays_file)
        if problem is not None:
            return {}, [problem]
        with zipfile.ZipFile(folder / arrays_file["path"]) as archive:
            return _read_members(archive, wanted)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        return {}, [_problem("npz_unreadable", "$.arrays_file", f"{type(error).__name__}: {error}")]


def _file_problem(folder: Path, arrays_file: Mapping[str, Any]) -> DocumentProblem | None:
    name, place = arrays_file["path"], "$.arrays_file.path"
    if name != Path(name).name or "\\" in name or name in {"", ".", ".."}:
        return _problem("path_traversal", place, f"{name!r} leaves the document's folder")
    if name != f"{arrays_file['sha256']}.npz":
        return _problem("not_content_addressed", place, "the name is not <sha256>.npz")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        return _problem("side_file_missing", place, f"{name} is not a file beside the document")
    n_bytes = path.stat().st_size
    if n_bytes != arrays_file["n_bytes"]:
        message = f"{n_bytes} bytes, but the document says {arrays_file['n_bytes']}"
        return _problem("size_mismatch", "$.arrays_file.n_bytes", message)
    if file_sha256(path) != arrays_file["sha256"]:
        return _problem("sha256_mismatch", "$.arrays_file.sha256", f"{name} has another content")
    return None


def _read_members(
    archive: zipfile.ZipFile, entries: list[ArrayEntry]
) -> tuple[dict[str, Array], list[DocumentProblem]]:
    arrays: dict[str, Array] = {}
    problems: list[DocumentProblem] = []
    infos = archive.infolist()
    known = {item.entry["member"] + _SUFFIX for item in entries}
    names = [info.filename for info in infos]
    problems += [
        _problem("npz_member_unknown", f"member {name!r}", "no entry of the document names it")
        for name in sorted(set(names) - known)
    ]
    if len(names) != len(set(names)):
        problems.append(_problem("npz_member_twice", "$.arrays_file", "a member occurs twice"))
    by_name = {info.filename: info for info in infos}
    for item in entries:
        member = item.entry["member"]
        info = by_name.get(member + _SUFFIX)
        if info is None:
            problems.append(_problem("npz_member_missing", item.place, f"no member {member}"))
            continue
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            problems.append(
                _problem("npz_compressed", item.place, "members are stored as they are")
            )
            continue
        if member not in arrays:
            encoded = archive.read(info)
            if hashlib.sha256(encoded).hexdigest() != member:
                problems.append(
                    _problem("npz_member_sha256", item.place, f"member {member} has other content")
                )
                continue
            try:
                # A copy of the header is not trusted with a pickle.
                array = np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
            except (ValueError, EOFError, OSError, MemoryError, OverflowError) as error:
                # A header may claim any shape.
                problems.append(_problem("npy_unreadable", item.place, str(error)[:200]))
                continue
            arrays[member] = array
        problems += _entry_problems(item, arrays[member])
    return arrays, problems


def _entry_problems(item: ArrayEntry, array: Array) -> list[DocumentProblem]:
    entry = item.entry
    declared = np.dtype(entry["dtype"]).newbyteorder("<")
    if array.dtype != declared:
        message = f"the side file holds {array.dtype.str}, the document says {entry['dtype']}"
        return [_problem("dtype_mismatch", f"{item.place}.dtype", message)]
    if list(array.shape) != entry["shape"]:
        message = f"the side file holds {list(array.shape)}, the document says {entry['shape']}"
        return [_problem("shape_mismatch", f"{item.place}.shape", message)]
    found = summarise_array(array).to_dict()
    return [
        _problem(
            "summary_mismatch",
            f"{item.place}.summary.{name}",
            f"the array has {value}, the document says {entry['summary'][name]}",
        )
        for name, value in found.items()
        if not same_value(value, entry["summary"][name])
    ]


def same_value(found: JsonValue, told: JsonValue) -> bool:
    """Whether two values of a summary are the same, but for the order in which a sum was taken."""
    if isinstance(found, (int, float)) and isinstance(told, (int, float)):
        try:
            return math.isclose(found, told, rel_tol=_SUMMARY_RELATIVE_TOLERANCE, abs_tol=1e-30)
        except OverflowError:  # the document says an integer beyond the largest float
            return False
    return found is told


def _to_npy(array: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _to_archive(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for member in sorted(members):
            # ZipInfo's default time is fixed, so that equal arrays give equal bytes.
            archive.writestr(zipfile.ZipInfo(member + _SUFFIX), members[member])
    return stream.getvalue()


def _problem(code: str, place: str, message: str) -> DocumentProblem:
    return DocumentProblem(scope="arrays", code=code, place=place, message=message)
