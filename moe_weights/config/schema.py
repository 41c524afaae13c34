"""What can be said in `analysis_config.json`, and what holds when a key is absent?

The rules of `extract_rules` stand in `rules`. Sequences are tuples, nothing can be changed after
loading, and every part can be pickled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from pydantic import Field

from moe_weights.config.field_types import (
    ConfigSection,
    FileSuffixes,
    NonEmptyStr,
    NonNegativeFloat,
    NonNegativeInt,
    Percentile,
    PositiveInt,
    RegexWithGroup,
)
from moe_weights.config.rules import ExtractRule, LookAlike


class ScanConfig(ConfigSection):
    """Which files and tensors are looked at."""

    extensions: FileSuffixes = Field(
        default=(".safetensors", ".npz"),
        description="File suffixes that count as shards, case-sensitive.",
    )
    experts_only: bool = Field(
        default=True, description="Extract only tensors that look like expert weights."
    )
    include_shared_expert: bool = Field(
        default=True, description="Extract shared experts too; only asked under experts_only."
    )
    inventory_all_tensors: bool = Field(
        default=True,
        description="Inventory every tensor, also non-float ones; false keeps those that pass the "
        "expert filter.",
    )
    use_safetensors_index_json: bool = Field(
        default=True, description="Scan only the shards that an index file names, if there is one."
    )
    strict_index: bool = Field(
        default=False,
        description="End the run when the index is absent, broken or names a missing shard.",
    )
    strict_coverage: bool = Field(
        default=False,
        description="End the run (exit 4) when the coverage ledger is not complete.",
    )
    max_files: PositiveInt | None = Field(
        default=None, description="Scan at most this many shards; null for all."
    )


class ParsingConfig(ConfigSection):
    """How tensor names are read."""

    preset: NonEmptyStr | None = Field(
        default="auto",
        description='Rules for a known architecture: "auto" chooses by config.json, a name as '
        "`moe-weights presets` lists them, null for none.",
    )
    lookalikes: tuple[LookAlike, ...] = Field(
        default=(),
        description="Tensors that are no expert weights although their names say so; never "
        "measured, named in the coverage ledger.",
    )
    layer_regex: RegexWithGroup = Field(
        description="Regular expression searched in tensor names; its first capture group is the "
        "layer."
    )
    expert_regex: RegexWithGroup = Field(
        description="Regular expression searched in tensor names; its first capture group is the "
        "expert id."
    )
    proj_aliases: Mapping[str, tuple[NonEmptyStr, ...]] = Field(
        description="Canonical projection names and the aliases that mean them; the first hit in "
        "this order wins."
    )
    expert_keywords: tuple[NonEmptyStr, ...] = Field(
        default=("experts", "switch_mlp"),
        description="A tensor whose name contains one of these, in any case, looks like an expert.",
    )
    shared_expert_keywords: tuple[NonEmptyStr, ...] = Field(
        default=("shared", "expert"),
        description="A tensor whose name contains all of these, in any case, belongs to a shared "
        "expert.",
    )
    strict_packed_split: bool = Field(
        default=True,
        description="A packed_split that does not fit ends the run; false warns and falls back.",
    )
    proj_group_strict: bool = Field(
        default=False,
        description="Drop tensors whose proj_group token is no known alias; false keeps the token.",
    )
    npz_void16: Literal["refuse", "bfloat16"] = Field(
        default="refuse",
        description="What 2-byte void arrays in .npz files are: refused, or read as bfloat16.",
    )

    @cached_property
    def layer_pattern(self) -> re.Pattern[str]:
        """`layer_regex`, compiled; use its `search` method, group 1."""
        return re.compile(self.layer_regex)

    @cached_property
    def expert_pattern(self) -> re.Pattern[str]:
        """`expert_regex`, compiled; use its `search` method, group 1."""
        return re.compile(self.expert_regex)


class MetadataConfig(ConfigSection):
    """Whether the model's own config.json is read."""

    enabled: bool = Field(
        default=False, description="Read the model's config.json and write the metadata logs."
    )
    mode: str = Field(default="validate", description="Reserved; changes nothing.")
    config_path: NonEmptyStr | None = Field(
        default=None,
        description="The config.json to read, relative to model_path; null searches for it.",
    )


class MlxConfig(ConfigSection):
    """Whether and where quantisation is simulated."""

    enabled: bool = Field(default=True, description="Simulate the enabled quant_schemes.")
    device: Literal["cpu", "gpu"] = Field(
        default="cpu", description="MLX device the simulation runs on."
    )
    backend: Literal["auto", "mlx", "native"] = Field(
        default="auto",
        description='What quantises: "auto" takes native kernels where they equal the installed '
        'MLX bit for bit at the start of the run, else MLX; "mlx" always MLX; "native" needs no '
        "MLX and is compared with none.",
    )


