"""Builders of `.npz` archives, sound and hostile."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def npy_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    """Return what `numpy.save` writes."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npy_with_header(
    header: str | bytes, values: bytes = b"", *, version: tuple[int, int] = (1, 0)
) -> bytes:
    """Return a `.npy` stream with a header as given."""
    encoded = header if isinstance(header, bytes) else header.encode("utf-8")
    length = len(encoded).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + length + encoded + values


def npy_header(descr: object, shape: object, *, fortran_order: object = False) -> str:
    """Return header text that declares the given things."""
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran_order!r}, 'shape': {shape!r}, }}\n"


def write_archive(
    path: Path, members: Mapping[str, bytes], *, method: int = zipfile.ZIP_STORED
) -> Path:
    """Write a zip archive of the given members; return `path`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def patch_directory(path: Path, member: str, **values: int) -> None:
    """Change fields of a member's directory entry: flags, method, crc, compressed, size, offset."""
    places = {
        "flags": (8, 2),
        "method": (10, 2),
        "crc": (16, 4),
        "compressed": (20, 4),
        "size": (24, 4),
        "offset": (42, 4),
    }
    content = bytearray(path.read_bytes())
    begin = content.rindex(member.encode()) - 46
    if content[begin : begin + 4] != b"PK\x01\x02":
        raise AssertionError(f"no directory entry of {member}")
    for field, value in values.items():
        place, length = places[field]
        content[begin + place : begin + place + length] = value.to_bytes(length, "little")
    path.write_bytes(bytes(content))
