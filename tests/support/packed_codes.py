"""Headers, contexts and packed codes for tests of encodings; packing is one bit at a time."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.stored_tensor import EncodingContext

_CODES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint8": "U8",
    "uint32": "U32",
    "int32": "I32",
    "int64": "I64",
}


def header_of(name: str, dtype_code: str, *shape: int) -> TensorHeader:
    """Return the header of a tensor that no file holds; its shard is named for the tensor."""
    return TensorHeader(
        file=f"{name.rpartition('.')[2]}.safetensors",
        name=name,
        dtype_code=dtype_code,
        shape=shape,
        offset=0,
        nbytes=prod(shape),
    )


def header_like(name: str, array: NDArray[Any]) -> TensorHeader:
    """Return the header under which an array would be stored."""
    return header_of(name, _CODES[array.dtype.name], *array.shape)


def context_of(
    *headers: TensorHeader,
    quantization: Mapping[str, object] | None = None,
    hidden_sizes: tuple[int, ...] = (),
) -> EncodingContext:
    """Return a checkpoint of these tensors; its metadata must not be read."""

    def refuse(header: TensorHeader) -> bytes:
        raise AssertionError(f"{header.name} was read")

    return EncodingContext(
        by_name={header.name: header for header in headers},
        quantization=quantization or {},
        read_metadata=refuse,
        hidden_sizes=frozenset(hidden_sizes),
    )


def pack_stream(codes: NDArray[Any], bits: int) -> NDArray[np.uint32]:
    """Pack the last axis into 32-bit words, lowest bit first; the last word is padded with 0."""
    flat = codes.reshape(-1, codes.shape[-1])
    n_words = -(-codes.shape[-1] * bits // 32)
    words = [[0] * n_words for _row in flat]
    for row, values in zip(words, flat.tolist(), strict=True):
        for position in range(len(values) * bits):
            bit = int(values[position // bits]) >> (position % bits) & 1
            row[position // 32] |= bit << (position % 32)
    return np.array(words, dtype=np.uint32).reshape(*codes.shape[:-1], n_words)
