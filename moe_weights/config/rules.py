"""What does an extraction rule say about the tensors it matches?"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    stacked_experts_axis: NonNegativeInt | None = Field(
        default=None,
        description="rows_axis or cols_axis, when the experts of a layer lie on it one after the "
        "other (E times the length of one); null otherwise.",
    )


class PackedSplitConfig(ConfigSection):
    """How a fused tensor falls into projections.

    Whether the sizes fit is decided against a tensor (`PackedSplitError`), not here.
    """

    axis: Literal["rows", "cols"] = Field(
        description="Canonical axis that is split, judged after the layout is applied."
    )
    splits: tuple[int, ...] | None = Field(
        default=None,
        description="Length of each slice in order, elements; together the whole axis. Null for "
        "equal slices.",
    )
    interleaved: bool = Field(
        default=False,
        description="The slices alternate element by element (row 0 first, row 1 second, ...) "
        "instead of lying one after the other; they are then equally long.",
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
    proj: NonEmptyStr | None = Field(
        default=None, description="Projection of every tensor that matches; null infers it."
    )
    proj_map: Mapping[str, NonEmptyStr] = Field(
        default={},
        description="What the token captured by proj_group means, where parsing.proj_aliases "
        'would not know or would say otherwise, such as {"fc1": "gate_proj"}.',
    )
    layer_group: PositiveInt | None = Field(
        default=None,
        description="Capture group of match that holds the layer id; null uses "
        "parsing.layer_regex.",
    )
    expert_count: PositiveInt | None = Field(
        default=None,
        description="How many experts lie on layout.stacked_experts_axis; null takes the count of "
        "the model's config.json.",
    )
    stack: NonEmptyStr | None = Field(
        default=None,
        description="Stack of layers the tensors belong to, such as encoder, decoder or mtp; null "
        "tells it from the name.",
    )
    stack_group: PositiveInt | None = Field(
        default=None,
        description="Capture group of match that holds the stack; null tells it from the name.",
    )
    is_shared_expert: bool | None = Field(
        default=None,
        description="Whether the tensors belong to shared experts; null uses "
        "parsing.shared_expert_keywords.",
    )
    encodings: tuple[NonEmptyStr, ...] | None = Field(
        default=None,
        description="Encodings the rule applies to, such as plain or mxfp4; null for all.",
    )
    packed_split: PackedSplitConfig | None = Field(
        default=None,
        description="How to split a tensor that holds several projections; null when it holds one.",
    )

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """`match`, compiled; use its `match` method."""
        return re.compile(self.match)


class LookAlike(ConfigSection):
    """Tensors that look like expert weights and are something else."""

    match: Regex = Field(
        description="Regular expression for the tensor name, anchored at its start only."
    )
    kind: NonEmptyStr = Field(
        description="What the tensors are, for the coverage ledger, such as router or attention."
    )

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """`match`, compiled; use its `match` method."""
        return re.compile(self.match)
