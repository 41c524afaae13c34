"""One tensor as it is meant: its stored parts, their encoding, and the shape of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

from moe_weights.checkpoint.tensor_header import TensorHeader

# Values of an encoding that bytes alone do not tell: bits, group size, block shape, ...
Option: TypeAlias = "int | float | str | tuple[int, ...]"

WEIGHT = "weight"  # role of the part that holds the codes


class StoredTensor(NamedTuple):
    """A tensor whose values are floats, whatever their form on disk.

    Attributes:
        name: Logical name, the one that rules match: that of the weights as if they were plain
            (`….gate_proj.weight`, `….experts.gate_up_proj`), without suffixes of the encoding.
        encoding: Name of the `decode` member.
        header: The stored tensor that holds the codes (or the plain values).
        shape: Shape of the decoded values, elements.
        companions: Role ("scale", "zero_point", ...) and header of each further stored tensor.
        options: What else the decoder must know, as (key, value) pairs.
    """

    name: str
    encoding: str
    header: TensorHeader
    shape: tuple[int, ...]
    companions: tuple[tuple[str, TensorHeader], ...] = ()
    options: tuple[tuple[str, Option], ...] = ()

    @property
    def ndim(self) -> int:
        """Number of axes of the decoded values."""
        return len(self.shape)

    @property
    def n_elements(self) -> int:
        """Number of decoded values."""
        count = 1
        for length in self.shape:
            count *= length
        return count

    @property
    def parts(self) -> tuple[tuple[str, TensorHeader], ...]:
        """Every stored tensor that is read, the codes first."""
        return ((WEIGHT, self.header), *self.companions)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        total = self.header.nbytes
        for _role, header in self.companions:
            total += header.nbytes
        return total

    def option(self, key: str) -> Option:
        """Return one option.

        Raises:
            KeyError: it was not set.
        """
        return dict(self.options)[key]


def is_cut_with_experts(role: str, header: TensorHeader, tensor: StoredTensor) -> bool:
    """A stored part has the first axis of the decoded tensor, so both can be cut alike.

    Args:
        role: Role of the part; one-dimensional parts other than scales and zero points describe
            the whole tensor, whatever their length.
        header: The part.
        tensor: The tensor it belongs to.
    """
    if tensor.ndim < 3 or header.n_elements == 1 or header.shape[0] != tensor.shape[0]:
        return False
    return header.ndim > 1 or "scale" in role or role in {"zero_point", "divisor", "multiplier"}


class RefusalKind(StrEnum):
    """Why an encoded tensor cannot be decoded; also reasons of the unmatched table."""

    MISSING_COMPANION = "missing_companion"
    BAD_COMPANION = "bad_companion"
    UNKNOWN_DTYPE = "unknown_dtype"
    AMBIGUOUS_ENCODING = "ambiguous_encoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingRefusal:
    """An encoded tensor that must not be measured.

    Attributes:
        name: Logical name as far as known; else the stored name.
        header: The stored tensor that holds the codes.
        kind: Why.
        cause: What is wrong; names the tensor's and the companion's names and shapes.
        companions: Stored companions that were found, so that they count as explained.
    """

    name: str
    header: TensorHeader
    kind: RefusalKind
    cause: str
    companions: tuple[TensorHeader, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingContext:
    """What a decoder may ask about the rest of the checkpoint while a plan is made.

    Attributes:
        by_name: Every stored tensor that counts, by name, over all scanned shards.
        quantization: The quantisation block of config.json (`quantization_config`, `quantization`,
            or that of hf_quant_config.json), as JSON; empty when there is none.
        read_metadata: Reads the whole content of a small companion that describes others (a packed
            shape, a JSON state), never weights or scales; None for one too large to be that.
        hidden_sizes: Widths that expert matrices have by config.json, to settle what shapes leave
            open.
    """

    by_name: Mapping[str, TensorHeader]
    quantization: Mapping[str, object]
    read_metadata: Callable[[TensorHeader], bytes | None]
    hidden_sizes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """All stored tensors, each in exactly one place.

    Attributes:
        tensors: Tensors with float values, in the order of their codes.
        refusals: Encoded tensors that must not be measured.
        companions: Names of stored tensors that another one explains, to that one's name.
        others: The rest: integers, unknown dtypes.
        templates: The name of each stored tensor without its ids, in scan order; may be left out.
    """

    tensors: tuple[StoredTensor, ...]
    refusals: tuple[EncodingRefusal, ...]
    companions: dict[str, str]
    others: tuple[TensorHeader, ...]
    templates: tuple[str, ...] = ()