class StatsConfig(ConfigSection):
    """Which numbers are measured."""

    eps: NonNegativeFloat = Field(
        description="Added to the denominators of ratios, in units of the weights."
    )
    sample_per_matrix: PositiveInt | None = Field(
        default=None,
        description="Elements sampled per matrix for percentiles; null uses all of them (exact).",
    )
    sample_seed: NonNegativeInt = Field(
        default=1337, description="Seed of the sample; unused when sample_per_matrix is null."
    )
    percentiles_abs: tuple[Percentile, ...] = Field(
        default=(50.0, 99.0, 99.9),
        description="Percentiles of |w|, 0 to 100; p50, p99 and p99.9 are always written.",
    )
    group_outlier_percentile: Percentile = Field(
        default=95.0, description="Percentile of the group outlier ratios, 0 to 100."
    )
    group_sizes_lastdim: tuple[int, ...] = Field(
        default=(32, 64),
        description="Group sizes for outlier ratios, consecutive columns; a size that does not "
        "divide the columns gives nulls.",
    )
    metrics: tuple[NonEmptyStr, ...] | None = Field(
        default=None,
        description="Additive columns of matrix_stats and quant_sim to write; null for all. The "
        "columns that the summary tables need are always written.",
    )


class QuantScheme(ConfigSection):
    """A way to quantise; one that MLX refuses gives rows with an error, not a config problem."""

    name: NonEmptyStr = Field(description="Name of the scheme in tables; unique.")
    mode: NonEmptyStr = Field(description="MLX mode: affine, mxfp4, mxfp8 or nvfp4.")
    bits: PositiveInt = Field(default=4, description="Bits per weight.")
    group_size: PositiveInt = Field(
        default=32, description="Consecutive columns that share a scale."
    )
    enabled: bool = Field(default=True, description="Whether the scheme is simulated.")


class DeltaPair(ConfigSection):
    """Two schemes whose errors are subtracted; an unknown scheme gives null deltas."""

    name: NonEmptyStr = Field(description="Name of the pair in B_quant_deltas; unique.")
    a: NonEmptyStr = Field(description="Scheme whose error is taken.")
    b: NonEmptyStr = Field(description="Scheme whose error is subtracted.")


class OutputConfig(ConfigSection):
    """How tables are written."""

    format: Literal["parquet", "csv"] = Field(
        default="parquet", description="Preferred table format; parquet falls back to csv."
    )
    compression: str | None = Field(
        default=None,
        description="Parquet codec, null for none; one that cannot be used leads to csv.",
    )


class DebugConfig(ConfigSection):
    """Extra artifacts and progress."""

    dump_unmatched_tensors: bool = Field(
        default=True, description="Write data/unmatched_tensors with a reason for each."
    )
    print_progress_every_files: NonNegativeInt = Field(
        default=1, description="Print progress after this many shards; 0 for never."
    )


class AnalysisConfig(ConfigSection):
    """Everything that a run is told."""

    schema_reference: str | None = Field(
        default=None,
        alias="$schema",
        exclude=True,  # says nothing about the run, so it must not change what identifies one
        description="JSON Schema of this file, for editors; ignored by the toolkit.",
    )
    model_path: str = Field(
        description="Model directory, or a single shard; --model-path overrides it."
    )
    scan: ScanConfig = Field(description="Which files and tensors are looked at.")
    parsing: ParsingConfig = Field(description="How tensor names are read.")
    metadata: MetadataConfig = Field(
        default=MetadataConfig(), description="Whether the model's own config.json is read."
    )
    extract_rules: tuple[ExtractRule, ...] = Field(
        default=(),
        description="Rules tried in order; the first that matches name and ndim decides.",
    )
    mlx: MlxConfig = Field(
        default=MlxConfig(), description="Whether and where quantisation is simulated."
    )
    stats: StatsConfig = Field(description="Which numbers are measured.")
    quant_schemes: tuple[QuantScheme, ...] = Field(
        default=(), description="Quantisation schemes to simulate, in table order."
    )
    delta_pairs: tuple[DeltaPair, ...] = Field(
        default=(), description="Pairs of schemes that B_quant_deltas compares (a - b)."
    )
    output: OutputConfig = Field(default=OutputConfig(), description="How tables are written.")
    debug: DebugConfig = Field(default=DebugConfig(), description="Extra artifacts and progress.")
