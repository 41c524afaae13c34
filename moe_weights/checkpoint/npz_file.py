"""What does an `.npz` archive contain, judged by its directory and the `.npy` headers alone?

Nothing is ever unpickled: an array of objects is refused. A header must account for every byte of
its member.
"""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass
from pathlib import Path

from moe_weights.checkpoint.dtype_codes import code_of_numpy
from moe_weights.checkpoint.file_access import malformed_file_error, open_descriptor
from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.checkpoint.zip_member import (
    DamagedMemberError,
    ZipMember,
    iter_member_chunks,
    read_npy_members,
)

_ADVICE = "write the file again with numpy.savez(path, **arrays) from plain numeric arrays"
_MAGIC = b"\x93NUMPY"
_MAX_HEADER_NBYTES = 10_000  # numpy.lib.format refuses longer ones from untrusted files
_PREFIX_NBYTES = 12 + _MAX_HEADER_NBYTES
_HEADER_KEYS = {"descr", "fortran_order", "shape"}
_HEADER_CHUNK_NBYTES = 1 << 14
_UNKNOWN_TYPE = re.compile(r"[<>|=][A-Za-z][0-9]+")
# What ast.literal_eval raises on text that is no plain literal.
_NO_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """What the header of one `.npy` member says.

    Attributes:
        dtype_code: As in safetensors headers, else NumPy's spelling, else `structured16` and so on.
        item_nbytes: Size of one element; None when NumPy does not know the type.
        shape: Axis lengths, elements.
        fortran_order: The first axis runs fastest.
        data_offset: First byte of the values within the member.
    """

    dtype_code: str
    item_nbytes: int | None
    shape: tuple[int, ...]
    fortran_order: bool
    data_offset: int


class NpyHeaderError(ValueError):
    """A `.npy` header cannot be used; the message is the cause alone, without file and member."""


def read_npz_headers(path: Path, file: str) -> tuple[TensorHeader, ...]:
    """Read and check the headers of one archive; values are not read.

    Args:
        path: Where the file lies.
        file: Its name relative to the model directory, with `/`; goes into headers and messages.

    Returns:
        One header per `.npy` member, in directory order; the name is the member's without `.npy`.

    Raises:
        CheckpointError: the archive cannot be read, is malformed, or holds pickled objects.
    """
    headers: list[TensorHeader] = []
    problems: list[str] = []
    with open_descriptor(path, file) as descriptor:
        for member in read_npy_members(descriptor, file):
            try:
                npy = parse_npy_header(_read_prefix(descriptor, member, file))
                headers.append(_to_tensor_header(npy, member, file))
            except NpyHeaderError as error:
                problems.append(f'member "{member.name}": {error}')
            except DamagedMemberError as error:
                problems.append(error.problem)
    if problems:
        raise malformed_file_error(file, problems, _ADVICE)
    return tuple(headers)


def parse_npy_header(prefix: bytes) -> NpyHeader:
    """Parse the start of a `.npy` stream, format versions 1.0 to 3.0.

    Args:
        prefix: At least the whole header.

    Raises:
        NpyHeaderError: it is malformed, or declares an array of Python objects.

    Source:
        numpy/lib/_format_impl.py, "Format Version 1.0" to "3.0".
    """
    if not prefix.startswith(_MAGIC) or len(prefix) < 10:
        raise NpyHeaderError("it does not begin with a .npy header")
    version = (prefix[6], prefix[7])
    if version not in {(1, 0), (2, 0), (3, 0)}:
        raise NpyHeaderError(f".npy format version {version[0]}.{version[1]} is not known")
    length_nbytes = 2 if version == (1, 0) else 4
    header_offset = 8 + length_nbytes
    header_nbytes = int.from_bytes(prefix[8:header_offset], "little")
    if header_nbytes > _MAX_HEADER_NBYTES:
        raise NpyHeaderError(
            f"its header claims {header_nbytes} bytes, above the limit of {_MAX_HEADER_NBYTES}"
        )
    data_offset = header_offset + header_nbytes
    if data_offset > len(prefix):
        raise NpyHeaderError(f"its header claims {header_nbytes} bytes, beyond its end")
    descr, fortran_order, shape = _parse_literal(
        prefix[header_offset:data_offset], "utf-8" if version == (3, 0) else "latin-1"
    )
    dtype_code, item_nbytes = _parse_descr(descr)
    return NpyHeader(
        dtype_code=dtype_code,
        item_nbytes=item_nbytes,
        shape=shape,
        fortran_order=fortran_order,
        data_offset=data_offset,
    )


def _read_prefix(descriptor: int, member: ZipMember, file: str) -> bytes:
    prefix = bytearray()
    for chunk in iter_member_chunks(descriptor, member, file, _HEADER_CHUNK_NBYTES):
        prefix += chunk
        if len(prefix) >= _PREFIX_NBYTES:
            break
    return bytes(prefix)


def _parse_literal(encoded: bytes, encoding: str) -> tuple[object, bool, tuple[int, ...]]:
    try:
        header = ast.literal_eval(encoded.decode(encoding).strip())
    except _NO_LITERAL as error:
        raise NpyHeaderError("its header is not a Python literal") from error
    if not isinstance(header, dict) or set(header) != _HEADER_KEYS:
        raise NpyHeaderError("its header does not have the keys descr, fortran_order and shape")
    fortran_order, shape = header["fortran_order"], header["shape"]
    if not isinstance(fortran_order, bool):
        raise NpyHeaderError(f"fortran_order is {fortran_order!r}, not True or False")
    if not isinstance(shape, tuple) or not all(
        type(length) is int and length >= 0 for length in shape
    ):
        raise NpyHeaderError(f"shape is {shape!r}, not a tuple of integers of at least 0")
    return header["descr"], fortran_order, shape


def _parse_descr(descr: object) -> tuple[str, int | None]:
    # Loaded only when an archive is there: plans over safetensors files start without NumPy.
    import numpy as np

    try:
        dtype = np.lib.format.descr_to_dtype(descr)  # type: ignore[arg-type] # untrusted literal
    except (TypeError, ValueError, KeyError, IndexError, SyntaxError) as error:
        # ml_dtypes.float8_e5m2 saves itself as "<f1", which NumPy does not read back.
        if isinstance(descr, str) and _UNKNOWN_TYPE.fullmatch(descr):
            return descr, None
        raise NpyHeaderError(f"dtype {descr!r} is not known") from error
    if dtype.hasobject:
        raise NpyHeaderError("it holds pickled Python objects, which are never loaded")
    if dtype.names is not None or dtype.subdtype is not None:
        # NumPy's own spelling, such as |V2, is that of bytes that may well be bfloat16.
        return f"structured{8 * dtype.itemsize}", dtype.itemsize
    return code_of_numpy(dtype.str), dtype.itemsize


def _to_tensor_header(npy: NpyHeader, member: ZipMember, file: str) -> TensorHeader:
    present = member.nbytes - npy.data_offset
    if npy.item_nbytes is not None:
        declared = math.prod(npy.shape) * npy.item_nbytes
        if declared != present:
            raise NpyHeaderError(
                f"shape {list(npy.shape)} of {npy.dtype_code} takes {declared} bytes, but "
                f"{present} follow its header"
            )
    # With at most one axis longer than 1 both orders are the same bytes.
    has_order = sum(length > 1 for length in npy.shape) > 1
    return TensorHeader(
        file=file,
        name=member.name.removesuffix(".npy"),
        dtype_code=npy.dtype_code,
        shape=npy.shape,
        offset=npy.data_offset,
        nbytes=present,
        member=member.name,
        fortran_order=npy.fortran_order and has_order,
    )
