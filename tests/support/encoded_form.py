"""A small stored tensor of some encoding, and random codes to make one of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_weights.checkpoint.safetensors_file import read_safetensors_headers
from moe_weights.decode.resolve import resolve_encodings
from moe_weights.decode.stored_tensor import EncodingContext, StoredTensor
from tests.support.checkpoints import write_safetensors

E4M3 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
BF16 = ml_dtypes.bfloat16
W = "model.layers.0.mlp.experts.0.gate_proj.weight"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"


@dataclass(frozen=True, kw_only=True)
class EncodedForm:
    """A checkpoint of one tensor.

    Attributes:
        encoding: Member that must claim it.
        shape: Decoded shape.
        arrays: Stored arrays by name.
        quantization: Quantisation block of config.json.
        four_bit: Stored shape of the codes where their dtype is F4; the array holds bytes.
        is_cuttable: Rows can be decoded apart.
        has_columns: So can columns.
    """

    encoding: str
    shape: tuple[int, ...]
    arrays: dict[str, NDArray[Any]]
    quantization: Mapping[str, object] = field(default_factory=dict)
    four_bit: tuple[int, ...] | None = None
    is_cuttable: bool = True
    has_columns: bool = True

    def write(self, folder: Path) -> StoredTensor:
        """Write the shard `model.safetensors` and return the tensor as it is meant."""
        first = next(iter(self.arrays))
        path = write_safetensors(
            folder / "model.safetensors",
            self.arrays,
            dtype_codes={first: "F4"} if self.four_bit else None,
            shapes={first: self.four_bit} if self.four_bit else None,
        )
        headers = list(read_safetensors_headers(path, path.name).tensors)
        context = EncodingContext(
            by_name={header.name: header for header in headers},
            quantization=self.quantization,
            read_metadata=lambda header: self.arrays[header.name].tobytes(),
        )
        resolution = resolve_encodings(headers, context)
        assert not resolution.refusals, resolution.refusals
        (tensor,) = resolution.tensors
        assert tensor.encoding == self.encoding, tensor.encoding
        assert tensor.shape == self.shape, tensor.shape
        return tensor


def draw_bytes(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def draw_words(rng: np.random.Generator, *shape: int) -> NDArray[np.uint32]:
    return rng.integers(0, 2**32, shape, dtype=np.uint32)


def draw_floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.uniform(1e-3, 2, shape).astype(np.float32)


def draw_exponents(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(110, 140, shape, dtype=np.uint8)


def draw_e4m3(rng: np.random.Generator, *shape: int) -> NDArray[Any]:
    return rng.integers(1, 0x7E, shape, dtype=np.uint8).view(E4M3)
