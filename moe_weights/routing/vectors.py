"""How does a row of numbers from any framework become a plain list?

Tensors are recognised by what they can do (`detach`, `cpu`, `tolist`), so that no framework is
imported.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Protocol, TypeAlias

from moe_weights.errors import InvalidDataError
from moe_weights.routing.issues import VectorError


class TensorLike(Protocol):
    """What a tensor of any framework has; `detach` and `cpu` are used where they exist."""

    def tolist(self) -> Any:
        """Return the values as nested lists."""
        ...


Vector: TypeAlias = "Sequence[float] | TensorLike"


def to_floats(values: Vector, name: str) -> list[float]:
    """Return values as a list of finite floats.

    Args:
        values: Shape (N,), N ≥ 1, any float or integer dtype: a sequence of numbers, or a tensor.
        name: How messages call them.

    Raises:
        VectorError: texts, nested sequences or scalars.
        InvalidDataError: no values, or one that is not finite.
    """
    floats = []
    for position, value in enumerate(_to_sequence(values, name)):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _not_one_row(name, f"item {position} is {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise InvalidDataError(f"{name}[{position}] is {number}; all values must be finite")
        floats.append(number)
    if not floats:
        raise InvalidDataError(f"{name} must not be empty; give one number per expert")
    return floats


def to_indices(values: Vector, name: str) -> list[int]:
    """Return values as a list of integers; see `to_floats` for what is refused.

    Raises:
        VectorError: not one row of integers.
    """
    indices = []
    for position, value in enumerate(_to_sequence(values, name)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise _not_one_row(name, f"item {position} is {type(value).__name__}")
        indices.append(operator.index(value))
    return indices


def _to_sequence(values: Any, name: str) -> Sequence[Any]:
    if isinstance(values, str | bytes | bytearray):
        raise _not_one_row(name, f"got {type(values).__name__}")
    for step in ("detach", "cpu", "tolist"):
        method = getattr(values, step, None)
        if callable(method):
            values = method()
    if isinstance(values, str | bytes | bytearray) or not isinstance(values, Sequence):
        raise _not_one_row(name, f"got {type(values).__name__}")
    return values


def _not_one_row(name: str, found: str) -> VectorError:
    return VectorError(
        f"{name} must be a 1D sequence of numbers, one per expert; {found}; "
        "take one token's row of a batch"
    )
