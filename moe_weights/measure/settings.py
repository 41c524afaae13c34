"""What `stats` in the config asks of every matrix, in a form that workers can be handed."""

from __future__ import annotations

from dataclasses import dataclass

# The three percentiles that are always there, by the seed's column names.
FIXED_PERCENTILES = {"p50_abs": 50.0, "p99_abs": 99.0, "p999_abs": 99.9}

# Columns beyond the contract's, in their order; `stats.metrics` chooses among them.
ADDITIVE_METRICS = (
    "kurtosis",
    "crest",
    "aimer",
    "n_zero",
    "n_denormal",
    "n_nan",
    "n_inf",
    "n_distinct",
    "row_norm_cv",
    "row_norm_max_over_median",
    "col_norm_cv",
    "col_norm_max_over_median",
    "frobenius",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureSettings:
    """How a matrix is measured.

    Attributes:
        eps: Added to denominators of ratios; unit: that of the weights.
        percentiles_abs: Percentiles of |w| wanted beside the three fixed ones; 0 to 100.
        group_outlier_percentile: Percentile of the group ratios; 0 to 100.
        group_sizes: Lengths of groups of consecutive columns, elements.
        sample_per_matrix: Elements drawn for percentiles; None means all (exact).
        sample_seed: Seed of the draw.
        metrics: Which of ADDITIVE_METRICS are written; None means all.
    """

    eps: float
    percentiles_abs: tuple[float, ...]
    group_outlier_percentile: float
    group_sizes: tuple[int, ...]
    sample_per_matrix: int | None
    sample_seed: int
    metrics: frozenset[str] | None = None


def percentile_text(percentile: float) -> str:
    """Return a percentile as it stands in column names: 95, 99_9, 12_5."""
    if percentile == int(percentile):
        return str(int(percentile))
    return repr(float(percentile)).replace(".", "_")


def percentiles_by_column(settings: MeasureSettings) -> dict[str, float]:
    """Return all percentiles of |w| that are wanted, the fixed ones first."""
    return FIXED_PERCENTILES | extra_percentile_columns(settings.percentiles_abs)


def extra_percentile_columns(percentiles: tuple[float, ...]) -> dict[str, float]:
    """Return the columns for percentiles beyond the three fixed ones, in the order given."""
    fixed = set(FIXED_PERCENTILES.values())
    return {
        f"p{percentile_text(percentile)}_abs": percentile
        for percentile in percentiles
        if percentile not in fixed
    }
