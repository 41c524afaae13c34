"""How a fused axis falls into the parts of several projections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from moe_weights.errors import PackedSplitError


class Sliceable(Protocol):
    """Anything with a shape that basic slicing cuts, such as a NumPy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths."""

    def __getitem__(self, index: Any, /) -> Any:
        """Cut by a tuple of slices."""


ArrayT = TypeVar("ArrayT", bound=Sliceable)


def equal_sizes(length: int, n_parts: int) -> list[int]:
    """Return the sizes of equally long parts.

    Raises:
        PackedSplitError: the axis cannot be divided equally.
    """
    size, remainder = divmod(length, n_parts)
    if remainder or not size:
        raise PackedSplitError(f"an axis of {length} cannot be divided into {n_parts} equal parts")
    return [size] * n_parts


def split_bounds(length: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return (start, stop) of consecutive parts that fill an axis exactly.

    Args:
        length: Length of the fused axis, elements.
        sizes: Length of each part, elements.

    Raises:
        PackedSplitError: no sizes, a size that is no positive integer, a sum other than `length`.
    """
    if not sizes:
        raise PackedSplitError("splits is empty; give one size per projection")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise PackedSplitError(f"split size {size!r} is not an integer")
        if size <= 0:
            raise PackedSplitError(f"split size {size} is not positive")
    total = sum(sizes)
    if total != length:
        raise PackedSplitError(f"splits {list(sizes)} sum to {total}, the axis has {length}")
    bounds = []
    start = 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds


def split_along_axis(array: ArrayT, axis: int, sizes: Sequence[int]) -> list[ArrayT]:
    """Cut an array along one axis into consecutive parts.

    Args:
        array: Any array with a shape; not modified.
        axis: Axis number; negative counts from the end.
        sizes: Length of each part along `axis`, elements.

    Returns:
        One view per size, in order; concatenated along `axis` they are `array` again.

    Raises:
        PackedSplitError: the axis is no integer or out of range, or see `split_bounds`.
    """
    ndim = len(array.shape)
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise PackedSplitError(f"axis {axis!r} is not an integer")
    if not -ndim <= axis < ndim:
        raise PackedSplitError(f"axis {axis} is out of range for an array of {ndim} axes")
    axis %= ndim
    before = (slice(None),) * axis
    return [
        array[(*before, slice(start, stop))]
        for start, stop in split_bounds(array.shape[axis], sizes)
    ]
