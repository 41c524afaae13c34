"""Which stored axis means layer, expert, row and column, and where each matrix then lies.

A matrix of a tensor is described by its place among the stored elements: a first element and two
strides. Transposes, expert axes, fused halves and interleaved rows are all of this form, so a plan
needs no weights, and reading a matrix needs no knowledge of its layout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from moe_weights.errors import LayoutError

# A checkpoint has 100 000 tensors and a handful of shapes.
_CACHED_PLACES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixView:
    """Place of one matrix among the stored elements of a tensor.

    Attributes:
        offset: Element (0, 0), counted in elements from the tensor's first.
        rows: Output features.
        cols: Input features.
        row_stride: Elements from (r, c) to (r + 1, c).
        col_stride: Elements from (r, c) to (r, c + 1).
    """

    offset: int
    rows: int
    cols: int
    row_stride: int
    col_stride: int

    @property
    def stop(self) -> int:
        """One past the last stored element that belongs to the matrix."""
        return (
            self.offset + (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
        )

    def shifted(self, by: int) -> MatrixView:
        """Return the same matrix counted from another first element."""
        return replace(self, offset=self.offset + by)


@dataclass(frozen=True, slots=True, kw_only=True)
class BankView:
    """Place of a whole bank (L, E, R, C) among the stored elements of a tensor.

    Attributes:
        offset: Element (0, 0, 0, 0), counted in elements from the tensor's first.
        lengths: (L, E, R, C); an axis that the tensor lacks has length 1.
        strides: Elements between neighbours along each of the four axes.
        has_layer_axis: The tensor itself holds several layers.
        has_expert_axis: The tensor itself holds several experts.
    """

    offset: int
    lengths: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]
    has_layer_axis: bool
    has_expert_axis: bool

    def matrix(self, layer_index: int, expert_index: int) -> MatrixView:
        """Return the place of one (R, C) matrix of the bank."""
        return _matrix(self, layer_index, expert_index)

    def part(self, axis: str, start: int, length: int, step: int = 1) -> BankView:
        """Return the bank cut to some rows or columns.

        Args:
            axis: "rows" or "cols", after canonicalisation.
            start: First row or column kept.
            length: How many are kept.
            step: Distance between neighbours that are kept; 2 takes every second one.
        """
        position = 2 if axis == "rows" else 3
        lengths, strides = list(self.lengths), list(self.strides)
        lengths[position] = length
        strides[position] *= step
        return replace(
            self,
            offset=self.offset + start * self.strides[position],
            lengths=(lengths[0], lengths[1], lengths[2], lengths[3]),
            strides=(strides[0], strides[1], strides[2], strides[3]),
        )


@lru_cache(maxsize=_CACHED_PLACES)
def _matrix(bank: BankView, layer_index: int, expert_index: int) -> MatrixView:
    return MatrixView(
        offset=bank.offset + layer_index * bank.strides[0] + expert_index * bank.strides[1],
        rows=bank.lengths[2],
        cols=bank.lengths[3],
        row_stride=bank.strides[2],
        col_stride=bank.strides[3],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The meaning of a stored tensor's axes.

    Attributes:
        rows_axis: Output features.
        cols_axis: Input features, along which quantisation groups run.
        expert_axis: Experts; None when a tensor holds one.
        layer_axis: Layers; None when a tensor holds one.
        stacked_experts_axis: `rows_axis` or `cols_axis` when the experts lie on it one after the
            other; None otherwise.
    """

    rows_axis: int
    cols_axis: int
    expert_axis: int | None = None
    layer_axis: int | None = None
    stacked_experts_axis: int | None = None

    @property
    def axes(self) -> tuple[int, ...]:
        """The stored axes in the order layer, expert, rows, cols, without the absent ones."""
        named = (self.layer_axis, self.expert_axis, self.rows_axis, self.cols_axis)
        return tuple(axis for axis in named if axis is not None)

    def view(
        self, shape: tuple[int, ...], *, fortran_order: bool = False, n_stacked: int | None = None
    ) -> BankView:
        """Return where the bank lies in a stored tensor of `shape`.

        Args:
            shape: Stored axis lengths.
            fortran_order: The first stored axis varies fastest, as some `.npz` members have it.
            n_stacked: How many experts lie on `stacked_experts_axis`.

        Raises:
            LayoutError: the named axes are not exactly the axes of the tensor, or the stacked
                experts cannot be told apart.
        """
        bank = _view(self, shape, fortran_order)
        return bank if self.stacked_experts_axis is None else _unstack(self, bank, n_stacked)


@lru_cache(maxsize=_CACHED_PLACES)
def _view(layout: Layout, shape: tuple[int, ...], fortran_order: bool) -> BankView:
    ndim = len(shape)
    if sorted(layout.axes) != list(range(ndim)):
        raise LayoutError(
            f"layout axes {list(layout.axes)} do not cover ndim={ndim}; name each of the "
            f"{ndim} axes of shape {list(shape)} once"
        )
    strides = _element_strides(shape, fortran_order=fortran_order)

    def length_and_stride(axis: int | None) -> tuple[int, int]:
        return (1, 0) if axis is None else (shape[axis], strides[axis])

    pairs = [
        length_and_stride(axis)
        for axis in (layout.layer_axis, layout.expert_axis, layout.rows_axis, layout.cols_axis)
    ]
    return BankView(
        offset=0,
        lengths=(pairs[0][0], pairs[1][0], pairs[2][0], pairs[3][0]),
        strides=(pairs[0][1], pairs[1][1], pairs[2][1], pairs[3][1]),
        has_layer_axis=layout.layer_axis is not None,
        has_expert_axis=layout.expert_axis is not None,
    )


def _unstack(layout: Layout, bank: BankView, n_stacked: int | None) -> BankView:
    if layout.expert_axis is not None:
        raise LayoutError("layout has both expert_axis and stacked_experts_axis; keep one")
    if n_stacked is None:
        raise LayoutError(
            "how many experts lie on stacked_experts_axis is unknown; give the rule expert_count"
        )
    position = 2 if layout.stacked_experts_axis == layout.rows_axis else 3
    length, remainder = divmod(bank.lengths[position], n_stacked)
    if remainder or not length:
        raise LayoutError(
            f"axis of length {bank.lengths[position]} does not hold {n_stacked} experts of one size"
        )
    lengths, strides = list(bank.lengths), list(bank.strides)
    lengths[1], lengths[position] = n_stacked, length
    strides[1] = length * strides[position]
    return replace(
        bank,
        lengths=(lengths[0], lengths[1], lengths[2], lengths[3]),
        strides=(strides[0], strides[1], strides[2], strides[3]),
        has_expert_axis=True,
    )


def _element_strides(shape: tuple[int, ...], *, fortran_order: bool) -> tuple[int, ...]:
    strides = []
    stride = 1
    for length in shape if fortran_order else reversed(shape):
        strides.append(stride)
        stride *= length
    return tuple(strides if fortran_order else reversed(strides))
