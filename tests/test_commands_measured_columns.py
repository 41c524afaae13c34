from __future__ import annotations

from moe_weights.measure.settings import ADDITIVE_METRICS
from tests.support.command_line import CommandCase


class GroupSizesOfTheConfig(CommandCase):
    def test_give_two_columns_each_however_often_they_are_named(self) -> None:
        self.write_model()
        self.collected({"stats.group_sizes_lastdim": [32, 64, 32, 0, -32, 0]})
        frame = self.frame("data/matrix_stats")
        names = [name for name in frame.columns if name.startswith("g") and "_outlier" in name]
        self.assertEqual(
            names,
            [f"g{size}_{kind}_outlier" for size in (32, 64, 0, -32) for kind in ("p95", "max")],
        )
        for name in names[4:]:
            self.assertTrue(frame[name].isna().all(), name)
        down = frame[frame["proj"] == "down_proj"]
        self.assertTrue(down["g64_max_outlier"].isna().all())  # 32 columns
        self.assertTrue(frame["g32_max_outlier"].notna().all())


class PercentilesOfTheConfig(CommandCase):
    def test_are_additive_columns_named_once(self) -> None:
        self.write_model()
        self.collected(
            {
                "stats.percentiles_abs": [99.5, 50.0, 99.5],
                "stats.group_outlier_percentile": 99.9,
            }
        )
        names = list(self.frame("data/matrix_stats").columns)
        first = names.index("mean")
        self.assertEqual(
            names[first:],
            ["mean", "std", "mean_abs", "rms", "max_abs", "p50_abs", "p99_abs", "p999_abs",
             "outlier_max_over_mean", "outlier_p99_over_median", "outlier_p999_over_median",
             "g32_p99_9_outlier", "g32_max_outlier", "g64_p99_9_outlier", "g64_max_outlier",
             "p99_5_abs", *ADDITIVE_METRICS,
             "stack", "extracted_via", "encoding", "layout_evidence"],
        )  # fmt: skip
