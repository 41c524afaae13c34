"""What does a safetensors file contain, judged by its header alone?

1. Eight bytes say how long the header is; the header is one JSON object.
2. Every entry names a dtype, a shape and a byte range.
3. Together the ranges must cover the rest of the file exactly, without overlap or hole.

Accepts what the `safetensors` library accepts, and also dtype codes it does not know; unlike it,
refuses repeated names and entries that are not objects. All problems of a file are told at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from moe_weights.checkpoint.dtype_codes import dtype_bits
from moe_weights.checkpoint.file_access import (
    LFS_POINTER_CAUSE,
    is_lfs_pointer,
    malformed_file_error,
    open_descriptor,
    read_range,
    stat_descriptor,
)
from moe_weights.checkpoint.plain_header import parse_plain_header
from moe_weights.checkpoint.strict_json import StrictJsonError, parse_json
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.errors import CheckpointError

MAX_HEADER_NBYTES = 100_000_000  # as MAX_HEADER_SIZE in safetensors/src/tensor.rs
_LENGTH_NBYTES = 8
_MAX_COUNT = 2**64 - 1  # the library counts elements and bits in 64 bits
_LFS_HEAD_NBYTES = 64
_ADVICE = "download the file again, or write it again with the safetensors library"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """Everything a safetensors header says.

    Attributes:
        tensors: In the order of their bytes.
        metadata: The `__metadata__` object; empty when there is none.
    """

    tensors: tuple[TensorHeader, ...]
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawHeader:
    """The undecoded header.

    Attributes:
        encoded: The JSON text, bytes.
        values_nbytes: Length of what follows the header, bytes.
    """

    encoded: bytes
    values_nbytes: int

    @property
    def values_offset(self) -> int:
        """First byte after the header, from the start of the file."""
        return _LENGTH_NBYTES + len(self.encoded)


class _Entry(NamedTuple):
    begin: int
    end: int
    name: str
    dtype_code: str
    shape: tuple[int, ...]


def read_safetensors_headers(path: Path, file: str) -> SafetensorsHeader:
    """Read and check the header of one file; no tensor value is read.

    Args:
        path: Where the file lies.
        file: Its name relative to the model directory, with `/`; goes into headers and messages.

    Raises:
        CheckpointError: the file cannot be read or is malformed.
    """
    with open_descriptor(path, file) as descriptor:
        raw = read_raw_header(descriptor, file)
    return parse_header(raw, file)


def parse_header(raw: RawHeader, file: str) -> SafetensorsHeader:
    """Check and decode a header; see `read_safetensors_headers`."""
    plain = parse_plain_header(raw.encoded, raw.values_nbytes, raw.values_offset, file)
    if plain is None:
        return parse_strictly(raw, file)
    tensors, metadata = plain
    return SafetensorsHeader(tensors=tensors, metadata=metadata)


def parse_strictly(raw: RawHeader, file: str) -> SafetensorsHeader:
    """Check and decode a header entry by entry, and tell all problems at once."""
    try:
        parsed = parse_json(raw.encoded)
    except StrictJsonError as error:
        raise _malformed(file, [f"the header is {error}"]) from error
    if not isinstance(parsed.value, dict):
        raise _malformed(file, ["the header is not a JSON object"])
    problems = [f'the header has the key "{key}" twice' for key in parsed.duplicate_keys]
    members: dict[str, object] = parsed.value
    metadata = _parse_metadata(members.get("__metadata__"), problems)
    entries: list[_Entry] = []
    n_named = 0
    for name, member in members.items():
        if name == "__metadata__":
            continue
        n_named += 1
        entry = _parse_entry(name, member, problems)
        if entry is not None:
            entries.append(entry)
    entries.sort()
    # A malformed entry leaves a hole by itself; a repeated name hides an entry.
    is_complete = n_named == len(entries) and not parsed.duplicate_keys
    _check_ranges(entries, raw, problems, is_complete=is_complete)
    if problems:
        raise _malformed(file, problems)
    base = raw.values_offset
    tensors = tuple(
        TensorHeader(
            file=file,
            name=entry.name,
            dtype_code=entry.dtype_code,
            shape=entry.shape,
            offset=base + entry.begin,
            nbytes=entry.end - entry.begin,
        )
        for entry in entries
    )
    return SafetensorsHeader(tensors=tensors, metadata=metadata)


def read_raw_header(descriptor: int, file: str) -> RawHeader:
    """Read the header's bytes and check only that they are there.

    Args:
        descriptor: The open file.
        file: Name in messages.

    Raises:
        CheckpointError: the file cannot be read, is no safetensors file, or ends in its header.
    """
    file_nbytes = stat_descriptor(descriptor, file).st_size
    head = read_range(descriptor, 0, min(file_nbytes, _LFS_HEAD_NBYTES), file)
    if is_lfs_pointer(head):
        raise CheckpointError(f"{file}: {LFS_POINTER_CAUSE}")
    if file_nbytes < _LENGTH_NBYTES:
        problem = f"the file has {file_nbytes} bytes; the header length alone takes 8"
        raise _malformed(file, [problem])
    header_nbytes = int.from_bytes(head[:_LENGTH_NBYTES], "little")
    if header_nbytes > MAX_HEADER_NBYTES:
        problem = (
            f"the header claims {header_nbytes} bytes, above the limit of {MAX_HEADER_NBYTES}; "
            "this is no safetensors file or it is damaged"
        )
        raise _malformed(file, [problem])
    values_nbytes = file_nbytes - _LENGTH_NBYTES - header_nbytes
    if values_nbytes < 0:
        problem = (
            f"the header claims {header_nbytes} bytes, but only "
            f"{file_nbytes - _LENGTH_NBYTES} follow; the file was cut off or is damaged"
        )
        raise _malformed(file, [problem])
    encoded = read_range(descriptor, _LENGTH_NBYTES, header_nbytes, file)
    return RawHeader(encoded=encoded, values_nbytes=values_nbytes)


def _parse_metadata(member: object, problems: list[str]) -> dict[str, str]:
    if member is None:
        return {}
    if not isinstance(member, dict):
        problems.append("__metadata__ is not an object of strings")
        return {}
    metadata: dict[str, str] = {}
    for key, value in member.items():
        if isinstance(value, str):
            metadata[key] = value
        else:
            problems.append(f'__metadata__["{key}"] is not a string')
    return metadata


def _parse_entry(name: str, member: object, problems: list[str]) -> _Entry | None:
    if not isinstance(member, dict):
        problems.append(f'tensor "{name}": its entry is not an object')
        return None
    dtype_code, shape, offsets = (
        member.get("dtype"),
        member.get("shape"),
        member.get("data_offsets"),
    )
    before = len(problems)
    if not isinstance(dtype_code, str):
        problems.append(f'tensor "{name}": dtype is {_show(dtype_code)}, not a string')
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        problems.append(
            f'tensor "{name}": shape is {_show(shape)}, not a list of integers of at least 0'
        )
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        problems.append(
            f'tensor "{name}": data_offsets is {_show(offsets)}, not two integers of at least 0'
        )
    elif offsets[0] > offsets[1]:
        problems.append(f'tensor "{name}": data_offsets {offsets} end before they begin')
    if (
        len(problems) > before
        or not isinstance(dtype_code, str)
        or not isinstance(shape, list)
        or not isinstance(offsets, list)
    ):
        return None
    entry = _Entry(offsets[0], offsets[1], name, dtype_code, tuple(shape))
    _check_size(entry, problems)
    return entry


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_COUNT


def _check_size(entry: _Entry, problems: list[str]) -> None:
    bits = dtype_bits(entry.dtype_code)
    count = math.prod(entry.shape)
    if count == 0 and _overflows(entry.shape):
        problems.append(f'tensor "{entry.name}": shape {list(entry.shape)} is too large to count')
    if bits is None:
        return
    nbits = count * bits
    if nbits % 8:
        problems.append(
            f'tensor "{entry.name}": {count} elements of {entry.dtype_code} end within a byte'
        )
    elif nbits != 8 * (entry.end - entry.begin):
        problems.append(
            f'tensor "{entry.name}": shape {list(entry.shape)} of {entry.dtype_code} takes '
            f"{nbits // 8} bytes, but data_offsets give it {entry.end - entry.begin}"
        )


def _overflows(shape: tuple[int, ...]) -> bool:
    # Multiplied from the left as the library does: a zero in front hides any overflow behind it.
    count = 1
    for length in shape:
        count *= length
        if count > _MAX_COUNT:
            return True
    return False


def _check_ranges(
    entries: list[_Entry], raw: RawHeader, problems: list[str], *, is_complete: bool
) -> None:
    covered, last_name = 0, ""
    for entry in entries:
        if entry.begin < covered:
            problems.append(
                f'tensor "{entry.name}": data_offsets [{entry.begin}, {entry.end}] overlap tensor '
                f'"{last_name}", which ends at {covered}'
            )
        elif entry.begin > covered and is_complete:
            problems.append(
                f'tensor "{entry.name}": bytes {covered} to {entry.begin} before it belong to no '
                "tensor"
            )
        if entry.end > covered:
            covered, last_name = entry.end, entry.name
    present = raw.values_nbytes
    if covered > present:
        problems.append(
            f"the file has {raw.values_offset + present} bytes, but its header promises "
            f'{raw.values_offset + covered} (tensor "{last_name}" ends there); it was cut off'
        )
    elif covered < present and is_complete:
        problems.append(f"{present - covered} bytes after the last tensor belong to no tensor")


def _show(value: object) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _malformed(file: str, problems: list[str]) -> CheckpointError:
    return malformed_file_error(file, problems, _ADVICE)
