"""Where should I look in this run, and what are its five most interesting numbers?

python examples/five_numbers.py RUN

Works on every run that `collect_data` finished, also one that measured nothing. Each number says
which column it is and where it comes from, so that you can go on from there in a notebook.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd

from moe_weights import OpenedRun, open_run
from moe_weights.errors import MoeWeightsError

_GROUP_OUTLIER = re.compile(r"g\d+_p[\d_]+_outlier")


def measured_weights(run: OpenedRun) -> str:
    """How much of the checkpoint are the expert weights that were measured?"""
    stats, inventory = run.matrix_stats, run.inventory
    n_weights = int((stats["rows"] * stats["cols"]).sum())
    if not n_weights:
        return "0 weights measured: see logs/warnings and data/unmatched_tensors"
    is_measured = pd.MultiIndex.from_frame(inventory[["file", "tensor_name"]]).isin(
        pd.MultiIndex.from_frame(stats[["file", "source_tensor"]])
    )
    total_bytes = int(inventory["nbytes"].sum())
    measured_bytes = int(inventory.loc[is_measured, "nbytes"].sum())
    return (
        f"{n_weights:,} weights measured in {len(stats):,} matrices, "
        f"{100 * measured_bytes / total_bytes:.1f} % of the checkpoint's bytes"
    )


def dearest_scheme(run: OpenedRun) -> str:
    """Which scheme loses most on average, and on which projection?"""
    errors = _simulated(run)
    if errors.empty:
        return _no_simulation(run)
    by_scheme = errors.groupby("scheme")["w_rel_fro"].mean().sort_values(ascending=False)
    scheme = by_scheme.index[0]
    by_proj = errors[errors["scheme"] == scheme].groupby("proj")["w_rel_fro"].mean()
    others = ", ".join(f"{name} {error:.4f}" for name, error in by_scheme.iloc[1:].items())
    return (
        f"{by_scheme.iloc[0]:.4f} mean w_rel_fro of {scheme}, most on {by_proj.idxmax()} "
        f"({by_proj.max():.4f})" + (f"; {others}" if others else "")
    )


def hardest_matrix(run: OpenedRun) -> str:
    """Which matrix loses most under the schemes of the fewest bits?"""
    errors = _simulated(run)
    if errors.empty:
        return _no_simulation(run)
    errors = errors[errors["bits"] == errors["bits"].min()]
    worst = errors.iloc[int(errors["w_rel_fro"].argmax())]
    same = errors[errors["derived_tensor"] == worst["derived_tensor"]]
    same = same[(same["expert_id"] == worst["expert_id"]) & (same["layer"] == worst["layer"])]
    others = ", ".join(
        f"{row.scheme} {row.w_rel_fro:.4f}"
        for row in same.drop_duplicates("scheme").itertuples()
        if row.scheme != worst["scheme"]
    )
    return (
        f"{worst['w_rel_fro']:.4f} w_rel_fro of {worst['scheme']} on {_place(worst)}, the worst at "
        f"{worst['bits']} bits" + (f"; there {others}" if others else "")
    )


def heaviest_tail(run: OpenedRun) -> str:
    """Which expert has the most pronounced outliers within a quantisation group?"""
    stats = run.matrix_stats
    for column in filter(_GROUP_OUTLIER.fullmatch, stats.columns):
        if stats[column].notna().any():
            worst = stats.iloc[int(stats[column].argmax())]
            return (
                f"{worst[column]:.2f} {column} in {_place(worst)}, the heaviest tail; "
                f"median {stats[column].median():.2f}"
            )
    return "no group outlier ratio: no matrix falls into whole groups"


def widest_spread(run: OpenedRun) -> str:
    """In which layer and projection do the routed experts differ most in size?"""
    stats = run.matrix_stats
    routed = stats[stats["is_routed_expert"].astype(bool) & (stats["rms"] > 0)]
    keys = [key for key in ("stack", "layer", "proj") if key in routed]  # old runs have no stack
    sizes = routed.groupby(keys, dropna=False)["rms"].agg(["min", "max", "count"])
    sizes = sizes[sizes["count"] > 1]
    if sizes.empty:
        return "no layer with two routed experts to compare"
    sizes = sizes.assign(ratio=sizes["max"] / sizes["min"]).reset_index()
    widest = sizes.iloc[int(sizes["ratio"].argmax())]
    return (
        f"{widest['ratio']:.3f} max/min rms between the experts of {_layer(widest)}, "
        "the widest spread"
    )


FIVE: tuple[Callable[[OpenedRun], str], ...] = (
    measured_weights,
    dearest_scheme,
    hardest_matrix,
    heaviest_tail,
    widest_spread,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report of one run; return an exit code of `moe_weights.errors`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="run directory, <root>/<model-id>/<run-name>")
    folder = parser.parse_args(arguments).run
    try:
        run = open_run(folder)
        numbers = [describe(run) for describe in FIVE]
        n_warnings = len(run.warnings)
        tables = "by layer, by four layers, over all" if run.tables else "after build_tables"
    except MoeWeightsError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(f"\nFive numbers of {run.path}")
    for position, text in enumerate(numbers, start=1):
        print(f"  {position}. {text}")
    print("Where to look")
    print(f"  logs/run_health.json   what was read and measured; {_count(n_warnings)}")
    print("  data/                  one row per tensor, matrix, and matrix and scheme")
    print(f"  tables/                {tables}")
    print(f"  in a notebook          moe_weights.open_run({str(folder)!r})")
    return 0


def _simulated(run: OpenedRun) -> pd.DataFrame:
    errors = run.quant_sim
    return errors[errors["w_rel_fro"].notna()]


def _no_simulation(run: OpenedRun) -> str:
    if len(run.quant_sim):
        return "no simulated error: see the column error of data/quant_sim"
    if run.matrix_stats.empty:
        return "no simulated error: no matrix was measured"
    return "no simulated error: see logs/warnings, and mlx.enabled in the config"


def _place(row: pd.Series) -> str:
    if row["is_shared_expert"]:
        expert = "shared expert"
    else:
        expert = "expert unknown" if row["expert_id"] < 0 else f"expert {row['expert_id']}"
    return f"{_layer(row)} {expert}"


def _layer(row: pd.Series) -> str:
    stack = row.get("stack")
    prefix = f"{stack} " if isinstance(stack, str) and stack else ""
    return f"{prefix}layer {row['layer']} {row['proj']}"


def _count(n_warnings: int) -> str:
    if not n_warnings:
        return "no warnings"
    return f"{n_warnings} warning{'s' if n_warnings > 1 else ''} in logs/warnings"


if __name__ == "__main__":
    sys.exit(main())
