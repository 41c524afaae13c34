"""Sums that keep what rounding loses, as an unevaluated sum of two float64 numbers.

Source:
    Knuth, The Art of Computer Programming, vol. 2, section 4.2.2, theorem B (the error of a sum).
"""

from __future__ import annotations

from moe_weights.compiled import kernel


@kernel
def add_to(high: float, low: float, term: float) -> tuple[float, float]:  # pragma: no cover
    """Return (high, low) plus a term; `low` gathers the rounding errors of `high`."""
    total = high + term
    virtual = total - high
    error = (high - (total - virtual)) + (term - virtual)
    return total, low + error
