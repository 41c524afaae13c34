"""Which sizes must the axes of expert weights show?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertDimensions:
    """Sizes against which the axes of expert weights are checked.

    Attributes:
        hidden_size: Width that experts read and write, elements; None when unknown.
        expert_widths: Inner widths that an expert may have, elements; empty when unknown.
        n_experts: Routed experts per layer; None when unknown.
    """

    hidden_size: int | None
    expert_widths: tuple[int, ...]
    n_experts: int | None
