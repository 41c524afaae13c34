"""What a dtype code of a file header stands for: its name in tables, its size, its kind.

Codes are those of safetensors 0.8 (`safetensors/src/tensor.rs`, enum `Dtype`). A code that is not
in the table is kept as written: its tensor is inventoried and reported, never decoded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

DtypeKind: TypeAlias = Literal["float", "int", "bool", "complex", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DtypeInfo:
    """Meaning of one dtype code.

    Attributes:
        code: As written in the header.
        name: NumPy or ml_dtypes name; the code itself where neither has the type or, as for
            swapped bytes, its name would say too little.
        bits: Size of one element, bits; None when the code is unknown.
        kind: What the elements are; `F8_E8M0` (exponents that serve as scales) counts as float.
    """

    code: str
    name: str
    bits: int | None
    kind: DtypeKind


_ROWS: tuple[tuple[str, str, int, DtypeKind], ...] = (
    ("F64", "float64", 64, "float"),
    ("F32", "float32", 32, "float"),
    ("F16", "float16", 16, "float"),
    ("BF16", "bfloat16", 16, "float"),
    ("F8_E4M3", "float8_e4m3fn", 8, "float"),
    ("F8_E5M2", "float8_e5m2", 8, "float"),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, "float"),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, "float"),
    ("F8_E8M0", "float8_e8m0fnu", 8, "float"),
    ("F6_E2M3", "F6_E2M3", 6, "float"),
    ("F6_E3M2", "F6_E3M2", 6, "float"),
    ("F4", "F4", 4, "float"),
    ("I64", "int64", 64, "int"),
    ("I32", "int32", 32, "int"),
    ("I16", "int16", 16, "int"),
    ("I8", "int8", 8, "int"),
    ("U64", "uint64", 64, "int"),
    ("U32", "uint32", 32, "int"),
    ("U16", "uint16", 16, "int"),
    ("U8", "uint8", 8, "int"),
    ("BOOL", "bool", 8, "bool"),
    ("C64", "complex64", 64, "complex"),
)
_KNOWN = {
    code: DtypeInfo(code=code, name=name, bits=bits, kind=kind) for code, name, bits, kind in _ROWS
}

# Types without a code, as far as NumPy has a name for them.
_NAME_OF_NUMPY = {
    "<f12": "float96",
    "<f16": "float128",
    "<c16": "complex128",
    "<c24": "complex192",
    "<c32": "complex256",
    "|O": "object",
}
_FLEXIBLE = re.compile(r"[<|](?P<kind>[SUV])(?P<length>[1-9]\d*)")
_NAME_OF_FLEXIBLE = {"S": ("bytes", 8), "U": ("str", 32), "V": ("void", 8)}
_TIME = re.compile(r"<(?P<kind>[mM])8(?P<unit>(?:\[\w+\])?)")
_NAME_OF_TIME = {"m": "timedelta64", "M": "datetime64"}

# Big-endian types have no code: reading them as if they had one would give wrong numbers.
_CODE_OF_NUMPY: dict[str, str] = {
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "<i2": "I16",
    "|i1": "I8",
    "<u8": "U64",
    "<u4": "U32",
    "<u2": "U16",
    "|u1": "U8",
    "|b1": "BOOL",
    "<c8": "C64",
}


def dtype_info(code: str) -> DtypeInfo:
    """Return what `code` stands for; an unknown one has no size."""
    return _KNOWN.get(code) or DtypeInfo(
        code=code, name=_numpy_name(code), bits=None, kind="unknown"
    )


def _numpy_name(code: str) -> str:
    """Return NumPy's name of a type in NumPy's spelling, such as `void16` of `|V2`.

    Codes of other origin stay as written, and so do types with swapped bytes, whose name is that
    of the usual order.
    """
    if code in _NAME_OF_NUMPY:
        return _NAME_OF_NUMPY[code]
    flexible = _FLEXIBLE.fullmatch(code)
    if flexible:
        name, bits = _NAME_OF_FLEXIBLE[flexible["kind"]]
        return f"{name}{bits * int(flexible['length'])}"
    time = _TIME.fullmatch(code)
    return f"{_NAME_OF_TIME[time['kind']]}{time['unit']}" if time else code


def dtype_name(code: str) -> str:
    """Return the name that tables show, such as `bfloat16`, `float8_e4m3fn` or `F4`."""
    return dtype_info(code).name


def dtype_bits(code: str) -> int | None:
    """Return the size of one element in bits; None when the code is unknown."""
    return dtype_info(code).bits


def is_float_like(code: str) -> bool:
    """Tell whether the elements are real floating-point numbers of any width."""
    return dtype_info(code).kind == "float"


def code_of_numpy(dtype_str: str) -> str:
    """Return the code of a NumPy `dtype.str`; a type without a code keeps NumPy's spelling.

    Args:
        dtype_str: For example `"<f4"` (gives `"F32"`) or `"|V2"`, `">f4"` (kept).
    """
    return _CODE_OF_NUMPY.get(dtype_str, dtype_str)
