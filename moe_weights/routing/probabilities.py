"""Which numbers describe a router's choice: probabilities, their order, entropy, margin.

All in float64 and in plain Python: a router's row is short, and a capture must not need NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

TOLERANCE = 1e-6  # absolute; the format's own, far above what float64 loses in a sum of 1000 terms

# Distance of 1 to the next number of a dtype, relative: IEEE 754, and bfloat16 with its 8 bits.
EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax of `logits`, (N,) float64; sums to 1."""
    largest = float(max(logits))
    powers = [math.exp(float(logit) - largest) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """Return 1 / (1 + exp(-x)) of each logit, (N,) float64."""
    return [_sigmoid(logit) for logit in logits]


def rank_experts(scores: Sequence[float], count: int) -> list[int]:
    """Return the `count` best experts by score descending, by index ascending among equals."""
    return sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))[:count]


def entropy_nats(probabilities: Sequence[float]) -> float:
    """Return -sum p ln p, in nats, at least 0."""
    return max(0.0, -math.fsum([p * math.log(p) for p in probabilities if p > 0.0]))


def normalized_entropy(entropy: float, n_experts: int) -> float:
    """Return entropy / ln N in [0, 1], dimensionless; 0 for one expert.

    Rounding makes the quotient of a uniform router exceed 1 by 2e-16 for most N, so it is clamped.
    """
    return min(1.0, entropy / math.log(n_experts)) if n_experts > 1 else 0.0


def top_margin(chosen: Sequence[float]) -> float:
    """Return the largest minus the second largest, in [0, 1]; the largest when there is one."""
    first, *rest = sorted(chosen, reverse=True)
    return min(1.0, max(0.0, first - rest[0])) if rest else first


def is_close(left: float, right: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two numbers differ by no more than the tolerance, absolute."""
    try:
        return abs(left - right) <= tolerance
    except OverflowError:  # integers whose difference is beyond the largest float
        return False


def total(values: Sequence[float]) -> float:
    """Return the exact sum, rounded once; infinite when it is beyond the largest float."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _sigmoid(logit: float) -> float:
    if logit >= 0.0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)
