"""Stored tensors in memory, to ask one encoding what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from moe_weights.checkpoint.tensor_header import TensorHeader
from moe_weights.decode.encoding import Encoding
from moe_weights.decode.stored_tensor import (
    EncodingContext,
    EncodingRefusal,
    StoredTensor,
)
from tests.support.checkpoints import CODE_OF_DTYPE


@dataclass(kw_only=True)
class EncodedTensors:
    """Arrays by stored name, and the quantisation block of config.json."""

    arrays: dict[str, np.ndarray]
    config: Mapping[str, object] = field(default_factory=dict)

    def header(self, name: str) -> TensorHeader:
        array = self.arrays[name]
        return TensorHeader(
            file="model.safetensors",
            name=name,
            dtype_code=CODE_OF_DTYPE[array.dtype.name],
            shape=array.shape,
            offset=0,
            nbytes=array.nbytes,
        )

    def without(self, *names: str) -> EncodedTensors:
        kept = {name: array for name, array in self.arrays.items() if name not in names}
        return EncodedTensors(arrays=kept, config=self.config)

    def replaced(self, name: str, array: np.ndarray) -> EncodedTensors:
        return EncodedTensors(arrays={**self.arrays, name: array}, config=self.config)

    def context(self) -> EncodingContext:
        return EncodingContext(
            by_name={name: self.header(name) for name in self.arrays},
            quantization=self.config,
            read_metadata=lambda header: self.arrays[header.name].tobytes(),
        )

    def claim(self, member: Encoding, name: str) -> StoredTensor | EncodingRefusal | None:
        return member.claim(self.header(name), self.context())

    def decode(self, member: Encoding, name: str, cut: slice | None = None) -> np.ndarray:
        """Claim and decode; `cut` cuts the first axis of every part that has one entry each."""
        tensor = self.claim(member, name)
        assert isinstance(tensor, StoredTensor), tensor
        parts = {role: self.arrays[header.name] for role, header in tensor.parts}
        if cut is not None:
            length = tensor.shape[0]
            parts = {
                role: part[cut] if part.ndim > 1 and part.shape[0] == length else part
                for role, part in parts.items()
            }
        return member.decode(tensor, parts)
