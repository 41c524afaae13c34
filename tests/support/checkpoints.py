"""Builders of checkpoints: files written byte by byte, independent of the readers under test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

CODE_OF_DTYPE: dict[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def raw_safetensors(
    header: bytes | Mapping[str, object], values: bytes = b"", *, header_nbytes: int | None = None
) -> bytes:
    """Return a file: length, header as given, values; `header_nbytes` tells a false length."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(encoded) if header_nbytes is None else header_nbytes
    return claimed.to_bytes(8, "little") + encoded + values


def entry(dtype: object, shape: object, begin: object, end: object) -> dict[str, object]:
    """Return one header entry, sensible or not."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def to_safetensors(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype_codes: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> bytes:
    """Return a valid file that holds `tensors` in their order.

    Args:
        tensors: Name to array; bfloat16 and float8 arrays as ml_dtypes makes them.
        metadata: `__metadata__`; None leaves it out.
        dtype_codes: Code to write instead of the array's own, by name (for example packed "F4").
        shapes: Shape to write instead of the array's own, by name.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    values = bytearray()
    for name, array in tensors.items():
        code = (dtype_codes or {}).get(name) or CODE_OF_DTYPE[array.dtype.name]
        shape = list((shapes or {}).get(name, array.shape))
        begin = len(values)
        values += np.ascontiguousarray(array).tobytes()
        header[name] = entry(code, shape, begin, len(values))
    return raw_safetensors(header, bytes(values))


def write_safetensors(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype_codes: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write `to_safetensors(...)` to `path`, making its folder; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_safetensors(tensors, metadata, dtype_codes=dtype_codes, shapes=shapes))
    return path


def shard_name(number: int, n_shards: int) -> str:
    """Return the usual name of the shard `number`, counted from 1."""
    if n_shards == 1:
        return "model.safetensors"
    return f"model-{number:05d}-of-{n_shards:05d}.safetensors"


def write_index(
    folder: Path,
    weight_map: Mapping[str, object],
    *,
    metadata: object = None,
    name: str = "model.safetensors.index.json",
) -> Path:
    """Write a shard index; `metadata` None leaves it out."""
    content: dict[str, object] = {"weight_map": dict(weight_map)}
    if metadata is not None:
        content["metadata"] = metadata
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def make_checkpoint(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    n_shards: int = 1,
    index: bool = False,
    config: Mapping[str, object] | None = None,
    metadata: Mapping[str, str] | None = None,
    dtype_codes: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Write a checkpoint of consecutive runs of tensors per shard; return `folder`.

    Args:
        folder: Model directory, made when missing.
        tensors: Name to array, in file order.
        n_shards: Number of safetensors files; some are empty when there are fewer tensors.
        index: Write `model.safetensors.index.json` with the right `total_size`.
        config: Content of config.json; None leaves it out.
        metadata: As in `to_safetensors`.
        dtype_codes: As in `to_safetensors`.
        shapes: As in `to_safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    per_shard = max(1, math.ceil(len(names) / n_shards))
    weight_map: dict[str, object] = {}
    for number in range(1, n_shards + 1):
        held = names[(number - 1) * per_shard : number * per_shard]
        file = shard_name(number, n_shards)
        weight_map.update(dict.fromkeys(held, file))
        write_safetensors(
            folder / file,
            {name: tensors[name] for name in held},
            metadata,
            dtype_codes=dtype_codes,
            shapes=shapes,
        )
    if index:
        total_size = sum(array.nbytes for array in tensors.values())
        write_index(folder, weight_map, metadata={"total_size": total_size})
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
