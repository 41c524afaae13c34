"""How do the lanes of vectors become single numbers: their sum, the least, the largest?

The order in which lanes are added is fixed here: neighbours first, then those two apart, four and
eight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types

from moe_weights.quantize.native_lanes import (
    BITS,
    DOUBLES,
    FLOATS,
    HALVES,
    LANES,
    Vector,
    lane_operation,
    lane_operations,
)
from moe_weights.quantize.native_vectors import BYTES, larger, place_of

_INDEX = types.intp
_I32 = ir.IntType(32)


def _lower(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def _higher(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


@lane_operations((HALVES, HALVES, HALVES), (BITS, BITS, BITS))
def lower(builder: Any, a: Any, b: Any) -> Any:
    """Return the smaller of signed integers."""
    return _lower(builder, a, b)


@lane_operations((HALVES, HALVES, HALVES), (BITS, BITS, BITS))
def higher(builder: Any, a: Any, b: Any) -> Any:
    """Return the larger of signed integers."""
    return _higher(builder, a, b)


def _fold_each(
    builder: Any, vectors: Sequence[Any], combine: Callable[[Any, Any, Any], Any]
) -> Any:
    """Combine the lanes of 1, 2, 4, 8 or 16 vectors each; lane i of the result is that of vector i.

    Neighbours are combined first, then those two apart, four and eight. Of two vectors both fit
    into one: what lanes i and i + step of the first give stays in lane i, of the second in lane
    i + step. So sixteen vectors need fifteen steps and not four each.
    """
    kind = ir.VectorType(_I32, LANES)
    step = 1
    while step < LANES:
        here = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        there = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        orders = [ir.Constant(kind, order) for order in (here, there)]
        if len(vectors) == 1:
            vectors = [*vectors, *vectors]
        vectors = [
            combine(builder, *(builder.shuffle_vector(one, two, order) for order in orders))
            for one, two in zip(vectors[::2], vectors[1::2], strict=True)
        ]
        step *= 2
    return vectors[0]


def _rows(builder: Any, data: Any, index: Any, vector: Vector) -> list[Any]:
    """Return sixteen vectors that lie one behind the other, the first numbered `index`."""
    width = vector.in_llvm.element.width // 8
    first = builder.mul(index, ir.Constant(index.type, LANES * LANES))
    return [
        builder.load(
            place_of(
                builder,
                data,
                builder.add(first, ir.Constant(index.type, row * LANES)),
                width,
                vector.in_llvm,
            ),
            align=1,
            typ=vector.in_llvm,
        )
        for row in range(LANES)
    ]


@lane_operation(HALVES, BYTES, _INDEX)
def lowest_halves(builder: Any, data: Any, index: Any) -> Any:
    """Return the least lane of each of sixteen vectors."""
    return _fold_each(builder, _rows(builder, data, index, HALVES), _lower)


@lane_operation(HALVES, BYTES, _INDEX)
def highest_halves(builder: Any, data: Any, index: Any) -> Any:
    """Return the largest lane of each of sixteen vectors."""
    return _fold_each(builder, _rows(builder, data, index, HALVES), _higher)


@lane_operation(BITS, BYTES, _INDEX)
def lowest_words(builder: Any, data: Any, index: Any) -> Any:
    """Return the least lane of each of sixteen vectors."""
    return _fold_each(builder, _rows(builder, data, index, BITS), _lower)


@lane_operation(BITS, BYTES, _INDEX)
def highest_words(builder: Any, data: Any, index: Any) -> Any:
    """Return the largest lane of each of sixteen vectors."""
    return _fold_each(builder, _rows(builder, data, index, BITS), _higher)


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


@lane_operation(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS)
def largest_of_each(builder: Any, *lanes: Any) -> Any:
    """Return the largest lanes of four vectors in lanes 0 to 3."""
    return _fold_each(builder, lanes, larger)


@lane_operation(DOUBLES, DOUBLES, DOUBLES, DOUBLES, DOUBLES)
def totals(builder: Any, *lanes: Any) -> Any:
    """Return the sums of four vectors in lanes 0 to 3."""
    return _fold_each(builder, lanes, _add)


@lane_operation(types.float64, DOUBLES)
def total(builder: Any, lanes: Any) -> Any:
    """Return the sum of the lanes, added in the order of `totals`."""
    return builder.extract_element(_fold_each(builder, [lanes], _add), ir.Constant(_I32, 0))


@lane_operation(types.float64, DOUBLES)
def largest(builder: Any, lanes: Any) -> Any:
    """Return the largest of the lanes."""
    return builder.extract_element(_fold_each(builder, [lanes], larger), ir.Constant(_I32, 0))


@lane_operations((types.float32, FLOATS, types.int64), (types.float64, DOUBLES, types.int64))
def lane(builder: Any, lanes: Any, number: Any) -> Any:
    """Return one lane."""
    return builder.extract_element(lanes, number)
