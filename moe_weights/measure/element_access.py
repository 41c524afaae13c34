"""How kernels read single elements and words where Numba's own indexing costs too much.

Numba checks each index for being negative; and it cannot read words that are not aligned.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from moe_weights.measure.vector_lanes import (
    address_of,
    cgutils,
    is_flat_array,
    is_row,
    types,
    vector_code,
)


@vector_code
def load_word(_context: Any, row: Any, offset: Any) -> Any:  # pragma: no cover
    """Return eight bytes of a contiguous array, little-endian, from any byte offset on."""
    signature = types.uint64(row, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, offset = arguments
        first = address_of(context, builder, signature.args[0], array, offset.type(0))
        place = builder.gep(first, [offset])
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return signature, generate


@vector_code
def tally(_context: Any, row: Any, start: Any, length: Any, counts: Any) -> Any:  # pragma: no cover
    """Count the patterns of some elements of a row.

    Args:
        row: (C,) bits, contiguous.
        start: First element.
        length: How many.
        counts: (65536,) uint32 for 16-bit patterns; uint64 for those of float32, to which
            1 << 40 | low 16 bits are added by the high 16 bits; int64: nothing is counted.
    """
    if not (is_row(row) and is_flat_array(counts)):
        return None
    signature = types.void(row, types.intp, types.intp, counts)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_array, start, length, count_array = arguments
        element, counter = signature.args[0].dtype, signature.args[3].dtype
        if counter is types.int64:
            return context.get_dummy_value()
        stored, total = ir.IntType(element.bitwidth), ir.IntType(counter.bitwidth)
        first = address_of(context, builder, signature.args[0], row_array, start)
        patterns = builder.bitcast(first, stored.as_pointer())
        zero = start.type(0)
        totals = address_of(context, builder, signature.args[3], count_array, zero)
        totals = builder.bitcast(totals, total.as_pointer())

        def count(pattern: Any) -> None:
            term, place = total(1), pattern
            if element is types.uint32:
                low = builder.zext(builder.and_(pattern, stored(0xFFFF)), total)
                term = builder.or_(low, total(1 << 40))
                place = builder.lshr(pattern, stored(16))
            address = builder.gep(totals, [builder.zext(place, ir.IntType(64))])
            builder.store(builder.add(builder.load(address), term), address)

        def load(index: Any, step: int) -> Any:
            return builder.load(builder.gep(patterns, [builder.add(index, index.type(step))]))

        fours = builder.lshr(length, length.type(2))
        with cgutils.for_range(builder, fours) as loop:
            index = builder.shl(loop.index, loop.index.type(2))
            # Four loads before four stores: a store is no reason to wait for the next pattern.
            for pattern in [load(index, step) for step in range(4)]:
                count(pattern)
        with cgutils.for_range(builder, builder.and_(length, length.type(3))) as loop:
            rest = builder.add(loop.index, builder.shl(fours, fours.type(2)))
            count(load(rest, 0))
        return context.get_dummy_value()

    return signature, generate
