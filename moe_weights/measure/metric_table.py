"""The metric columns of a matrix: names, types, units and formulas, in their order."""

from __future__ import annotations

from functools import lru_cache

from moe_weights.columns import Column
from moe_weights.measure.settings import (
    ADDITIVE_METRICS,
    MeasureSettings,
    extra_percentile_columns,
    percentile_text,
)

_UNIT = "weight"


@lru_cache(maxsize=8)  # asked for with every matrix
def metric_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """The fixed metrics, group ratios, further percentiles, then the additive ones chosen."""
    chosen = settings.metrics
    additive = additive_columns()
    return (
        *magnitude_columns(),
        *group_outlier_columns(settings),
        *percentile_columns(settings),
        *(additive[name] for name in ADDITIVE_METRICS if chosen is None or name in chosen),
    )


def magnitude_columns() -> tuple[Column, ...]:
    """The eleven fixed metrics, in contract order."""
    return (
        Column("mean", "float64", "mean of w", _UNIT),
        Column("std", "float64", "population standard deviation, sqrt(mean((w - mean)^2))", _UNIT),
        Column("mean_abs", "float64", "mean of |w|", _UNIT),
        Column("rms", "float64", "sqrt(mean(w^2))", _UNIT),
        Column("max_abs", "float64", "max |w|", _UNIT),
        Column("p50_abs", "float64", "median of |w|, linear interpolation", _UNIT),
        Column("p99_abs", "float64", "99th percentile of |w|, linear interpolation", _UNIT),
        Column("p999_abs", "float64", "99.9th percentile of |w|, linear interpolation", _UNIT),
        Column("outlier_max_over_mean", "float64", "max_abs / (mean_abs + eps)", "relative"),
        Column("outlier_p99_over_median", "float64", "p99_abs / (p50_abs + eps)", "relative"),
        Column("outlier_p999_over_median", "float64", "p999_abs / (p50_abs + eps)", "relative"),
    )


def group_outlier_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """Two columns per group size: a percentile of the ratios, and the largest ratio."""
    columns = []
    for size in settings.group_sizes:
        percentile_name, max_name = group_outlier_names(size, settings)
        ratio_text = f"max|w| / (mean|w| + eps) over groups of {size} consecutive columns"
        null_text = (
            f"null when C is not divisible by {size} or a denominator is 0; also when one is below "
            "1e-286 in float64 weights that reach 1e240"
        )
        columns.append(
            Column(
                percentile_name,
                "float64",
                f"{settings.group_outlier_percentile}th percentile of {ratio_text}; {null_text}",
                "relative",
            )
        )
        columns.append(
            Column(
                max_name,
                "float64",
                f"largest {ratio_text}; {null_text}",
                "relative",
            )
        )
    return tuple(columns)


def group_outlier_names(size: int, settings: MeasureSettings) -> tuple[str, str]:
    """Return the names of the two columns of a group size."""
    percentile = percentile_text(settings.group_outlier_percentile)
    return f"g{size}_p{percentile}_outlier", f"g{size}_max_outlier"


def percentile_columns(settings: MeasureSettings) -> tuple[Column, ...]:
    """Further percentiles of `stats.percentiles_abs`."""
    return tuple(
        Column(name, "float64", f"{percentile}th percentile of |w|, linear interpolation", _UNIT)
        for name, percentile in extra_percentile_columns(settings.percentiles_abs).items()
    )


def additive_columns() -> dict[str, Column]:
    """The columns of ADDITIVE_METRICS by name; n is R * C.

    Source:
        kurtosis: "KurtBoost", arXiv 2503.06518; crest: peak over effective value, as in signal
        processing; aimer: arXiv 2603.18492; norms of rows and columns: per-channel quantisation
        schemes, where they show dead neurons.
    """
    cv = "population standard deviation / mean of the {} norms; null when the mean is 0"
    peak = (
        "largest / median of the {} norms; null when the median is 0, or in float64 below 1e-144 "
        "of the largest weight"
    )
    columns = (
        Column(
            "kurtosis",
            "float64",
            "excess kurtosis, n sum((w - mean)^4) / sum((w - mean)^2)^2 - 3; null when std is 0. "
            "Source: KurtBoost, arXiv 2503.06518",
            "relative",
        ),
        Column(
            "crest",
            "float64",
            "max_abs / rms; null when rms is 0. Source: crest factor of signal processing",
            "relative",
        ),
        Column(
            "aimer",
            "float64",
            "mean_abs / rms; null when rms is 0; 0.798 for normal weights. Source: AIMER, arXiv "
            "2603.18492, which pools gate, up and down",
            "relative",
        ),
        Column("n_zero", "int64", "elements equal to 0 (either sign)", "elements"),
        Column(
            "n_denormal", "int64", "elements that are denormal in the type measured", "elements"
        ),
        Column("n_nan", "int64", "elements that are NaN", "elements"),
        Column("n_inf", "int64", "elements that are +Inf or -Inf", "elements"),
        Column(
            "n_distinct",
            "int64",
            "different stored codes; +0 and -0 are two, so is each NaN; null for F32 and F64",
            "codes",
        ),
        Column("row_norm_cv", "float64", cv.format("R row"), "relative"),
        Column("row_norm_max_over_median", "float64", peak.format("R row"), "relative"),
        Column("col_norm_cv", "float64", cv.format("C column"), "relative"),
        Column("col_norm_max_over_median", "float64", peak.format("C column"), "relative"),
        Column("frobenius", "float64", "sqrt(sum(w^2))", _UNIT),
    )
    return {column.name: column for column in columns}
