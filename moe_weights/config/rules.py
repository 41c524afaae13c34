"""What does an extraction rule say about the tensors it matches?"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Literal

from pydantic import Field

from moe_weights.config.field_types import (
    ConfigSection,
    NonEmptyStr,
    NonNegativeInt,
    PositiveInt,
    Regex,
)


class RuleLayout(ConfigSection):
    """Which stored axis is which; axes are counted from 0."""

    layer_axis: NonNegativeInt | None = Field(
        default=None, description="Stored axis that counts layers; null when there is none."
    )
    expert_axis: NonNegativeInt | None = Field(
        default=None, description="Stored axis that counts experts; null when there is none."
    )
    rows_axis: NonNegativeInt = Field(description="Stored axis of the output features (R).")
    cols_axis: NonNegativeInt = Field(
        description="Stored axis of the input features (C), along which groups run."
    )


class PackedSplitConfig(ConfigSection):
    """How a fused tensor falls into projections.

    Whether the sizes fit is decided against a tensor (`PackedSplitError`), not here.
    """

    axis: Literal["rows", "cols"] = Field(
        description="Canonical axis that is split, judged after the layout is applied."
    )
    splits: tuple[int, ...] = Field(
        description="Length of each slice in order, elements; together the whole axis."
    )
    projs: tuple[str, ...] = Field(
        description="Projection of each slice in order; aliases become canonical names."
    )


class ExtractRule(ConfigSection):
    """A regular expression on tensor names and the treatment of what it matches."""

    name: NonEmptyStr = Field(description="Name of the rule in warnings and tables; unique.")
    match: Regex = Field(
        description="Regular expression for the tensor name, anchored at its start only; "
        "add $ to anchor the end."
    )
    enabled: bool = Field(
        default=True,
        description="Whether the rule is used; a disabled one is checked all the same.",
    )
    ndim: PositiveInt | None = Field(
        default=None,
        description="Number of axes a tensor must have for the rule to apply; null for any.",
    )
    layout: RuleLayout = Field(description="Which stored axis is layer, expert, rows and cols.")
    proj_group: PositiveInt | None = Field(
        default=None,
        description="Capture group of match that holds the projection; null infers it.",
    )
    expert_group: PositiveInt | None = Field(
        default=None,
        description="Capture group of match that holds the expert id; null uses "
        "parsing.expert_regex.",
    )
    packed_split: PackedSplitConfig | None = Field(
        default=None,
        description="How to split a tensor that holds several projections; null when it holds one.",
    )

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """`match`, compiled; use its `match` method."""
        return re.compile(self.match)
