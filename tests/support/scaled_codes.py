"""Stored tensors of scaled FP8 and FP4 forms, and what their codes mean, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.encoding import Encoding
from moe_weights.decode.stored_tensor import WEIGHT, EncodingContext, StoredTensor
from tests.support.checkpoints import CODE_OF_DTYPE

CODES = {**CODE_OF_DTYPE, "float4_e2m1fn": "F4"}


def e2m1(code: int) -> float:
    """Return the value of a four-bit float: sign, two exponent bits, one mantissa bit."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if code & 8 else size


def e4m3(code: int) -> float:
    """Return the value of an E4M3 code: bias 7, no infinities, 0x7f and 0xff are NaN."""
    exponent, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if code & 0x80 else size


def e8m0(code: int) -> float:
    """Return 2**(code - 127); 255 is NaN."""
    return math.nan if code == 255 else 2.0 ** (code - 127)


def nibble(packed: np.ndarray, *at: int) -> int:
    """Return the four-bit code of one element; two lie in a byte, the first of them low."""
    byte = int(packed[(*at[:-1], at[-1] // 2)])
    return byte >> 4 if at[-1] % 2 else byte & 15


def random_bytes(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return bytes of every value."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def header_of(name: str, code: str, shape: tuple[int, ...]) -> TensorHeader:
    """Return a header without a place in a file."""
    return TensorHeader(
        file="model.safetensors", name=name, dtype_code=code, shape=shape, offset=0, nbytes=0
    )


def context_of(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] | Mapping[str, np.ndarray],
    quantization: Mapping[str, object] | None = None,
) -> EncodingContext:
    """Return a context of tensors given as arrays, or as (dtype code, shape)."""
    by_name = {
        name: header_of(name, CODES[str(tensor.dtype)], tensor.shape)
        if isinstance(tensor, np.ndarray)
        else header_of(name, *tensor)
        for name, tensor in tensors.items()
    }
    return EncodingContext(
        by_name=by_name, quantization=quantization or {}, read_metadata=_read_nothing
    )


def decode_all(
    member: Encoding,
    arrays: Mapping[str, np.ndarray],
    name: str,
    quantization: Mapping[str, object] | None = None,
) -> tuple[StoredTensor, np.ndarray]:
    """Claim the stored tensor `name` and decode it whole."""
    context = context_of(arrays, quantization)
    tensor = member.claim(context.by_name[name], context)
    if not isinstance(tensor, StoredTensor):
        raise AssertionError(tensor)
    parts = {role: arrays[header.name] for role, header in tensor.parts}
    values = member.decode(tensor, parts)
    if values.shape != tensor.shape or values.dtype != np.float32:
        raise AssertionError((values.shape, values.dtype, tensor.shape))
    return tensor, values


def decode_cut(
    member: Encoding, tensor: StoredTensor, arrays: Mapping[str, np.ndarray], start: int, stop: int
) -> np.ndarray:
    """Decode some entries of the first axis; scalars are given whole."""
    parts = {
        role: arrays[header.name] if header.n_elements == 1 else arrays[header.name][start:stop]
        for role, header in tensor.parts
    }
    assert parts[WEIGHT].shape[0] == stop - start
    return member.decode(tensor, parts)


def fill(shape: tuple[int, ...], value: Callable[..., float]) -> np.ndarray:
    """Return an array whose entries are computed one by one from their indices, in float32."""
    values = np.empty(shape, dtype=np.float32)
    for index in np.ndindex(*shape):
        values[index] = value(*index)
    return values


def _read_nothing(header: TensorHeader) -> bytes:
    raise AssertionError(f"no content is needed, also not that of {header.name}")
